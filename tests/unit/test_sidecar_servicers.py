"""The sidecar's small servicers and its meter, without a process around them."""

import pytest

from outrigger.core.errors import Invalid, NotFound
from outrigger.core.event_log import EventLog
from outrigger.v1 import circuit_pb2
from outrigger.v1 import circuit_service_pb2 as circuit_service
from outrigger.v1 import sidecar_service_pb2 as sidecar_service
from sidecar.call.guard import CallGuard
from sidecar.call.routes import Routes, Upstream
from sidecar.load.meter import Meter
from sidecar.policy.activity import Evidence
from sidecar.policy.agent import LoadSample
from sidecar.rpc.circuits import CircuitServicer
from sidecar.rpc.sidecar import SidecarServicer
from sidecar.rpc.wire import page_after, page_size, page_token
from tests.support.clock import FakeClock


@pytest.fixture
def circuits():
    """The circuits of three upstreams, and how often they were stored."""
    clock, stores = FakeClock(), []
    routes = Routes([Upstream(name) for name in ("a", "b", "c")])
    guard = CallGuard(routes, publish=lambda _: None, now=clock.monotonic())

    async def stored():
        stores.append(True)

    events = EventLog(agent_id="a", clock=clock)
    return CircuitServicer(guard, clock, events, stored=stored), stores


async def test_pages_hold_every_circuit_once(circuits):
    """Three circuits in pages of two: two, then one, then the end."""
    servicer, _ = circuits
    first = await servicer.ListCircuits(
        circuit_service.ListCircuitsRequest(page_size=2), None
    )
    second = await servicer.ListCircuits(
        circuit_service.ListCircuitsRequest(
            page_size=2, page_token=first.next_page_token
        ),
        None,
    )

    assert [one.circuit_id for one in first.circuits] == ["a", "b"]
    assert [one.circuit_id for one in second.circuits] == ["c"]
    assert second.next_page_token == ""


async def test_validate_only_changes_no_circuit(circuits):
    """A dry run answers and leaves everything as it was, on disk too."""
    servicer, stores = circuits
    answer = await servicer.IsolateCircuit(
        circuit_service.IsolateCircuitRequest(
            circuit_id="a", reason="try", validate_only=True
        ),
        None,
    )

    assert answer.circuit.state == circuit_pb2.Circuit.STATE_CLOSED
    assert stores == []


async def test_isolating_is_stored_and_needs_a_reason_and_a_circuit(circuits):
    """Each refusal is named; what is answered was stored."""
    servicer, stores = circuits
    ask = circuit_service.IsolateCircuitRequest
    with pytest.raises(Invalid, match="reason is empty"):
        await servicer.IsolateCircuit(ask(circuit_id="a", reason=" "), None)
    with pytest.raises(NotFound, match="no circuit 'z'"):
        await servicer.IsolateCircuit(ask(circuit_id="z", reason="x"), None)
    answer = await servicer.IsolateCircuit(ask(circuit_id="a", reason="x"), None)

    assert answer.circuit.state == circuit_pb2.Circuit.STATE_ISOLATED
    assert stores


def test_pages_are_bounded_and_foreign_tokens_refused():
    """50 by default, 1,000 at most; a token is ours or refused."""
    assert [page_size(asked) for asked in (0, 7, 5000)] == [50, 7, 1000]
    assert page_after(page_token("a/b")) == "a/b"
    with pytest.raises(Invalid, match="negative"):
        page_size(-1)
    with pytest.raises(Invalid, match="not one of ours"):
        page_after("%%%")


class Supervisor:
    """Writes down what it was asked."""

    def __init__(self):
        self.asked = []

    def request_sleep(self, epoch, reason, *, validate_only):
        self.asked.append(("sleep", epoch, reason, validate_only))

    def request_wake(self, epoch, reason, *, validate_only):
        self.asked.append(("wake", epoch, reason, validate_only))


class Status:
    """An agent of which nothing is known."""

    clock = FakeClock()

    def agent(self):
        return None


async def test_sleep_and_wake_hand_on_epoch_reason_and_dry_run():
    """What the caller said reaches the supervisor as it was said."""
    supervisor = Supervisor()
    servicer = SidecarServicer(Status(), supervisor, None, upstreams={}, pid=1)
    await servicer.SleepAgent(
        sidecar_service.SidecarServiceSleepAgentRequest(
            seen_epoch=4, reason="why", validate_only=True
        ),
        None,
    )
    await servicer.WakeAgent(sidecar_service.SidecarServiceWakeAgentRequest(), None)

    assert supervisor.asked == [
        ("sleep", 4, "why", True),
        ("wake", 0, "asked by an operator", False),
    ]


async def test_the_meter_samples_at_its_pace_and_counts_idle_from_the_last_cpu():
    """CPU in a sample is activity; silence afterwards is idleness."""
    clock = FakeClock()
    ratios, pids = [0.0, 0.9], []

    class Sampler:
        async def sample(self, pid):
            pids.append(pid)
            return LoadSample(
                wall_s=clock.wall(),
                cpu_ratio=ratios.pop(0),
                rss_bytes=1,
                pss_bytes=1,
                process_count=1,
                sidecar_pss_bytes=1,
            )

    meter = Meter(
        Sampler(),
        pid=lambda: 7,
        evidence=lambda ratio: Evidence(cpu_ratio=ratio),
        clock=clock,
        interval_s=2.0,
    )
    import asyncio

    running = asyncio.ensure_future(meter.run())
    await clock.wait_for_sleepers()
    clock.advance(1.9)
    await asyncio.sleep(0.01)
    assert pids == [7]
    clock.advance(0.1)
    assert meter.idle_s() == pytest.approx(2.0)
    while meter.latest.cpu_ratio == 0.0:
        await asyncio.sleep(0)
    await clock.wait_for_sleepers()
    assert meter.idle_s() == 0.0
    running.cancel()

    assert pids == [7, 7]
