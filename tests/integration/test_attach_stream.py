"""AttachService over gRPC: what is taken, what is refused, what is told."""

import socket

import grpc
import grpc.aio
import pytest

from outrigger.core.errors import Bug
from outrigger.core.rpc.errors import from_rpc_error
from outrigger.v1 import attach_service_pb2 as pb
from outrigger.v1.attach_service_pb2_grpc import AttachServiceStub
from sidecar.agent import app_port, messages, session
from sidecar.agent.session import ACCESS, _response, _Stream
from sidecar.policy.agent import AgentState
from tests.support.agent_rig import OTHER_TOKEN, TOKEN, Rig, wait_for

SLEEPER = ("/bin/sleep", "100")
HELLO = pb.AttachRequest(hello=pb.Hello(pid=4711, client="test"))
RESUMED = pb.AttachRequest(hello=pb.Hello(pid=4711, resumed=True))
SERVING = pb.AttachRequest(serving=pb.Serving())


@pytest.fixture
async def rig(tmp_path):
    """An agent that somebody else runs; the test speaks for it."""
    async with Rig(tmp_path, managed=False) as made:
        await made.supervisor.start()
        yield made


@pytest.fixture
async def stub(rig):
    """A client of the rig's socket."""
    async with grpc.aio.insecure_channel(rig.api) as channel:
        yield AttachServiceStub(channel)


def metadata(token=TOKEN):
    """Return what every call carries."""
    return (("outrigger-token", token),)


def attach(stub, token=TOKEN):
    """Open a stream."""
    return stub.Attach(metadata=metadata(token))


async def refusal(call):
    """Return the error a call or stream ends with."""
    wait = to_the_end(call) if hasattr(call, "read") else call
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await wait
    return from_rpc_error(raised.value)


async def to_the_end(stream):
    """Read until a stream ends, and raise what it ends with."""
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_an_agent_without_a_checkpoint_starts_afresh(rig, stub):
    """The welcome names the agent, its epoch and no generation."""
    call = attach(stub)
    await call.write(HELLO)

    welcome = (await call.read()).welcome

    assert (welcome.agent_id, welcome.restore_generation) == ("a1", 0)
    assert rig.snapshot.pid == 4711
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    await wait_for(lambda: rig.supervisor._life.link is None)
    assert rig.snapshot.pid == 0


async def test_an_agent_is_told_what_to_restore(rig, stub):
    """Number and digest of the newest good checkpoint; a resumed one keeps its own."""
    kept = rig.shelf.put(b"state")
    call = attach(stub)
    await call.write(HELLO)
    welcome = (await call.read()).welcome
    assert (welcome.restore_generation, welcome.restore_digest) == (
        1,
        kept.state_digest,
    )

    again = attach(stub)
    await again.write(RESUMED)
    assert (await again.read()).welcome.restore_generation == 0
    again.cancel()
    call.cancel()


async def test_attaching_again_ends_the_former_stream(rig, stub):
    """The former one is told that it was replaced; its words count no more."""
    first, second = attach(stub), attach(stub)
    await first.write(HELLO)
    await first.read()
    former = rig.supervisor._life.link
    await second.write(HELLO)
    await second.read()

    error = await refusal(first)

    assert (error.status, error.reason) == ("ABORTED", "REPLACED")
    rig.supervisor.heard(former, messages.Failed(0, "late"))
    rig.supervisor.detach(former)
    assert rig.supervisor._life.link not in (None, former)
    second.cancel()


async def test_a_state_that_differs_is_refused(rig, stub):
    """One that nobody here can end is told, and it is an error to look at."""
    rig.shelf.put(b"state")
    call = attach(stub)
    await call.write(HELLO)
    await call.read()
    await call.write(
        pb.AttachRequest(restored=pb.Restored(generation=1, state_digest=b"x" * 32))
    )

    error = await refusal(call)

    assert (error.status, error.reason) == ("ABORTED", "DIGEST_MISMATCH")
    assert "its state is not what it saved" in error.message
    assert rig.errors() == ["DIGEST_MISMATCH"]


async def test_serving_without_having_restored_is_refused(rig, stub):
    """An agent that was told to restore does that first."""
    rig.shelf.put(b"state")
    call = attach(stub)
    await call.write(HELLO)
    await call.read()
    await call.write(SERVING)

    assert (await refusal(call)).reason == "RESTORE_FAILED"


async def test_the_right_state_is_taken(rig, stub):
    """Restored as told: a second report, or a late failure, changes nothing."""
    kept = rig.shelf.put(b"state")
    restored = pb.AttachRequest(
        restored=pb.Restored(generation=1, state_digest=kept.state_digest)
    )
    call = attach(stub)
    await call.write(HELLO)
    await call.read()
    await call.write(restored)
    await call.write(restored)
    await call.write(SERVING)
    await call.write(pb.AttachRequest(failed=pb.Failed(reason="too late")))
    await call.done_writing()

    assert await call.read() is grpc.aio.EOF
    assert rig.supervisor._life.restored.generation == 1
    assert rig.errors() == []


async def test_answers_nobody_asked_for_are_dropped(rig, stub):
    """Late answers to a sleep that was given up change nothing."""
    call = attach(stub)
    await call.write(HELLO)
    await call.read()
    epoch = rig.snapshot.epoch
    for late in (
        pb.AttachRequest(quiesced=pb.Quiesced(epoch=epoch)),
        pb.AttachRequest(veto=pb.Veto(epoch=epoch, reason="no")),
        pb.AttachRequest(saved=pb.Saved(epoch=epoch, generation=3)),
        pb.AttachRequest(failed=pb.Failed(epoch=epoch + 1, reason="no")),
    ):
        await call.write(late)
    await call.done_writing()

    assert await call.read() is grpc.aio.EOF
    assert rig.state is AgentState.AWAKE


async def test_no_good_checkpoint_ends_the_stream_with_data_loss(rig, stub):
    """An agent that had a state is not welcomed as a new one."""
    rig.supervisor.checkpoint_saved(rig.shelf.put(b"state"))
    rig.shelf.bad.add(1)
    call = attach(stub)
    await call.write(HELLO)

    error = await refusal(call)

    assert (error.status, error.reason) == ("DATA_LOSS", "NO_GOOD_CHECKPOINT")
    assert rig.errors() == ["NO_GOOD_CHECKPOINT"]


async def test_a_stream_that_stays_silent_ends_with_an_error(rig, stub, monkeypatch):
    """A client that opens a stream and says nothing holds it for a while only."""
    monkeypatch.setattr(session, "HELLO_TIMEOUT_S", 0.05)
    silent = attach(stub)

    error = await refusal(silent)

    assert (error.status, error.reason) == ("DEADLINE_EXCEEDED", "NO_HELLO")
    assert "hello" in error.message
    assert rig.supervisor._life.link is None


async def test_a_stream_without_hello_is_refused(rig, stub):
    """Silence or anything else first is a mistake of the client."""
    silent = attach(stub)
    await silent.done_writing()
    assert (await refusal(silent)).reason == "NO_HELLO"

    other = attach(stub)
    await other.write(SERVING)
    assert (await refusal(other)).reason == "NO_HELLO"


@pytest.mark.parametrize("message", [HELLO, pb.AttachRequest()])
async def test_a_message_that_cannot_be_is_refused(rig, stub, message):
    """A second hello, or a message of a version we do not know, ends the stream."""
    call = attach(stub)
    await call.write(HELLO)
    await call.read()
    await call.write(message)

    assert (await refusal(call)).reason == "BAD_ATTACH_MESSAGE"
    await wait_for(lambda: rig.supervisor._life.link is None)


async def test_a_defect_ends_the_stream_and_is_reported(rig, stub, monkeypatch):
    """What we did not foresee is answered without its text and recorded with it."""

    def broken(*_):
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(rig.supervisor, "heard", broken)
    call = attach(stub)
    await call.write(HELLO)
    await call.read()
    await call.write(SERVING)

    error = await refusal(call)

    assert (error.status, "secret" in error.message) == ("INTERNAL", False)
    assert any("secret" in str(payload) for payload in rig.seen)


@pytest.mark.parametrize("token", [OTHER_TOKEN, "wrong"])
async def test_other_agents_are_refused(rig, stub, token):
    """A token of another agent reaches neither the stream nor the leases."""
    reasons = {"OTHER_AGENT"} if token == OTHER_TOKEN else {"BAD_TOKEN"}
    call = attach(stub, token)
    await call.write(HELLO)
    seen = {(await refusal(call)).reason}
    request = pb.KeepAwakeRequest()
    request.ttl.FromSeconds(10)
    for method, sent in (
        (stub.KeepAwake, request),
        (stub.ReleaseKeepAwake, pb.ReleaseKeepAwakeRequest(lease_id="1")),
    ):
        seen.add((await refusal(method(sent, metadata=metadata(token)))).reason)

    assert seen == reasons
    assert rig.leases.count(rig.clock.monotonic()) == 0


async def test_leases_by_grpc(rig, stub):
    """Taken, renewed, released; bad ones refused by name."""
    request = pb.KeepAwakeRequest(reason="thinking")
    request.ttl.FromSeconds(10)
    first = await stub.KeepAwake(request, metadata=metadata())
    request.lease_id = first.lease_id
    again = await stub.KeepAwake(request, metadata=metadata())
    assert again.lease_id == first.lease_id == "1"
    assert rig.leases.count(rig.clock.monotonic()) == 1

    gone = pb.ReleaseKeepAwakeRequest(lease_id="1")
    await stub.ReleaseKeepAwake(gone, metadata=metadata())
    await stub.ReleaseKeepAwake(gone, metadata=metadata())
    assert rig.leases.count(rig.clock.monotonic()) == 0

    nameless = stub.ReleaseKeepAwake(pb.ReleaseKeepAwakeRequest(), metadata=metadata())
    assert (await refusal(nameless)).reason == "NO_LEASE_ID"
    late = stub.KeepAwake(request, metadata=metadata())
    assert (await refusal(late)).reason == "NO_SUCH_LEASE"


async def test_every_method_has_a_row_for_agents_alone():
    """No operator and no sidecar attaches in an agent's place."""
    methods = pb.DESCRIPTOR.services_by_name["AttachService"].methods

    assert set(ACCESS) == {f"/outrigger.v1.AttachService/{m.name}" for m in methods}
    assert {role.value for rule in ACCESS.values() for role in rule.roles} == {"agent"}


def test_every_order_has_its_message():
    """What the supervisor says arrives under the right name with its numbers."""
    cases = {
        "welcome": messages.Welcome(1, 2, b"d"),
        "prepare_sleep": messages.PrepareSleep(3, 1.5),
        "save": messages.SaveState(4),
        "resume": messages.Resume(5, "why"),
        "stop": messages.Stop(6),
    }

    for name, order in cases.items():
        response = _response(order, "a1")
        assert response.WhichOneof("message") == name
        assert getattr(response, name).epoch == order.epoch
    prepare = _response(cases["prepare_sleep"], "a1").prepare_sleep
    assert prepare.timeout.ToMilliseconds() == 1500
    assert _response(cases["resume"], "a1").resume.reason == "why"


async def test_an_agent_that_does_not_read_is_cut_off():
    """Orders that wait are bounded; what waited is dropped with the stream."""
    stream = _Stream()
    for epoch in range(65):
        stream.send(messages.SaveState(epoch))

    with pytest.raises(Exception, match="too many orders") as raised:
        await anext(stream.orders())

    assert raised.value.reason == "AGENT_DOES_NOT_READ"


async def test_an_agent_that_was_not_started_here_is_refused(tmp_path):
    """Nobody attaches in the name of an agent that sleeps or is between starts."""
    async with (
        Rig(tmp_path, words=("/bin/sh", "-c", "exit 3")) as rig,
        grpc.aio.insecure_channel(rig.api) as channel,
    ):
        call = attach(AttachServiceStub(channel))
        await call.write(HELLO)

        error = await refusal(call)

        assert (error.status, error.reason) == ("FAILED_PRECONDITION", "NOT_STARTED")
        assert "wake it" in error.message


async def test_an_app_address_told_in_the_hello_is_where_calls_go(rig, stub):
    """The agent knows best where it serves; saying nothing keeps what was known."""
    for told, known in (("127.0.0.1:9000", "127.0.0.1:9000"), ("", "127.0.0.1:9000")):
        call = attach(stub)
        await call.write(pb.AttachRequest(hello=pb.Hello(pid=1, app_address=told)))
        await call.read()
        assert rig.supervisor.app_address == known
        call.cancel()


async def test_readiness_by_the_apps_port(tmp_path):
    """An agent that never attaches is awake when its port takes a connection."""
    address = f"unix:{tmp_path}/c.sock"
    async with Rig(tmp_path, "hermit", app=address) as rig:
        await rig.begin()

        assert "accepts connections" in rig.snapshot.reason
        assert await rig.say("get") == 0


async def test_what_accepts_and_what_does_not(tmp_path):
    """Only a listener accepts; nonsense and silence do not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert await app_port.accepts(f"127.0.0.1:{port}")
        assert await app_port.accepts(f"dns:///localhost:{port}")
        assert await app_port.accepts(f"ipv4:127.0.0.1:{port}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert not await app_port.accepts(f"127.0.0.1:{taken.getsockname()[1]}")
    assert not await app_port.accepts(f"unix:{tmp_path}/nobody.sock")
    assert not await app_port.accepts("no address at all")


async def test_a_table_that_would_move_a_strangers_agent_is_a_defect(rig):
    """Effects on processes need an actuator; without one they raise."""
    with pytest.raises(Bug) as raised:
        rig.supervisor._effects._kill("")

    assert raised.value.reason == "NO_ACTUATOR"
