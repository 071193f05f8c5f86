"""Counts over the last seconds, in buckets, exactly.

A ratio over whole buckets and not a moving average: an average lets a tight burst
hide an outage, and after a pause it weighs calls by how many came, not by when.
"""

from outrigger.core.errors import Invalid


class Window:
    """Two tallies, `total` and `marked`, over the newest buckets.

    A circuit marks failures; a retry budget counts what was earned and marks what
    was spent. Bucket k holds what came in [k * width, (k + 1) * width) seconds; the
    window is the bucket of the newest `now` and the ones before it. A `now` that
    runs backwards is taken for the newest one.
    """

    __slots__ = ("_bucket", "_ends", "_marks", "_totals", "_width", "marked", "total")

    def __init__(
        self, *, now: float, window_s: float = 10.0, buckets: int = 10
    ) -> None:
        """Start empty.

        Raises:
            Invalid: BAD_WINDOW.
        """
        if not window_s > 0 or buckets < 1:
            raise Invalid(
                "BAD_WINDOW",
                f"a window of {window_s} s in {buckets} buckets is not possible: give"
                " it more than 0 seconds and at least one bucket",
            )
        self._width = window_s / buckets
        self._totals = [0] * buckets
        self._marks = [0] * buckets
        self._bucket = int(now // self._width)
        self._ends = (self._bucket + 1) * self._width
        self.total = 0
        self.marked = 0

    def add(self, now: float, total: int, marked: int) -> None:
        """Add to both tallies."""
        if now >= self._ends:
            self._turn(now)
        slot = self._bucket % len(self._totals)
        self._totals[slot] += total
        self._marks[slot] += marked
        self.total += total
        self.marked += marked

    def read(self, now: float) -> tuple[int, int]:
        """Return (total, marked) as of `now`."""
        if now >= self._ends:
            self._turn(now)
        return self.total, self.marked

    def clear(self) -> None:
        """Forget everything."""
        self._totals = [0] * len(self._totals)
        self._marks = [0] * len(self._marks)
        self.total = self.marked = 0

    def _turn(self, now: float) -> None:
        """Enter the bucket of `now`, dropping those that fell out of the window."""
        bucket = int(now // self._width)
        count = len(self._totals)
        # After an idle gap longer than the window every bucket is stale, once.
        for stale in range(max(self._bucket + 1, bucket - count + 1), bucket + 1):
            slot = stale % count
            self.total -= self._totals[slot]
            self.marked -= self._marks[slot]
            self._totals[slot] = self._marks[slot] = 0
        self._bucket = bucket
        self._ends = (bucket + 1) * self._width
