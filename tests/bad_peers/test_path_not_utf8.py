"""One call whose path is not UTF-8 ends the library's server: a fault still open."""

import grpc
import pytest

from tests.support.abused_sidecar import METHOD, Abused
from tests.support.bad_caller import RawCaller, opening
from tests.support.echo_upstream import until
from tests.support.processes import Stack
from tests.support.raw_http2 import END_HEADERS, END_STREAM, HEADERS, frame

BAD = frame(HEADERS, END_HEADERS | END_STREAM, 1, opening(b"/\xff/x"))


@pytest.mark.xfail(
    strict=True,
    raises=grpc.RpcError,
    reason="grpc.aio decodes the path in its accept loop and stops serving for good"
    " (1.85.1); nothing of ours is asked before",
)
async def test_path_that_is_not_utf8_costs_nobody_else_anything(tmp_path):
    """The call is refused, and the next caller served."""
    with Stack(tmp_path) as stack:
        abused = Abused(stack)
        async with RawCaller(abused.address) as caller:
            caller.greet()
            await caller.send(BAD)
            await until(lambda: caller.is_gone or 1 in caller.ended, 20)
        call = stack.channel(abused.address).unary_unary(METHOD)
        assert call(b"x", timeout=5) == b"x"
