"""What every wire offers, whatever carries the bytes."""

from collections.abc import Callable
from typing import Protocol

from sidecar.call.descriptor import Answer, Metadata, Outcome, Resolution


class Wire(Protocol):
    """Carries calls from listeners to targets as its guard says."""

    async def start(self) -> None:
        """Begin to accept calls."""
        ...

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait for those in flight, then cancel them."""
        ...

    def resolve(self, token: int, result: Resolution) -> None:
        """Go on with a parked call; unknown tokens are ignored."""
        ...

    def post(self, work: Callable[[], None]) -> None:
        """Run `work` on the thread that makes the guard's calls."""
        ...

    async def send(
        self,
        upstream: str,
        method: str,
        metadata: Metadata,
        request: bytes,
        timeout_s: float,
    ) -> "Sent | Answer":
        """Deliver one request as `Kind.DELIVERY`; an Answer means it was refused."""
        ...


class Sent(Protocol):
    """A delivery that was attempted."""

    outcome: Outcome
    response: bytes
    """Last response message; empty if there was none."""
