"""What real processes seldom do: the rare turns of a supervisor's life."""

import asyncio
from contextlib import suppress

import pytest

from outrigger.core.database import Database
from outrigger.core.errors import Conflict, Overloaded, Refused, Transient
from outrigger.core.tasks import Tasks
from sidecar.agent.leases import KeepAwakeLeases
from sidecar.agent.messages import Failed as FailedMessage
from sidecar.agent.messages import Hello, PrepareSleep, Resume, SaveState, Welcome
from sidecar.agent.messages import Quiesced as QuiescedMessage
from sidecar.agent.messages import Restored as RestoredMessage
from sidecar.agent.messages import Saved as SavedMessage
from sidecar.agent.messages import Serving as ServingMessage
from sidecar.agent.ports import SleepMode, SupervisorPorts, SupervisorSettings
from sidecar.agent.records import SCHEMA, LifecycleRecords
from sidecar.agent.supervisor import Supervisor
from sidecar.policy.agent import AgentState
from sidecar.policy.lifecycle import RestartLimits
from tests.support.checkpoint_shelf import CheckpointShelf
from tests.support.clock import FakeClock
from tests.support.fake_actuator import FakeActuator

AWAKE, FROZEN, WAKING = AgentState.AWAKE, AgentState.FROZEN, AgentState.WAKING


class Link:
    """The agent's end, kept as lists."""

    def __init__(self):
        self.orders = []
        self.error = None

    def send(self, order):
        self.orders.append(order)

    def close(self, error):
        self.error = error


class Dice:
    """Always the same draw."""

    def draw(self):
        return 0.0


class Life:
    """A supervisor over a fake process and a clock that stands still."""

    def __init__(self, database, *, app_address="", accepts=None, **settings):
        self.clock = FakeClock()
        self.seen = []
        self.tasks = Tasks(self.seen.append, self.clock)
        self.shelf = CheckpointShelf()
        self.begun = 0
        self.busy = 0
        self.leases = KeepAwakeLeases(lambda: "1")
        self.link = Link()
        ports = SupervisorPorts(
            checkpoints=self.shelf,
            leases=self.leases,
            publish=self.seen.append,
            clock=self.clock,
            rng=Dice(),
            tasks=self.tasks,
            busy=lambda: self.busy,
            begun=lambda: self.begun,
            accepts=accepts,
        )
        self.supervisor = Supervisor(
            "a1",
            settings=SupervisorSettings(**settings),
            ports=ports,
            records=LifecycleRecords(database, "a1"),
            make_actuator=self.make,
            app_address=app_address,
        )

    def make(self, on_exit):
        self.actuator = FakeActuator(on_exit)
        return self.actuator

    @property
    def state(self):
        return self.supervisor.snapshot().state

    def reasons(self):
        return [seen.reason for seen in self.seen if type(seen).__name__ == "ErrorSeen"]

    async def rest(self, seconds):
        """Let that much time pass, with room for whoever waits for it."""
        for _ in range(10):
            self.clock.advance(seconds / 10)
            await asyncio.sleep(0.001)

    async def until(self, condition):
        """Let time pass in small steps until something holds."""
        async with asyncio.timeout(10):
            while not condition():
                self.clock.advance(0.01)
                await asyncio.sleep(0.001)

    async def up(self):
        """Start, attach, serve."""
        await self.supervisor.start()
        await self.attach()
        await self.until(lambda: self.state is AWAKE)

    async def attach(self):
        await self.until(lambda: self.actuator.pid)
        self.supervisor.attach(self.link, Hello(7))
        await self.until(lambda: self.supervisor._life.welcomed)
        self.supervisor.heard(self.link, ServingMessage())

    async def to_restoring(self):
        """Awake and attached late, told to restore what was saved meanwhile."""
        await self.supervisor.start()
        await self.until(lambda: self.state is AWAKE)
        kept = self.shelf.put(b"x", epoch=1)
        self.supervisor.attach(self.link, Hello(7))
        await self.until(lambda: self.supervisor._life.welcomed)
        return kept

    async def to_saving(self):
        """Ask for sleep and have the agent agree."""
        epoch = self.supervisor.request_sleep(0, "test").epoch
        self.supervisor.heard(self.link, QuiescedMessage(epoch))
        await self.until(lambda: SaveState(epoch) in self.link.orders)
        return epoch

    async def to_saved(self):
        """Have it save too."""
        epoch = await self.to_saving()
        kept = self.shelf.put(b"x", epoch=epoch)
        self.supervisor.heard(self.link, SavedMessage(epoch, kept.generation))
        return kept


@pytest.fixture
async def make(tmp_path):
    """Make lives over one database; they end with the test."""
    database = Database(tmp_path / "sidecar.db", SCHEMA)
    made = []

    def build(**settings):
        made.append(Life(database, **settings))
        return made[-1]

    yield build
    for life in made:
        with suppress(Conflict):  # one test starts a second beside the first
            await life.supervisor.stop()
        await life.tasks.close()
        assert "NO_SUCH_MOVE" not in life.reasons()
    await database.close()


async def test_what_the_agent_is_told_in_one_night(make):
    """Welcome, prepare, save; and resume when the freeze is over."""
    life = make(frozen_keep_s=1000.0)
    await life.up()
    await life.to_saved()
    await life.until(lambda: life.state is FROZEN)
    life.supervisor.request_wake(0, "needed")
    await life.until(lambda: life.state is AWAKE)

    told = [type(order) for order in life.link.orders]
    assert told == [Welcome, PrepareSleep, SaveState, Resume]
    assert life.actuator.done == ["spawn", "freeze", "thaw"]
    assert life.supervisor.snapshot().woken_digest == b""


async def test_calls_in_flight_and_leases_are_waited_for(make):
    """The agent's own word is not enough while something is in flight here."""
    life = make()
    await life.up()
    life.busy = 1
    life.leases.take("", 3600.0, "thinking", life.clock.monotonic())
    epoch = life.supervisor.request_sleep(0, "test").epoch
    life.supervisor.heard(life.link, QuiescedMessage(epoch))
    await life.rest(1.0)
    assert life.state is AgentState.QUIESCING

    life.busy = 0
    await life.rest(1.0)
    assert life.state is AgentState.QUIESCING

    life.leases.release("1")
    await life.until(lambda: life.state is AgentState.CHECKPOINTING)


async def test_an_answer_to_the_sleep_before_is_no_answer(make):
    """Epochs tell which sleep is meant."""
    life = make()
    await life.up()
    before = life.supervisor.request_sleep(0, "test").epoch
    life.supervisor.request_wake(0, "needed")
    life.supervisor.request_sleep(0, "test")

    life.supervisor.heard(life.link, QuiescedMessage(before))
    await life.rest(1.0)

    assert life.state is AgentState.QUIESCING


async def test_an_agent_that_is_up_is_left_alone_by_time(make):
    """No deadline of its wake, and no step of a sleep given up, outlives it."""
    life = make()
    await life.up()
    life.supervisor.request_sleep(0, "test")
    life.supervisor.request_wake(0, "needed")

    await life.rest(10_000.0)

    assert life.state is AWAKE
    assert life.reasons() == []


async def test_a_crash_after_a_thaw_is_a_crash(make):
    """What was saved for the sleep before is not the state of the agent any more."""
    life = make(frozen_keep_s=1000.0)
    await life.up()
    await life.to_saved()
    await life.until(lambda: life.state is FROZEN)
    life.supervisor.request_wake(0, "needed")
    await life.until(lambda: life.state is AWAKE)
    life.leases.take("", 3600.0, "thinking", life.clock.monotonic())

    life.actuator.end(137)

    assert life.state is WAKING
    assert life.reasons() == ["CRASHED"]
    assert life.leases.count(life.clock.monotonic()) == 0


async def test_a_wake_of_a_failed_agent_waits_for_its_former_process(make):
    """One that was killed and is not gone yet is not started beside itself."""
    life = make(wake_timeout_s=5.0)
    life.shelf.put(b"x")
    await life.supervisor.start()
    await life.until(lambda: life.state is AgentState.FAILED)
    assert life.actuator.done == ["spawn", "kill"]

    life.supervisor.request_wake(0, "again")
    await life.rest(1.0)
    assert life.actuator.done == ["spawn", "kill"]
    life.actuator.end(137)
    await life.until(lambda: life.actuator.done[-1] == "spawn")


async def test_a_wake_of_a_failed_agent_tries_the_newest_state_again(make):
    """Somebody may have mended what could not be restored."""
    life = make()
    for raw in (b"1", b"2"):
        life.shelf.put(raw)
    await life.supervisor.start()
    for wrong in (2, 1):
        await life.until(lambda: life.actuator.pid)
        life.supervisor.attach(life.link, Hello(7))
        life.supervisor.heard(life.link, RestoredMessage(wrong, b"wrong"))
        await life.until(lambda: life.actuator.is_ending)
        life.actuator.end(137)
    assert life.state is AgentState.FAILED

    life.supervisor.request_wake(0, "mended")
    await life.until(lambda: life.actuator.pid)
    life.supervisor.attach(life.link, Hello(7))

    told = [order.generation for order in life.link.orders]
    assert told == [2, 1, 2]


async def test_a_stream_that_was_replaced_proves_nothing(make):
    """Only what the newest stream says counts."""
    life = make()
    kept = life.shelf.put(b"x")
    await life.supervisor.start()
    await life.until(lambda: life.actuator.pid)
    newest = Link()
    life.supervisor.attach(life.link, Hello(7))
    life.supervisor.attach(newest, Hello(7))

    for message in (RestoredMessage(1, kept.state_digest), ServingMessage()):
        life.supervisor.heard(life.link, message)

    assert life.state is WAKING
    assert life.supervisor._life.restored is None


async def test_a_process_that_cannot_be_stopped_stays_awake(make):
    """A freeze that does not take is undone and said."""
    life = make(freeze_timeout_s=0.02)
    await life.up()
    life.actuator.freezes = False
    await life.to_saved()

    await life.until(lambda: life.state is AWAKE)

    assert life.actuator.done == ["spawn", "freeze", "thaw"]
    assert life.reasons() == ["FREEZE_FAILED"]


async def test_work_that_begins_while_the_save_is_read_back_wins(make):
    """The look after the verification sees what began during it."""
    life = make()
    await life.up()
    true_verify = life.shelf.verify

    async def verify(agent_id, generation):
        life.begun += 1
        return await true_verify(agent_id, generation)

    life.shelf.verify = verify
    await life.to_saved()
    await life.until(lambda: life.state is AWAKE)

    assert life.actuator.done == ["spawn", "thaw"]


async def test_work_seen_while_frozen_thaws_at_once(make):
    """A call whose bytes were under way does not wait for the end of the keep."""
    life = make(frozen_keep_s=1000.0)
    await life.up()
    await life.to_saved()
    await life.until(lambda: life.state is FROZEN)
    frozen_at = life.clock.monotonic()
    await life.rest(100.0)
    assert life.state is FROZEN
    assert life.clock.monotonic() - frozen_at >= 100.0

    life.busy = 1
    await life.rest(0.5)

    assert life.state is AWAKE
    assert life.actuator.done == ["spawn", "freeze", "thaw"]


async def test_one_that_is_only_frozen_is_looked_at_for_ever(make):
    """A message on an open stream thaws it, however long it was frozen."""
    life = make(sleep_mode=SleepMode.FREEZE)
    await life.up()
    epoch = life.supervisor.request_sleep(0, "test").epoch
    life.supervisor.heard(life.link, QuiescedMessage(epoch))
    await life.until(lambda: life.state is FROZEN)
    await life.rest(1000.0)
    assert life.state is FROZEN

    life.begun += 1
    await life.rest(0.5)

    assert life.state is AWAKE


async def test_a_store_that_works_again_gets_the_newest_record(make):
    """Disk and memory agree without anything else having to happen."""
    life = make(unattached_after_s=0.0)
    full = Overloaded("STORE_FULL", "the disk is full")
    records = life.supervisor._records
    await life.supervisor.start()

    async def refuse(_):
        raise full

    records.store = refuse
    await life.until(lambda: life.state is AWAKE)
    await life.rest(5.0)
    assert (await records.load()).state is WAKING
    assert life.reasons() == ["STORE_FULL"]

    del records.store
    await life.rest(5.0)
    await life.until(lambda: not life.supervisor._recorder._writing)
    assert (await records.load()).state is AWAKE


async def test_work_that_begins_while_saving_wins(make):
    """So does a call that is counted before the agent has answered."""
    life = make()
    await life.up()
    await life.to_saving()
    life.begun += 1

    await life.until(lambda: life.state is AWAKE)

    assert life.shelf.kept == {}


async def test_a_process_that_survives_kill_is_an_alert(make):
    """An operator is told; the agent is not taken for asleep."""
    life = make()
    await life.up()
    await life.to_saved()
    await life.until(lambda: life.actuator.is_ending)
    life.clock.advance(11)

    await life.until(lambda: any(type(s).__name__ == "Alerted" for s in life.seen))

    assert life.state is FROZEN
    life.actuator.end(137)
    assert life.state is AgentState.ASLEEP


async def test_a_wake_between_kill_and_death_waits_for_the_death(make):
    """No thaw and no second process beside one that is being ended."""
    life = make()
    await life.up()
    await life.to_saved()
    await life.until(lambda: life.actuator.is_ending)

    life.supervisor.request_wake(0, "needed")
    await life.rest(1.0)
    assert life.actuator.done == ["spawn", "freeze", "kill"]
    assert life.state is WAKING
    life.actuator.end(137)
    await life.until(lambda: life.actuator.done[-1] == "spawn")


async def test_no_sleep_while_it_restores(make):
    """An agent that attached anew and was told to restore is not put to sleep."""
    life = make(unattached_after_s=0.0)
    await life.supervisor.start()
    await life.until(lambda: life.state is AWAKE)
    kept = life.shelf.put(b"x", epoch=1)
    life.supervisor.attach(life.link, Hello(7))
    await life.until(lambda: life.supervisor._life.welcomed)

    with pytest.raises(Refused) as refused:
        life.supervisor.request_sleep(0, "test")
    assert refused.value.reason == "RESTORING"

    life.supervisor.heard(life.link, RestoredMessage(1, kept.state_digest))
    assert life.supervisor.request_sleep(0, "test").state is AgentState.QUIESCING


async def test_a_restore_that_fails_while_awake_starts_it_anew(make):
    """Awake without its state is no life; the process is replaced."""
    life = make(unattached_after_s=0.0)
    await life.supervisor.start()
    await life.until(lambda: life.state is AWAKE)
    life.shelf.put(b"x", epoch=1)
    life.supervisor.attach(life.link, Hello(7))
    await life.until(lambda: life.supervisor._life.welcomed)
    life.supervisor.heard(life.link, ServingMessage())

    await life.until(lambda: life.state is AgentState.FAILED)

    assert life.reasons() == ["RESTORE_FAILED", "EXHAUSTED"]
    assert life.actuator.done == ["spawn", "kill"]


async def test_a_process_that_dies_while_an_older_state_is_looked_for(make):
    """Then nothing needs to be killed, and the older state is started."""
    life = make()
    for raw in (b"1", b"2"):
        life.shelf.put(raw)
    await life.supervisor.start()
    await life.until(lambda: life.actuator.pid)
    life.supervisor.attach(life.link, Hello(7))
    life.actuator.pid = 0
    life.supervisor.heard(life.link, RestoredMessage(2, b"wrong"))

    await life.until(lambda: life.actuator.done == ["spawn", "spawn"])

    assert life.supervisor._life.restore.generation == 1


async def test_an_agent_that_had_come_up_is_never_given_up(make):
    """However often it dies awake, it is started again."""
    restart = RestartLimits(
        failed_starts_max=1, first_pause_s=0.001, longest_pause_s=0.001
    )
    life = make(restart=restart, unattached_after_s=0.0)
    await life.supervisor.start()
    for _ in range(5):
        await life.until(lambda: life.state is AWAKE)
        life.actuator.end(1)
        assert life.state is WAKING

    await life.until(lambda: life.state is AWAKE)
    assert not life.supervisor.child_exited.done()


async def test_a_life_long_enough_forgets_its_crashes(make):
    """The pause grows only while no life in between was stable."""
    life = make(restart=RestartLimits(stable_s=60.0), unattached_after_s=0.0)
    await life.supervisor.start()
    for expected in (1, 2, 1):
        await life.until(lambda: life.state is AWAKE)
        if expected == 1:
            life.clock.advance(61)
        life.actuator.end(1)

        assert life.supervisor._life.crashes == expected


async def test_without_a_disk_crashes_are_mended_and_sleeps_refused(make):
    """When no epoch can be reserved a restart goes on under the old one."""
    restart = RestartLimits(failed_starts_max=99, longest_pause_s=0.01)
    life = make(unattached_after_s=0.0, restart=restart)
    await life.up()

    async def no_disk(_):
        raise Transient("STORE_FAILED", "the disk is gone")

    life.supervisor._records.store = no_disk
    for _ in range(9):
        await life.until(lambda: life.state is AWAKE)
        life.actuator.end(1)
    await life.until(lambda: life.state is AWAKE)
    assert "NO_EPOCH_LEFT" in life.reasons()

    await life.attach()
    with pytest.raises(Transient) as refused:
        life.supervisor.request_sleep(0, "test")
    assert refused.value.reason == "NO_EPOCH_LEFT"
    assert life.supervisor.request_wake(0, "test").state is AWAKE
    del life.supervisor._records.store


async def test_fences_may_be_written_out_of_order(make):
    """A newer epoch's fence makes an older one's needless, and nobody is alarmed."""
    life = make()
    await life.up()
    order = []

    async def fence(_agent_id, epoch):
        if epoch == 2:
            await life.until(lambda: 3 in order)
            raise Conflict("STALE_EPOCH", "3 is fenced already")
        order.append(epoch)

    life.shelf.fence = fence
    life.supervisor.request_sleep(0, "test")
    life.supervisor.request_wake(0, "needed")
    await life.until(lambda: not len(life.tasks))
    assert life.reasons() == []

    async def fenced_by_another(_agent_id, _epoch):
        raise Conflict("STALE_EPOCH", "99 is fenced already")

    life.shelf.fence = fenced_by_another
    life.supervisor.request_sleep(0, "test")
    await life.until(life.reasons)
    assert set(life.reasons()) == {"STALE_EPOCH"}


async def test_the_former_process_is_on_record_as_soon_as_it_runs(make):
    """A sidecar killed right after a start leaves the next one a trace."""
    first = make()
    await first.supervisor.start()
    await first.until(lambda: first.actuator.pid)
    await first.until(lambda: not first.supervisor._recorder._writing)
    former = first.actuator.process

    second = make()
    await second.supervisor.start()

    assert second.actuator.former == former
    assert second.supervisor.snapshot().epoch > first.supervisor.snapshot().epoch
    with pytest.raises(Conflict) as refused:
        await first.supervisor.stop()
    assert refused.value.reason == "STALE_EPOCH"


async def test_a_hello_while_frozen_is_welcomed_and_wakes_nobody(make):
    """Its bytes were under way when the process was stopped."""
    life = make(frozen_keep_s=1000.0)
    await life.up()
    await life.to_saved()
    await life.until(lambda: life.state is FROZEN)
    late = Link()

    life.supervisor.attach(late, Hello(7, resumed=True))

    assert life.state is FROZEN
    assert late.orders == [Welcome(life.supervisor.snapshot().epoch)]
    assert life.link.error.reason == "REPLACED"


async def test_a_started_process_cannot_claim_to_hold_its_state(make):
    """`resumed` from a process that has restored nothing is not believed."""
    life = make()
    kept = life.shelf.put(b"x")
    await life.supervisor.start()
    await life.until(lambda: life.actuator.pid)

    life.supervisor.attach(life.link, Hello(7, resumed=True))

    epoch = life.supervisor.snapshot().epoch
    assert life.link.orders == [Welcome(epoch, 1, kept.state_digest)]
    life.supervisor.heard(life.link, RestoredMessage(1, kept.state_digest))
    again = Link()
    life.supervisor.attach(again, Hello(7, resumed=True))
    assert again.orders == [Welcome(epoch)]


async def test_a_stream_replaced_while_its_checkpoint_is_looked_for(make):
    """The welcome goes to the newest stream only."""
    life = make(unattached_after_s=0.0)
    await life.supervisor.start()
    await life.until(lambda: life.state is AWAKE)
    newest = Link()
    life.supervisor.attach(life.link, Hello(7))
    life.supervisor.attach(newest, Hello(7))

    await life.until(lambda: newest.orders)

    assert life.link.orders == []


async def test_stopping_with_an_agent_that_is_gone_already(make):
    """Nothing to end is no error, twice."""
    life = make(restart=RestartLimits(on_failure=False))
    await life.up()
    life.actuator.end(3)

    await life.supervisor.stop()
    await life.supervisor.stop()

    assert life.state is AgentState.FAILED


@pytest.mark.parametrize("configured", ["", "127.0.0.1:1"])
async def test_the_port_of_the_dead_process_is_not_asked(make, configured):
    """Whoever listens there now is a stranger; only `--app` outlives a process."""
    asked = []

    async def accepts(address):
        asked.append(address)
        return address == "127.0.0.1:2"

    life = make(app_address=configured, accepts=accepts)
    await life.supervisor.start()
    await life.until(lambda: life.actuator.pid)
    life.supervisor.attach(life.link, Hello(7, app_address="127.0.0.1:2"))
    await life.until(lambda: life.state is AWAKE)
    asked.clear()

    life.actuator.end(1)
    await life.until(lambda: life.actuator.pid)
    await life.rest(1.0)

    assert life.supervisor.app_address == configured
    assert life.state is WAKING
    assert set(asked) <= {configured}


async def test_serving_before_the_proof_is_not_heard(make):
    """It costs no generation: the proof may follow, and then it counts."""
    life = make()
    kept = life.shelf.put(b"x")
    await life.supervisor.start()
    await life.until(lambda: life.actuator.pid)
    life.supervisor.attach(life.link, Hello(7))

    life.supervisor.heard(life.link, ServingMessage())
    await life.rest(1.0)
    assert life.state is WAKING
    assert life.reasons() == []
    life.supervisor.heard(life.link, RestoredMessage(1, kept.state_digest))
    life.supervisor.heard(life.link, ServingMessage())

    assert life.state is AWAKE
    assert life.actuator.done == ["spawn"]


async def test_serving_without_a_proof_ends_at_the_deadline(make):
    """One that never proves its state is given up, and no older one is tried."""
    life = make(wake_timeout_s=5.0)
    for raw in (b"1", b"2"):
        life.shelf.put(raw)
    await life.supervisor.start()
    await life.until(lambda: life.actuator.pid)
    life.supervisor.attach(life.link, Hello(7))
    life.supervisor.heard(life.link, ServingMessage())

    await life.until(lambda: life.state is AgentState.FAILED)

    assert life.reasons() == ["TIMED_OUT"]
    assert life.supervisor.snapshot().generation == 2


async def test_one_that_holds_no_state_does_not_attach_while_frozen(make):
    """It would be told to restore; it attaches when it runs on, and is told then."""
    life = make(frozen_keep_s=1000.0)
    await life.up()
    kept = await life.to_saved()
    await life.until(lambda: life.state is FROZEN)
    late = Link()

    with pytest.raises(Transient) as refused:
        life.supervisor.attach(late, Hello(7))
    life.supervisor.heard(late, RestoredMessage(1, kept.state_digest))

    assert refused.value.reason == "FROZEN"
    assert (life.state, late.orders, life.link.error) == (FROZEN, [], None)
    life.supervisor.request_wake(0, "needed")
    await life.until(lambda: life.state is AWAKE)
    life.supervisor.attach(late, Hello(7))
    await life.until(lambda: late.orders)
    assert late.orders[0].generation == kept.generation


@pytest.mark.parametrize("asleep", [AgentState.QUIESCING, FROZEN])
async def test_a_state_restored_while_it_is_frozen_ends_the_sleep(make, asleep):
    """One that is only frozen may be put to sleep while it restores."""
    life = make(sleep_mode=SleepMode.FREEZE, unattached_after_s=0.0)
    kept = await life.to_restoring()
    epoch = life.supervisor.request_sleep(0, "test").epoch
    if asleep is FROZEN:
        life.supervisor.heard(life.link, QuiescedMessage(epoch))
        await life.until(lambda: life.state is FROZEN)

    life.supervisor.heard(life.link, RestoredMessage(1, kept.state_digest))
    await life.until(lambda: life.state is AWAKE)

    assert life.reasons() == []
    assert life.supervisor._life.restored.generation == 1
    assert life.supervisor.request_sleep(0, "test").state is AgentState.QUIESCING


@pytest.mark.parametrize("message", [FailedMessage(0, "no"), ServingMessage()])
async def test_a_restore_that_fails_while_it_falls_asleep(make, message):
    """The sleep is over, and it is replaced as if it had been awake."""
    life = make(sleep_mode=SleepMode.FREEZE, unattached_after_s=0.0)
    await life.to_restoring()
    life.supervisor.request_sleep(0, "test")

    life.supervisor.heard(life.link, message)

    assert life.state is WAKING
    assert life.reasons() == ["RESTORE_FAILED"]
