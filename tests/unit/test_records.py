"""The durable row of an agent: epochs only rise, whoever writes."""

import asyncio
import dataclasses

import pytest

from outrigger.core.database import Database
from outrigger.core.errors import Conflict, Corrupt, Overloaded, Transient
from outrigger.core.tasks import Tasks
from sidecar.agent.records import (
    EPOCHS_AHEAD,
    SCHEMA,
    Epochs,
    LifecycleRecord,
    LifecycleRecords,
    ProcessId,
    Recorder,
)
from sidecar.policy.agent import AgentState
from tests.support.clock import FakeClock

FULL = LifecycleRecord(
    epoch_reserved=15,
    epoch=7,
    state=AgentState.FROZEN,
    reason="asked",
    since_wall_s=1.7e9,
    generation=3,
    state_digest=b"d" * 32,
    sleep_count=5,
    wake_count=4,
    last_wake_s=0.25,
    woken_digest=b"w" * 32,
    process=ProcessId(4711, 99, "boot"),
)


@pytest.fixture
async def database(tmp_path):
    """A sidecar's database with this part's table."""
    opened = Database(tmp_path / "sidecar.db", SCHEMA)
    yield opened
    await opened.close()


@pytest.fixture
def records(database):
    """The row of agent a1."""
    return LifecycleRecords(database, "a1")


async def test_nothing_is_found_before_anything_is_stored(records):
    """A new state directory knows of no agent."""
    assert await records.load() is None


async def test_what_is_stored_is_read_back_whole(records):
    """Every field survives, with and without a process."""
    await records.store(FULL)
    assert await records.load() == FULL

    gone = dataclasses.replace(FULL, process=None)
    await records.store(gone)
    assert await records.load() == gone


async def test_it_survives_a_reopening(tmp_path):
    """The next sidecar reads what this one stored."""
    for _ in range(2):
        database = Database(tmp_path / "sidecar.db", SCHEMA)
        await LifecycleRecords(database, "a1").store(FULL)
        await database.close()

    database = Database(tmp_path / "sidecar.db", SCHEMA)
    assert await LifecycleRecords(database, "a1").load() == FULL
    assert await LifecycleRecords(database, "a2").load() is None
    await database.close()


@pytest.mark.parametrize("lower", [{"epoch": 6}, {"epoch_reserved": 14}])
async def test_a_lower_epoch_is_refused_and_changes_nothing(records, lower):
    """Of two writers the one with the older epoch loses."""
    await records.store(FULL)

    with pytest.raises(Conflict) as refused:
        await records.store(dataclasses.replace(FULL, reason="late", **lower))

    assert refused.value.reason == "STALE_EPOCH"
    assert await records.load() == FULL


async def test_a_state_of_another_version_is_named(records, database):
    """A row this version cannot read is an error with a way out, never a guess."""
    await records.store(FULL)
    await database.write(
        lambda connection: connection.execute(
            "UPDATE agent_lifecycle SET state = 'levitating'"
        )
    )

    with pytest.raises(Corrupt) as refused:
        await records.load()

    assert refused.value.reason == "BAD_LIFECYCLE_RECORD"
    assert "levitating" in refused.value.message


def test_epochs_rise_by_one_within_the_reserve():
    """Only what is reserved on disk is issued, and a reserve never shrinks."""
    epochs = Epochs()
    with pytest.raises(Transient) as refused:
        epochs.issue()
    assert refused.value.reason == "NO_EPOCH_LEFT"

    epochs.stored(2)
    epochs.stored(1)

    assert [epochs.issue(), epochs.issue()] == [1, 2]
    with pytest.raises(Transient):
        epochs.check()
    assert epochs.reserve == 2 + EPOCHS_AHEAD


def test_a_new_start_begins_above_everything_that_may_have_been_told():
    """An epoch told in the moment of a crash is never told twice."""
    epochs = Epochs()
    epochs.begin_above(40)
    reserve = epochs.reserve
    epochs.stored(reserve)

    assert epochs.issue() == 41
    assert reserve == 40 + EPOCHS_AHEAD


class SlowRecords:
    """Stores when let; fails when told."""

    def __init__(self):
        self.stored = []
        self.go = asyncio.Event()
        self.error = None

    async def store(self, record):
        await self.go.wait()
        if self.error is not None:
            raise self.error
        self.stored.append(record)


@pytest.fixture
async def tasks():
    """Tasks that keep what was reported."""
    seen = []
    clock = FakeClock()
    made = Tasks(seen.append, clock)
    made.seen, made.clock = seen, clock
    yield made
    await made.close()


@pytest.fixture
def slow():
    """A store that waits to be let."""
    return SlowRecords()


@pytest.fixture
def epochs():
    """No epoch is reserved yet."""
    return Epochs()


@pytest.fixture
def recorder(slow, epochs, tasks):
    """A recorder over the slow store."""
    return Recorder(
        slow, epochs, tasks=tasks, clock=tasks.clock, publish=tasks.seen.append
    )


async def until(condition):
    """Yield to the loop until something holds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


def reasons(tasks):
    """Return the reasons of what was reported."""
    return [seen.reason for seen in tasks.seen]


async def test_the_recorder_writes_the_newest_and_skips_those_between(
    slow, epochs, recorder, tasks
):
    """A burst of changes costs two writes: the first and the last."""
    for epoch in range(1, 6):
        recorder.put(dataclasses.replace(FULL, epoch=epoch, epoch_reserved=epoch + 8))
        await asyncio.sleep(0)
    slow.go.set()
    await until(lambda: not len(tasks))

    assert [record.epoch for record in slow.stored] == [1, 5]
    assert epochs.has_next


async def test_a_failed_write_is_tried_again_until_it_is_done(slow, recorder, tasks):
    """A full disk costs time, not the newest record; it is reported once."""
    slow.go.set()
    slow.error = Overloaded("STORE_FULL", "the disk is full")
    recorder.put(FULL)
    for pause_s in (0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0):
        await tasks.clock.wait_for_sleepers()
        tasks.clock.advance(pause_s)
    await tasks.clock.wait_for_sleepers()
    slow.error = None
    tasks.clock.advance(2.0)
    await until(lambda: not len(tasks))

    assert slow.stored == [FULL]
    assert reasons(tasks) == ["STORE_FULL"]


async def test_the_newest_record_is_the_one_tried_again(slow, recorder, tasks):
    """What came meanwhile takes the place of what failed."""
    slow.go.set()
    slow.error = Transient("STORE_FAILED", "the disk is gone")
    newest = dataclasses.replace(FULL, epoch=8)
    recorder.put(FULL)
    await tasks.clock.wait_for_sleepers()
    recorder.put(newest)
    slow.error = None
    tasks.clock.advance(0.1)
    await until(lambda: not len(tasks))

    assert slow.stored == [newest]


async def test_a_record_written_at_once_replaces_the_one_that_waits(
    slow, recorder, tasks
):
    """The last word of a sidecar that ends is not overwritten by an older one."""
    slow.go.set()
    slow.error = Transient("STORE_FAILED", "the disk is gone")
    last = dataclasses.replace(FULL, reason="the sidecar ends")
    recorder.put(FULL)
    await tasks.clock.wait_for_sleepers()
    slow.error = None
    await recorder.write(last)
    tasks.clock.advance(0.1)
    await until(lambda: not len(tasks))

    assert slow.stored == [last]


async def test_a_record_that_can_never_be_stored_is_given_up(slow, recorder, tasks):
    """A later sidecar has the directory: said once, and the next record is tried."""
    slow.go.set()
    slow.error = Conflict("STALE_EPOCH", "another sidecar is newer")
    recorder.put(FULL)
    await until(lambda: not len(tasks))
    assert reasons(tasks) == ["STALE_EPOCH"]

    slow.error = None
    recorder.put(FULL)
    await until(lambda: not len(tasks))
    assert slow.stored == [FULL]
