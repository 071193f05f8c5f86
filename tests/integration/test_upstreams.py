import asyncio

import grpc
import grpc.aio
import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Origin
from sidecar.wire.grpcio import Listener
from sidecar.wire.upstreams import ChannelHandle, Mark, UpstreamChannels
from tests.support.echo_upstream import Echo, start, stopped, until
from tests.support.raw_http2 import GOAWAY, RawUpstream, frame
from tests.support.relay import SERVICE, open_relay


@pytest.fixture
async def tasks():
    """A place for watchers."""
    reports = []
    made = Tasks(reports.append, SystemClock())
    made.reports = reports
    yield made
    await made.close()


class Judged(ChannelHandle):
    """A handle whose connection is there or not as a test says."""

    is_ready = True


NO, YES = False, True


@pytest.mark.parametrize(
    ("status", "before", "after", "origin"),
    [
        # (code, trailers), was ready, (is ready, drops, timed out)
        ((0, ()), NO, (NO, 1, NO), Origin.UPSTREAM),
        ((5, ()), YES, (NO, 1, NO), Origin.UPSTREAM),
        ((14, (("x", "y"),)), YES, (NO, 1, NO), Origin.UPSTREAM),
        ((14, ()), YES, (YES, 0, NO), Origin.UPSTREAM),
        ((14, ()), YES, (NO, 0, NO), Origin.TRANSPORT),
        ((14, ()), NO, (NO, 0, NO), Origin.TRANSPORT),
        ((14, ()), YES, (YES, 1, NO), Origin.TRANSPORT),
        ((14, ()), NO, (YES, 0, NO), Origin.UNKNOWN),
        ((4, ()), YES, (YES, 0, YES), Origin.UNKNOWN),
        ((4, ()), YES, (YES, 0, NO), Origin.UPSTREAM),
        ((4, ()), YES, (NO, 0, YES), Origin.TRANSPORT),
        ((13, ()), YES, (YES, 0, NO), Origin.UPSTREAM),
        ((13, ()), YES, (NO, 0, NO), Origin.UNKNOWN),
        ((1, ()), YES, (YES, 1, NO), Origin.UNKNOWN),
        ((2, ()), NO, (YES, 0, NO), Origin.UPSTREAM),
    ],
)
async def test_origin_is_judged_from_channel_state(status, before, after, origin):
    """Who made a status follows from trailers and the channel before and after."""
    handle = Judged("up", "127.0.0.1:1")
    handle.is_ready, handle.drops, timed_out = after
    mark = Mark(before, 0)
    assert handle.origin(*status, mark, timed_out=timed_out) is origin
    await handle.channel.close()


async def test_unix_socket_upstream_and_listener(tmp_path):
    """Both sides of a relay may be Unix sockets."""
    listen = [
        Listener(address=f"unix:{tmp_path}/out.sock", flag="--outbound"),
        Listener(address="127.0.0.1:0", flag="--outbound"),
    ]
    async with open_relay(listen=listen, upstream=f"unix:{tmp_path}/up.sock") as relay:
        assert relay.wire.addresses[0] == f"unix:{tmp_path}/out.sock"
        assert await relay.unary("Echo", b"by socket") == b"by socket"
        channel = grpc.aio.insecure_channel(relay.wire.addresses[1])
        call = channel.unary_unary(SERVICE + "Echo")
        assert await call(b"by port") == b"by port"
        await channel.close()


async def test_default_port_that_is_taken_gives_way():
    """A listener that may move takes a free port; the address says which."""
    async with open_relay() as first:
        taken = first.wire.addresses[0]
        listen = [Listener(address=taken, flag="--outbound", may_move=True)]
        async with open_relay(listen=listen) as second:
            assert second.wire.addresses[0] != taken
            assert await second.unary("Echo", b"moved") == b"moved"


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_upstream_that_comes_back_is_found(tmp_path, kind):
    """Without any call the channel finds its upstream again, and says so."""
    upstream = f"unix:{tmp_path}/up.sock" if kind == "unix" else None
    async with open_relay(upstream=upstream) as relay:
        await until(lambda: relay.ready == ["up"])
        await stopped(relay.server)
        error = await relay.fails("Echo")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert relay.guard.outcomes[-1].origin is Origin.TRANSPORT
        relay.server, _ = await start(relay.echo, relay.target)
        await until(lambda: relay.ready == ["up", "up"])
        assert relay.targets.get("up").drops == 1
        assert await relay.unary("Echo", b"back") == b"back"


async def test_return_is_noticed_without_any_call():
    """A channel that lost its upstream looks for it by itself."""
    async with open_relay() as relay:
        await until(lambda: relay.ready == ["up"])
        await stopped(relay.server)
        await until(lambda: relay.targets.get("up").drops == 1)
        relay.server, _ = await start(relay.echo, relay.target)
        await until(lambda: relay.ready == ["up", "up"])
        assert relay.guard.calls == []


async def test_upstream_that_was_never_there_is_a_transport_failure():
    """A target nobody listens on fails as transport; its later start is found."""
    async with open_relay() as relay:
        server, target = await start(Echo())
        await stopped(server)
        await relay.wire.set_target("up", target)
        error = await relay.fails("Echo")
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert relay.guard.outcomes[-1].origin is Origin.TRANSPORT
        server, _ = await start(relay.echo, target)
        await until(lambda: relay.targets.get("up").is_ready)
        assert await relay.unary("Echo", b"there") == b"there"
        await stopped(server)


async def test_broken_connection_is_a_transport_failure():
    """A connection that breaks under a call is told from an answer of the callee."""
    async with open_relay() as relay, RawUpstream(lambda s: b"") as upstream:
        await relay.wire.set_target("up", upstream.target)
        await until(lambda: relay.targets.get("up").is_ready)
        call = relay.channel.unary_unary(SERVICE + "Any")(b"", timeout=5)
        await until(lambda: upstream.opened)
        upstream.drop()
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        assert relay.guard.outcomes[0].origin is Origin.TRANSPORT
        await relay.wire.set_target("up", relay.target)


async def test_answer_of_a_reachable_callee_is_its_own():
    """UNAVAILABLE without trailers over a sound connection is the upstream's."""

    async def busy(echo, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "busy")

    async with open_relay() as relay:
        relay.echo.extra["Busy"] = busy
        await until(lambda: relay.ready)
        for _ in range(20):
            await relay.fails("Busy")
        assert {o.origin for o in relay.guard.outcomes} == {Origin.UPSTREAM}


async def test_goaway_loses_no_call():
    """A call that meets a connection being closed is sent anew by the library."""
    first = []

    def answer(stream):
        first.append(stream)
        # No stream was processed: the library may send it elsewhere by itself.
        return frame(GOAWAY, 0, 0, bytes(8))

    async with open_relay() as relay, RawUpstream(answer) as upstream:
        await relay.wire.set_target("up", upstream.target)
        call = relay.channel.unary_unary(SERVICE + "Any")(b"", timeout=0.5)
        await call.code()
        assert len(first) > 1
        assert len(relay.guard.outcomes) == 1
        await relay.wire.set_target("up", relay.target)


async def test_fresh_channel_has_no_penalty():
    """A channel made when its upstream is up does not wait out an older backoff."""
    async with open_relay() as relay:
        server, target = await start(Echo())
        await stopped(server)
        await relay.wire.set_target("up", target)
        await asyncio.sleep(1.0)  # let the backoff grow
        server, _ = await start(relay.echo, target)
        await relay.wire.set_target("up", target)
        assert await relay.unary("Echo", b"now") == b"now"
        assert len(relay.guard.outcomes) == 1
        await stopped(server)


async def test_defect_in_on_ready_is_recorded_and_watching_goes_on(tasks):
    """A callback that raises is recorded, and the channel is watched again."""
    told = []

    def on_ready(name):
        told.append(name)
        if len(told) == 1:
            raise ValueError("a defect")

    server, target = await start(Echo())
    channels = UpstreamChannels({"up": target}, on_ready, tasks=tasks)
    await channels.start()
    await until(lambda: len(told) == 2)
    assert tasks.reports[0].boundary == "wire.watch[up]"
    await channels.close()
    assert channels.get("up") is None
    await stopped(server)


async def test_watching_ends_when_the_channel_is_shut(tasks):
    """A channel closed by somebody else ends its watcher."""
    handle = ChannelHandle("up", "127.0.0.1:1")
    watching = asyncio.ensure_future(handle.watch(lambda name: None))
    await asyncio.sleep(0.05)
    await handle.channel.close()
    done, _ = await asyncio.wait((watching,), timeout=5)
    assert done
    watching.exception()
