"""The attempts of one hedged call, side by side; the first to answer wins.

Who may want the same thing at once: two attempts that both have an answer. The first
to claim the call passes its answer on; for the other, and for all who have not
answered yet, the call is over, and whoever runs the race hears of none of them.
"""

import asyncio
from collections.abc import Callable

from outrigger.core.tasks import Tasks, finish
from sidecar.call.descriptor import Go, Outcome
from sidecar.wire.attempt import Attempt, Lost


class Race:
    """Runs attempts in tasks of their own and gives their outcomes as they come."""

    def __init__(self, make: Callable[[Go], Attempt], tasks: Tasks) -> None:
        self._make = make
        self._tasks = tasks
        self._running: dict[int, asyncio.Task[None]] = {}
        self._done: asyncio.Queue[tuple[int, Outcome | Exception]] = asyncio.Queue()

    def start(self, go: Go) -> None:
        """Begin one more attempt."""
        attempt = self._make(go)
        self._running[go.attempt] = self._tasks.spawn(
            "wire.attempt", self._run(go.attempt, attempt)
        )

    async def next(self, limit_s: float | None) -> tuple[int, Outcome] | None:
        """Return the next attempt that ended, by its number; None at the limit.

        Raises:
            CallerGone: an attempt cannot pass its answer on.
        """
        try:
            async with asyncio.timeout(limit_s):
                return await self.only()
        except TimeoutError:
            return None

    async def only(self) -> tuple[int, Outcome]:
        """Return the next attempt that ended, however long it takes.

        Raises:
            CallerGone: an attempt cannot pass its answer on.
        """
        number, ended = await self._done.get()
        if isinstance(ended, Exception):
            raise ended
        return number, ended

    def won_by(self, number: int) -> None:
        """Begin to end all but one; nothing is heard of them any more."""
        for other, task in self._running.items():
            if other != number:
                task.cancel()

    async def stop(self) -> None:
        """End all that are still running."""
        for task in self._running.values():
            task.cancel()
        for task in self._running.values():
            await finish(task)
        self._running.clear()

    async def _run(self, number: int, attempt: Attempt) -> None:
        try:
            ended: Outcome | Exception = await attempt.run()
        except Lost:
            return
        except Exception as error:  # noqa: BLE001 - raised again by `next`
            ended = error
        self._done.put_nowait((number, ended))
