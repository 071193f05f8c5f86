"""Steps end with their state and leave nothing behind."""

import asyncio
import gc

import pytest

from outrigger.core.tasks import Tasks
from sidecar.agent.steps import Steps
from tests.support.clock import FakeClock


@pytest.fixture
async def tasks():
    """Tasks whose reports fail the test."""
    reported = []
    made = Tasks(reported.append, FakeClock())
    yield made
    await made.close()
    assert reported == []


async def settle():
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_step_runs_and_its_error_is_handed_on(tasks):
    """What a step raises is an input for its owner, not a task's failure."""
    errors = []

    async def fail():
        raise ZeroDivisionError

    Steps(tasks).run("work", fail(), errors.append)
    await settle()

    assert [type(error) for error in errors] == [ZeroDivisionError]


async def test_a_slot_holds_one_step(tasks):
    """The newer one replaces the older; other slots are left alone."""
    steps = Steps(tasks)
    lines = []

    async def wait(name):
        try:
            await asyncio.Event().wait()
        finally:
            lines.append(name)

    steps.run("work", wait("first"), lines.append)
    steps.run("deadline", wait("other"), lines.append)
    await settle()
    steps.run("work", wait("second"), lines.append)
    await settle()
    assert lines == ["first"]

    steps.cancel_all()
    await settle()
    assert sorted(lines) == ["first", "other", "second"]


async def test_a_step_cancelled_before_it_began_leaves_no_coroutine(tasks):
    """Nobody is told of a coroutine that was never awaited."""

    async def never():
        raise AssertionError

    steps = Steps(tasks)
    steps.run("work", never(), lambda _: None)
    steps.cancel_all()
    await settle()
    gc.collect()

    assert len(tasks) == 0


async def test_a_step_does_not_cancel_itself(tasks):
    """The one that feeds the input which ends all steps goes on to its end."""
    steps = Steps(tasks)
    lines = []

    async def feed():
        steps.cancel_all()
        await asyncio.sleep(0)
        lines.append("to the end")

    steps.run("work", feed(), lines.append)
    await settle()

    assert lines == ["to the end"]
