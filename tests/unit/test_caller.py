import asyncio

import grpc.aio
import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.rng import SystemRng
from outrigger.core.tasks import Tasks
from sidecar.wire.caller import CallerGone, RemoteCaller
from sidecar.wire.grpcio import GrpcioWire
from sidecar.wire.options import WireOptions
from sidecar.wire.parts import Parts


class Gone:
    """The context of a call whose caller is gone."""

    async def send_initial_metadata(self, metadata):
        raise grpc.aio.InternalError("gone")

    async def write(self, message):
        raise grpc.aio.InternalError("gone")


@pytest.mark.parametrize("what", ["headers", "message"])
async def test_caller_that_is_gone_is_told_from_a_defect(what):
    """A write that fails because nobody is there says so by its own name."""
    clock = SystemClock()
    tasks = Tasks(lambda report: None, clock)
    parts = Parts(None, None, None, clock, SystemRng(), tasks, WireOptions())
    caller = RemoteCaller(Gone(), parts)
    with pytest.raises(CallerGone):
        await (caller.headers(()) if what == "headers" else caller.message(b""))


async def test_stop_waits_until_every_call_has_been_told():
    """Stopping returns only when no call will speak to the guard any more."""
    clock = SystemClock()
    tasks = Tasks(lambda report: None, clock)
    wire = GrpcioWire(
        None, None, letters=None, clock=clock, rng=SystemRng(), tasks=tasks, listen=()
    )
    wire._open.add("a call")
    stopping = asyncio.ensure_future(wire.stop(0))
    await asyncio.sleep(0.01)
    assert not stopping.done()
    wire._open.clear()
    wire._all_done.set()
    await stopping
