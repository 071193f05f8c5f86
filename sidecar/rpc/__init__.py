"""The sidecar's API: servicers and the mapping to and from protobuf."""
