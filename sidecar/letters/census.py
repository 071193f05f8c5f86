"""How many letters live, counted anew after moves, at most twice a second."""

import asyncio
from typing import Final

from outrigger.core.clock import Clock
from sidecar.letters.journal import Journal

_PAUSE_S: Final = 0.5


class LetterCensus:
    """The newest count of one journal."""

    def __init__(self, journal: Journal, clock: Clock) -> None:
        self._journal = journal
        self._clock = clock
        self._moved = asyncio.Event()
        self.live = 0

    def moved(self) -> None:
        """Take note that a letter moved."""
        self._moved.set()

    async def count(self) -> None:
        """Count now."""
        self.live = (await self._journal.ledger()).live

    async def run(self) -> None:
        """Count after every move, for ever."""
        while True:
            await self._moved.wait()
            self._moved.clear()
            await self.count()
            await self._clock.sleep(_PAUSE_S)
