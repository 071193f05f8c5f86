"""How long a dead upstream goes unnoticed under traffic: kill to open circuit."""

import time
from collections.abc import Iterator
from pathlib import Path

import grpc

from bench.figures import Figure, median
from tests.support.processes import Stack, wait_for

ROUNDS = 5
PAUSE_S = 0.05
LIMIT_S = 5.0


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the time from SIGKILL to the first call refused by the circuit."""
    with Stack(folder) as stack:
        upstream = stack.upstream()
        sidecar = stack.sidecar("detector", upstream=upstream.target)
        relay = stack.channel(sidecar.addresses["outbound"])
        call = relay.unary_unary("/test.Ledger/Call")
        times = []
        for _ in range(ROUNDS):
            wait_for(lambda: call(b"x", timeout=1), "a good call")
            upstream.kill()
            times.append(_until_refused(call))
            upstream = stack.upstream(port=upstream.port)
    worst = max(times)
    yield Figure(
        "detection",
        f"upstream killed, to open circuit, {1 / PAUSE_S:.0f} calls/s, p50",
        median(times),
        "s",
        f"max {worst:.2f} s",
        bound="< 5 s",
        holds=worst < LIMIT_S,
    )


def _until_refused(call: grpc.UnaryUnaryMultiCallable) -> float:
    began = time.monotonic()
    while time.monotonic() - began < 2 * LIMIT_S:
        try:
            call(b"x", timeout=1)
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            if trailers.get("outrigger-refused-by") == "circuit":
                return time.monotonic() - began
        time.sleep(PAUSE_S)
    return float("inf")
