"""What a reader has not read yet: bounded, and honest about what it left out.

Race: the reader may be slower than the writers. It then loses the oldest things it
has not read and is told how many; nobody waits for it, and its memory is bounded.
"""

import asyncio
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """A queue from many writers to one reader; owned by one event loop."""

    def __init__(self, most: int) -> None:
        """Keep at most `most` things."""
        self._things: deque[T] = deque()
        self._most = most
        self._missed = 0
        self._arrived = asyncio.Event()

    def __len__(self) -> int:
        return len(self._things)

    def put(self, thing: T) -> None:
        """Add a thing, in the place of the oldest one if there is no other."""
        if len(self._things) >= self._most:
            self._things.popleft()
            self._missed += 1
        self._things.append(thing)
        self._arrived.set()

    async def take(self) -> tuple[T, int]:
        """Wait for the next thing; return it and how many before it were left out."""
        while not self._things:
            self._arrived.clear()
            await self._arrived.wait()
        missed, self._missed = self._missed, 0
        return self._things.popleft(), missed
