"""The outrigger command."""
