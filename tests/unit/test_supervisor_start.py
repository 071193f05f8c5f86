"""A start of the supervisor that is cut short, fails or is hurried."""

import asyncio
import dataclasses

import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.database import Database
from outrigger.core.errors import TimedOut, Transient
from outrigger.core.rng import SystemRng
from outrigger.core.tasks import Tasks
from sidecar.agent.leases import KeepAwakeLeases
from sidecar.agent.messages import Hello
from sidecar.agent.ports import SupervisorPorts, SupervisorSettings
from sidecar.agent.records import (
    SCHEMA,
    LifecycleRecord,
    LifecycleRecords,
    ProcessId,
)
from sidecar.agent.supervisor import Supervisor
from sidecar.policy.agent import AgentState
from tests.support.checkpoint_shelf import CheckpointShelf
from tests.support.fake_actuator import FakeActuator, until

FORMER = ProcessId(4242, 7, "boot")
UP = LifecycleRecord(
    epoch_reserved=20,
    epoch=12,
    state=AgentState.AWAKE,
    reason="it served",
    since_wall_s=1.0,
    process=FORMER,
)
SLEPT = dataclasses.replace(UP, state=AgentState.ASLEEP, reason="asked to")


class Link:
    """The agent's end; nobody listens."""

    def send(self, order):
        """Drop it."""

    def close(self, error):
        """Drop it."""


class Stubborn(FakeActuator):
    """Its former life ends when `gone` is set, or never."""

    def __init__(self, on_exit):
        super().__init__(on_exit)
        self.gone = asyncio.Event()
        self.hangs = False

    async def end_leftovers(self, former):
        self.former = former
        if self.hangs:
            raise TimedOut("STILL_THERE", "it hangs in the kernel")
        await self.gone.wait()


class Start:
    """One sidecar's supervisor over a row that outlives it."""

    def __init__(self, records, *, managed=True):
        self.seen = []
        self.clock = SystemClock()
        self.tasks = Tasks(self.seen.append, self.clock)
        ports = SupervisorPorts(
            checkpoints=CheckpointShelf(),
            leases=KeepAwakeLeases(lambda: "1"),
            publish=self.seen.append,
            clock=self.clock,
            rng=SystemRng(),
            tasks=self.tasks,
        )
        self.supervisor = Supervisor(
            "a1",
            settings=SupervisorSettings(),
            ports=ports,
            records=records,
            make_actuator=self.make if managed else None,
        )

    def make(self, on_exit):
        self.actuator = Stubborn(on_exit)
        return self.actuator

    @property
    def state(self):
        return self.supervisor.snapshot().state


@pytest.fixture
async def records(tmp_path):
    """The row of agent a1."""
    database = Database(tmp_path / "sidecar.db", SCHEMA)
    yield LifecycleRecords(database, "a1")
    await database.close()


@pytest.fixture
async def begin(records):
    """Make supervisors, one after the other; they end with the test."""
    made = []

    def build(**settings):
        made.append(Start(records, **settings))
        return made[-1]

    yield build
    for one in made:
        await one.tasks.close()


async def test_a_start_that_fails_leaves_the_record_as_it_was(records, begin):
    """The next start looks for the former life again, and nothing starts beside it."""
    await records.store(UP)
    for number in (1, 2):
        one = begin()
        one.actuator.hangs = True
        with pytest.raises(TimedOut):
            await one.supervisor.start()
        one.supervisor.request_wake(0, "a call")
        await asyncio.sleep(0.01)
        await one.supervisor.stop()

        assert (one.actuator.former, one.actuator.done) == (FORMER, [])
        reserved = {"epoch_reserved": UP.epoch_reserved + 8 * number}
        assert await records.load() == dataclasses.replace(UP, **reserved)


async def test_killed_after_its_first_record_the_next_one_starts_the_agent(
    records, begin
):
    """A first start says that it wakes before it has done anything."""

    class Killed(Exception):
        """Nothing after this is done."""

    class UntilStored(LifecycleRecords):
        async def store(self, record):
            await records.store(record)
            raise Killed

    for _ in range(2):
        cut = Start(UntilStored(records._database, "a1"))
        with pytest.raises(Killed):
            await cut.supervisor.start()
        assert (await records.load()).state is AgentState.WAKING

    one = begin()
    await one.supervisor.start()
    await until(lambda: one.actuator.done == ["spawn"])
    assert one.state is AgentState.WAKING
    await one.supervisor.stop()


async def test_a_sleeper_with_a_process_on_record_has_it_ended_and_sleeps_on(
    records, begin
):
    """Asleep on disk is no proof that nothing lives."""
    await records.store(SLEPT)
    one = begin()
    one.actuator.gone.set()
    await one.supervisor.start()

    assert (one.actuator.former, one.actuator.done) == (FORMER, [])
    assert (one.state, one.supervisor.snapshot().reason) == (SLEPT.state, "asked to")
    await one.supervisor.stop()
    assert (await records.load()).process is None


@pytest.mark.parametrize("dry", [False, True])
async def test_a_wake_during_the_start_waits_for_the_end_of_the_former_life(
    records, begin, dry
):
    """It is kept, not lost and not done at once; a dry run leaves nothing."""
    await records.store(SLEPT)
    one = begin()
    starting = one.tasks.spawn("start", one.supervisor.start())
    await until(lambda: one.actuator.former)

    one.supervisor.request_wake(0, "a call", validate_only=dry)
    await asyncio.sleep(0.01)
    assert (one.state, one.actuator.done) == (AgentState.ASLEEP, [])
    one.actuator.gone.set()
    await starting

    if dry:
        assert one.state is AgentState.ASLEEP
    else:
        await until(lambda: one.actuator.done == ["spawn"])
        assert one.supervisor.snapshot().reason == "a call"
    await one.supervisor.stop()


async def test_without_a_command_a_former_process_stays_on_record(records, begin):
    """A sidecar that cannot end it leaves that to one that can."""
    await records.store(UP)
    one = begin(managed=False)
    await one.supervisor.start()
    one.supervisor.attach(Link(), Hello(7))
    await one.supervisor.stop()

    assert (await records.load()).process == FORMER
    another = begin()
    another.actuator.gone.set()
    await another.supervisor.start()
    assert another.actuator.former == FORMER
    await another.supervisor.stop()


async def test_a_store_that_fails_at_the_start_starts_nothing(records, begin):
    """No epoch is reserved then, and the row is untouched."""
    await records.store(UP)
    one = begin()

    async def full(_):
        raise Transient("STORE_FAILED", "the disk is gone")

    one.supervisor._records.store = full
    with pytest.raises(Transient):
        await one.supervisor.start()
    del one.supervisor._records.store
    await one.supervisor.stop()

    assert await records.load() == UP
    assert one.actuator.done == []
