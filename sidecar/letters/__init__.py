"""Letters: calls that failed for good, kept until they have an end."""
