"""A sidecar whole, in one process with the test, and a stream nobody uses."""

import asyncio
import dataclasses

import grpc.aio
import pytest

from outrigger.core.clock import SystemClock
from outrigger.v1 import agent_pb2
from outrigger.v1 import sidecar_service_pb2 as pb
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from sidecar.app import serving
from sidecar.config import from_args
from tests.support.echo_upstream import Echo, start, stopped

AWAKE = agent_pb2.Agent.STATE_AWAKE
FROZEN = agent_pb2.Agent.STATE_FROZEN


class JumpingClock(SystemClock):
    """The machine's clock, some seconds ahead."""

    def __init__(self):
        self.ahead_s = 0.0

    def monotonic(self):
        return super().monotonic() + self.ahead_s


class Scene:
    """A sidecar with an agent and an upstream."""

    def __init__(self, addresses, clock, state):
        self.clock = clock
        self.outbound = addresses["outbound"]
        self.channel = grpc.aio.insecure_channel(addresses["api_tcp"])
        self.api = SidecarServiceStub(self.channel)
        token = (state / "admin-token").read_text().strip()
        self.token = (("outrigger-token", token),)

    async def agent(self):
        request = pb.GetSidecarRequest()
        return (await self.api.GetSidecar(request, metadata=self.token)).agent

    async def reached(self, state):
        async with asyncio.timeout(20):
            while (await self.agent()).state != state:
                await asyncio.sleep(0.01)

    async def up(self):
        """Let time pass until the agent, which never attaches, is taken as awake."""
        while (await self.agent()).state != AWAKE:
            self.clock.ahead_s += 1.0

    async def sleep(self):
        request = pb.SidecarServiceSleepAgentRequest(reason="test")
        await self.api.SleepAgent(request, metadata=self.token)


@pytest.fixture
async def scene(tmp_path):
    """A sidecar that freezes its agent, and an upstream that echoes."""
    server, target = await start(Echo())
    state, clock = tmp_path / "s", JumpingClock()
    words = [
        *("--agent-id", "a", "--state", str(state), "--sleep-mode", "freeze"),
        *("--outbound", "127.0.0.1:0", "--api", "127.0.0.1:0"),
        *("--upstream", f"default={target}", "--", "/bin/sleep", "1000"),
    ]
    config = dataclasses.replace(from_args(words, {}), measure=False)
    try:
        async with serving(config, clock) as (_, addresses):
            made = Scene(addresses, clock, state)
            async with made.channel:
                yield made
    finally:
        await stopped(server)


async def test_a_stream_counts_until_it_is_silent_and_then_vetoes_nothing(scene):
    """Told of and waited for after a message; a minute later neither, and it lives."""
    clock = scene.clock
    await scene.up()
    async with grpc.aio.insecure_channel(scene.outbound) as channel:
        call = channel.stream_stream("/test.Echo/Echo")()
        await call.write(b"x")
        assert await call.read() == b"x"
        load = (await scene.agent()).load
        assert load.outbound_in_flight == 1

        clock.ahead_s += 61.0
        assert (await scene.agent()).load.outbound_in_flight == 0
        await scene.sleep()
        await scene.reached(FROZEN)

        await call.write(b"y")
        assert await call.read() == b"y"
        await scene.reached(AWAKE)
        assert (await scene.agent()).load.outbound_in_flight == 1
        call.cancel()
