"""The controller's API: servicers and the mapping to and from protobuf."""
