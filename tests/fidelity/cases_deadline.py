"""Deadlines: told upwards, kept downwards."""

import asyncio
from contextlib import suppress

import grpc.aio

from tests.support.fidelity_cases import case
from tests.support.fidelity_observation import Observation

SOON = 0.4
"""Long enough for a call to get through on a busy machine, seconds."""


@case(over=(10, 100, 5000, 300_000))
async def callee_is_told_the_time_left(caller, upstream, seconds):
    """The deadline of a call reaches its callee."""

    async def script(call):
        await call.read_all()
        await call.write(b"m")

    upstream.script = script
    return [await caller.unary(b"x", timeout=seconds).response()]


@case(over=("unary", "stream"))
async def callee_is_told_of_no_deadline(caller, upstream, arity):
    """A call without a deadline gets none on its way."""

    async def script(call):
        await call.read_all()
        await call.write(b"m")

    upstream.script = script
    if arity == "unary":
        return [await caller.unary(b"x").response()]
    call = caller.stream()
    await call.done()
    return [await call.rest()]


@case(over=("unary", "download", "upload", "stream"))
async def deadline_before_any_answer(caller, upstream, arity):
    """A callee that never answers is cancelled, and its caller told in time."""

    async def script(call):
        await call.read()
        await call.hang()

    upstream.script = script
    if arity in {"unary", "download"}:
        call = getattr(caller, arity)(b"x", timeout=SOON)
    else:
        call = getattr(caller, arity)(timeout=SOON)
        await call.write(b"x")
    whole = arity in {"unary", "upload"}
    return [await (call.response() if whole else call.rest())]


@case(over=("headers", "messages", "half-close"))
async def deadline_in_the_middle(caller, upstream, moment):
    """What came before the deadline stays, whatever that was."""

    async def script(call):
        await call.headers(("x-head", "1"))
        if moment == "messages":
            await call.write(b"1")
            await call.write(b"2")
        if moment == "half-close":
            await call.read_all()
        await call.hang()

    upstream.script = script
    call = caller.stream(timeout=SOON)
    await call.headers()
    if moment == "half-close":
        await call.write(b"x")
        await call.done()
    return [await call.rest()]


@case(over=("caller", "callee"))
async def deadline_while_one_is_held_up(caller, upstream, who):
    """The deadline ends a call also where a peer waits for room to send."""

    async def script(call):
        while who == "callee":
            await call.write(bytes(500_000))
        await call.hang()

    async def speak(call):
        with suppress(grpc.aio.BaseError, grpc.aio.AioRpcError, asyncio.CancelledError):
            while True:
                await call.call._cython_call.send_serialized_message(bytes(500_000))

    upstream.script = script
    call = caller.stream(timeout=SOON)
    if who == "caller":
        await speak(call)
    return [await call.status()]


@case(unordered=True)
async def deadlines_of_a_few_milliseconds(caller, upstream):
    """Whoever is the first to notice, the status is the same."""

    async def script(call):
        await call.read_all()
        await call.hang()

    upstream.script = script
    calls = [caller.unary(b"x", timeout=n / 1000) for n in range(1, 31)]
    codes = {events[-1][1] for events in [await call.response() for call in calls]}
    await upstream.observed()
    upstream.calls.clear()  # how many got so far is a matter of luck
    return Observation(facts={"codes": codes})


@case()
async def deadline_that_has_passed_already(caller, upstream):
    """A call that comes too late reaches nobody."""
    return [await caller.unary(b"x", timeout=-1).response()]


@case(over=("at once", "after a message"))
async def callee_has_a_deadline_of_its_own(caller, upstream, moment):
    """A DEADLINE_EXCEEDED that the callee says is passed on as it said it."""

    async def script(call):
        await call.read_all()
        if moment != "at once":
            await call.write(b"part")
        call.end(4, "my own callee was too slow", ("x-who", "callee"))

    upstream.script = script
    return [await caller.download(b"x", timeout=100).rest()]
