import asyncio

import grpc
import grpc.aio
import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.rng import SystemRng
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Call, Go, Origin, Permit
from sidecar.wire.attempt import Attempt
from sidecar.wire.caller import CallerGone
from sidecar.wire.options import WireOptions
from sidecar.wire.parts import Parts
from sidecar.wire.replay import Replay
from sidecar.wire.upstreams import Mark
from tests.support.scripted_guard import ScriptedGuard


class Upstream:
    """A channel whose one call does what a test says, when it says so."""

    name = "up"

    def __init__(self):
        self.loop = asyncio.get_running_loop()
        self.messages = asyncio.Queue()
        self.is_done = False
        self.channel = self

    def mark(self):
        return Mark(was_ready=True, drops=0)

    def opened(self):
        return None

    def closed(self):
        return None

    def ended(self, mark, code, origin):
        return None

    async def judge(self, code, trailers, mark, clock, *, timed_out):
        return Origin.UPSTREAM

    def unary_stream(self, method):
        return lambda request, metadata, timeout: self

    async def initial_metadata(self):
        return ()

    async def read(self):
        found = await self.messages.get()
        if isinstance(found, Exception):
            raise found
        return found

    async def trailing_metadata(self):
        return ()

    async def details(self):
        return ""

    def done(self):
        return self.is_done

    def cancel(self):
        self.is_done = True


class Caller:
    """Writes down what is passed on; headers may take their time."""

    def __init__(self):
        self.replay = Replay(100)
        self.replay.fill(b"request")
        self.is_committed = False
        self.passed = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = False

    async def headers(self, metadata):
        if self.gone:
            raise CallerGone
        self.is_committed = True
        await self.gate.wait()
        self.passed.append("headers")

    async def message(self, message):
        self.is_committed = True
        self.passed.append(message)


@pytest.fixture
async def make():
    """Return a function that starts an attempt."""
    tasks = Tasks(lambda report: None, SystemClock())
    parts = Parts(
        ScriptedGuard(),
        None,
        None,
        SystemClock(),
        SystemRng(),
        tasks,
        WireOptions(commit_s=0.01),
    )

    def start(upstream, caller):
        go = Go(Permit(Call("id", "/a/B", ()), "up"), 0, (), None)
        return asyncio.ensure_future(Attempt(go, "/a/B", caller, upstream, parts).run())

    yield start
    await tasks.close()


def unavailable():
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details="down")


async def test_failure_before_the_race_is_over_is_not_committed(make):
    """A status within the time of the race leaves the choice open."""
    upstream, caller = Upstream(), Caller()
    running = make(upstream, caller)
    upstream.messages.put_nowait(unavailable())
    outcome = await running
    assert (outcome.code, outcome.message) == (14, "down")
    assert (outcome.committed, caller.passed) == (False, [])
    await asyncio.sleep(0.02)
    assert caller.passed == []


async def test_status_that_is_there_but_not_read_stops_the_headers(make):
    """Headers are not passed on over a status that the loop has yet to bring."""
    upstream, caller = Upstream(), Caller()
    running = make(upstream, caller)
    await asyncio.sleep(0)
    upstream.is_done = True
    await asyncio.sleep(0.05)
    upstream.messages.put_nowait(unavailable())
    assert not (await running).committed
    assert caller.passed == []


async def test_silent_callee_has_its_headers_passed_on(make):
    """When neither message nor status comes in time the call is committed."""
    upstream, caller = Upstream(), Caller()
    running = make(upstream, caller)
    while not caller.passed:
        await asyncio.sleep(0.001)
    upstream.messages.put_nowait(unavailable())
    assert (await running).committed


@pytest.mark.parametrize("then", [b"message", unavailable(), grpc.aio.EOF])
async def test_nothing_overtakes_the_headers(make, then):
    """What follows headers that are still on their way waits for them."""
    upstream, caller = Upstream(), Caller()
    caller.gate.clear()
    running = make(upstream, caller)
    while not caller.is_committed:
        await asyncio.sleep(0.001)
    upstream.messages.put_nowait(then)
    upstream.messages.put_nowait(grpc.aio.EOF)
    await asyncio.sleep(0.01)
    assert caller.passed == []
    assert not running.done()
    caller.gate.set()
    assert (await running).committed
    assert caller.passed == (["headers", then] if then == b"message" else ["headers"])


async def test_caller_gone_at_the_headers_is_not_committed(make):
    """Headers nobody took commit nothing; whoever writes next hears that."""
    upstream, caller = Upstream(), Caller()
    caller.gone = True
    running = make(upstream, caller)
    await asyncio.sleep(0.03)
    upstream.messages.put_nowait(unavailable())
    assert not (await running).committed
