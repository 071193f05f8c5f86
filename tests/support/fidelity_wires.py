"""Every wire there is, by name: each runs in front of one upstream.

A maker takes the upstream's target and yields the address callers use. The guard is
the real one. It decides as little as it can: one attempt, no circuit that opens, no
limit that is reached, so that what a case observes is the wire.
"""

from contextlib import asynccontextmanager

from outrigger.core.clock import SystemClock
from outrigger.core.rng import SystemRng
from outrigger.core.rpc.errors import details_metadata, retry_hint_s
from outrigger.core.tasks import Tasks
from sidecar.call.guard import CallGuard, GuardSettings
from sidecar.call.routes import MethodRule, Routes, Upstream
from sidecar.policy.circuit import CircuitSettings
from sidecar.wire.grpcio import GrpcioWire, Listener
from sidecar.wire.upstreams import UpstreamChannels
from tests.support.echo_upstream import until

NEVER = 1 << 30

SETTINGS = GuardSettings(
    concurrency=NEVER,
    circuit=CircuitSettings(consecutive_failures=NEVER, min_calls=NEVER),
)


def real_guard(publish, clock):
    """Return the guard of a sidecar whose every choice is to let pass."""
    return CallGuard(
        Routes([Upstream("up")], [MethodRule(match="*", max_attempts=1)]),
        SETTINGS,
        publish=publish,
        now=clock.monotonic(),
        details=details_metadata,
        retry_hint=retry_hint_s,
    )


def check_balance(counts):
    """Hold that every call begun came to one end, and none to a refusal but one.

    A call whose deadline has passed when it comes is refused for that.
    """
    ends = counts.ok + counts.failed + counts.cancelled + sum(counts.refused.values())
    assert counts.begun == ends
    assert counts.refused.keys() <= {"deadline"}


@asynccontextmanager
async def grpcio_wire(target):
    """The portable wire."""
    clock, reports = SystemClock(), []
    tasks = Tasks(reports.append, clock)
    guard = real_guard(reports.append, clock)
    channels = UpstreamChannels({"up": target}, lambda name: None, tasks=tasks)
    wire = GrpcioWire(
        guard,
        channels,
        letters=None,
        clock=clock,
        rng=SystemRng(),
        tasks=tasks,
        listen=[Listener(address="127.0.0.1:0", flag="--outbound")],
    )
    await channels.start()
    await wire.start()
    try:
        yield wire.addresses[0]
        await until(lambda: guard.counts.in_flight == 0)
        await until(lambda: wire.open_streams() == ())
    finally:
        await wire.stop(0)
        await channels.close()
    await until(lambda: len(tasks) == 0)
    check_balance(guard.counts)
    assert reports == []


WIRES = {"grpcio": grpcio_wire}
"""A wire that joins this table runs every case."""
