"""The calls of one agent that count as activity, in and out.

An open stream counts for `stream_idle_s` after its last message and no longer: one
forgotten subscription must neither keep an agent awake nor veto a sleep for ever.
Whoever asks whether something is in flight asks here, so that all of them agree.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from outrigger.core.clock import Clock
from sidecar.call.descriptor import CallCounts
from sidecar.policy.activity import ActivityLimits

LIMITS: Final = ActivityLimits()


@dataclass(frozen=True, slots=True)
class Side:
    """One direction: what its guard counts and its wire has open."""

    counts: CallCounts
    open_streams: Callable[[], tuple[float, ...]]
    """When each open stream last passed a message, monotonic seconds; streams are
    in `counts.in_flight` too."""


class Traffic:
    """What is in flight, silent streams left out."""

    def __init__(
        self,
        outbound: Side,
        inbound: Side,
        *,
        clock: Clock,
        stream_idle_s: float = LIMITS.stream_idle_s,
    ) -> None:
        self._sides = (outbound, inbound)
        self._clock = clock
        self._stream_idle_s = stream_idle_s

    def outbound(self) -> int:
        """Return how many calls of the agent are in flight."""
        return self._in_flight(self._sides[0])

    def inbound(self) -> int:
        """Return how many calls to the agent are in flight or held."""
        return self._in_flight(self._sides[1])

    def busy(self) -> int:
        """Return how many calls are in flight, in and out."""
        return self.outbound() + self.inbound()

    def begun(self) -> int:
        """Return how many calls were begun since the start, in and out."""
        return sum(side.counts.begun for side in self._sides)

    def calls(self) -> int:
        """Return how many calls are in flight, in and out, without any stream."""
        return sum(
            max(side.counts.in_flight - len(side.open_streams()), 0)
            for side in self._sides
        )

    def streams(self) -> tuple[float, ...]:
        """Return when each open stream last passed a message, silent ones too."""
        return tuple(seen for side in self._sides for seen in side.open_streams())

    def _in_flight(self, side: Side) -> int:
        silent = sum(map(self._is_silent, side.open_streams()))
        # A stream that has just ended is counted out a moment before it is closed.
        return max(side.counts.in_flight - silent, 0)

    def _is_silent(self, last_message: float) -> bool:
        return self._clock.monotonic() - last_message > self._stream_idle_s
