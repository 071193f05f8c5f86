"""Time as this process lived it: what it slept through is left out.

A process that was stopped (SIGSTOP, a debugger, a frozen container) finds, when it
goes on, that minutes have passed in which it could not have learnt anything. Windows
that aged meanwhile would have forgotten an outage, leases would have expired whose
probes had no chance to answer. Laptops are no trouble: CLOCK_MONOTONIC stands still
while they sleep.

The owner ticks every quarter of a second. A gap much longer than that can only mean
that nothing ran, whatever else it is told first afterwards.
"""

import math
from typing import Final

GAP_S: Final = 2.0
"""A longer silence between ticks is no silence but a stop."""
_LIVED_S: Final = 0.25
"""As much of it as may really have been lived: the time between two ticks."""
_FORGOTTEN: Final = 0.5
_ROUNDS: Final = 10
"""Turns of the loop that a call takes, each as late as the tick was."""


class ActiveTime:
    """Turns monotonic seconds into seconds this process was there for."""

    __slots__ = ("_lag_s", "_latest", "_ticked", "stopped_s", "stops")

    def __init__(self) -> None:
        self._ticked = 0.0
        self._lag_s = 0.0
        self._latest = math.inf
        """When the next tick must have come; there is none before the first."""
        self.stopped_s = 0.0
        """Seconds left out so far."""
        self.stops = 0
        """How often."""

    def at(self, now: float) -> float:
        """Return the active time of `now`."""
        if now >= self._latest:
            self._stopped(now)
        return now - self.stopped_s

    def tick(self, now: float) -> float:
        """Take note that the process runs; return the active time of `now`."""
        if now >= self._latest:
            self._stopped(now)
        elif self._latest != math.inf:
            late_s = max(0.0, now - self._ticked - _LIVED_S)
            self._lag_s = max(late_s, self._lag_s * _FORGOTTEN)
        self._ticked = now
        self._latest = now + GAP_S
        return now - self.stopped_s

    @property
    def own_delay_s(self) -> float:
        """How much of a call's time may be our own doing: this process is busy.

        Ticks that come late say how long everything else waits for its turn.
        """
        return _ROUNDS * self._lag_s

    def when(self, active: float) -> float:
        """Return the monotonic seconds of an active time, for showing.

        A moment before a stop is shown as long ago as was lived since.
        """
        return active + self.stopped_s

    def _stopped(self, now: float) -> None:
        self.stopped_s += now - self._ticked - _LIVED_S
        self.stops += 1
        self._ticked = now
        self._latest = now + GAP_S
