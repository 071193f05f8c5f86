"""CircuitService: why a circuit is as it is, which there are, and how they move."""

import asyncio

import pytest

from outrigger.core.errors import Invalid
from outrigger.core.event_log import EventLog
from outrigger.v1 import circuit_service_pb2 as pb
from outrigger.v1.circuit_pb2 import Circuit, FailedCall
from sidecar.call.descriptor import Origin
from sidecar.call.guard import GuardSettings
from sidecar.policy import circuit as circuit_policy
from sidecar.rpc.circuits import CircuitServicer
from tests.support.clock import FakeClock
from tests.support.guard_rig import METHOD, GuardRig

CIRCUIT = "shop" + METHOD
_WALL_S = 1.7e9 - 1000.0


class Office:
    """A guard, and the service that shows its circuits."""

    def __init__(self, **given):
        self.clock = FakeClock(monotonic=1000.0)
        self.log = EventLog(agent_id="a", clock=self.clock)
        self.rig = GuardRig(**given)
        self.rig.guard._circuits._publish = self.log.publish
        self.servicer = CircuitServicer(
            self.rig.guard, self.clock, self.log, stored=self._stored
        )

    async def _stored(self):
        pass

    def pass_s(self, seconds):
        self.clock.advance(seconds)
        self.rig.now += seconds
        self.rig.guard.tick(self.rig.now)

    async def show(self, circuit_id=CIRCUIT):
        request = pb.GetCircuitRequest(circuit_id=circuit_id)
        return (await self.servicer.GetCircuit(request, None)).circuit

    async def list(self, **given):
        request = pb.ListCircuitsRequest(filter=pb.CircuitFilter(**given))
        return (await self.servicer.ListCircuits(request, None)).circuits

    def watch(self, **given):
        request = pb.WatchCircuitsRequest(filter=pb.CircuitFilter(**given))
        return self.servicer.WatchCircuits(request, None)


@pytest.fixture
def office():
    """Upstreams `shop` and `bank`, all well."""
    return Office()


def wall(stamp):
    return stamp.ToMicroseconds() / 1e6


async def test_a_circuit_says_why_since_when_and_which_calls(office):
    """Everything about an outage in one answer, in wall-clock times."""
    office.rig.end(office.rig.go())
    office.pass_s(1.0)
    office.rig.trip()
    office.pass_s(0.5)
    circuit = await office.show()

    assert circuit.state == Circuit.STATE_OPEN
    assert wall(circuit.trouble_time) == pytest.approx(_WALL_S + 1001.0)
    assert wall(circuit.state_time) == pytest.approx(_WALL_S + 1001.0)
    assert 0 < circuit.retry_after.ToMicroseconds() < 600_000
    assert (circuit.window_call_count, circuit.window_failure_count) == (6, 5)
    assert [one.call_id for one in circuit.failed_calls] == [
        f"call-{number}" for number in range(2, 7)
    ]
    newest = circuit.failed_calls[-1]
    assert (newest.method, newest.status_code, newest.slow) == (METHOD, 13, False)
    assert newest.origin == FailedCall.ORIGIN_UPSTREAM
    assert wall(newest.count_time) == pytest.approx(_WALL_S + 1001.0)
    (move,) = circuit.history
    assert (move.circuit_id, move.before, move.after) == (
        CIRCUIT,
        Circuit.STATE_CLOSED,
        Circuit.STATE_OPEN,
    )
    assert move.reason == circuit.reason
    assert not circuit.shadow


async def test_a_call_that_was_slow_is_said_to_be_on_its_way(office):
    """It has no status yet, and none is made up."""
    for _ in range(5):
        office.rig.go()
    for _ in range(9):
        office.pass_s(0.25)
    circuit = await office.show()

    assert circuit.state == Circuit.STATE_OPEN
    assert {(one.slow, one.status_code) for one in circuit.failed_calls} == {(True, 0)}
    assert circuit.failed_calls[0].elapsed.ToMicroseconds() >= 2_000_000
    assert circuit.failed_calls[0].origin == FailedCall.ORIGIN_UNKNOWN


@pytest.mark.parametrize("origin", Origin)
async def test_every_origin_has_a_name(office, origin):
    """Whoever made an outcome, it can be shown."""
    failed = circuit_policy.FailedCall(
        call_id="c", when=1.0, method=METHOD, code=4, origin=origin.value, elapsed_s=0.1
    )
    office.rig.guard._standings.circuit("shop").failed_calls.append(failed)
    (shown,) = (await office.show("shop")).failed_calls

    assert FailedCall.Origin.Name(shown.origin) == f"ORIGIN_{origin.name}"


async def test_a_shadow_says_so():
    """It counts what it would refuse, and refuses nothing."""
    shadow = circuit_policy.CircuitSettings(shadow=True)
    settings = GuardSettings(circuit=shadow)
    office = Office(settings=settings)
    office.rig.trip()
    office.rig.end(office.rig.go())
    circuit = await office.show()

    assert (circuit.shadow, circuit.state) == (True, Circuit.STATE_OPEN)
    assert circuit.refused_count == 1


async def test_a_list_is_short_and_narrowed_by_state_and_upstream(office):
    """The calls and moves of each are left to GetCircuit."""
    office.rig.trip()
    everything = await office.list()
    bad = await office.list(states=[Circuit.STATE_OPEN])
    of_bank = await office.list(upstream="bank")
    none = await office.list(upstream="bank", states=[Circuit.STATE_OPEN])

    assert [one.circuit_id for one in everything] == ["bank", "shop", CIRCUIT]
    assert [one.circuit_id for one in bad] == [CIRCUIT]
    assert [one.circuit_id for one in of_bank] == ["bank"]
    assert list(none) == []
    assert not any(one.failed_calls or one.history for one in everything)


async def test_pages_of_a_narrowed_list_hold_each_circuit_once(office):
    """The filter is applied before the page is cut."""
    office.rig.trip()
    request = pb.ListCircuitsRequest(
        page_size=1, filter=pb.CircuitFilter(upstream="shop")
    )
    first = await office.servicer.ListCircuits(request, None)
    request.page_token = first.next_page_token
    second = await office.servicer.ListCircuits(request, None)

    assert [one.circuit_id for one in (*first.circuits, *second.circuits)] == [
        "shop",
        CIRCUIT,
    ]
    assert (bool(first.next_page_token), second.next_page_token) == (True, "")


@pytest.mark.parametrize("number", [0, 99])
async def test_a_state_nobody_knows_is_refused(office, number):
    """By lists and watches alike."""
    with pytest.raises(Invalid, match="use closed, open, half_open or"):
        await office.list(states=[number])
    with pytest.raises(Invalid, match="use closed, open, half_open or"):
        await anext(office.watch(states=[number]))


async def test_a_watch_begins_with_what_is_and_goes_on_with_what_moves(office):
    """Trouble first, then the end of the beginning, then each move in order."""
    office.rig.trip()
    watch = office.watch()
    present = [await anext(watch) for _ in range(4)]
    office.rig.guard.isolate("bank", "by hand", office.rig.now)
    office.rig.guard.restore("bank", office.rig.now)
    moves = [(await anext(watch)).move for _ in range(2)]
    await watch.aclose()

    assert [one.present.circuit_id for one in present[:3]] == [CIRCUIT, "bank", "shop"]
    assert (present[3].shown.shown_count, present[3].shown.omitted_count) == (3, 0)
    assert not present[0].present.history
    assert [(one.circuit_id, one.after) for one in moves] == [
        ("bank", Circuit.STATE_ISOLATED),
        ("bank", Circuit.STATE_HALF_OPEN),
    ]
    assert moves[0].reason == "by hand"
    assert wall(moves[0].move_time) == office.clock.wall()


async def test_no_move_is_lost_between_what_is_and_what_moves(office):
    """One that is made while the beginning is still being read comes after it."""
    watch = office.watch(upstream="shop")
    first = await anext(watch)
    office.rig.trip()
    rest = [await anext(watch) for _ in range(2)]
    await watch.aclose()

    assert first.present.circuit_id == "shop"
    assert rest[0].WhichOneof("news") == "shown"
    assert rest[1].move.after == Circuit.STATE_OPEN


async def test_a_watch_is_narrowed_by_where_a_move_leads_or_comes_from(office):
    """Into or out of a state; the moves of other upstreams are not shown."""
    watch = office.watch(states=[Circuit.STATE_ISOLATED], upstream="shop")
    assert (await anext(watch)).shown.shown_count == 0
    now = office.rig.now
    office.rig.guard.isolate("bank", "not wanted", now)
    office.rig.trip()
    office.rig.guard.isolate("shop", "wanted", now)
    office.rig.guard.restore("shop", now)
    moves = [(await anext(watch)).move for _ in range(2)]
    waiting = asyncio.ensure_future(anext(watch))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert [one.after for one in moves] == [
        Circuit.STATE_ISOLATED,
        Circuit.STATE_HALF_OPEN,
    ]


async def test_a_slow_reader_is_told_how_many_moves_it_missed(office):
    """Its memory is bounded; the count stands where the gap is."""
    watch = office.watch(upstream="shop")
    for _ in range(2):
        await anext(watch)
    now = office.rig.now
    for _ in range(700):
        office.rig.guard.isolate("shop", "again", now)
        office.rig.guard.restore("shop", now)
    first, second = await anext(watch), await anext(watch)
    await watch.aclose()

    assert (first.missed_count, second.missed_count) == (1400 - 1024, 0)
    assert office.log._watchers == {}


async def test_of_more_than_a_thousand_the_troubled_are_shown(office):
    """What is left out is counted, and is closed."""
    for number in range(1200):
        office.rig.end(office.rig.go(f"/acme.Orders/M{number:04}"))
    office.rig.trip("/acme.Orders/M0999")
    watch = office.watch()
    answers = [await anext(watch) for _ in range(1001)]
    await watch.aclose()

    assert answers[0].present.circuit_id == "shop/acme.Orders/M0999"
    shown = answers[-1].shown
    assert (shown.shown_count, shown.omitted_count) == (1000, 3)
