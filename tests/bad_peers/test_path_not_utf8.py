"""One call whose path is not UTF-8 ends the library's server; ours listens again."""

import gc

import grpc.aio

from tests.support.abused_sidecar import METHOD, Abused
from tests.support.bad_caller import RawCaller, opening
from tests.support.echo_upstream import until
from tests.support.processes import Stack
from tests.support.raw_http2 import END_HEADERS, END_STREAM, HEADERS, frame
from tests.support.relay import open_relay

BAD = frame(HEADERS, END_HEADERS | END_STREAM, 1, opening(b"/\xff/x"))


async def test_after_a_path_that_is_not_utf8_the_next_caller_is_served(tmp_path):
    """The library stops serving for good (1.85.1); it is started again, there."""
    with Stack(tmp_path) as stack:
        abused = Abused(stack)
        async with RawCaller(abused.address) as caller:
            caller.greet()
            await caller.send(BAD)
            await until(lambda: caller.is_gone or 1 in caller.ended, 20)
        call = stack.channel(abused.address).unary_unary(METHOD)
        assert call(b"x", timeout=20, wait_for_ready=True) == b"x"
        assert "LISTENER_ENDED" in abused.running.text()


async def test_a_stream_outlives_the_listener_it_came_by():
    """Only new calls need the new one."""
    async with open_relay() as relay:
        call = relay.stream("Echo")
        await call.write(b"before")
        assert await call.read() == b"before"
        async with RawCaller(relay.wire.addresses[0]) as caller:
            caller.greet()
            await caller.send(BAD)
            await until(lambda: relay.reports)
        gc.collect()

        await call.write(b"after")
        assert await call.read() == b"after"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert [one.reason for one in relay.reports] == ["LISTENER_ENDED"]
