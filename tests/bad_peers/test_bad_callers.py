"""Callers that do wrong: the sidecar stays small, and others are served meanwhile.

The sidecar is a process of its own, so that its memory and its log are only its own.
"""

import asyncio

import pytest

from tests.support.abused_sidecar import METHOD, PATIENCE_S, Abused
from tests.support.bad_caller import RawCaller, opening
from tests.support.echo_upstream import Echo, start, stopped, until
from tests.support.misbehaviours import KIB
from tests.support.processes import Stack
from tests.support.raw_http2 import (
    CANCEL,
    CONTINUATION,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LAST_OF_ALL,
    PING,
    PREFACE,
    data,
    frame,
    message,
    rst,
    settings,
    window,
)

DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED = 4, 8
MANY = 10_000
LIMIT = 1024
"""Calls in flight to one upstream."""
PIECE = bytes(64 * KIB)
PIECES = 1024
WHOLE_BYTES = PIECES * (len(PIECE) + 5)
HEADERS_WHOLE = END_HEADERS | END_STREAM


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    """One sidecar for all the abuse here: what one test leaves the next one meets."""
    with Stack(tmp_path_factory.mktemp("abused")) as stack:
        yield Abused(stack)


def streams(count, first=1):
    """Return numbers of streams a caller may open."""
    return range(first, first + 2 * count, 2)


def call(stream, path=METHOD, *more):
    """Return the frames of a whole unary call."""
    return frame(HEADERS, END_HEADERS, stream, opening(path, *more)) + data(
        stream, message(b"x"), end=True
    )


async def send_all(caller, frames, at_once=200):
    """Send many frames, some at a time."""
    for begin in range(0, len(frames), at_once):
        await caller.send(*frames[begin : begin + at_once])


ILLEGAL = {
    "uppercase-key": ("X-Upper", "a"),
    "newline-in-value": ("x-a", "a\nb"),
    "nul-in-value": ("x-a", "a\0b"),
    "non-ascii-value": ("x-a", "\u00fc".encode()),
    "non-ascii-key": ("x-\u00fc", "a"),
    "space-in-key": ("x a", "a"),
    "empty-key": ("", "a"),
    "bad-base64": ("x-bin", "%%%"),
    "second-path": (":path", METHOD),
    "bad-timeout": ("grpc-timeout", "soon"),
    "bad-encoding": ("grpc-encoding", "rot13"),
    "hop-by-hop": ("connection", "close"),
    "too-large": ("x-a", "a" * 200 * KIB),
}


@pytest.mark.parametrize("case", ILLEGAL)
async def test_illegal_metadata_ends_the_call_and_nothing_else(sidecar, case):
    """Refused or passed on legally, but over at once; the next call is served."""
    opened = opening(METHOD, ILLEGAL[case])
    pieces = [opened[i : i + 16 * KIB] for i in range(0, len(opened), 16 * KIB)]
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.greet()
        flags = 0 if pieces[1:] else END_HEADERS
        await caller.send(frame(HEADERS, flags, 1, pieces[0]))
        for piece in pieces[1:]:
            flags = END_HEADERS if piece is pieces[-1] else 0
            await caller.send(frame(CONTINUATION, flags, 1, piece))
        await caller.send(data(1, message(b"x"), end=True))
        await until(lambda: 1 in caller.ended or caller.is_gone, PATIENCE_S)


PATHS = ["", "x", "/", "//", "/a", "/a/b/c", "*", "/\u00fc/x", "/" + "x" * 10 * KIB]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path[:8]))
async def test_bad_path_ends_the_call(sidecar, path):
    """Whatever is called, there is an answer to it."""
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.greet()
        await caller.send(call(1, path))
        await until(lambda: 1 in caller.ended or caller.is_gone, PATIENCE_S)


async def test_unknown_methods_by_the_thousand_share_one_circuit(sidecar):
    """The caller makes up the names; what is kept of them has a bound."""
    count = 1500
    calls = [call(s, f"/made.Up/Method{s}") for s in streams(count)]
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.greet()
        for begin in range(0, count, 500):
            await send_all(caller, calls[begin : begin + 500])
            await until(
                lambda least=begin: len(caller.ended) >= least + 500, PATIENCE_S
            )
    circuits = sidecar.circuits()
    assert "hole/*" in circuits
    assert len(circuits) <= 1000 + 6  # the bound, three upstreams, what they share


async def test_rapid_reset_costs_nobody_else_anything(sidecar):
    """Ten thousand calls opened and reset at once, over and over."""
    opened = opening(METHOD)
    resets = [
        frame(HEADERS, END_HEADERS, s, opened) + rst(s, CANCEL) for s in streams(MANY)
    ]
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.greet()
        await send_all(caller, resets)
        if not caller.is_gone:
            await caller.send(call(2 * MANY + 1))
        await until(lambda: caller.is_gone or 2 * MANY + 1 in caller.ended, PATIENCE_S)


async def test_streams_beyond_the_limit_are_refused(sidecar):
    """Ten thousand open calls on one connection: 1,024 wait, the others are told.

    None is dropped by the library before our limit sees it.
    """
    opened = opening(METHOD)
    frames = [frame(HEADERS, END_HEADERS, s, opened) for s in streams(MANY)]
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.greet()
        await send_all(caller, frames)
        await until(lambda: len(caller.ended) >= MANY - LIMIT, PATIENCE_S)
        assert set(caller.statuses.values()) == {RESOURCE_EXHAUSTED}
        assert len(caller.statuses) == MANY - LIMIT
        await until(lambda: sidecar.in_flight() >= LIMIT, PATIENCE_S)


async def test_caller_that_reads_nothing_is_not_written_to_for_ever(sidecar):
    """Answers nobody takes fill a buffer, not the memory."""
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.writer.write(PREFACE + settings())
        try:
            async with asyncio.timeout(3):
                await send_all(caller, [call(s) for s in streams(MANY)])
        except TimeoutError:
            pass  # the relay takes no more from it, which is as good an end


async def test_slow_reader_holds_its_upstream_back_and_loses_nothing(sidecar):
    """While the window is shut the upstream waits; once it opens all arrives."""
    echo = Echo()
    written = []

    async def flood(_, context):
        for _ in range(PIECES):
            await context.write(PIECE)
            written.append(1)

    echo.extra["Flood"] = flood
    server, _ = await start(echo, sidecar.flood)
    await sidecar.reaches("flood")
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.feeds = False
        caller.greet((INITIAL_WINDOW_SIZE, 0))
        opened = opening("/test.v1.Echo/Flood", upstream="flood")
        await caller.send(frame(HEADERS, END_HEADERS, 1, opened), data(1, end=True))
        before = await settled(written)
        assert 0 < before < PIECES / 2

        caller.feeds = True
        await caller.send(window(1, 1 << 20), window(0, 1 << 20))
        await until(lambda: 1 in caller.ended, PATIENCE_S)
        assert caller.received == {1: WHOLE_BYTES}
    await stopped(server)


async def settled(written):
    """Return how much was written once that stays the same for half a second."""
    async with asyncio.timeout(PATIENCE_S):
        before = -1
        while before != len(written) or not written:
            before = len(written)
            await asyncio.sleep(0.5)
    return before


async def test_caller_that_never_half_closes_runs_into_its_deadline(sidecar):
    """It gets a status; without a deadline its calls end with its connection."""
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.greet()
        late = opening(METHOD, ("grpc-timeout", "200m"))
        await caller.send(frame(HEADERS, END_HEADERS, 1, late), data(1, message(b"x")))
        await until(lambda: 1 in caller.ended, PATIENCE_S)
        assert caller.statuses.get(1, DEADLINE_EXCEEDED) == DEADLINE_EXCEEDED
        await caller.send(
            *(frame(HEADERS, END_HEADERS, s, opening(METHOD)) for s in (3, 5, 7))
        )
        await until(lambda: sidecar.in_flight() >= 3, PATIENCE_S)


HALVES = {
    "preface": PREFACE[:10],
    "frame-head": PREFACE + settings() + b"\0\0",
    "headers": PREFACE
    + settings()
    + frame(HEADERS, END_HEADERS, 1, opening("/a/b"))[:-9],
    "message": PREFACE
    + settings()
    + frame(HEADERS, END_HEADERS, 1, opening(METHOD))
    + data(1, message(b"x", size=1 << 30)),
}


@pytest.mark.parametrize("case", HALVES)
async def test_half_of_something_holds_nobody_up(sidecar, case):
    """A hundred connections that stop in the middle; they end with their callers."""
    async with sidecar.abused():
        callers = [RawCaller(sidecar.address) for _ in range(100)]
        for caller in callers:
            await caller.__aenter__()
            await caller.send(HALVES[case])
        await asyncio.sleep(0.1)
        for caller in callers:
            await caller.__aexit__()


GARBAGE = {
    "noise": bytes(range(256)) * 64,
    "http-1": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
    "zeros": bytes(16 * KIB),
}


@pytest.mark.parametrize("case", GARBAGE)
async def test_garbage_is_hung_up_on(sidecar, case):
    """What is no HTTP/2 gets no connection."""
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.listen()
        await caller.send(GARBAGE[case])
        await until(lambda: caller.is_gone, PATIENCE_S)


FLOODS = {
    "pings": frame(PING, 0, 0, bytes(8)),
    "settings": settings((INITIAL_WINDOW_SIZE, 1000)),
    "empty-data": data(1),
    "windows": window(0, 1),
    "headers-of-one-call": frame(CONTINUATION, 0, 1, bytes(16 * KIB)),
    "unknown-frames": frame(0xEE, 0, 1, bytes(KIB)),
    "wide-windows": window(0, LAST_OF_ALL),
}


@pytest.mark.parametrize("case", FLOODS)
async def test_flood_of_frames_is_survived(sidecar, case):
    """Taken or hung up on; either way the memory stays what it was."""
    async with sidecar.abused(), RawCaller(sidecar.address) as caller:
        caller.greet()
        flags = 0 if case == "headers-of-one-call" else END_HEADERS
        await caller.send(frame(HEADERS, flags, 1, opening(METHOD)))
        await send_all(caller, [FLOODS[case]] * MANY)
