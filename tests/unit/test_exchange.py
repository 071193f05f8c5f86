"""Who a call was ended by, when its caller goes away."""

import asyncio
from contextlib import suppress

import pytest

from outrigger.core.rng import SystemRng
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Call, Origin
from sidecar.wire.exchange import Exchange
from sidecar.wire.options import WireOptions
from sidecar.wire.parts import Parts
from sidecar.wire.replay import Replay
from tests.support.clock import FakeClock
from tests.support.scripted_guard import ScriptedGuard


class Silent:
    """The channels, the channel and the call of an upstream that never answers."""

    name = "up"

    def __init__(self):
        self.channel = self
        self.asked = asyncio.Event()

    def get(self, name):
        return self

    def mark(self):
        return None

    def opened(self):
        return None

    def closed(self):
        return None

    def ended(self, mark, code, origin):
        return None

    def origin(self, code, trailers, mark, *, timed_out):
        return Origin.UPSTREAM

    def unary_stream(self, method):
        return lambda request, metadata, timeout: self

    async def initial_metadata(self):
        self.asked.set()
        await asyncio.Event().wait()

    def cancelled(self):
        return False

    def cancel(self):
        return None


class Caller:
    """One whole request, and nothing is passed on to it."""

    is_committed = False

    def __init__(self):
        self.replay = Replay(100)

    def open(self):
        self.replay.fill(b"request")


async def left(deadline_s, early_s):
    """Leave a call that long before its deadline; return what the guard was told."""
    clock, guard, upstream = FakeClock(), ScriptedGuard(), Silent()
    tasks = Tasks(lambda report: None, clock)
    parts = Parts(guard, upstream, None, clock, SystemRng(), tasks, WireOptions())
    call = Call("id", "/a/B", (), clock.monotonic() + deadline_s)
    running = asyncio.ensure_future(Exchange(parts, call, Caller()).run())
    await upstream.asked.wait()
    clock.advance(deadline_s - early_s)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await tasks.close()
    return [outcome.code for outcome in guard.outcomes], len(guard.cancels)


@pytest.mark.parametrize(
    ("deadline_s", "early_s"),
    [(0.5, 0.009), (4.0, 0.04), (30.0, 0.045), (3600.0, 0.045), (3600.0, -1.0)],
)
async def test_a_caller_whose_time_is_up_is_late(deadline_s, early_s):
    """Timeouts are rounded on their way, so its own clock rings a little sooner."""
    assert await left(deadline_s, early_s) == ([4], 0)


@pytest.mark.parametrize(
    ("deadline_s", "early_s"),
    [(0.5, 0.02), (4.0, 0.06), (30.0, 0.06), (30.0, 0.2), (3600.0, 30.0)],
)
async def test_a_caller_with_time_left_has_cancelled(deadline_s, early_s):
    """However long its deadline was: no letter is taken that nobody hears of."""
    assert await left(deadline_s, early_s) == ([], 1)


class Hesitant(ScriptedGuard):
    """Says that a hedge is due, and by the time it is asked that none is."""

    def __init__(self):
        super().__init__()
        self.dues = [0.0, 0.0, None]

    def due(self, permit, now):
        return self.dues.pop(0) if self.dues else None


async def test_a_hedge_that_is_due_no_more_is_not_made():
    """An answer may begin in the same moment; who asked anyway would be a defect."""
    clock, guard, upstream = FakeClock(), Hesitant(), Silent()
    tasks = Tasks(lambda report: None, clock)
    parts = Parts(guard, upstream, None, clock, SystemRng(), tasks, WireOptions())
    running = asyncio.ensure_future(
        Exchange(parts, Call("id", "/a/B", ()), Caller()).run()
    )
    await upstream.asked.wait()
    async with asyncio.timeout(5):
        while guard.dues:
            await asyncio.sleep(0)
    for _ in range(10):
        await asyncio.sleep(0)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await tasks.close()

    assert guard.attempted == []
