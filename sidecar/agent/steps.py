"""The waiting parts of an agent's life, each cancelled with the state it serves.

Race: a step may be cancelled before its first line runs, or while it feeds the
very input that cancels it. The first must not leave a coroutine that nobody
awaits; the second must not cancel the feeder.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from outrigger.core.tasks import Tasks

OnError = Callable[[Exception], None]


class Steps:
    """Running steps by slot; one per slot."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._running: dict[str, asyncio.Task[None]] = {}

    def run(
        self, slot: str, work: Coroutine[Any, Any, None], on_error: OnError
    ) -> None:
        """Run `work` in place of what the slot held; hand what it raises on."""
        self.cancel(slot)
        bounded = _bounded(work, on_error)
        task = self._tasks.spawn(f"agent.{slot}", bounded)
        task.add_done_callback(lambda _: (bounded.close(), work.close()))
        self._running[slot] = task

    def cancel(self, slot: str) -> None:
        """End what the slot holds, unless it is the caller itself."""
        task = self._running.pop(slot, None)
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def cancel_all(self) -> None:
        """End every step but the caller."""
        for slot in tuple(self._running):
            self.cancel(slot)


async def _bounded(work: Coroutine[Any, Any, None], on_error: OnError) -> None:
    try:
        await work
    except Exception as error:  # noqa: BLE001 - every failure becomes an input
        on_error(error)
