import logging

import pytest

from outrigger.core.events import Alerted, Recovered
from sidecar.wire.surroundings import Surroundings


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (Alerted(name="UPSTREAM_NAME_LOST", message="why"), logging.WARNING),
        (Recovered(subject="addresses of up", elapsed_s=1.0), logging.INFO),
    ],
)
def test_events_nobody_publishes_are_logged(caplog, event, level):
    """What an operator should look at is louder than what went well again."""
    caplog.set_level(logging.INFO, "outrigger.upstreams")
    Surroundings().publish(event)
    ((_, found, text),) = caplog.record_tuples
    assert (found, text) == (level, str(event))
