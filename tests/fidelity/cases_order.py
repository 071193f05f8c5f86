"""Every order in which two peers can do things; gates, not pauses, make the order."""

import asyncio
from contextlib import suppress

import grpc.aio

from tests.support.fidelity_cases import case
from tests.support.fidelity_upstream import Gate

STEPS = 40


async def echo(call):
    """Answer each message at once."""
    while (message := await call.read()) is not None:
        await call.write(b"re: " + message)


@case(over=("empty", "small", "large"))
async def ping_pong(caller, upstream, kind):
    """Each message is sent only after the answer to the one before."""
    upstream.script = echo
    message = {"empty": b"", "small": b"ball", "large": b"x" * 100_000}[kind]
    call = caller.stream()
    for _ in range(STEPS):
        await call.write(message)
        await call.read()
    await call.done()
    return [await call.rest()]


@case(over=("empty", "full"))
async def caller_waits_for_headers(caller, upstream, kind):
    """Headers come before the first message, for a caller that sends only then."""

    async def script(call):
        await call.headers(*(() if kind == "empty" else (("x-head", "1"),)))
        await echo(call)

    upstream.script = script
    call = caller.stream()
    await call.headers()
    await call.write(b"now")
    await call.read()
    await call.done()
    return [await call.rest()]


@case(over=("stream", "download"))
async def each_step_is_seen_before_the_next(caller, upstream, arity):
    """Headers, messages and status each come though nothing follows them yet."""
    gates = [Gate() for _ in range(4)]

    async def script(call):
        await call.headers(("x-head", "1"))
        for gate in gates[:3]:
            await gate.passed()
            await call.write(b"step")
        await gates[3].passed()
        call.end(9, "the end", ("x-tail", "1"))

    upstream.script = script
    call = caller.download(b"go") if arity == "download" else caller.stream()
    await call.headers()
    for gate in gates[:3]:
        gate.open()
        await call.read()
    gates[3].open()
    return [await call.rest()]


@case(over=(0, 14))
async def empty_headers_are_seen_before_the_status(caller, upstream, code):
    """Headers without content come before a status without a message."""
    seen = Gate()

    async def script(call):
        await call.headers()
        await seen.passed()
        call.end(code, "after headers")

    upstream.script = script
    call = caller.stream()
    await call.headers()
    seen.open()
    return [await call.rest()]


@case()
async def callee_speaks_first(caller, upstream):
    """A message comes before the caller has sent anything."""

    async def script(call):
        await call.write(b"welcome")
        await echo(call)

    upstream.script = script
    call = caller.stream()
    await call.read()
    await call.write(b"thanks")
    await call.read()
    await call.done()
    return [await call.rest()]


@case(over=(0, 9))
async def callee_ends_without_reading(caller, upstream, code):
    """A status comes though nothing was sent and nothing was read."""

    async def script(call):
        call.end(code, "no need", ("x-tail", "1"))

    upstream.script = script
    return [await caller.stream().rest()]


@case(over=(0, 9))
async def callee_ends_before_the_half_close(caller, upstream, code):
    """A status comes after one message, of a caller that would have sent more."""

    async def script(call):
        await call.read()
        await call.write(b"enough")
        call.end(code, "enough", ("x-tail", "1"))

    upstream.script = script
    call = caller.stream()
    await call.write(b"first")
    return [await call.rest()]


@case()
async def callee_ends_while_the_caller_is_sending(caller, upstream):
    """The callee's own status comes through, though the caller sends all the while."""

    async def script(call):
        await call.read()
        call.end(9, "enough", ("x-early", "1"))

    async def one():
        call = caller.stream()
        # As our own wire does: `write` puts a status of its own over the callee's.
        send = call.call._cython_call.send_serialized_message
        with suppress(grpc.aio.BaseError, grpc.aio.AioRpcError):
            while True:
                await send(b"x" * 20_000)
        return await call.rest()

    upstream.script = script
    return await asyncio.gather(*(one() for _ in range(20)))


@case()
async def half_close_before_any_response(caller, upstream):
    """The callee answers only once the caller has said that it is done."""

    async def script(call):
        for message in await call.read_all():
            await call.write(message)

    upstream.script = script
    call = caller.stream()
    await call.write(b"1", b"2", b"3")
    await call.done()
    return [await call.rest()]


@case()
async def half_close_after_every_response(caller, upstream):
    """The caller says that it is done only once it has every answer."""

    async def script(call):
        await call.write(b"1")
        await call.write(b"2")
        await call.read_all()

    upstream.script = script
    call = caller.stream()
    await call.read()
    await call.read()
    await call.done()
    return [await call.rest()]


@case()
async def half_close_is_seen_while_responses_flow(caller, upstream):
    """The callee hears of the half-close in the middle of its answers."""

    async def script(call):
        await call.write(b"before")
        await call.read_all()
        for number in range(30):
            await call.write(b"%d after" % number)

    upstream.script = script
    call = caller.stream()
    await call.read()
    await call.write(b"only")
    await call.done()
    return [await call.rest()]


@case()
async def half_close_alone(caller, upstream):
    """The callee that waits for a half-close hears it, though nothing was sent."""
    heard = Gate()

    async def script(call):
        await call.read_all()
        heard.open()
        await call.write(b"heard")

    upstream.script = script
    call = caller.stream()
    await call.done()
    await heard.passed()
    return [await call.rest()]


@case(over=("up", "down", "both"))
async def no_messages(caller, upstream, way):
    """A stream without messages stays one, either way."""

    async def script(call):
        await call.read_all()
        if way == "up":
            await call.write(b"got none")

    upstream.script = script
    call = caller.stream()
    if way == "down":
        await call.write(b"answer nothing")
    await call.done()
    return [await call.rest()]


@case(over=("up", "down"))
async def empty_messages(caller, upstream, way):
    """Messages without bytes are messages: none is lost, none is added."""
    messages = (b"", b"a", b"", b"", b"b", b"")

    async def script(call):
        await call.read_all()
        for message in messages if way == "down" else ():
            await call.write(message)

    upstream.script = script
    call = caller.stream()
    await call.write(*(messages if way == "up" else ()))
    await call.done()
    return [await call.rest()]


@case()
async def both_send_at_once(caller, upstream):
    """Neither waits for the other: 200 messages each way at the same time."""

    async def script(call):
        async def speak():
            for number in range(200):
                await call.write(b"down %d" % number)

        await asyncio.gather(speak(), call.read_all())

    upstream.script = script
    call = caller.stream()

    async def speak():
        await call.write(*(b"up %d" % number for number in range(200)))
        await call.done()

    _, events = await asyncio.gather(speak(), call.rest())
    return [events]


@case(over=("up", "down"))
async def many_small_messages(caller, upstream, way):
    """2,000 in a row keep their number and their order."""
    messages = [b"%d" % number for number in range(2000)]

    async def script(call):
        if way == "up":
            await call.read_all()
        for message in messages if way == "down" else ():
            await call.write(message)

    upstream.script = script
    if way == "down":
        return [await caller.download(b"x").rest()]
    call = caller.stream()
    await call.write(*messages)
    await call.done()
    return [await call.rest()]


@case(over=("one", "many"))
async def message_arrives_without_a_half_close(caller, upstream, count):
    """A message comes at once, not only with the half-close behind it."""
    come = Gate()

    async def script(call):
        for _ in range(1 if count == "one" else 5):
            await call.read()
        come.open()
        await call.read_all()

    upstream.script = script
    call = caller.stream()
    await call.write(*[b"x"] * (1 if count == "one" else 5))
    await come.passed()
    await call.done()
    return [await call.rest()]


@case()
async def two_calls_do_not_wait_for_each_other(caller, upstream):
    """A call that hangs does not hold up another one on the same connection."""
    second_is_over = Gate()

    async def script(call):
        if await call.read() == b"first":
            await second_is_over.passed()
        await call.write(b"answer")

    upstream.script = script
    first = caller.stream()
    await first.write(b"first")
    await upstream.arrived()
    second = await caller.download(b"second").rest()
    second_is_over.open()
    return [await first.rest(), second]
