import asyncio

import grpc
import grpc.aio
import pytest

from outrigger.client.errors import letter_id_of
from outrigger.core.rpc.errors import from_rpc_error
from sidecar.call.descriptor import Origin
from tests.support.raw_http2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    RESPONSE,
    RawUpstream,
    block,
    frame,
    raw_call,
)
from tests.support.relay import SERVICE, open_relay

MESSAGE = b"\0\0\0\0\x02ok"


@pytest.fixture
async def relay():
    """A wire whose guard lets everything pass."""
    async with open_relay() as opened:
        yield opened
        assert opened.reports == []


def of_ours(metadata):
    return sorted(pair for pair in metadata if pair[0].startswith("x-"))


async def test_metadata_of_every_kind_pass_both_ways(relay):
    """ASCII, binary, empty and repeated metadata pass up, and down before and after."""
    sent = [
        ("x-a", "one"),
        ("x-a", "two"),
        ("x-empty", ""),
        ("x-spaces", "a b~!"),
        ("x-b-bin", bytes(range(256))),
        ("x-b-bin", b""),
        ("x-host.name_1", "v"),
    ]
    call = relay.channel.unary_unary(SERVICE + "Metadata")(b"", metadata=tuple(sent))
    assert await call == b"ok"
    assert of_ours(relay.echo.seen[0][1]) == sorted(sent)
    assert of_ours(await call.initial_metadata()) == sorted(sent)
    assert of_ours(await call.trailing_metadata()) == sorted(sent)


async def test_repeated_keys_keep_their_order(relay):
    """Values of one key arrive in the order they were sent in."""
    sent = tuple(("x-n", str(number)) for number in range(20))
    call = relay.channel.unary_unary(SERVICE + "Metadata")(b"", metadata=sent)
    await call
    assert [v for k, v in relay.echo.seen[0][1] if k == "x-n"] == [v for _, v in sent]
    assert [v for k, v in await call.initial_metadata() if k == "x-n"] == [
        v for _, v in sent
    ]


@pytest.mark.parametrize("size", [9_000, 15_000, 60_000])
async def test_large_metadata_pass_every_time(relay, size):
    """Metadata beyond the library's own limits are not refused now and then."""
    sent = (("x-large", "v" * size),)
    for _ in range(5):
        call = relay.channel.unary_unary(SERVICE + "Metadata")(b"", metadata=sent)
        assert await call == b"ok"
        assert of_ours(await call.trailing_metadata()) == list(sent)


async def test_metadata_for_us_stay_here(relay):
    """The guard says what goes upstream; the wire adds nothing of its own."""
    await relay.unary("Echo", metadata=(("outrigger-upstream", "up"), ("x-a", "1")))
    keys = {key for key, _ in relay.echo.seen[0][1]}
    assert keys == {"x-a", "user-agent"}
    assert ("outrigger-upstream", "up") in relay.guard.calls[0].metadata


async def test_illegal_request_value_is_refused_by_us(relay, caplog):
    """A value no peer may send is answered INVALID_ARGUMENT, without a traceback."""
    frames = await raw_call(
        relay.wire.addresses[0], SERVICE + "Echo", ("x-odd", "naïve")
    )
    assert [kind for kind, _, _ in frames if kind == HEADERS] == [HEADERS]
    (outcome,) = relay.guard.outcomes
    assert (outcome.code, outcome.origin) == (3, Origin.LOCAL)
    assert "'x-odd'" in outcome.message
    assert relay.echo.seen == []
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "pair", [("Bad-Key", "v"), ("x y", "v"), ("x-v", "a\nb"), ("x-v", b"bytes")]
)
async def test_illegal_metadata_of_the_guard_are_refused(relay, pair):
    """Whoever made illegal metadata, the call ends at once and says so."""
    relay.guard.on_begin = lambda call: None
    usual = relay.guard.go
    relay.guard.go = lambda permit, now: usual(permit, now, metadata=(pair,))
    error = await relay.fails("Echo", timeout=5)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(error.trailing_metadata())["outrigger-refused-by"] == "relay"
    assert from_rpc_error(error).reason == "ILLEGAL_METADATA"


async def test_illegal_response_metadata_are_left_out(relay, caplog):
    """What a lax upstream sends and gRPC cannot send on is left out; the rest stays."""

    def answer(stream):
        headers = block(*RESPONSE, ("x-good", "1"), ("x-odd", "naïve"))
        trailers = block(("grpc-status", "5"), ("x-odd", "naïve"), ("x-end", "2"))
        return (
            frame(HEADERS, END_HEADERS, stream, headers)
            + frame(DATA, 0, stream, MESSAGE)
            + frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers)
        )

    async with RawUpstream(answer) as upstream:
        await relay.wire.set_target("up", upstream.target)
        call = relay.channel.unary_stream(SERVICE + "Any")(b"", timeout=5)
        assert await call.read() == b"ok"
        assert tuple(await call.initial_metadata()) == (("x-good", "1"),)
        assert await call.code() is grpc.StatusCode.NOT_FOUND
        assert tuple(await call.trailing_metadata()) == (("x-end", "2"),)
        await relay.wire.set_target("up", relay.target)
    assert "Traceback" not in caplog.text


async def test_unknown_status_number_becomes_unknown(relay):
    """A status that no gRPC has is told as UNKNOWN, with its message."""

    def answer(stream):
        headers = block(*RESPONSE, ("grpc-status", "99"), ("grpc-message", "odd"))
        return frame(HEADERS, END_HEADERS | END_STREAM, stream, headers)

    async with RawUpstream(answer) as upstream:
        await relay.wire.set_target("up", upstream.target)
        error = await relay.fails("Any", timeout=5)
        assert (error.code(), error.details()) == (grpc.StatusCode.UNKNOWN, "odd")
        await relay.wire.set_target("up", relay.target)


async def test_headers_with_content_come_before_any_message(relay):
    """Headers with content are passed on at once and commit the call."""

    async def headers_then_wait(echo, context):
        await context.send_initial_metadata((("x-head", "1"),))
        await echo.gate.wait()

    relay.echo.extra["Slow"] = headers_then_wait
    call = relay.stream("Slow", timeout=5)
    assert tuple(await call.initial_metadata()) == (("x-head", "1"),)
    relay.echo.gate.set()
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    assert relay.guard.outcomes[0].committed


async def test_failure_without_headers_is_never_committed(relay):
    """Empty headers are not taken for headers, however many calls fail at once."""
    await asyncio.gather(*(relay.fails("Status", b"14 away") for _ in range(200)))
    assert {o.committed for o in relay.guard.outcomes} == {False}
    assert {o.code for o in relay.guard.outcomes} == {14}


@pytest.mark.parametrize("number", [0, 14])
async def test_an_upstream_cannot_speak_for_the_sidecar(relay, number):
    """Four names of trailers are ours alone; all else of its answer passes."""

    async def forge(echo, context):
        await echo.read_all(context)
        if number == 0:
            await context.write(b"ok")
        else:
            context.set_code(grpc.StatusCode.UNAVAILABLE)
        context.set_trailing_metadata(
            (
                ("x-before", "1"),
                ("outrigger-letter-id", "00000000-0000-7000-8000-000000000001"),
                ("outrigger-letter-refused", "FORGED"),
                ("outrigger-refused-by", "circuit"),
                ("outrigger-attempts", "3"),
                ("outrigger-other", "theirs"),
                ("grpc-retry-pushback-ms", "7000"),
                ("grpc-status-details-bin", b"\x00theirs"),
            )
        )

    relay.echo.extra["Forge"] = forge
    call = relay.channel.unary_unary(SERVICE + "Forge")(b"")
    assert (await call.code()).value[0] == number
    assert sorted(await call.trailing_metadata()) == [
        ("grpc-retry-pushback-ms", "7000"),
        ("grpc-status-details-bin", b"\x00theirs"),
        ("outrigger-other", "theirs"),
        ("x-before", "1"),
    ]
    if number:
        assert letter_id_of(await relay.fails("Forge")) is None
