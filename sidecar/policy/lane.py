"""The pace of deliveries to one upstream.

After an outage the first letter goes alone and every success doubles how many
may be out at once, so that an upstream that has just come back is not run over
by all that waited for it. While it is away the lane pauses as a whole: a hundred
thousand waiting letters cause one try per pause, not a hundred thousand.
"""

from typing import Final

from sidecar.policy.verdict import Class, backoff_s

_BASE_S: Final = 0.2
_CAP_S: Final = 5.0
_LEAST_S: Final = 0.05


class Lane:
    """Deliveries to one upstream; times are monotonic seconds."""

    def __init__(self, width: int) -> None:
        """Begin narrow.

        Args:
            width: most deliveries out at once, once it works.
        """
        self._width = width
        self._allowed = 1
        self._outages = 0
        self._paused_until = 0.0
        self._in_flight = 0
        self._successes = 0

    @property
    def in_flight(self) -> int:
        """Return how many are out."""
        return self._in_flight

    @property
    def successes(self) -> int:
        """Return how many were delivered since the start."""
        return self._successes

    @property
    def paused_until(self) -> float:
        """Return when it may go on; in the past when it may now."""
        return self._paused_until

    def free(self, now: float) -> int:
        """Return how many more may go out now."""
        if now < self._paused_until:
            return 0
        return max(self._allowed - self._in_flight, 0)

    def began(self) -> None:
        """Count one as out."""
        self._in_flight += 1

    def ended(self, kind: Class | None, now: float, draw: float) -> None:
        """Take the end of one; None means the sidecar itself did not send it."""
        self._in_flight -= 1
        if kind is None:
            self._pause(_BASE_S, now, draw)
        elif kind is Class.OUTAGE:
            self._allowed = 1
            self._pause(backoff_ceiling_s(self._outages), now, draw)
            self._outages += 1
        elif kind is Class.THROTTLE:
            self._allowed = max(self._allowed // 2, 1)
        else:
            self._outages = 0
            self._widen(delivered=kind is Class.OK)

    def nudged(self) -> None:
        """Go on at once: the upstream is said to be back."""
        self._paused_until = 0.0

    def _widen(self, *, delivered: bool) -> None:
        if delivered:
            self._successes += 1
            self._allowed = min(self._allowed * 2, self._width)

    def _pause(self, ceiling_s: float, now: float, draw: float) -> None:
        until = now + max(_LEAST_S, draw * ceiling_s)
        self._paused_until = max(self._paused_until, until)


def backoff_ceiling_s(outages: int) -> float:
    """Return the longest pause after that many outages in a row."""
    return backoff_s(_BASE_S, _CAP_S, outages, 1.0)
