"""Checkpoints: the agent's state, verified on every write and read."""
