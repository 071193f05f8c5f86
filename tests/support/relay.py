"""An upstream, a wire in front of it, and a caller's channel, over real loopback."""

from contextlib import asynccontextmanager

import grpc.aio

from outrigger.core.clock import SystemClock
from outrigger.core.rng import SystemRng
from outrigger.core.rpc.server import CHANNEL_OPTIONS
from outrigger.core.tasks import Tasks
from sidecar.wire.grpcio import GrpcioWire, Listener, WireOptions
from sidecar.wire.upstreams import UpstreamChannels
from tests.support.echo_upstream import Echo, start, stopped, until
from tests.support.scripted_guard import ScriptedGuard

SERVICE = "/test.v1.Echo/"


class Relay:
    """The parts of one set-up; `open_relay` makes and closes it."""

    def __init__(self):
        self.echo = Echo()
        self.guard = ScriptedGuard()
        self.reports = []
        self.ready = []
        self.clock = SystemClock()
        self.tasks = Tasks(self.reports.append, self.clock)
        self.server = self.wire = self.targets = self.channel = self.target = None

    def stream(self, name, **given):
        """Call a method as a stream both ways."""
        return self.channel.stream_stream(SERVICE + name)(**given)

    async def unary(self, name, request=b"hello", **given):
        """Call a method as unary; return the response."""
        return await self.channel.unary_unary(SERVICE + name)(request, **given)

    async def fails(self, name, request=b"hello", **given):
        """Call a method as unary; return the error it fails with."""
        try:
            response = await self.unary(name, request, **given)
        except grpc.aio.AioRpcError as error:
            return error
        raise AssertionError(f"{name} answered {response!r}")

    def dial(self, options=()):
        """Return one more channel of a caller."""
        merged = dict(CHANNEL_OPTIONS) | dict(options)
        return grpc.aio.insecure_channel(
            self.wire.addresses[0], options=tuple(merged.items())
        )


@asynccontextmanager
async def open_relay(
    *,
    letters=None,
    listen=None,
    options=None,
    upstream=None,
    specs=None,
    surroundings=None,
):
    """Run an upstream and a wire in front of it, or in front of what `specs` say."""
    relay = Relay()
    relay.server, relay.target = await start(relay.echo, upstream or "127.0.0.1:0")
    relay.targets = UpstreamChannels(
        specs or {"up": relay.target},
        relay.ready.append,
        tasks=relay.tasks,
        surroundings=surroundings,
    )
    await relay.targets.start()
    relay.wire = GrpcioWire(
        relay.guard,
        relay.targets,
        letters=letters,
        clock=relay.clock,
        rng=SystemRng(),
        tasks=relay.tasks,
        listen=listen or [Listener(address="127.0.0.1:0", flag="--outbound")],
        options=options or WireOptions(),
    )
    await relay.wire.start()
    relay.channel = relay.dial()
    try:
        if specs is not None:
            # On a busy machine the caller's own first try may take too long, and a
            # failure must be the upstream's.
            await relay.channel.channel_ready()
        yield relay
    finally:
        await relay.channel.close()
        await relay.wire.stop(0)
        await relay.targets.close()
        await stopped(relay.server)
        await until(lambda: len(relay.tasks) == 0)
        assert relay.guard.faults == []
        assert relay.guard.open == {}
