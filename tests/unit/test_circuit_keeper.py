"""Circuits on disk: every move, an operator's before it is answered."""

import asyncio

import pytest

from outrigger.core.database import Database
from outrigger.core.errors import NotFound, Overloaded
from outrigger.core.event_log import EventLog
from outrigger.core.tasks import Tasks
from outrigger.v1 import circuit_service_pb2 as pb
from sidecar.call.guard import CallGuard
from sidecar.call.records import SCHEMA, CircuitKeeper, CircuitRecords
from sidecar.call.routes import Routes, Upstream
from sidecar.rpc.circuits import CircuitServicer
from tests.support.clock import FakeClock


class Gated(CircuitRecords):
    """A store that may be full, or slow."""

    def __init__(self, database):
        super().__init__(database)
        self.full = False
        self.go = asyncio.Event()
        self.go.set()

    async def store(self, records, wall_s):
        await self.go.wait()
        if self.full:
            raise Overloaded("STORE_FULL", "the disk is full")
        await super().store(records, wall_s)


class Circuits:
    """A guard with its keeper and its service."""

    def __init__(self, database):
        self.clock = FakeClock()
        self.seen = []
        self.tasks = Tasks(self.seen.append, self.clock)
        self.records = Gated(database)
        self.guard = CallGuard(
            Routes([Upstream("a", "127.0.0.1:1")]),
            publish=lambda _: self.keeper.moved(),
            now=self.clock.monotonic(),
        )
        self.keeper = CircuitKeeper(self.records, self.guard, self.clock)
        events = EventLog(agent_id="a", clock=self.clock)
        self.servicer = CircuitServicer(
            self.guard, self.clock, events, stored=self.keeper.store
        )

    async def kept(self):
        """Return what is on disk."""
        kept = await self.records.load(self.clock.wall())
        return [(one.circuit_id, one.state) for one in kept]

    async def isolate(self, circuit_id="a", **more):
        request = pb.IsolateCircuitRequest(
            circuit_id=circuit_id, reason="by hand", **more
        )
        return await self.servicer.IsolateCircuit(request, None)

    async def restore(self, **more):
        request = pb.RestoreCircuitRequest(circuit_id="a", **more)
        return await self.servicer.RestoreCircuit(request, None)


@pytest.fixture
async def circuits(tmp_path):
    """One upstream, `a`."""
    database = Database(tmp_path / "sidecar.db", SCHEMA)
    made = Circuits(database)
    yield made
    await made.tasks.close()
    await database.close()


async def until(check):
    """Wait until an asynchronous check holds."""
    async with asyncio.timeout(5):
        while not await check():
            await asyncio.sleep(0.001)


async def test_a_move_that_could_not_be_stored_is_stored_later(circuits):
    """A full disk costs time; nothing else has to move for it."""
    circuits.tasks.spawn_forever("circuits", circuits.keeper.run)
    circuits.records.full = True
    circuits.guard.isolate("a", "by hand", circuits.clock.monotonic())
    await circuits.clock.wait_for_sleepers()
    assert [seen.reason for seen in circuits.seen] == ["STORE_FULL"]

    circuits.records.full = False
    circuits.clock.advance(10.0)

    async def stored():
        return await circuits.kept() == [("a", "isolated")]

    await until(stored)


async def test_an_isolation_is_on_disk_before_it_is_answered(circuits):
    """So is a restoration; the answer waits for as long as the store takes."""
    circuits.records.go.clear()
    asked = circuits.tasks.spawn("ask", circuits.isolate())
    await asyncio.sleep(0.01)
    assert not asked.done()
    assert await circuits.kept() == []

    circuits.records.go.set()
    await asked
    assert await circuits.kept() == [("a", "isolated")]
    await circuits.restore()
    assert await circuits.kept() == [("a", "half_open")]


async def test_an_isolation_that_cannot_be_stored_is_not_acknowledged(circuits):
    """It holds in memory, and who asked is told that it may not outlive a crash."""
    circuits.records.full = True
    with pytest.raises(Overloaded):
        await circuits.isolate()
    assert circuits.guard.circuit("a").state == "isolated"

    circuits.records.full = False
    await circuits.isolate()
    assert await circuits.kept() == [("a", "isolated")]


async def test_what_changes_nothing_stores_nothing(circuits):
    """A dry run and a circuit that is not there need no disk."""
    circuits.records.full = True
    await circuits.isolate(validate_only=True)
    await circuits.restore(validate_only=True)
    with pytest.raises(NotFound):
        await circuits.isolate("nobody")

    assert circuits.guard.circuit("a").state == "closed"


async def test_a_circuit_ages_while_no_sidecar_runs(circuits):
    """Open for ten seconds, and a minute passes before the next one starts."""
    circuits.guard.isolate("a", "by hand", circuits.clock.monotonic())
    circuits.clock.advance(10.0)
    await circuits.keeper.store()

    (kept,) = await circuits.records.load(circuits.clock.wall() + 60.0)
    assert kept.age_s == pytest.approx(70.0)
    (kept,) = await circuits.records.load(circuits.clock.wall() - 3600.0)
    assert kept.age_s == pytest.approx(10.0)
