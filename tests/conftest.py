"""What holds for every test."""

import signal
import tempfile

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

# The same examples each time, no deadline on a busy machine, and nothing left in
# the checkout: what hypothesis caches goes with the run.
_home = tempfile.TemporaryDirectory(prefix="hypothesis-")
set_hypothesis_home_dir(_home.name)
settings.register_profile("outrigger", database=None, deadline=None, derandomize=True)
settings.load_profile("outrigger")

# A run started in the background by a shell ignores SIGINT, and what it starts would
# inherit that: the tests of Ctrl-C need it as a terminal has it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure():
    _home.cleanup()
