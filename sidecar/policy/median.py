"""What a method usually takes."""

from typing import Final

_KEPT: Final = 64
_ENOUGH: Final = 8


class Median:
    """The median of the newest 64 durations.

    Adding is one assignment, because it is done for every call; sorting is left for
    the few who ask, after a failure.
    """

    __slots__ = ("_next", "_taken")

    def __init__(self) -> None:
        self._taken: list[float] = []
        self._next = 0

    def add(self, duration_s: float) -> None:
        """Take the duration of a call that succeeded."""
        taken = self._taken
        if len(taken) < _KEPT:
            taken.append(duration_s)
            return
        taken[self._next] = duration_s
        self._next = (self._next + 1) % _KEPT

    def usual_s(self) -> float:
        """Return the median, the longest of a few, or 0 if none is known."""
        taken = self._taken
        return self.value_s() or (max(taken) if taken else 0.0)

    def value_s(self) -> float | None:
        """Return the median; None while fewer than 8 are known."""
        if len(self._taken) < _ENOUGH:
            return None
        return sorted(self._taken)[len(self._taken) // 2]
