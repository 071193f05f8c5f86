import asyncio
import uuid

import pytest

from controller.rpc.answers import Answers, check_request_id
from outrigger.core.errors import Invalid, Refused
from outrigger.core.tasks import Tasks
from outrigger.v1 import agent_pb2
from tests.support.clock import FakeClock

ID = "11111111-2222-3333-4444-555555555555"


class Doing:
    """Counts how often it was done; can be held up and can fail."""

    def __init__(self, error=None):
        self.count = 0
        self.error = error
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self):
        self.count += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return agent_pb2.Agent(epoch=self.count)


@pytest.fixture
async def tasks():
    """Where the doing runs; nothing may be reported."""
    reported = []
    made = Tasks(reported.append, FakeClock())
    yield made
    await made.close()
    assert reported == []


async def test_the_same_id_again_is_answered_not_done(tasks):
    """Also in another spelling."""
    answers, do = Answers(tasks), Doing()

    first = await answers.once("sleep", ID, b"r", do)
    second = await answers.once("sleep", "{" + ID.upper() + "}", b"r", do)

    assert (first.epoch, second.epoch, do.count) == (1, 1, 1)


async def test_no_id_is_always_done(tasks):
    """Empty ids are not one id."""
    answers, do = Answers(tasks), Doing()
    for _ in range(2):
        await answers.once("sleep", "", b"r", do)

    assert do.count == 2


async def test_ids_of_different_methods_differ(tasks):
    """A sleep is no wake."""
    answers, do = Answers(tasks), Doing()
    for method in ("sleep", "wake"):
        await answers.once(method, ID, b"r", do)

    assert do.count == 2


async def test_an_id_with_another_request_is_refused(tasks):
    """The first answer would be a lie."""
    answers, do = Answers(tasks), Doing()
    await answers.once("sleep", ID, b"r", do)

    with pytest.raises(Invalid) as caught:
        await answers.once("sleep", ID, b"other", do)

    assert caught.value.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("bad", ["x", "1234", ID + "0"])
def test_an_id_that_is_no_uuid_is_refused(bad):
    """Before anything is done."""
    with pytest.raises(Invalid) as caught:
        check_request_id(bad)

    assert caught.value.reason == "BAD_REQUEST_ID"


async def test_a_failure_is_told_to_all_who_wait_and_not_kept(tasks):
    """The next try is a new one."""
    answers, do = Answers(tasks), Doing(Refused("BUSY", "busy"))
    both = await asyncio.gather(
        answers.once("sleep", ID, b"r", do),
        answers.once("sleep", ID, b"r", do),
        return_exceptions=True,
    )
    assert [error.reason for error in both] == ["BUSY", "BUSY"]
    assert do.count == 1

    do.error = None
    assert (await answers.once("sleep", ID, b"r", do)).epoch == 2


async def test_a_caller_that_goes_away_does_not_take_the_doing_along(tasks):
    """The second caller still gets the first doing's answer."""
    answers, do = Answers(tasks), Doing()
    do.gate.clear()
    first = asyncio.create_task(answers.once("sleep", ID, b"r", do))
    while not do.count:
        await asyncio.sleep(0)
    first.cancel()
    second = asyncio.create_task(answers.once("sleep", ID, b"r", do))
    await asyncio.sleep(0)
    do.gate.set()

    assert (await second).epoch == 1
    assert do.count == 1


async def test_stopping_ends_who_waits(tasks):
    """Nobody hangs on a doing that was cancelled."""
    answers, do = Answers(tasks), Doing()
    do.gate.clear()
    waiting = asyncio.create_task(answers.once("sleep", ID, b"r", do))
    while not do.count:
        await asyncio.sleep(0)

    await tasks.close()

    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_the_oldest_answers_are_forgotten(tasks):
    """The memory is bounded."""
    answers, do = Answers(tasks, most=2), Doing()
    ids = [str(uuid.uuid4()) for _ in range(3)]
    for one in ids:
        await answers.once("sleep", one, b"r", do)

    await answers.once("sleep", ids[2], b"r", do)
    assert do.count == 3
    await answers.once("sleep", ids[0], b"r", do)
    assert do.count == 4
