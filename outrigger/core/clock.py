"""The one place that reads a clock."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Time as adapters see it; policies take `now` instead."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        ...

    def wall(self) -> float:
        """Return seconds since 1970, for people and for records on disk."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait that long; 0 or less yields once."""
        ...


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        """Return seconds that never run backwards."""
        return time.monotonic()

    def wall(self) -> float:
        """Return seconds since 1970."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Wait on the running loop."""
        await asyncio.sleep(max(seconds, 0.0))

    def pause(self, seconds: float) -> None:
        """Block the calling thread; never call it from a loop."""
        time.sleep(max(seconds, 0.0))
