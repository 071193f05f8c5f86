"""Many at once."""

import asyncio

from tests.support.fidelity_cases import case
from tests.support.fidelity_observation import Observation
from tests.support.fidelity_upstream import Gate

MANY = 1000


def found(results, **facts):
    """Return an observation of calls that came in no certain order."""
    return Observation(caller=sorted(map(repr, results)), facts=facts)


@case(unordered=True)
async def thousand_unary_calls_at_once(caller, upstream):
    """Each is answered with what it asked, whatever the others do."""

    async def script(call):
        (request,) = await call.read_all()
        await call.write(b"re: " + request)
        call.end(int(request) % 17, "as asked", ("x-n", request.decode()))

    upstream.script = script
    calls = [caller.unary(b"%d" % n).response() for n in range(MANY)]
    return found(await asyncio.gather(*calls))


@case(unordered=True)
async def thousand_streams_at_once(caller, upstream):
    """All are open together before any of them is answered."""
    all_open = Gate()

    async def script(call):
        await call.read()
        if len(upstream.calls) == MANY:
            all_open.open()
        await all_open.passed()
        await call.write(b"all are here")
        await call.read_all()

    async def one(number):
        call = caller.stream()
        await call.write(b"%d" % number)
        await call.read()
        await call.done()
        return await call.rest()

    upstream.script = script
    return found(await asyncio.gather(*(one(number) for number in range(MANY))))


@case(unordered=True)
async def idle_streams_wait_and_others_pass(caller, upstream):
    """500 streams say nothing, one goes on beside them, then each wakes up."""
    wake = Gate()

    async def script(call):
        if await call.read() == b"idle":
            await call.headers()
            await wake.passed()
            await call.write(b"awake")
        else:
            await call.write(b"busy")

    async def idle():
        call = caller.stream()
        await call.write(b"idle")
        await call.headers()
        return call

    upstream.script = script
    sleepers = await asyncio.gather(*(idle() for _ in range(500)))
    busy = [await caller.download(b"busy").rest() for _ in range(20)]
    wake.open()
    woken = await asyncio.gather(*(call.rest() for call in sleepers))
    return found([*busy, *woken])


@case(unordered=True)
async def cancelled_and_kept_side_by_side(caller, upstream):
    """Of 200 streams every other one is cancelled; the rest end well."""
    go = Gate()

    async def script(call):
        await call.read()
        await go.passed()
        if call.metadata == (("x-keep", "1"),):
            await call.write(b"kept")
        else:
            await call.hang()

    async def one(number):
        call = caller.stream(metadata=(("x-keep", str(number % 2)),))
        await call.write(b"x")
        return call

    upstream.script = script
    calls = await asyncio.gather(*(one(number) for number in range(200)))
    await upstream.arrived(200)
    go.open()
    for call in calls[::2]:
        call.cancel()
    return found(await asyncio.gather(*(call.rest() for call in calls)))
