"""What callees that fail do to their callers, and what callers do to them."""
