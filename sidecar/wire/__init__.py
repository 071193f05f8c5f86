"""What carries the bytes of calls and does what the guard says."""
