"""The call path beside what it competes with, measured in one run."""
