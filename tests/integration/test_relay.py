import asyncio

import grpc
import grpc.aio
import pytest

from tests.support.echo_upstream import until
from tests.support.relay import SERVICE, open_relay


@pytest.fixture
async def relay():
    """A wire whose guard lets everything pass."""
    async with open_relay() as opened:
        yield opened
        assert opened.reports == []


async def collect(call):
    return [message async for message in call]


async def test_unary_call_passes_both_ways(relay):
    """A unary call reaches the upstream and its response comes back."""
    assert await relay.unary("Echo", b"\x00bytes") == b"\x00bytes"
    assert relay.echo.seen[0][0] == SERVICE + "Echo"
    assert relay.guard.outcomes[0].code == 0
    assert relay.guard.cancels == []


@pytest.mark.parametrize("request_", [b"", b"x" * 300_000])
async def test_empty_and_large_messages_pass(relay, request_):
    """No bytes at all and more than the replay buffer keeps both pass."""
    assert await relay.unary("Echo", request_) == request_


async def test_server_streaming_passes_in_order(relay):
    """Every message of a response stream comes, in order."""
    call = relay.channel.unary_stream(SERVICE + "Count")(b"500")
    assert await collect(call) == [b"%d" % n for n in range(500)]


async def test_client_streaming_passes_in_order(relay):
    """Every message of a request stream arrives, in order, and then the half-close."""

    async def requests():
        for number in range(500):
            yield b"%d" % number

    call = relay.channel.stream_unary(SERVICE + "Join")(requests())
    assert await call == b"|".join(b"%d" % n for n in range(500))


async def test_empty_streams_pass(relay):
    """A request without messages and a response without messages stay that way."""
    call = relay.stream("Nothing")
    await call.done_writing()
    assert await collect(call) == []
    assert await call.code() is grpc.StatusCode.OK
    assert relay.echo.requests == [[]]


async def test_ping_pong_is_not_batched(relay):
    """On a bidirectional stream each message is answered before the next is sent."""
    call = relay.stream("Echo")
    for number in range(50):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert relay.echo.ended == ["half-close"]


async def test_server_may_speak_first(relay):
    """A response that comes before any request message reaches the caller."""
    call = relay.stream("Speak")
    assert await call.read() == b"welcome"
    await call.write(b"thanks")
    assert await call.read() == b"thanks"
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF


async def test_caller_that_waits_for_headers_gets_them(relay):
    """Empty headers are passed on soon, for callers that wait before they send."""
    call = relay.stream("Greet", timeout=5)
    assert tuple(await call.initial_metadata()) == ()
    await call.write(b"now")
    assert await call.read() == b"now"
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c.value[0]])
async def test_every_status_passes(relay, code):
    """Code, Unicode message, trailers and binary details of a failure pass."""
    text = "nicht möglich: 不可能 %"
    error = await relay.fails("Status", f"{code.value[0]} {text}".encode())
    assert (error.code(), error.details()) == (code, text)
    trailers = dict(error.trailing_metadata())
    assert trailers["x-number"] == str(code.value[0])
    assert trailers["grpc-status-details-bin"] == b"\x00\xff"


async def test_ok_with_message_of_status_passes(relay):
    """Trailers of a call that went well pass."""
    call = relay.channel.unary_unary(SERVICE + "Metadata")(
        b"", metadata=(("x-a", "1"),)
    )
    assert await call == b"ok"
    assert ("x-a", "1") in tuple(await call.trailing_metadata())


async def test_failure_after_headers_is_committed(relay):
    """Headers with content are passed on, and the guard hears that it is too late."""
    call = relay.channel.unary_unary(SERVICE + "Broken")(b"x")
    assert tuple(await call.initial_metadata()) == (("x-head", "1"),)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert relay.guard.outcomes[0].committed


async def test_failure_after_a_message_is_committed(relay):
    """A message is passed on before the failure that follows it."""
    call = relay.channel.unary_stream(SERVICE + "Half")(b"x")
    assert await call.read() == b"part"
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert relay.guard.outcomes[0].committed


async def test_early_answer_keeps_its_status(relay):
    """A callee that answers before it read everything is quoted correctly."""

    async def once():
        call = relay.stream("Early", timeout=10)
        try:
            while True:
                await call.write(b"x" * 20_000)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            pass
        # The caller's own library may spoil the status; what the guard saw counts.
        await call.code()

    for _ in range(10):
        await asyncio.gather(*(once() for _ in range(10)))
    await until(lambda: len(relay.guard.outcomes) == 100)
    assert {(o.code, o.trailers) for o in relay.guard.outcomes} == {
        (9, (("x-early", "1"),))
    }


async def test_native_retry_of_the_caller_still_works(relay):
    """A failure stays Trailers-Only, so the caller's own policy makes 3 attempts."""
    policy = """{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 3,
        "initialBackoff": "0.01s", "maxBackoff": "0.01s", "backoffMultiplier": 1,
        "retryableStatusCodes": ["UNAVAILABLE"]}}]}"""
    channel = relay.dial((("grpc.service_config", policy),))
    relay.echo.fail_first = 99
    with pytest.raises(grpc.aio.AioRpcError):
        await channel.unary_unary(SERVICE + "Flaky")(b"x")
    await channel.close()
    assert len(relay.echo.seen) == 3
    told = [
        dict(c.metadata).get("grpc-previous-rpc-attempts") for c in relay.guard.calls
    ]
    assert told == [None, "1", "2"]


async def test_64_mib_pass_both_ways(relay):
    """A message of 64 MiB passes, as one message."""
    blob = bytes(64 << 20)
    assert await relay.unary("Echo", blob) == blob


async def test_method_the_upstream_lacks(relay):
    """The upstream's UNIMPLEMENTED is passed on as its own."""
    error = await relay.fails("Missing")
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "outrigger-refused-by" not in dict(error.trailing_metadata())
