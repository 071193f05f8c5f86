import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio
import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.rng import SystemRng
from outrigger.core.rpc.errors import details_metadata, from_rpc_error
from outrigger.core.tasks import Tasks
from sidecar.agent.inbound import APP, InboundGuard
from sidecar.wire.grpcio import GrpcioWire, Listener
from sidecar.wire.upstreams import UpstreamChannels
from tests.support.echo_upstream import Echo, start, stopped, until
from tests.support.relay import SERVICE

STEP_S = 0.02


class Sleeper:
    """An agent that sleeps by stopping its server, with the wire in front of it."""

    def __init__(self, **settings):
        self.reports = []
        self.tasks = Tasks(self.reports.append, SystemClock())
        self.echo = Echo()
        self.server = None
        self.wakes = self.begun = 0
        self.can_wake = True
        self.is_awake = False
        self.targets = UpstreamChannels({}, lambda name: None, tasks=self.tasks)
        self.guard = InboundGuard(
            awake=lambda: self.is_awake,
            wake=self._wake,
            on_call=self._begin,
            resolve=self._resolve,
            details=details_metadata,
            **settings,
        )
        self.wire = GrpcioWire(
            self.guard,
            self.targets,
            letters=None,
            clock=SystemClock(),
            rng=SystemRng(),
            tasks=self.tasks,
            listen=[Listener(address="127.0.0.1:0", flag="--inbound")],
        )
        self.channel = None

    def _resolve(self, token, result):
        self.wire.resolve(token, result)

    def _begin(self):
        self.begun += 1

    def _wake(self, reason):
        self.wakes += 1
        self.tasks.spawn("wake", self.wake())

    async def wake(self):
        """Start the agent anew, at an address of its own."""
        await asyncio.sleep(STEP_S)
        if not self.can_wake:
            self.guard.agent_failed("it cannot")
            return
        self.server, target = await start(self.echo)
        await self.wire.set_target(APP, target)
        self.is_awake = True
        self.guard.agent_is_awake()

    async def sleep(self):
        """End the agent's process."""
        self.is_awake = False
        server, self.server = self.server, None
        await stopped(server)

    def unary(self, name="Echo", request=b"hello", **given):
        return self.channel.unary_unary(SERVICE + name)(request, **given)


@asynccontextmanager
async def sleeper(**settings):
    """Run an agent that is asleep."""
    agent = Sleeper(**settings)
    await agent.wire.start()
    agent.channel = grpc.aio.insecure_channel(agent.wire.addresses[0])
    try:
        yield agent
    finally:
        await agent.channel.close()
        await agent.wire.stop(0)
        if agent.server is not None:
            await agent.sleep()
        await agent.targets.close()
        await until(lambda: len(agent.tasks) == 0)
        counts = agent.guard.counts
        assert (counts.in_flight, counts.held) == (0, 0)
        assert counts.begun == counts.ok + counts.failed + counts.cancelled + sum(
            counts.refused.values()
        )
        assert agent.reports == []


async def test_calls_wake_the_agent_and_are_answered():
    """Calls for a sleeping agent wake it once, wait, and get its answers."""
    async with sleeper() as agent:
        calls = [agent.unary(request=b"%d" % number) for number in range(20)]
        answers = await asyncio.gather(*calls)
        assert answers == [b"%d" % number for number in range(20)]
        assert (agent.wakes, agent.begun) == (1, 20)


async def test_streams_are_held_too():
    """A stream begun in sleep goes on where it was, with all its messages."""
    async with sleeper() as agent:
        call = agent.channel.stream_stream(SERVICE + "Echo")(timeout=10)
        await call.write(b"one")
        assert await call.read() == b"one"
        await call.write(b"two")
        assert await call.read() == b"two"
        await call.done_writing()
        assert await call.code() is grpc.StatusCode.OK


async def test_every_wake_gets_a_fresh_channel():
    """An agent that comes back at another address is found there, without delay."""
    async with sleeper() as agent:
        for round_ in range(5):
            assert await agent.unary(request=b"%d" % round_) == b"%d" % round_
            await agent.sleep()
        assert agent.wakes == 5
        assert agent.guard.counts.failed == 0


async def test_wake_that_fails_is_told():
    """When the agent cannot wake its callers hear so, from us."""
    async with sleeper() as agent:
        agent.can_wake = False
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.unary(timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert from_rpc_error(caught.value).reason == "AGENT_FAILED"
        trailers = dict(caught.value.trailing_metadata())
        assert trailers["outrigger-refused-by"] == "wake"


async def test_deadline_ends_a_hold():
    """A caller that has no more time is not handed on later."""
    async with sleeper() as agent:
        agent.guard._wake = lambda reason: None
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.unary(timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: agent.guard.counts.cancelled == 1)
        await agent.wake()
        assert agent.echo.seen == []


async def test_caller_without_a_deadline_is_not_held_for_ever():
    """Such a call is given up after hold_max_s."""
    async with sleeper(hold_max_s=0.1) as agent:
        agent.guard._wake = lambda reason: None
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await agent.unary()
        assert from_rpc_error(caught.value).reason == "NOT_WOKEN"


async def test_calls_beyond_the_limit_are_refused():
    """No more calls than allowed are held; the others are told when to come back."""
    async with sleeper(max_held=5) as agent:
        results = await asyncio.gather(
            *(agent.unary(timeout=10) for _ in range(8)), return_exceptions=True
        )
        refused = [r for r in results if isinstance(r, grpc.aio.AioRpcError)]
        assert len(refused) == 3
        assert {r.code() for r in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert results.count(b"hello") == 5


async def test_calls_against_sleeps_at_random_moments():
    """Whatever the moment, each call is answered."""
    async with sleeper() as agent:
        answers, callers = [], []

        async def caller(number):
            made = 0
            while made < 15 or agent.wakes < 3:
                call = agent.unary(timeout=10)
                answers.append(await call.code())
                await asyncio.sleep(0.001 * number * (1 + made // 15))
                made += 1
            callers.append(number)

        async def nap():
            while len(callers) < 4:
                await asyncio.sleep(0.01)
                # As the supervisor does: never with a call in flight.
                if agent.server is not None and agent.guard.counts.in_flight == 0:
                    await agent.sleep()

        await asyncio.gather(*(caller(number) for number in range(4)), nap())
        assert len(answers) >= 60
        assert set(answers) == {grpc.StatusCode.OK}
