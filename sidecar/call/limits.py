"""How many calls may be on their way to one upstream."""

from outrigger.core.errors import Bug, Invalid, Overloaded


class ConcurrencyLimit:
    """A plain count of the calls in flight.

    The race: a call may end by its outcome and by its caller going away at the same
    moment. The guard decides which of them counts and leaves once; leaving an empty
    limit is therefore a defect and not silently forgiven.
    """

    __slots__ = ("_retry_after_s", "_upstream", "in_flight", "most")

    def __init__(
        self, upstream: str, most: int = 1024, *, retry_after_s: float = 0.1
    ) -> None:
        """Allow `most` at once.

        Raises:
            Invalid: BAD_LIMIT.
        """
        if most < 1:
            raise Invalid(
                "BAD_LIMIT",
                f"a limit of {most} calls in flight lets nothing pass: give at least 1",
            )
        self._upstream = upstream
        self._retry_after_s = retry_after_s
        self.most = most
        self.in_flight = 0

    def enter(self) -> bool:
        """Take a place; False means there is none."""
        if self.in_flight >= self.most:
            return False
        self.in_flight += 1
        return True

    def leave(self) -> None:
        """Give a place back.

        Raises:
            Bug: LEFT_TWICE.
        """
        if self.in_flight == 0:
            raise Bug("LEFT_TWICE", f"a call left {self._upstream} twice: report this")
        self.in_flight -= 1

    def refusal(self) -> Overloaded:
        """Return what a caller without a place is told."""
        return Overloaded(
            "CONCURRENCY_LIMIT",
            f"{self.most} calls to {self._upstream} are in flight, which is the limit:"
            f" come back in {self._retry_after_s} s or later, with fewer at once",
            metadata={"upstream": self._upstream, "limit": str(self.most)},
            retry_after_s=self._retry_after_s,
        )
