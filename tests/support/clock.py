"""A clock that moves only when a test says so."""

import asyncio


class FakeClock:
    """Monotonic and wall time from one number; sleepers wake when it passes them."""

    def __init__(self, *, monotonic: float = 1000.0, wall: float = 1.7e9) -> None:
        self._monotonic = monotonic
        self._wall_offset = wall - monotonic
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._monotonic

    def wall(self) -> float:
        return self._monotonic + self._wall_offset

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        done = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._monotonic + seconds, done))
        await done

    async def wait_for_sleepers(self, count: int = 1) -> None:
        """Yield until that many are asleep, so that `advance` is not too early."""
        while len(self._sleepers) < count:
            await asyncio.sleep(0.001)

    def advance(self, seconds: float) -> None:
        self._monotonic += seconds
        due = [pair for pair in self._sleepers if pair[0] <= self._monotonic]
        self._sleepers = [p for p in self._sleepers if p[0] > self._monotonic]
        for _, done in sorted(due, key=lambda pair: pair[0]):
            if not done.done():
                done.set_result(None)
