"""What every gRPC server and channel of ours has in common."""
