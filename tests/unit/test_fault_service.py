"""FaultService: what an operator may ask to go wrong, and who may not."""

import pytest
from google.protobuf.duration_pb2 import Duration

from outrigger.core.errors import Invalid, NotFound, Refused
from outrigger.core.tasks import Tasks
from outrigger.v1 import fault_service_pb2 as pb
from outrigger.v1.fault_pb2 import Fault
from sidecar.call.faults import FaultLayer
from sidecar.rpc.faults import FaultServicer
from tests.support.clock import FakeClock
from tests.support.guard_rig import METHOD, GuardRig

MINUTE = Duration(seconds=60)


class Office:
    """A guard and the service of its faults."""

    def __init__(self, *, allowed=True):
        self.rig = GuardRig()
        self.clock = FakeClock(monotonic=self.rig.now)
        self.tasks = Tasks(lambda _: None, self.clock)
        self.layer = FaultLayer(
            self.rig.guard,
            clock=self.clock,
            tasks=self.tasks,
            publish=lambda _: None,
        )
        self.servicer = FaultServicer(
            self.layer, self.clock, allowed=allowed, upstreams=("shop", "bank")
        )

    async def inject(self, *, validate_only=False, **changes):
        given = {
            "match": "*",
            "kind": Fault.KIND_ABORT,
            "status_code": 14,
            "ttl": MINUTE,
        }
        request = pb.InjectFaultRequest(
            fault=Fault(**(given | changes)), validate_only=validate_only
        )
        return (await self.servicer.InjectFault(request, None)).fault

    async def list(self, **given):
        return await self.servicer.ListFaults(pb.ListFaultsRequest(**given), None)

    async def clear(self, **given):
        request = pb.ClearFaultsRequest(**given)
        return (await self.servicer.ClearFaults(request, None)).cleared_count


@pytest.fixture
async def office():
    """A sidecar that was started with --allow-faults."""
    made = Office()
    yield made
    await made.tasks.close()


async def test_a_fault_is_shown_as_it_was_asked_for(office):
    """With its id, its end in wall-clock time, and how often it hit."""
    office.rig.end(office.rig.go())
    injected = await office.inject(
        match=METHOD, upstream="shop", share=0.5, message="on purpose"
    )
    for _ in range(4):
        office.rig.end(office.rig.go())
    office.clock.advance(15.0)
    (shown,) = (await office.list()).faults

    assert (shown.name, shown.fault_id) == ("faults/fault-1", "fault-1")
    assert (shown.match, shown.upstream, shown.share) == (METHOD, "shop", 0.5)
    assert (shown.kind, shown.status_code) == (Fault.KIND_ABORT, 14)
    assert shown.message == "on purpose"
    assert shown.ttl == MINUTE
    assert (shown.matched_count, shown.hit_count) == (4, 2)
    assert shown.expire_time.seconds == int(office.clock.wall()) + 45
    assert injected.expire_time == shown.expire_time
    assert not shown.HasField("delay")


async def test_no_share_means_every_call_and_a_delay_is_kept(office):
    """What is left out has the meaning that the contract gives it."""
    shown = await office.inject(
        kind=Fault.KIND_DELAY, status_code=0, delay=Duration(nanos=250_000_000)
    )

    assert (shown.share, shown.upstream) == (1.0, "")
    assert shown.delay.ToMilliseconds() == 250


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": Fault.KIND_UNSPECIFIED}, "kind must be one of"),
        ({"match": "Place"}, "match must be"),
        ({"ttl": None}, "ttl_s must be"),
        ({"ttl": Duration(seconds=3601)}, "ttl_s must be"),
        ({"share": 1.5}, "share must be"),
        ({"share": float("nan")}, "share must be"),
        ({"status_code": 0}, "code must be"),
        ({"status_code": 17}, "code must be"),
        ({"kind": Fault.KIND_DROP}, "for an abort only"),
        ({"delay": MINUTE}, "for a delay only"),
        ({"upstream": "no such"}, "upstream name"),
    ],
)
async def test_what_makes_no_sense_is_refused_and_nothing_changes(
    office, changes, words
):
    """By name, and the guard is left alone."""
    with pytest.raises(Invalid, match=words):
        await office.inject(**changes)

    assert office.rig.guard.faults is None


async def test_an_upstream_that_is_not_there_is_named(office):
    """A typing error would make a fault that never hits."""
    with pytest.raises(NotFound, match="no upstream 'shopp': name one of bank, shop"):
        await office.inject(upstream="shopp")


async def test_a_dry_run_changes_nothing(office):
    """It is checked and shown, and has no id."""
    shown = await office.inject(validate_only=True)
    await office.inject()
    assert (shown.fault_id, shown.status_code) == ("", 14)
    assert await office.clear(validate_only=True) == 1
    assert await office.clear(fault_id="fault-1", validate_only=True) == 1
    with pytest.raises(NotFound, match="no fault 'fault-7'"):
        await office.clear(fault_id="fault-7", validate_only=True)

    assert len((await office.list()).faults) == 1


async def test_one_is_cleared_or_all(office):
    """The others stay; what is gone is not found."""
    for _ in range(3):
        await office.inject()
    assert await office.clear(fault_id="fault-2") == 1
    with pytest.raises(NotFound, match="no fault 'fault-2'"):
        await office.clear(fault_id="fault-2")
    left = [one.fault_id for one in (await office.list()).faults]
    assert left == ["fault-1", "fault-3"]
    assert (await office.clear(), await office.clear()) == (2, 0)

    assert office.rig.guard.faults is None


async def test_pages_are_by_age_past_the_ninth(office):
    """fault-10 comes after fault-9, whatever kind is tried first."""
    for number in range(12):
        late = number % 2
        await office.inject(
            kind=Fault.KIND_DELAY if late else Fault.KIND_ABORT,
            status_code=0 if late else 14,
            delay=MINUTE if late else None,
        )
    found, token = [], ""
    while True:
        page = await office.list(page_size=5, page_token=token)
        found += [one.fault_id for one in page.faults]
        token = page.next_page_token
        if not token:
            break

    assert found == [f"fault-{number}" for number in range(1, 13)]


async def test_without_leave_every_method_is_refused():
    """By one reason that says how to get it; nothing is injected."""
    office = Office(allowed=False)
    for work in (office.inject(), office.list(), office.clear()):
        with pytest.raises(Refused, match="--allow-faults") as caught:
            await work
        assert caught.value.reason == "FAULTS_NOT_ALLOWED"

    assert office.rig.guard.faults is None
