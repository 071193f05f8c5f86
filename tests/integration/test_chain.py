import asyncio
import socket

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrigger.core.access import Principal, RateLimit, Role, Rule, Tokens
from outrigger.core.errors import Bug, Conflict, Invalid, Refused
from outrigger.core.rpc.chain import Chain, Policy, principal_of
from outrigger.core.rpc.errors import from_rpc_error
from outrigger.core.rpc.public import PUBLIC_ACCESS, serve_public
from outrigger.core.rpc.server import SERVER_OPTIONS, TlsFiles, bind, channel
from outrigger.v1 import circuit_service_pb2 as pb
from outrigger.v1 import circuit_service_pb2_grpc as pb_grpc
from outrigger.v1 import sidecar_service_pb2, sidecar_service_pb2_grpc
from tests.support.clock import FakeClock

SERVICE = "/outrigger.v1.CircuitService/"
OPERATOR = (("outrigger-token", "op"),)
AGENT = (("outrigger-token", "ag"),)


class Circuits(pb_grpc.CircuitServiceServicer):
    """A servicer that fails in each way."""

    async def GetCircuit(self, request, context):
        match request.circuit_id:
            case "bug":
                raise ValueError("secret detail")
            case "conflict":
                raise Conflict("STALE", "stale")
            case "slow":
                await asyncio.Event().wait()
        who = principal_of(context).name
        return pb.GetCircuitResponse(circuit={"name": who})

    async def IsolateCircuit(self, request, context):
        if request.circuit_id == "slow":
            await asyncio.Event().wait()
        return pb.IsolateCircuitResponse()

    async def RestoreCircuit(self, request, context):
        return pb.RestoreCircuitResponse()


class Sidecar(sidecar_service_pb2_grpc.SidecarServiceServicer):
    """A stream that sends one message, then fails."""

    async def Watch(self, request, context):
        yield sidecar_service_pb2.SidecarServiceWatchResponse()
        if ("stay", "1") in context.invocation_metadata():
            await asyncio.Event().wait()
        raise Refused("ENOUGH", "enough")


@pytest.fixture
async def api(tmp_path):
    """A server behind the chain, with its policy, audit and reports."""
    audited, reports = [], []

    async def audit(entry):
        audited.append(entry)

    operators = frozenset({Role.OPERATOR})
    policy = Policy(
        table={
            **PUBLIC_ACCESS,
            SERVICE + "GetCircuit": Rule(roles=frozenset(Role)),
            SERVICE + "IsolateCircuit": Rule(roles=operators, mutating=True),
            "/outrigger.v1.SidecarService/Watch": Rule(roles=operators),
        },
        tokens=Tokens(
            {"op": Principal(Role.OPERATOR), "ag": Principal(Role.AGENT, "a-1")}
        ),
        clock=FakeClock(),
        report=reports.append,
        audit=audit,
        limit=RateLimit(rate_per_s=0.001, burst=2),
        unary_limit_s=0.2,
    )
    server = grpc.aio.server(interceptors=[Chain(policy)], options=SERVER_OPTIONS)
    pb_grpc.add_CircuitServiceServicer_to_server(Circuits(), server)
    sidecar_service_pb2_grpc.add_SidecarServiceServicer_to_server(Sidecar(), server)
    health = serve_public(server, ())
    address = bind(server, f"unix:{tmp_path}/api.sock", "--api")
    await server.start()
    async with channel(address) as connection:
        yield connection, policy, audited, reports
    health.stop()
    await server.stop(0)


async def failure(call):
    """Return what a call failed with, as our error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def wait_for(is_so):
    """Wait until something is so."""
    async with asyncio.timeout(5):
        while not is_so():
            await asyncio.sleep(0.005)


def isolate(api, metadata=OPERATOR, **request):
    stub = pb_grpc.CircuitServiceStub(api[0])
    return stub.IsolateCircuit(pb.IsolateCircuitRequest(**request), metadata=metadata)


def slow_read(api, metadata):
    stub = pb_grpc.CircuitServiceStub(api[0])
    return stub.GetCircuit(pb.GetCircuitRequest(circuit_id="slow"), metadata=metadata)


async def test_the_handler_knows_who_calls(api):
    """The principal of the token reaches the servicer."""
    stub = pb_grpc.CircuitServiceStub(api[0])

    response = await stub.GetCircuit(pb.GetCircuitRequest(), metadata=AGENT)

    assert response.circuit.name == "agent/a-1"


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "NO_TOKEN"),
        ((("outrigger-token", "x"),), "BAD_TOKEN"),
        (AGENT, "FORBIDDEN"),
    ],
)
async def test_who_may_not_is_refused_and_audited(api, metadata, reason):
    """Refusals stand in the audit with their reason, before the handler ran."""
    stub = pb_grpc.CircuitServiceStub(api[0])

    error = await failure(
        stub.IsolateCircuit(pb.IsolateCircuitRequest(), metadata=metadata)
    )

    assert error.reason == reason
    assert [entry.reason for entry in api[2]] == [reason]


async def test_a_method_without_a_row_is_refused(api):
    """RestoreCircuit is served but not listed: nobody may call it."""
    stub = pb_grpc.CircuitServiceStub(api[0])

    error = await failure(
        stub.RestoreCircuit(pb.RestoreCircuitRequest(), metadata=OPERATOR)
    )

    assert error.reason == "NO_RULE"


async def test_changes_are_audited_and_reads_are_not(api):
    """Only what changes something, or is refused, fills the audit."""
    stub = pb_grpc.CircuitServiceStub(api[0])
    await stub.GetCircuit(pb.GetCircuitRequest(), metadata=OPERATOR)
    await stub.IsolateCircuit(pb.IsolateCircuitRequest(), metadata=OPERATOR)

    (entry,) = api[2]
    assert (entry.principal, entry.status_code) == ("operator", 0)
    assert api[1].counts[SERVICE + "GetCircuit", 0] == 1


async def test_changes_are_bounded_per_principal(api):
    """The third change at once is told when to come back."""
    stub = pb_grpc.CircuitServiceStub(api[0])
    for _ in range(2):
        await stub.IsolateCircuit(pb.IsolateCircuitRequest(), metadata=OPERATOR)

    error = await failure(
        stub.IsolateCircuit(pb.IsolateCircuitRequest(), metadata=OPERATOR)
    )

    assert error.reason == "RATE_LIMITED"


async def test_an_error_of_ours_reaches_the_caller_by_name(api):
    """The servicer raises, the chain answers with status and reason."""
    stub = pb_grpc.CircuitServiceStub(api[0])

    error = await failure(
        stub.GetCircuit(pb.GetCircuitRequest(circuit_id="conflict"), metadata=OPERATOR)
    )

    assert (type(error), error.reason) == (Conflict, "STALE")


async def test_a_defect_is_reported_and_its_text_kept_back(api):
    """INTERNAL goes to the caller, the causes go to the event log."""
    stub = pb_grpc.CircuitServiceStub(api[0])

    error = await failure(
        stub.GetCircuit(pb.GetCircuitRequest(circuit_id="bug"), metadata=OPERATOR)
    )

    assert error.reason == "UNEXPECTED"
    assert "secret" not in error.message
    assert "secret detail" in api[3][0].causes[0]


async def test_a_handler_that_hangs_is_ended(api):
    """A unary call cannot occupy a place for ever."""
    stub = pb_grpc.CircuitServiceStub(api[0])

    error = await failure(
        stub.GetCircuit(pb.GetCircuitRequest(circuit_id="slow"), metadata=OPERATOR)
    )

    assert error.reason == "TOOK_TOO_LONG"


async def test_a_full_server_refuses_and_recovers(api):
    """Calls beyond the limit are refused; the places come back."""
    stub = pb_grpc.CircuitServiceStub(api[0])
    api[1].max_in_flight = 1
    slow = stub.GetCircuit(pb.GetCircuitRequest(circuit_id="slow"), metadata=OPERATOR)
    await wait_for(lambda: api[1].places.taken)

    error = await failure(stub.GetCircuit(pb.GetCircuitRequest(), metadata=OPERATOR))
    assert error.reason == "TOO_MANY_CALLS"

    await failure(slow)
    assert api[1].places.taken == 0
    await stub.GetCircuit(pb.GetCircuitRequest(), metadata=OPERATOR)


async def test_a_stream_may_fail_after_its_first_message(api):
    """Streams pass the same boundary."""
    stub = sidecar_service_pb2_grpc.SidecarServiceStub(api[0])
    stream = stub.Watch(
        sidecar_service_pb2.SidecarServiceWatchRequest(), metadata=OPERATOR
    )

    assert await stream.read() is not grpc.aio.EOF
    error = await failure(stream.read())
    assert error.reason == "ENOUGH"


async def test_a_change_whose_caller_goes_away_is_recorded(api):
    """It may be done, so it stands in the audit, however late its record is kept."""
    sink, may_keep = api[1].book._sink, asyncio.Event()

    async def slow_sink(entry):
        await may_keep.wait()
        await sink(entry)

    api[1].book._sink = slow_sink
    call = isolate(api, circuit_id="slow")
    await wait_for(lambda: api[1].places.taken)

    call.cancel()
    await wait_for(lambda: api[1].counts[SERVICE + "IsolateCircuit", 1])
    assert not api[2]
    may_keep.set()
    await wait_for(lambda: not api[1].places.taken)

    (entry,) = api[2]
    assert (entry.principal, entry.status_code) == ("operator", 1)


async def test_a_caller_that_goes_away_late_loses_no_record(api):
    """The record of a change that is done is kept though its call is cancelled."""
    sink, began, may_keep = api[1].book._sink, asyncio.Event(), asyncio.Event()

    async def slow_sink(entry):
        began.set()
        await may_keep.wait()
        await sink(entry)

    api[1].book._sink = slow_sink
    call = isolate(api)
    await began.wait()

    call.cancel()
    await wait_for(lambda: not api[1].places.taken)
    assert not api[2]
    may_keep.set()

    await wait_for(lambda: api[2])
    assert api[2][0].status_code == 0


async def test_a_stream_whose_caller_goes_away_gives_its_place_back(api):
    """Nothing was changed: it is counted and not recorded."""
    stub = sidecar_service_pb2_grpc.SidecarServiceStub(api[0])
    stream = stub.Watch(
        sidecar_service_pb2.SidecarServiceWatchRequest(),
        metadata=(*OPERATOR, ("stay", "1")),
    )
    await stream.read()

    stream.cancel()

    await wait_for(lambda: api[1].counts["/outrigger.v1.SidecarService/Watch", 1])
    await wait_for(lambda: not api[1].places.taken)
    assert not api[2]


@pytest.mark.parametrize("metadata", [OPERATOR, AGENT])
async def test_an_audit_that_fails_ends_the_call_by_name(api, metadata):
    """Neither a change nor a refusal is answered as if it had been recorded."""

    async def broken(entry):
        raise OSError("no disk")

    api[1].book._sink = broken

    error = await failure(isolate(api, metadata))

    assert (type(error), error.reason) == (Bug, "NOT_RECORDED")
    assert "look at what it changed" in error.message
    assert "no disk" in api[3][0].causes[0]


async def test_an_audit_that_fails_after_a_cancellation_is_reported(api):
    """Nobody is there to be told."""

    async def broken(entry):
        raise OSError("no disk")

    api[1].book._sink = broken
    call = isolate(api, circuit_id="slow")
    await wait_for(lambda: api[1].places.taken)

    call.cancel()

    await wait_for(lambda: not api[1].places.taken)
    assert "no disk" in api[3][0].causes[0]


async def flood(api, count):
    """Call without a token; return the reasons of what was recorded of it."""
    before = len(api[2])
    for _ in range(count):
        assert (await failure(isolate(api, None))).reason == "NO_TOKEN"
    return [entry.reason for entry in api[2][before:]]


async def test_strangers_cannot_fill_the_audit(api):
    """A few of their refusals are recorded, and later how many more there were."""
    clock = api[1].clock
    assert await flood(api, 30) == ["NO_TOKEN"] * 20

    clock.advance(1)
    assert await flood(api, 2) == ["NO_TOKEN; 10 more refusals were not recorded"]

    clock.advance(1)
    assert await flood(api, 1) == ["NO_TOKEN; 1 more refusals were not recorded"]
    clock.advance(1)
    assert await flood(api, 1) == ["NO_TOKEN"]


async def test_what_strangers_did_is_told_beside_the_next_change(api):
    """It is an entry of its own: the change keeps its own reason."""
    await flood(api, 23)
    del api[2][:]

    await isolate(api)
    await wait_for(lambda: len(api[2]) == 2)

    change, told = sorted(api[2], key=lambda entry: entry.status_code)
    assert (change.principal, change.reason) == ("operator", "")
    assert (told.principal, told.method) == ("anonymous", "*")
    assert told.reason == "3 more refusals were not recorded"


async def test_strangers_cannot_take_the_places_of_others(api):
    """Their streams leave room for health checks, and all of them for us."""
    health = health_pb2_grpc.HealthStub(api[0])
    request = health_pb2.HealthCheckRequest()
    streams = [health.Watch(request) for _ in range(24)]
    for stream in streams:
        assert (await stream.read()).status

    for stream in [health.Watch(request) for _ in range(9)]:
        assert (await failure(stream.read())).reason == "TOO_MANY_CALLS"
    assert api[1].places.taken == 24
    assert (await health.Check(request)).status
    api[1].max_in_flight = 1
    await isolate(api)

    for stream in streams:
        stream.cancel()
    await wait_for(lambda: not api[1].places.taken)


async def test_agents_leave_places_to_operators(api):
    """An agent that calls in a loop does not lock its operator out."""
    api[1].max_in_flight = 4
    api[1].unary_limit_s = 60
    calls = [slow_read(api, AGENT) for _ in range(3)]
    await wait_for(lambda: api[1].places.taken == 3)

    error = await failure(slow_read(api, AGENT))
    assert error.reason == "TOO_MANY_CALLS"
    assert "3 calls of agents are in flight" in error.message
    await isolate(api)

    for call in calls:
        call.cancel()


async def test_a_taken_port_is_refused_by_name_unless_it_may_move():
    """An explicit port never moves; a default one gives way."""
    first = grpc.aio.server(options=SERVER_OPTIONS)
    address = bind(first, "127.0.0.1:0", "--api")
    await first.start()
    second = grpc.aio.server(options=SERVER_OPTIONS)
    with pytest.raises(Refused, match="--api: cannot listen on"):
        bind(second, address, "--api")

    moved = bind(second, address, "--api", may_move=True)

    assert moved != address
    await first.stop(0)
    await second.stop(0)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0:0", "NEEDS_TLS"),
        ("127.0.0.1.example:0", "NEEDS_TLS"),
        ("127.0.0.1", "BAD_ADDRESS"),
        ("127.0.0.1:99999", "BAD_ADDRESS"),
        ("unix:/" + "x" * 200, "SOCKET_PATH_TOO_LONG"),
    ],
)
async def test_addresses_that_must_not_be_are_refused(address, reason):
    """Each refusal names its reason before anything is bound."""
    server = grpc.aio.server()
    with pytest.raises(Invalid) as caught:
        bind(server, address, "--api")

    assert caught.value.reason == reason
    await server.stop(0)


async def test_a_missing_tls_file_is_named(tmp_path):
    """The flag and the path stand in the message."""
    tls = TlsFiles(cert=tmp_path / "none.pem", key=tmp_path / "none.key")
    server = grpc.aio.server()
    with pytest.raises(Invalid, match="--tls-cert: cannot read"):
        bind(server, "127.0.0.1:0", "--api", tls=tls)
    await server.stop(0)


async def test_a_stale_socket_is_replaced(tmp_path):
    """A socket file left by a kill does not stop the next start."""
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))

    server = grpc.aio.server(options=SERVER_OPTIONS)
    bind(server, f"unix:{path}", "--api")
    await server.start()

    async with channel(f"unix:{path}") as connection:
        await asyncio.wait_for(connection.channel_ready(), 5)
    await server.stop(0)


async def test_a_file_where_the_socket_should_be_is_left_alone(tmp_path):
    """Somebody's file is not deleted to make room."""
    path = tmp_path / "api.sock"
    path.write_text("precious")
    server = grpc.aio.server(options=SERVER_OPTIONS)

    with pytest.raises(Refused) as caught:
        bind(server, f"unix:{path}", "--api")

    assert caught.value.reason == "SOCKET_TAKEN"
    assert path.read_text() == "precious"
    await server.stop(0)
