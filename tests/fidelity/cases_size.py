"""Messages up to the peers' own limits, compressed and not, and slow readers."""

import asyncio

import grpc

from tests.support.fidelity_cases import case
from tests.support.fidelity_observation import Observation
from tests.support.fidelity_upstream import UNLIMITED, Gate

MIB = 1 << 20
LIMIT = 4 * MIB
"""What a gRPC peer takes if it is told nothing else."""
PIECE = bytes(256 * 1024)
PIECES = 400
AHEAD_MAX = 48 * MIB
"""More than the buffers of two connections hold, and half of what is sent."""
FIXED = (*UNLIMITED, ("grpc.http2.bdp_probe", 0))
"""Else a window grows with the time that a busy machine takes to answer."""


async def echo(call):
    """Answer each message with itself."""
    while (message := await call.read()) is not None:
        await call.write(message)


@case(over=(0, 1), caller=(), end_is_open=True)
async def response_at_the_callers_limit(caller, upstream, over):
    """A caller with gRPC's default limit takes so much, and fails alike beyond."""

    async def script(call):
        await call.read_all()
        await call.write(bytes(LIMIT + over))

    upstream.script = script
    return [await caller.unary(b"x").response()]


@case(over=(0, 1), upstream=())
async def request_at_the_callees_limit(caller, upstream, over):
    """A callee with gRPC's default limit takes so much, and refuses alike beyond."""
    upstream.script = echo
    events = await caller.unary(bytes(LIMIT + over)).response()
    return Observation(caller=[events], facts={"calls": len(upstream.calls)})


@case(caller=(("grpc.max_send_message_length", 1000),))
async def request_beyond_what_its_caller_may_send(caller, upstream):
    """The caller's own library says no, in its own words."""
    upstream.script = echo
    return [await caller.unary(bytes(1001)).response()]


@case(over=("unary", "streamed"))
async def sixty_four_mib(caller, upstream, how):
    """So much passes both ways, as one message or as many."""
    upstream.script = echo
    if how == "unary":
        return [await caller.unary(bytes(64 * MIB)).response()]
    call = caller.stream()
    for _ in range(64):
        await call.write(bytes(MIB))
        await call.read()
    await call.done()
    return [await call.rest()]


@case(over=(1, 256 * 1024 - 1, 256 * 1024, 256 * 1024 + 1, MIB))
async def request_around_what_a_relay_may_keep(caller, upstream, size):
    """Nothing happens at any size, alone or after another message."""
    upstream.script = echo
    call = caller.stream()
    await call.write(b"first", bytes(size), bytes(size), b"last")
    await call.done()
    return [await caller.unary(bytes(size)).response(), await call.rest()]


async def _at_rest(progress):
    """Wait until a counter has stood still for a while; return it."""
    before, still = progress(), 0
    while still < 40:
        await asyncio.sleep(0.005)
        still = still + 1 if progress() == before else 0
        before = progress()
    return before


@case(caller=FIXED, upstream=FIXED)
async def slow_reader_holds_its_callee_back(caller, upstream):
    """Nobody between reads ahead without bound; then all arrives, in order."""
    sent = 0

    async def script(call):
        nonlocal sent
        for _ in range(PIECES):
            await call.write(PIECE)
            sent += 1

    upstream.script = script
    call = caller.stream()
    await call.read()
    ahead = await _at_rest(lambda: sent) * len(PIECE)
    events = await call.rest()
    return Observation(caller=[events], facts={"bounded": ahead <= AHEAD_MAX})


@case(caller=FIXED, upstream=FIXED)
async def slow_callee_holds_its_caller_back(caller, upstream):
    """The same the other way round."""
    sent, gate = 0, Gate()

    async def script(call):
        await call.read()
        await gate.passed()
        await call.read_all()

    async def speak():
        nonlocal sent
        for _ in range(PIECES):
            await call.write(PIECE)
            sent += 1
        await call.done()

    upstream.script = script
    call = caller.stream()
    speaking = asyncio.ensure_future(speak())
    ahead = await _at_rest(lambda: sent) * len(PIECE)
    gate.open()
    await speaking
    events = await call.rest()
    return Observation(caller=[events], facts={"bounded": ahead <= AHEAD_MAX})


async def _compressed(caller, upstream):
    upstream.script = echo
    text = b"all work and no play " * 5000
    call = caller.stream()
    await call.write(text, b"", b"short")
    await call.done()
    return [await caller.unary(text).response(), await call.rest()]


@case(caller_compression=grpc.Compression.Gzip)
async def requests_that_are_compressed(caller, upstream):
    """A caller that compresses is understood."""
    return await _compressed(caller, upstream)


@case(upstream_compression=grpc.Compression.Gzip)
async def responses_that_are_compressed(caller, upstream):
    """A callee that compresses is understood."""
    return await _compressed(caller, upstream)


@case(
    caller_compression=grpc.Compression.Deflate,
    upstream_compression=grpc.Compression.Gzip,
)
async def both_compress_each_in_its_way(caller, upstream):
    """Either may have its own algorithm."""
    return await _compressed(caller, upstream)


@case(caller=(), caller_compression=grpc.Compression.Gzip, end_is_open=True)
async def small_when_compressed_large_when_not(caller, upstream):
    """What counts for a limit is the size when it is not compressed."""

    async def script(call):
        await call.read_all()
        await call.write(bytes(LIMIT + 1))

    upstream.script = script
    return [await caller.unary(bytes(LIMIT + 1)).response()]
