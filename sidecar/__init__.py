"""The process beside an agent: relay, letters, checkpoints, sleep and wake."""
