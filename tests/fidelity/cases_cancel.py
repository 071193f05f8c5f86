"""Cancellation in both directions, at every moment."""

from tests.support.fidelity_cases import case
from tests.support.fidelity_upstream import Gate

CANCEL = 8
RESETS = {"refused": 7, "cancel": CANCEL, "internal": 2, "enhance your calm": 11}


@case(over=("unary", "download", "upload", "stream"))
async def caller_cancels_before_headers(caller, upstream, arity):
    """Nothing has come back yet."""

    async def script(call):
        await call.hang()

    upstream.script = script
    one = arity in {"unary", "download"}
    call = getattr(caller, arity)(*((b"x",) if one else ()))
    await upstream.arrived()
    call.cancel()
    whole = arity in {"unary", "upload"}
    return [await (call.response() if whole else call.rest())]


@case(over=("empty", "full"))
async def caller_cancels_after_headers(caller, upstream, kind):
    """Headers have come, and no message."""

    async def script(call):
        await call.headers(*(() if kind == "empty" else (("x-head", "1"),)))
        await call.hang()

    upstream.script = script
    call = caller.stream()
    await call.headers()
    call.cancel()
    return [await call.rest()]


@case(over=(1, 2, 3))
async def caller_cancels_amid_its_requests(caller, upstream, count):
    """Some messages are sent, and no half-close."""
    come = Gate()

    async def script(call):
        for _ in range(count):
            await call.read()
        come.open()
        await call.hang()

    upstream.script = script
    call = caller.stream()
    await call.write(*(b"part %d" % number for number in range(count)))
    await come.passed()
    call.cancel()
    return [await call.rest()]


@case(over=("download", "stream"))
async def caller_cancels_amid_the_responses(caller, upstream, arity):
    """Some answers have come, and more would."""

    async def script(call):
        await call.write(b"1")
        await call.write(b"2")
        await call.hang()

    upstream.script = script
    call = caller.download(b"x") if arity == "download" else caller.stream()
    await call.read()
    await call.read()
    call.cancel()
    return [await call.rest()]


@case(over=("upload", "stream"))
async def caller_cancels_after_its_half_close(caller, upstream, arity):
    """The whole request is there."""
    come = Gate()

    async def script(call):
        await call.read_all()
        come.open()
        await call.hang()

    upstream.script = script
    call = getattr(caller, arity)()
    await call.write(b"1", b"2")
    await call.done()
    await come.passed()
    call.cancel()
    return [await (call.response() if arity == "upload" else call.rest())]


@case()
async def caller_cancels_while_the_callee_writes(caller, upstream):
    """The callee is held up by a caller that does not read, and then goes."""
    full = Gate()

    async def script(call):
        while True:
            await call.write(b"x" * 500_000)
            full.open()

    upstream.script = script
    call = caller.stream()
    await full.passed()
    call.cancel()
    return [await call.rest()]


@case()
async def caller_cancels_what_is_over(caller, upstream):
    """A call that has its status keeps it."""

    async def script(call):
        call.end(5, "over")

    upstream.script = script
    call = caller.stream()
    await call.status()
    call.cancel()
    return [await call.status()]


@case(over=("stream", "unary"))
async def connection_of_the_caller_is_closed(caller, upstream, arity):
    """A caller that is gone is one that cancelled."""

    async def script(call):
        await call.read()
        await call.hang()

    upstream.script = script
    if arity == "unary":
        call = caller.unary(b"x")
    else:
        call = caller.stream()
        await call.write(b"x")
    await upstream.arrived()
    await caller.close()
    return [await (call.response() if arity == "unary" else call.rest())]


@case(over=("at once", "after reading", "after headers", "after a message"))
async def callee_says_cancelled(caller, upstream, moment):
    """A callee that gives up says CANCELLED, and that is what its caller hears."""

    async def script(call):
        if moment == "after reading":
            await call.read_all()
        if moment == "after headers":
            await call.headers(("x-head", "1"))
        if moment == "after a message":
            await call.write(b"part")
        call.end(1, "gave up", ("x-tail", "1"))

    upstream.script = script
    call = caller.stream()
    if moment == "after reading":
        await call.write(b"x")
        await call.done()
    return [await call.rest()]


@case(over=("nothing", "one", "two", "half-close"), raw=True, majority=True)
async def cancelled_request_is_not_completed(caller, upstream, sent):
    """On the callee's connection a cancelled request ends by a reset, as it would."""
    return [await cancelled(caller, upstream, sent) for _ in range(15)]


async def cancelled(caller, upstream, sent):
    """Cancel a request after a part of it has arrived."""
    call = caller.stream()
    await upstream.came("headers")
    if sent != "nothing":
        await call.write(b"one")
        await upstream.came("data")
    if sent == "two":
        await call.write(b"two")
        await upstream.came("data", "data")
    if sent == "half-close":
        await call.done()
        await upstream.came("half-close")
    call.cancel()
    await upstream.came("reset")
    return await call.rest()


@case(over=tuple(RESETS), raw=True)
async def callee_resets_before_headers(caller, upstream, kind):
    """A stream that is reset gets the status that gRPC gives to that."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.reset(RESETS[kind])
    return [await call.rest()]


@case(over=tuple(RESETS), raw=True)
async def callee_resets_after_headers(caller, upstream, kind):
    """The headers have come; then the reset."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.headers(("x-head", "1"))
    await call.headers()
    upstream.reset(RESETS[kind])
    return [await call.rest()]


@case(over=tuple(RESETS), raw=True)
async def callee_resets_after_a_message(caller, upstream, kind):
    """A message has come; then the reset."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.headers(("x-head", "1"))
    upstream.message(b"part")
    await call.read()
    upstream.reset(RESETS[kind])
    return [await call.rest()]


@case(over=("before headers", "after headers", "after a message"), raw=True)
async def connection_of_the_callee_breaks(caller, upstream, moment):
    """A callee that is gone in the middle is UNAVAILABLE, and what it said stays."""
    call = caller.stream()
    await upstream.came("headers")
    if moment != "before headers":
        upstream.headers(("x-head", "1"))
        await call.headers()
    if moment == "after a message":
        upstream.message(b"part")
        await call.read()
    upstream.hang_up()
    *before, (_, code, _, headers, trailers) = await call.rest()
    # Whether its socket was closed or reset depends on what it had not read yet.
    return [[*before, ("status", code, headers, trailers)]]
