import asyncio

import pytest

from controller.policy.agent import State
from controller.policy.fleet import Left, Pinned
from controller.policy.schedule import Settings
from controller.reconcile import Reconciler
from controller.scheduler import Scheduler
from controller.store.protocol import KeptSettings
from outrigger.core.errors import Refused, Transient
from outrigger.core.events import Alerted, ErrorSeen, Recovered
from outrigger.core.tasks import Tasks
from tests.support.clock import FakeClock
from tests.support.fleet import heard, idle_fleet


class Hands:
    """Commands and the trail in one: remembers what is done, can be held up."""

    def __init__(self):
        self.done = []
        self.records = []
        self.error = None
        self.broken = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def sleep(self, agent_id, seen_epoch, reason):
        await self._do("sleep", agent_id, seen_epoch, reason)

    async def wake(self, agent_id, seen_epoch, reason):
        await self._do("wake", agent_id, seen_epoch, reason)

    async def _do(self, *what):
        self.done.append(what)
        await self.gate.wait()
        if self.error is not None:
            raise self.error

    def check(self):
        if self.broken is not None:
            raise self.broken

    async def record(self, **fields):
        self.records.append(fields)


class World:
    """A reconciler over one idle agent."""

    def __init__(self):
        self.clock = FakeClock(monotonic=400.0)
        self.fleet = heard(idle_fleet("otter"), 400.0)
        self.hands = Hands()
        self.published = []
        self.tasks = Tasks(self.published.append, self.clock)
        self.scheduler = Scheduler(None, KeptSettings(enabled=True), Settings())
        self.reconciler = Reconciler(
            fleet=self.fleet,
            scheduler=self.scheduler,
            commands=self.hands,
            trail=self.hands,
            clock=self.clock,
            tasks=self.tasks,
            publish=lambda payload, agent_id: self.published.append(
                (agent_id, payload)
            ),
        )

    async def beat(self):
        """One beat, and everything it began as far as it gets."""
        self.reconciler.beat()
        for _ in range(5):
            await asyncio.sleep(0)


@pytest.fixture
async def world():
    """No task is left over."""
    made = World()
    yield made
    await made.tasks.close()


async def test_what_is_planned_is_done_and_recorded(world):
    """With the epoch and the reason of the plan."""
    await world.beat()

    ((verb, agent_id, epoch, reason),) = world.hands.done
    assert (verb, agent_id, epoch) == ("sleep", "otter", 1)
    assert world.scheduler.sleep_count == 1
    assert world.hands.records == [
        {
            "principal": "scheduler",
            "method": "sleep",
            "subject": "otter",
            "status_code": 0,
            "reason": reason,
        }
    ]


async def test_an_agent_whose_command_is_under_way_is_left_out(world):
    """And is planned for again once that has ended."""
    world.hands.gate.clear()
    await world.beat()
    await world.beat()
    assert len(world.hands.done) == 1

    world.hands.gate.set()
    await world.beat()
    await world.beat()

    assert len(world.hands.done) == 2


async def test_a_pinned_sleeper_is_woken_at_whatever_epoch(world):
    """A wake never comes too late."""
    heard(world.fleet, 400.0, state=State.ASLEEP)
    world.fleet.apply("otter", Pinned("demo"), 400.0)

    await world.beat()

    assert [what[:3] for what in world.hands.done] == [("wake", "otter", 0)]


async def test_a_refusal_is_told_and_recorded(world):
    """It does not count as a sleep."""
    world.hands.error = Refused("LEASES_HELD", "leases")

    await world.beat()

    (agent_id, seen) = world.published[0]
    assert (agent_id, type(seen), seen.reason) == ("otter", ErrorSeen, "LEASES_HELD")
    assert world.hands.records[0]["status_code"] == 9
    assert world.hands.records[0]["reason"] == "LEASES_HELD"
    assert world.scheduler.sleep_count == 0


async def test_nothing_is_put_to_sleep_without_an_audit(world):
    """What cannot be recorded is not begun."""
    world.hands.broken = Transient("AUDIT_FAILED", "disk gone")

    await world.beat()

    assert world.hands.done == []
    assert world.published[0][1].reason == "AUDIT_FAILED"


async def test_the_lost_and_the_found_are_told_once(world):
    """Not at every beat."""
    await world.beat()
    world.fleet.apply("otter", Left(), 401.0)
    world.clock.advance(1.0)
    for _ in range(2):
        await world.beat()
    (lost,) = [p for _, p in world.published if isinstance(p, Alerted)]

    assert lost.name == "AGENT_UNKNOWN"


async def test_the_loop_beats_again_and_again(world):
    """At its interval, by the clock."""
    world.tasks.spawn("reconcile", world.reconciler.run(1.0))
    await world.clock.wait_for_sleepers()
    world.fleet.apply("otter", Left(), 401.0)
    world.clock.advance(1.0)
    await world.clock.wait_for_sleepers()
    heard_again = idle_fleet("otter", now=402.0)["otter"]
    world.fleet._agents["otter"] = heard_again
    world.clock.advance(1.0)
    await world.clock.wait_for_sleepers()

    told = [p for _, p in world.published if isinstance(p, Alerted | Recovered)]
    assert [type(payload) for payload in told] == [Alerted, Recovered]
    assert told[1].elapsed_s == 1.0
