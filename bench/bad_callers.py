"""`python -P -m bench.bad_callers`: a hundred thousand streams of one bad caller.

What the sidecar weighs before, meanwhile at most, and after; and how long the calls
of somebody else take meanwhile.
"""

import argparse
import asyncio
import contextlib
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from bench.figures import Figure, keep, percentile, show
from tests.support.abused_sidecar import METHOD, Abused
from tests.support.bad_caller import RawCaller, opening
from tests.support.echo_upstream import until
from tests.support.processes import Stack
from tests.support.raw_http2 import CANCEL, END_HEADERS, HEADERS, frame, rst

STREAMS = 100_000
LIMIT = 1024
AT_ONCE = 200
PATIENCE_S = 600
RSS_MIB = 512
_MIB = 1 << 20


@dataclass(slots=True)
class Watched:
    """What was seen meanwhile."""

    before_mib: float
    peak_mib: float = 0.0
    latencies_s: list[float] = field(default_factory=list)

    async def watch(self, sidecar: Abused) -> None:
        """Call the good upstream again and again, until cancelled."""
        async with grpc.aio.insecure_channel(sidecar.address) as channel:
            call = channel.unary_unary(METHOD)
            while True:
                began = time.monotonic()
                await call(b"other", timeout=PATIENCE_S)
                self.latencies_s.append(time.monotonic() - began)
                await asyncio.sleep(0.02)

    async def weigh(self, sidecar: Abused) -> None:
        """Keep the largest weight of the sidecar, until cancelled."""
        while True:
            self.peak_mib = max(self.peak_mib, sidecar.memory() / _MIB)
            await asyncio.sleep(0.05)


async def open_streams(sidecar: Abused, count: int) -> None:
    """Open calls and end none of them; wait until all but the limit were refused."""
    head = opening(METHOD)
    async with RawCaller(sidecar.address) as caller:
        caller.greet()
        for first in range(1, 2 * count, 2 * AT_ONCE):
            numbers = range(first, min(first + 2 * AT_ONCE, 2 * count), 2)
            await caller.send(*(frame(HEADERS, END_HEADERS, n, head) for n in numbers))
        await until(lambda: len(caller.ended) >= count - LIMIT, PATIENCE_S)


async def reset_streams(sidecar: Abused, count: int) -> None:
    """Open calls and reset each at once."""
    head = opening(METHOD)
    async with RawCaller(sidecar.address) as caller:
        caller.greet()
        for first in range(1, 2 * count, 2 * AT_ONCE):
            numbers = range(first, min(first + 2 * AT_ONCE, 2 * count), 2)
            await caller.send(
                *(
                    frame(HEADERS, END_HEADERS, n, head) + rst(n, CANCEL)
                    for n in numbers
                )
            )


ABUSES = {"open streams": open_streams, "rapid resets": reset_streams}


async def measure(sidecar: Abused, name: str, count: int) -> list[Figure]:
    """Let one abuse loose; return what it cost."""
    seen = Watched(sidecar.memory() / _MIB)
    others = asyncio.create_task(seen.watch(sidecar))
    scales = asyncio.create_task(seen.weigh(sidecar))
    began = time.monotonic()
    await ABUSES[name](sidecar, count)
    await until(lambda: sidecar.in_flight() == 0, PATIENCE_S)
    took_s = time.monotonic() - began
    await until(lambda: others.done() or seen.latencies_s, PATIENCE_S)
    for task in (scales, others):
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    after_mib = sidecar.memory() / _MIB
    what = f"{count} {name}"
    return [
        Figure(
            "bad callers",
            f"{what}: RSS at most",
            seen.peak_mib,
            "MiB",
            f"{seen.before_mib:.0f} before, {after_mib:.0f} after",
            bound=f"<= {RSS_MIB} MiB",
            holds=seen.peak_mib <= RSS_MIB,
        ),
        Figure("bad callers", f"{what}: took", took_s, "s"),
        *(
            Figure(
                "bad callers",
                f"{what}: another caller's p{share:.0%}".rstrip("%"),
                percentile(seen.latencies_s, share) * 1000,
                "ms",
                f"{len(seen.latencies_s)} calls, none failed",
            )
            for share in (0.5, 0.99)
        ),
    ]


def main() -> int:
    """Measure, show, keep; exit 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.bad_callers")
    parser.add_argument("--streams", type=int, default=STREAMS)
    count = parser.parse_args().streams
    found: list[Figure] = []
    for name in ABUSES:
        with (
            tempfile.TemporaryDirectory(prefix="bad-") as folder,
            Stack(Path(folder)) as stack,
        ):
            found += asyncio.run(measure(Abused(stack), name, count))
    show("Bad callers", found)
    keep("bad_callers", f"python -P -m bench.bad_callers --streams {count}", found)
    return int(any(figure.holds is False for figure in found))


if __name__ == "__main__":
    raise SystemExit(main())
