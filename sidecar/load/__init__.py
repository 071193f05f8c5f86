"""What the agent's process tree uses, measured and reported."""
