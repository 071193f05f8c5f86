import asyncio
import inspect
import itertools

import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.errors import Transient
from outrigger.core.tasks import Tasks, finish
from tests.support.clock import FakeClock


async def test_a_failing_task_is_recorded_and_goes_no_further():
    """The boundary keeps the reason, the causes and the subject."""
    seen = []
    tasks = Tasks(seen.append, SystemClock())

    async def fail():
        raise Transient("AWAY", "gone") from OSError("socket")

    await tasks.spawn("reporter", fail(), subject="call-1")

    (event,) = seen
    assert (event.boundary, event.reason, event.subject) == (
        "reporter",
        "AWAY",
        "call-1",
    )
    assert event.causes == ("Transient: gone", "OSError: socket")
    assert len(tasks) == 0


async def test_a_defect_is_recorded_as_unexpected():
    """An error that is not ours has the reason UNEXPECTED."""
    seen = []
    tasks = Tasks(seen.append, SystemClock())

    async def fail():
        raise ZeroDivisionError

    await tasks.spawn("x", fail())

    assert seen[0].reason == "UNEXPECTED"


async def test_forever_starts_again_after_a_rising_pause():
    """A loop that fails at once is restarted, not spun."""
    clock = FakeClock()
    starts = []
    seen = []

    async def fail():
        starts.append(clock.monotonic())
        raise Transient("AWAY", "gone")

    tasks = Tasks(seen.append, clock)
    tasks.spawn_forever("loop", fail)
    for pause in (0.1, 0.2, 0.4):
        await clock.wait_for_sleepers()
        clock.advance(pause)
    await clock.wait_for_sleepers()
    await tasks.close()

    gaps = [b - a for a, b in itertools.pairwise(starts)]
    assert gaps == pytest.approx([0.1, 0.2, 0.4])
    assert len(seen) == 4


async def test_forever_forgets_its_pause_after_a_long_good_run():
    """A failure after a long good run is tried again quickly."""
    clock = FakeClock()
    runs = []

    async def run():
        runs.append(clock.monotonic())
        clock.advance(10)

    tasks = Tasks(lambda _: None, clock)
    tasks.spawn_forever("loop", run)
    for _ in range(3):
        await clock.wait_for_sleepers()
        clock.advance(0.1)
    await clock.wait_for_sleepers()
    await tasks.close()

    assert len(runs) == 4


async def test_close_ends_every_task():
    """Nothing runs on after its owner."""
    tasks = Tasks(lambda _: None, SystemClock())
    ended = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    tasks.spawn("a", wait())
    tasks.spawn("b", wait())
    await asyncio.sleep(0)
    await tasks.close()

    assert ended == [True, True]
    assert len(tasks) == 0


async def test_finish_waits_for_the_end():
    """A finished task has run its clean-up."""
    ended = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended.append(True)

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    await finish(task)

    assert ended == [True]


async def test_finish_passes_its_own_cancellation_on():
    """Whoever waits may be cancelled too; the task is still waited for."""
    ended = []

    async def wait():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            ended.append(True)

    inner = asyncio.create_task(wait())
    await asyncio.sleep(0)
    outer = asyncio.create_task(finish(inner))
    await asyncio.sleep(0.01)
    outer.cancel()

    with pytest.raises(asyncio.CancelledError):
        await outer
    assert ended == [True]


async def test_a_task_cancelled_before_it_began_leaves_nothing_behind():
    """Its coroutine is closed, not left to be complained about later."""
    tasks = Tasks(lambda _: None, SystemClock())

    async def never():
        raise AssertionError

    work = never()
    tasks.spawn("x", work).cancel()
    await tasks.close()

    assert inspect.getcoroutinestate(work) == inspect.CORO_CLOSED
