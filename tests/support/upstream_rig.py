"""Upstreams of several addresses: callees, names and channels over real loopback."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from outrigger.core.clock import SystemClock
from outrigger.core.rpc.server import SERVER_OPTIONS
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Origin
from sidecar.wire.surroundings import Surroundings, Times
from sidecar.wire.upstreams import UpstreamChannels
from tests.support.echo_upstream import Echo, stopped, until

METHOD = "/test.v1.Echo/Join"


class Callee(Echo):
    """A callee on a port of its own, over TLS if it has files; it may come and go."""

    def __init__(self, files=None, *, asks_for_certificate=False):
        super().__init__()
        self.files = files
        self.asks_for_certificate = asks_for_certificate
        self.port = 0
        self.server = None

    @property
    def target(self):
        return f"127.0.0.1:{self.port}"

    @property
    def address(self):
        """The target as a resolver says it."""
        return f"ipv4:{self.target}"

    @property
    def calls(self):
        return len(self.seen)

    async def up(self):
        """Serve, at the same port as before if there was one."""
        self.server = grpc.aio.server(handlers=(self,), options=SERVER_OPTIONS)
        where = f"127.0.0.1:{self.port}"
        if self.files is None:
            self.port = self.server.add_insecure_port(where)
        else:
            self.port = self.server.add_secure_port(where, self._credentials())
        await self.server.start()
        return self

    async def down(self):
        if self.server is not None:
            await stopped(self.server)
            self.server = None

    def _credentials(self):
        files = self.files
        ca = files.ca.read_bytes() if self.asks_for_certificate else None
        return grpc.ssl_server_credentials(
            [(files.key.read_bytes(), files.cert.read_bytes())],
            root_certificates=ca,
            require_client_auth=self.asks_for_certificate,
        )


@asynccontextmanager
async def callees(count, **given):
    """Run so many callees."""
    made = [await Callee(**given).up() for _ in range(count)]
    try:
        yield made
    finally:
        for one in made:
            await one.down()


class ScriptedNames:
    """A resolver that answers as a test says; an exception is raised."""

    def __init__(self, **answers):
        self.answers = answers
        self.asked = 0

    async def __call__(self, host, port):
        self.asked += 1
        answer = self.answers[host.partition(".")[0]]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, asyncio.Event):
            await answer.wait()
            return ()
        return answer


class Half:
    """Chance that is always one half."""

    def draw(self):
        return 0.5

    def token_bytes(self, count):
        return bytes(count)


def surroundings(*, resolve=None, publish=None, clock=None, **times):
    """Return surroundings that look often and wait long, unless a test says else."""
    short = {"reload_s": 0.02, "resolve_gap_s": 0.02}
    patient = {"drain_s": 10.0, "warm_up_s": 30.0}
    given = {"resolve": resolve, "publish": publish, "clock": clock}
    return Surroundings(
        rng=Half(),
        times=Times(**{**short, **patient, **times}),
        **{name: value for name, value in given.items() if value is not None},
    )


class Channels:
    """The channels under test, and all that they tell."""

    def __init__(self):
        self.ready, self.events, self.reports = [], [], []
        self.tasks = Tasks(self.reports.append, SystemClock())
        self.channels = None

    def pick(self, name="up"):
        return self.channels.get(name)

    def view(self):
        """What people see of the only upstream."""
        (view,) = self.channels.views()
        return view

    def states(self):
        return [one.state for one in self.view().addresses]

    async def call(self, request=b"x", timeout=5, handle=None):
        """Call once, as an attempt does; return the status number."""
        handle = handle or self.pick()
        mark = handle.mark()
        handle.opened()
        code = 0
        try:
            await handle.channel.unary_unary(METHOD)(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            code = error.code().value[0]
        finally:
            handle.closed()
        origin = await handle.judge(code, (), mark, SystemClock(), timed_out=True)
        handle.ended(mark, code, origin)
        self.last_origin = origin if code else Origin.UPSTREAM
        return code

    async def told(self, kind, text=""):
        """Wait for an event of that kind whose text contains something."""
        found = []

        def check():
            found[:] = [
                event
                for event in self.events
                if isinstance(event, kind) and text in str(event)
            ]
            return found

        await until(check, 10)
        return found[0]


@asynccontextmanager
async def open_channels(*, outside=None, **specs):
    """Open channels to upstreams, by name."""
    made = Channels()
    outside = outside or surroundings()
    outside.publish = made.events.append
    made.channels = UpstreamChannels(
        specs, made.ready.append, tasks=made.tasks, surroundings=outside
    )
    try:
        await made.channels.start()
        yield made
    finally:
        await made.channels.close()
        await until(lambda: len(made.tasks) == 0)
        await made.tasks.close()
        assert made.reports == []
