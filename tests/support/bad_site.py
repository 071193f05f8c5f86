"""A relay with its real guard between a bad upstream and a good one."""

import asyncio
import contextlib
from pathlib import Path

import grpc
import grpc.aio

from outrigger.core.clock import SystemClock
from outrigger.core.rng import SystemRng
from outrigger.core.rpc.errors import details_metadata, retry_hint_s
from outrigger.core.rpc.server import CHANNEL_OPTIONS
from outrigger.core.tasks import Tasks
from sidecar.call.guard import CallGuard
from sidecar.call.routes import MethodRule, Routes, Upstream
from sidecar.wire.grpcio import GrpcioWire, Listener
from sidecar.wire.upstreams import UpstreamChannels
from tests.support.echo_upstream import Echo, start, stopped, until

METHOD = "/bad.Peer/Call"
WELL = (("outrigger-upstream", "well"),)


class Witness(CallGuard):
    """The real guard; writes down what each attempt came to."""

    def __init__(self, *given, **named):
        super().__init__(*given, **named)
        self.outcomes = []

    def ended(self, permit, attempt, outcome, now, draw):
        if permit.upstream == "bad":
            self.outcomes.append(outcome)
        return super().ended(permit, attempt, outcome, now, draw)


class Site:
    """The relay, its callers' channel, and what the relay made of the bad upstream."""

    def __init__(self, attempts):
        self.reports = []
        self.clock = SystemClock()
        self.tasks = Tasks(self.reports.append, self.clock)
        self.guard = Witness(
            Routes(
                [Upstream("bad"), Upstream("well")],
                [MethodRule(match="*", max_attempts=attempts)],
                {"bad": "bad", "soak": "bad", "test.v1": "well"},
            ),
            publish=lambda _: None,
            now=self.clock.monotonic(),
            details=details_metadata,
            retry_hint=retry_hint_s,
        )
        self.wire = self.targets = self.channel = None

    async def unary(self, request, deadline_s):
        """Call the bad upstream with one message; return status and answers."""
        call = self.channel.unary_unary(METHOD)(request, timeout=deadline_s)
        code = await call.code()
        return code, [await call] if code is grpc.StatusCode.OK else []

    async def stream(self, request, deadline_s):
        """Call it as a stream both ways; return status and answers."""
        call = self.channel.stream_stream(METHOD)(timeout=deadline_s)
        found = []
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await call.write(request)
            await call.done_writing()
            while (answer := await call.read()) is not grpc.aio.EOF:
                found.append(answer)
        return await call.code(), found

    async def is_well(self):
        """Call the good upstream; raises if it is not served."""
        call = self.channel.unary_unary("/test.v1.Echo/Echo")
        answer = await call(b"still here", timeout=20, wait_for_ready=True)
        return answer == b"still here"

    async def keep_calling(self):
        """Call the good upstream without a pause, for ever."""
        while await self.is_well():
            await asyncio.sleep(0.005)

    def counted(self):
        """Return which circuit counted a failure, in words."""
        views = {view.circuit_id: view for view in self.guard.circuits()}
        found = {"upstream": views["bad"], "method": views.get("bad" + METHOD)}
        return " and ".join(
            name for name, view in found.items() if view and view.window_failures
        )


@contextlib.asynccontextmanager
async def open_site(target, attempts=1):
    """Run a relay between the upstream at `target` and a good one."""
    site = Site(attempts)
    server, well = await start(Echo())
    site.targets = UpstreamChannels(
        {"bad": target, "well": well},
        lambda name: site.guard.connection_ready(name, site.clock.monotonic()),
        tasks=site.tasks,
    )
    await site.targets.start()
    site.wire = GrpcioWire(
        site.guard,
        site.targets,
        letters=None,
        clock=site.clock,
        rng=SystemRng(),
        tasks=site.tasks,
        listen=[Listener(address="127.0.0.1:0", flag="--outbound")],
    )
    await site.wire.start()
    site.channel = grpc.aio.insecure_channel(
        site.wire.addresses[0],
        options=(*CHANNEL_OPTIONS, ("grpc.min_reconnect_backoff_ms", 20_000)),
    )
    try:
        await until(lambda: site.targets.get("well").is_ready, 20)
        await site.is_well()
        yield site
        await until(lambda: site.guard.counts.in_flight == 0)
    finally:
        await site.channel.close()
        await site.wire.stop(0)
        await site.targets.close()
        await stopped(server)
        await until(lambda: len(site.tasks) == 0)


def sockets():
    """Return how many sockets this process has open.

    Not all descriptors: the library makes and drops pollers as it sees fit.
    """
    found = 0
    for path in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += str(path.readlink()).startswith("socket:")
    return found
