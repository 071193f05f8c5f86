"""The agent's side of the sidecar."""
