"""The kernel that the sidecar, the controller and the command share."""
