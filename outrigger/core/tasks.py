"""Error boundaries: the one place that makes tasks.

Every background task runs in one. What a task lets escape is recorded with its
chain of causes and goes no further, so that one failing task never takes the
process down and is never silent either. asyncio.create_task and its kin are
banned elsewhere by the lint.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, Protocol

from outrigger.core.clock import Clock
from outrigger.core.errors import OutriggerError, cause_chain
from outrigger.core.events import ErrorSeen

_log = logging.getLogger("outrigger.tasks")

_RESTART_FIRST_S = 0.1
_RESTART_MAX_S = 5.0


class Report(Protocol):
    """Where caught failures go, usually EventLog.publish."""

    def __call__(self, payload: ErrorSeen, /) -> object:
        """Take one failure."""
        ...


def describe(boundary: str, error: BaseException, *, subject: str = "") -> ErrorSeen:
    """Return the record of a caught failure."""
    reason = error.reason if isinstance(error, OutriggerError) else "UNEXPECTED"
    return ErrorSeen(
        boundary=boundary, reason=reason, causes=cause_chain(error), subject=subject
    )


class Tasks:
    """The background tasks of one owner; closing it ends them all."""

    def __init__(self, report: Report, clock: Clock) -> None:
        self._report = report
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def spawn(
        self, boundary: str, work: Coroutine[Any, Any, object], *, subject: str = ""
    ) -> asyncio.Task[None]:
        """Run `work` once; record what it lets escape."""
        task = asyncio.get_running_loop().create_task(
            self._bounded(boundary, work, subject), name=boundary
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # A task cancelled before its first step would leave `work` never awaited.
        task.add_done_callback(lambda _: work.close())
        return task

    def spawn_forever(
        self, boundary: str, make: Callable[[], Awaitable[object]]
    ) -> asyncio.Task[None]:
        """Run `make()` again and again, after a rising pause when it fails."""
        return self.spawn(boundary, self._forever(boundary, make))

    async def close(self) -> None:
        """Cancel every task and wait until all have ended."""
        for task in tuple(self._tasks):
            task.cancel()
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def _bounded(
        self, boundary: str, work: Coroutine[Any, Any, object], subject: str
    ) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - this is the boundary
            self._record(boundary, error, subject)

    async def _forever(
        self, boundary: str, make: Callable[[], Awaitable[object]]
    ) -> None:
        pause_s = _RESTART_FIRST_S
        while True:
            began = self._clock.monotonic()
            try:
                await make()
            except Exception as error:  # noqa: BLE001 - this is the boundary
                self._record(boundary, error, "")
            if self._clock.monotonic() - began > _RESTART_MAX_S:
                pause_s = _RESTART_FIRST_S
            await self._clock.sleep(pause_s)
            pause_s = min(pause_s * 2, _RESTART_MAX_S)

    def _record(self, boundary: str, error: BaseException, subject: str) -> None:
        _log.warning("%s failed", boundary, exc_info=error)
        self._report(describe(boundary, error, subject=subject))


async def finish(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end; its outcome is dropped.

    Our own cancellation while waiting is passed on.
    """
    task.cancel()
    with suppress(asyncio.CancelledError):
        await asyncio.wait((task,))
        return
    await asyncio.wait((task,))
    raise asyncio.CancelledError
