"""What holds for every test."""

from hypothesis import settings

# The same examples each time, no deadline on a busy machine, and no folder of
# examples left in the checkout.
settings.register_profile("outrigger", database=None, deadline=None, derandomize=True)
settings.load_profile("outrigger")
