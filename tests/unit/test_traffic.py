"""What counts as in flight: calls, and streams that are not silent."""

import pytest

from sidecar.agent.traffic import LIMITS, Side, Traffic
from sidecar.call.descriptor import CallCounts
from tests.support.clock import FakeClock


class Sides:
    """Counts and streams of both directions, set by hand."""

    def __init__(self):
        self.clock = FakeClock()
        self.counts = (CallCounts(), CallCounts())
        self.streams = [(), ()]
        self.traffic = Traffic(
            Side(self.counts[0], lambda: self.streams[0]),
            Side(self.counts[1], lambda: self.streams[1]),
            clock=self.clock,
        )

    def open(self, number, *ages):
        """Have streams whose last message is that old."""
        now = self.clock.monotonic()
        self.counts[number].in_flight += len(ages)
        self.streams[number] = tuple(now - age for age in ages)


@pytest.fixture
def sides():
    """Nothing in flight."""
    return Sides()


def test_calls_count_until_they_end(sides):
    """In and out are told apart and add up."""
    sides.counts[0].in_flight, sides.counts[1].in_flight = 2, 3
    sides.counts[0].begun, sides.counts[1].begun = 20, 30
    sides.clock.advance(10_000)

    traffic = sides.traffic
    assert (traffic.outbound(), traffic.inbound(), traffic.busy()) == (2, 3, 5)
    assert (traffic.begun(), traffic.calls(), traffic.streams()) == (50, 5, ())


@pytest.mark.parametrize("number", [0, 1])
def test_a_stream_counts_for_a_while_after_its_last_message(sides, number):
    """At the limit it still counts, past it no longer, and a message counts anew."""
    sides.open(number, 0.0)
    sides.clock.advance(LIMITS.stream_idle_s)
    assert sides.traffic.busy() == 1
    sides.clock.advance(0.001)
    assert sides.traffic.busy() == 0

    sides.streams[number] = (sides.clock.monotonic(),)
    assert sides.traffic.busy() == 1


def test_a_silent_stream_hides_no_call(sides):
    """Only itself is left out; the evidence gets every stream, apart from calls."""
    sides.counts[0].in_flight = 1
    sides.open(0, 1.0, 61.0)
    sides.open(1, 3600.0)

    traffic = sides.traffic
    assert (traffic.outbound(), traffic.inbound()) == (2, 0)
    assert traffic.calls() == 1
    assert traffic.streams() == (*sides.streams[0], *sides.streams[1])


def test_a_stream_that_is_counted_out_already_takes_no_other_with_it(sides):
    """For a moment a stream is open that the guard counts no more."""
    sides.open(0, 3600.0)
    sides.counts[0].in_flight = 0
    sides.counts[1].in_flight = 1

    traffic = sides.traffic
    assert (traffic.outbound(), traffic.busy(), traffic.calls()) == (0, 1, 1)
