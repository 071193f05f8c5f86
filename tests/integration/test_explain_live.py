"""Taps and faults over real sockets: a relay with its guard, and its API."""

import asyncio

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from outrigger.core.access import Principal, Role, Tokens
from outrigger.core.errors import Denied, Overloaded, Unauthenticated
from outrigger.core.events import Alerted
from outrigger.core.rpc.chain import Chain, Policy
from outrigger.core.rpc.errors import details_metadata, from_rpc_error
from outrigger.core.rpc.server import SERVER_OPTIONS, bind, channel
from outrigger.v1 import fault_service_pb2, tap_service_pb2
from outrigger.v1.fault_pb2 import Fault
from outrigger.v1.fault_service_pb2_grpc import (
    FaultServiceStub,
    add_FaultServiceServicer_to_server,
)
from outrigger.v1.tap_service_pb2_grpc import (
    TapServiceStub,
    add_TapServiceServicer_to_server,
)
from sidecar.call.faults import FaultLayer
from sidecar.call.guard import CallGuard
from sidecar.call.routes import MethodRule, Routes, Upstream
from sidecar.call.tap import MOST_TAPS, MOST_WAITING, TapHub
from sidecar.rpc import faults, tap
from sidecar.rpc.faults import FaultServicer
from sidecar.rpc.tap import TapServicer
from tests.support.echo_upstream import until
from tests.support.relay import SERVICE, open_relay

OPERATOR = (("outrigger-token", "op"),)
AGENT = (("outrigger-token", "ag"),)
SECRET = "hunter2hunter2"


class Live:
    """A relay whose guard is tapped and made to fail by way of an API."""

    def __init__(self, relay, guard, address):
        self.relay = relay
        self.guard = guard
        self.address = address

    def taps(self, connection, **request):
        """Open a tap on a connection of the caller's."""
        stub = TapServiceStub(connection)
        return stub.Tap(tap_service_pb2.TapRequest(**request), metadata=OPERATOR)

    async def tapped(self, connection, **request):
        """Open a tap and wait until it has begun."""
        call = self.taps(connection, **request)
        await call.initial_metadata()
        return call

    @property
    def watched(self):
        """Whom the guard tells of calls."""
        return self.guard._endings.watch


@pytest.fixture
async def live(tmp_path):
    """An echo behind a relay, with taps and faults allowed."""
    async with open_relay() as relay:
        guard = CallGuard(
            Routes([Upstream("up")], [MethodRule(match=SERVICE + "Flaky")]),
            publish=relay.reports.append,
            now=relay.clock.monotonic(),
            details=details_metadata,
        )
        relay.wire._parts.guard = guard
        policy = Policy(
            table=tap.ACCESS | faults.ACCESS,
            tokens=Tokens(
                {"op": Principal(Role.OPERATOR), "ag": Principal(Role.AGENT, "a")}
            ),
            clock=relay.clock,
            report=relay.reports.append,
        )
        server = grpc.aio.server(interceptors=[Chain(policy)], options=SERVER_OPTIONS)
        add_TapServiceServicer_to_server(
            TapServicer(TapHub(guard.watch), relay.clock), server
        )
        layer = FaultLayer(
            guard,
            clock=relay.clock,
            tasks=relay.tasks,
            publish=relay.reports.append,
        )
        add_FaultServiceServicer_to_server(
            FaultServicer(layer, relay.clock, allowed=True, upstreams=("up",)), server
        )
        address = bind(server, f"unix:{tmp_path}/api.sock", "--api")
        await server.start()
        yield Live(relay, guard, address)
        await server.stop(0)
        layer.clear_all()


async def refused(call):
    """Return the error of a stream that must end at once."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    return from_rpc_error(caught.value)


async def test_a_tap_tells_of_each_call_as_it_ends(live):
    """What was called, how it went, and its metadata without secrets."""
    async with channel(live.address) as connection:
        call = await live.tapped(connection)
        await live.relay.unary(
            "Echo",
            metadata=(
                ("authorization", f"Bearer {SECRET}"),
                ("x-session-bin", SECRET.encode()),
                ("x-trace-bin", SECRET.encode()),
                ("x-plain", "hello"),
            ),
        )
        answer = await call.read()

    raw = answer.SerializeToString()
    assert SECRET.encode() not in raw
    assert b"Bearer" not in raw
    shown = {entry.key: entry.value for entry in answer.call.metadata}
    assert shown["authorization"] == shown["x-session-bin"] == "(redacted)"
    assert shown["x-trace-bin"] == f"({len(SECRET)} bytes)"
    assert shown["x-plain"] == "hello"
    seen = answer.call
    assert (seen.method, seen.upstream) == (SERVICE + "Echo", "up")
    assert (seen.status_code, seen.attempt_count, answer.missed_count) == (0, 1, 0)
    assert abs(seen.end_time.ToMicroseconds() / 1e6 - live.relay.clock.wall()) < 60
    assert seen.elapsed.ToMicroseconds() > 0


async def test_a_tap_shows_only_what_was_asked_for(live):
    """Failures of one method; the rest passes unseen."""
    async with channel(live.address) as connection:
        call = await live.tapped(
            connection, method_prefix=SERVICE + "Nosuch", failures_only=True
        )
        await live.relay.unary("Echo")
        await live.relay.fails("Nosuchmethod")
        seen = (await call.read()).call

    assert (seen.method, seen.status_code) == (SERVICE + "Nosuchmethod", 12)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [((), Unauthenticated), (AGENT, Denied), ((("outrigger-token", "x"),), Denied)],
)
async def test_only_operators_may_tap_or_make_faults(live, metadata, expected):
    """An agent sees nothing of its node's other agents, and breaks nothing."""
    async with channel(live.address) as connection:
        call = TapServiceStub(connection).Tap(
            tap_service_pb2.TapRequest(), metadata=metadata
        )
        assert isinstance(await refused(call), expected)
        stub = FaultServiceStub(connection)
        for method, request in (
            (stub.InjectFault, fault_service_pb2.InjectFaultRequest()),
            (stub.ListFaults, fault_service_pb2.ListFaultsRequest()),
            (stub.ClearFaults, fault_service_pb2.ClearFaultsRequest()),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(request, metadata=metadata)
            assert isinstance(from_rpc_error(caught.value), expected)

    assert live.watched is None


async def test_the_guard_is_left_alone_once_the_last_reader_has_gone(live):
    """Whether it cancels, or its connection is gone with it."""
    assert live.watched is None
    async with channel(live.address) as connection:
        first = await live.tapped(connection)
        second = await live.tapped(connection)
        first.cancel()
        assert live.watched is not None
        second.cancel()
        await until(lambda: live.watched is None)
        await live.tapped(connection)
        assert live.watched is not None
    await until(lambda: live.watched is None)


async def test_a_ninth_reader_is_refused_until_another_leaves(live):
    """It is told so by name, and the eight go on."""
    async with channel(live.address) as connection:
        taps = [await live.tapped(connection) for _ in range(MOST_TAPS)]
        error = await refused(live.taps(connection))
        assert isinstance(error, Overloaded)
        assert error.reason == "TOO_MANY_TAPS"
        taps.pop().cancel()
        for _ in range(500):
            again = live.taps(connection)
            try:
                await again.initial_metadata()
                await live.relay.unary("Echo")
                assert (await again.read()).call.method == SERVICE + "Echo"
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.01)
        else:
            pytest.fail("the place of a reader that left was not given again")


async def test_a_reader_that_stopped_slows_no_call_and_fills_no_memory(live):
    """Calls go on past all buffers; what it then reads says what it missed."""
    metadata = (("x-long", "v" * 250), ("x-more", "w" * 250), ("x-most", "u" * 250))
    async with channel(live.address, (("grpc.http2.bdp_probe", 0),)) as connection:
        stopped = await live.tapped(connection)
        hub = live.watched.__self__
        (backlog,) = hub._readers
        calls, burst = 0, 100
        while len(backlog) < MOST_WAITING and calls < 10_000:
            await asyncio.gather(
                *(live.relay.unary("Echo", metadata=metadata) for _ in range(burst))
            )
            calls += burst
        await asyncio.gather(
            *(live.relay.unary("Echo", metadata=metadata) for _ in range(burst))
        )
        calls += burst
        assert len(backlog) == MOST_WAITING
        read = missed = 0
        while read + missed < calls:
            answer = await stopped.read()
            read += 1
            missed += answer.missed_count
        assert missed > 0
        assert read + missed == calls
        stopped.cancel()
        await until(lambda: live.watched is None)


async def test_a_reader_that_stopped_and_left_is_forgotten(live):
    """Also when the server was about to write to it."""
    metadata = (("x-long", "v" * 250),)
    async with channel(live.address, (("grpc.http2.bdp_probe", 0),)) as connection:
        await live.tapped(connection)
        (backlog,) = live.watched.__self__._readers
        while len(backlog) < 10:
            await asyncio.gather(
                *(live.relay.unary("Echo", metadata=metadata) for _ in range(100))
            )
    await until(lambda: live.watched is None)


def abort(**changes):
    """A request for an abort of every call, for a minute."""
    given = {
        "match": "*",
        "kind": Fault.KIND_ABORT,
        "status_code": 8,
        "ttl": Duration(seconds=60),
    }
    return fault_service_pb2.InjectFaultRequest(fault=Fault(**(given | changes)))


async def test_an_injected_answer_is_marked_and_ends_with_its_clearing(live):
    """The caller sees the status that was asked for, and whose it is."""
    async with channel(live.address) as connection:
        stub = FaultServiceStub(connection)
        await stub.InjectFault(abort(message="try me"), metadata=OPERATOR)
        error = await live.relay.fails("Flaky")
        assert (error.code(), error.details()) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "try me",
        )
        assert dict(error.trailing_metadata())["outrigger-fault"] == "abort"
        seen = live.relay.echo.seen
        assert seen == []
        cleared = await stub.ClearFaults(
            fault_service_pb2.ClearFaultsRequest(), metadata=OPERATOR
        )
        await live.relay.unary("Echo")

    assert cleared.cleared_count == 1
    assert live.guard.faults is None
    alerts = [one.name for one in live.relay.reports if isinstance(one, Alerted)]
    assert alerts == ["FAULT_INJECTED", "FAULT_ENDED"]


async def test_a_share_of_the_calls_suffers_and_the_rest_do_not(live):
    """A tenth is every tenth call, and the tap shows which."""
    async with channel(live.address) as connection:
        call = await live.tapped(connection, failures_only=True)
        await FaultServiceStub(connection).InjectFault(
            abort(share=0.1, match=SERVICE + "*"), metadata=OPERATOR
        )
        ended = await asyncio.gather(
            *(live.relay.unary("Echo") for _ in range(50)), return_exceptions=True
        )
        failed = [one for one in ended if isinstance(one, grpc.aio.AioRpcError)]
        shown = [await call.read() for _ in failed]

    assert len(failed) == 5
    assert {one.call.status_code for one in shown} == {8}


async def test_a_fault_of_a_short_time_ends_by_itself(live):
    """Nobody has to remember it."""
    async with channel(live.address) as connection:
        await FaultServiceStub(connection).InjectFault(
            abort(ttl=Duration(nanos=300_000_000)), metadata=OPERATOR
        )
        await live.relay.fails("Echo")
        await until(lambda: live.guard.faults is None)
        await live.relay.unary("Echo")
