"""What docs/grpcio-faults.md says is held, where no other test holds it."""

import ast
import asyncio
import re
from pathlib import Path

import grpc
import grpc.aio
import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.errors import Refused
from outrigger.core.rng import SystemRng
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Origin
from sidecar.wire.grpcio import GrpcioWire, Listener
from sidecar.wire.options import WireOptions
from sidecar.wire.upstreams import ChannelHandle, Mark, UpstreamChannels
from tests.fidelity.test_fidelity import LISTS
from tests.support.echo_upstream import Echo, start, stopped, until
from tests.support.fidelity_cases import CASES
from tests.support.relay import SERVICE, open_relay

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "grpcio-faults.md"

assert LISTS


class Context:
    """A server's context that writes down how it is used."""

    def __init__(self, *, gone=False):
        self.gone = gone
        self.is_over = False
        self.used = []
        self.used_after = []
        self.more = asyncio.Event()
        self.read_was_cancelled = False

    def _use(self, what):
        (self.used_after if self.is_over else self.used).append(what)

    def time_remaining(self):
        self._use("time_remaining")

    async def read(self):
        self._use("read")
        try:
            await self.more.wait()
        except asyncio.CancelledError:
            self.read_was_cancelled = True
            raise
        return b"late"

    async def send_initial_metadata(self, metadata):
        self._use("headers")

    async def write(self, message):
        self._use("write")
        if self.gone:
            raise grpc.aio.InternalError("nobody is there")

    def set_trailing_metadata(self, trailers):
        self._use("trailers")

    def set_details(self, details):
        self._use("details")

    def set_code(self, code):
        self._use("code")


async def serve(relay, name, context):
    """Relay a call of a context of ours, as the library would."""
    try:
        await relay.wire.serve(SERVICE + name, (), None, context)
    finally:
        context.is_over = True


async def answered_early(echo, context):
    """End before anything is read."""
    context.set_code(grpc.StatusCode.NOT_FOUND)


async def test_a_call_whose_caller_is_gone_is_not_answered():
    """Its handler ends as cancelled and sets no status: that batch would fail."""
    async with open_relay() as relay:
        context = Context(gone=True)
        with pytest.raises(asyncio.CancelledError):
            await serve(relay, "Speak", context)
        assert context.used[-1] == "write"
        assert relay.guard.cancels
        context.more.set()


async def test_a_read_is_never_cancelled():
    """A call that is over leaves its reader to end by itself."""
    async with open_relay() as relay:
        relay.echo.extra["Done"] = answered_early
        context = Context()
        await serve(relay, "Done", context)
        assert "code" in context.used
        await asyncio.sleep(0.01)
        assert not context.read_was_cancelled
        context.more.set()
    assert not context.read_was_cancelled


async def test_a_context_is_let_go_with_its_call():
    """Nothing is asked of it later; the library's memory may be gone by then."""
    async with open_relay() as relay:
        relay.echo.extra["Done"] = answered_early
        context = Context()
        await serve(relay, "Done", context)
        context.more.set()
        await until(lambda: len(relay.tasks) == 3)  # watcher, listener, clock
    assert context.used_after == []


async def test_two_relays_never_share_a_port():
    """The second one is refused, though the library would let it in."""
    async with open_relay() as relay:
        second = GrpcioWire(
            relay.guard,
            relay.targets,
            letters=None,
            clock=relay.clock,
            rng=SystemRng(),
            tasks=relay.tasks,
            listen=[Listener(address=relay.wire.addresses[0], flag="--outbound")],
        )
        with pytest.raises(Refused) as caught:
            await second.start()
        assert caught.value.reason == "PORT_TAKEN"


class Slow(ChannelHandle):
    """A channel that shows what it is only after some looks."""

    looks = 0

    @property
    def is_ready(self):
        self.looks += 1
        return self.looks < 4


async def test_unavailable_may_come_before_the_channel_says_so():
    """A connection that is lost a moment later is what broke the call."""
    handle = Slow("up", "127.0.0.1:1")
    mark = Mark(was_ready=True, drops=0)
    origin = await handle.judge(14, (), mark, SystemClock(), timed_out=False)
    assert origin is Origin.TRANSPORT
    await handle.channel.close()


async def test_a_channel_is_closed_after_its_watcher():
    """Closed under it, the library leaks the connection."""
    tasks = Tasks(lambda report: None, SystemClock())
    server, target = await start(Echo())
    channels = UpstreamChannels({"up": target}, lambda name: None, tasks=tasks)
    await channels.start()
    handle = channels.get("up")
    (watcher,) = channels._pools["up"]._watchers.values()
    channel = handle.channel
    close, ended_before = channel.close, []

    async def closing():
        ended_before.append(watcher.done())
        await close()

    channel.close = closing
    await channels.close()
    await stopped(server)
    assert ended_before == [True]


async def test_a_channel_that_closes_before_a_call_is_no_defect():
    """A call whose channel is taken away before it is sent is told just that."""
    async with open_relay(options=WireOptions(join_s=0.3)) as relay:
        call = relay.stream("Echo", timeout=10)
        await call.write(b"more may come")
        await until(lambda: relay.guard.calls)
        handle = relay.targets.get("up")
        await relay.wire.set_target("up", None)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        trailers = grpc.aio.Metadata(*await call.trailing_metadata())
        assert trailers["outrigger-refused-by"] == "relay"
        (outcome,) = relay.guard.outcomes
        assert (outcome.origin, outcome.committed) == (Origin.LOCAL, False)
        assert "nothing was sent" in outcome.message
        assert handle.open_attempts == 0
        assert relay.reports == []
        await relay.wire.set_target("up", relay.target)


def test_nobody_waits_by_wait_for():
    """Python 3.11's asyncio.wait_for loses a cancellation now and then."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in ("outrigger", "sidecar", "controller")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr == "wait_for"
        and isinstance(node.value, ast.Name)
        and node.value.id == "asyncio"
    ]
    assert found == []


def test_every_test_on_the_page_is_there():
    """Each fault names tests that exist, and each of these is named by a fault."""
    text = PAGE.read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)(?:\[([^`]+)\])?`", text)
    missing = [
        f"{path}::{name}"
        for path, name, case in named
        if f"def {name}(" not in (ROOT / path).read_text()
        or (case and case not in CASES)
    ]
    assert missing == []
    here = {name for name in globals() if name.startswith("test_")}
    mine = {name for path, name, _ in named if path.endswith(Path(__file__).name)}
    assert all("on_the_page" in name for name in here - mine), here - mine


def test_every_fault_on_the_page_is_held():
    """No fault is named without a symptom, what is done, and a test."""
    sections = PAGE.read_text().split("\n## ")[1:]
    assert len(sections) >= 10
    for section in sections:
        for part in ("**Symptom.**", "**Here.**", "**Held by.**"):
            assert part in section, section.splitlines()[0]
