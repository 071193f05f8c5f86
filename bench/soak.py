"""`python -P -m bench.soak`: do memory, descriptors, threads stay flat?

The same calls, one in ten of them cancelled, go through a sidecar, through a bare
pass-through and straight to the upstream. What grows in the pass-through too is the
library's; what grows in the sidecar beyond that is ours. A million calls take about
as long as `--calls 50000` took times twenty.
"""

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.progress import Progress

from bench.figures import RESULTS, Figure, keep, show
from bench.soak_load import Load
from outrigger.core.rpc.server import channel
from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import PYTHON, Running, Stack, operator, wait_for

CALLS = 1_000_000
SAMPLES = 40
OTHERS_SHARE = 0.1
"""Calls of the pass-through and the direct path for each one of the sidecar."""
SETTLED = 0.25
"""Share of the samples left out: caches and arenas fill first."""
BOUND_KIB = 8.0
"""Growth per 1,000 calls beyond the pass-through's: 8 MiB in a million."""
DESCRIPTORS = 4


@dataclass(frozen=True, slots=True)
class Sample:
    """What a process weighs after so many calls."""

    calls: int
    rss_kib: int
    pss_kib: int
    descriptors: int
    threads: int


@dataclass(slots=True)
class Way:
    """One way to the upstream, and the process on it that is watched."""

    name: str
    target: str
    pid: int
    calls: int
    samples: list[Sample]
    took_s: float = 0.0


def sample(way: Way, calls: int) -> Sample:
    """Weigh the process on this way."""
    process = psutil.Process(way.pid)
    memory = process.memory_full_info()
    return Sample(
        calls,
        memory.rss // 1024,
        memory.pss // 1024,
        process.num_fds(),
        process.num_threads(),
    )


async def soak(way: Way, progress: Progress) -> None:
    """Make the calls of one way, and weigh its process now and then."""
    bar = progress.add_task(way.name, total=way.calls)
    began = time.monotonic()
    async with channel(way.target) as opened:
        load = Load(opened)
        step = max(way.calls // SAMPLES, 1)
        while load.done < way.calls:
            await load.run(min(step, way.calls - load.done))
            way.samples.append(sample(way, load.done))
            progress.update(bar, completed=load.done)
    way.took_s = time.monotonic() - began


def slope(points: list[tuple[float, float]]) -> float:
    """Return the rise per unit of the line of least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def growth_kib(way: Way) -> float:
    """Return by how much PSS grows in 1,000 calls, once it has settled."""
    settled = way.samples[int(len(way.samples) * SETTLED) :]
    return slope([(one.calls / 1000, one.pss_kib) for one in settled])


def figures(ways: list[Way], left_in_flight: int) -> list[Figure]:
    """Return what the samples say."""
    relay, bare, _ = ways
    found = []
    for way in ways:
        first, last = way.samples[0], way.samples[-1]
        growth = growth_kib(way)
        is_ours = way is relay
        found.append(
            Figure(
                way.name,
                f"growth of PSS per 1,000 calls, over {way.calls} calls",
                growth,
                "KiB",
                f"PSS {first.pss_kib // 1024} to {last.pss_kib // 1024} MiB",
                bound=f"<= pass-through + {BOUND_KIB:g} KiB" if is_ours else "",
                holds=growth <= max(growth_kib(bare), 0) + BOUND_KIB
                if is_ours
                else None,
            )
        )
        rose = max(one.descriptors for one in way.samples[-3:]) - first.descriptors
        found.append(
            Figure(
                way.name,
                "descriptors more at the end than at the beginning",
                rose,
                "",
                f"threads {first.threads} to {last.threads}",
                bound=f"<= {DESCRIPTORS}" if is_ours else "",
                holds=rose <= DESCRIPTORS if is_ours else None,
            )
        )
        found.append(Figure(way.name, "calls a second", way.calls / way.took_s, "/s"))
    found.append(
        Figure(
            relay.name,
            "calls in flight left in the guard",
            left_in_flight,
            "",
            bound="0",
            holds=left_in_flight == 0,
        )
    )
    return found


def plot(ways: list[Way], path: Path) -> None:
    """Draw memory and descriptors over calls."""
    import matplotlib as mpl  # noqa: PLC0415 - a second of start, for the end only

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is chosen

    figure, (memory, descriptors) = plt.subplots(2, 1, sharex=True, figsize=(8, 6))
    for way in ways:
        calls = [one.calls for one in way.samples]
        memory.plot(calls, [one.pss_kib / 1024 for one in way.samples], label=way.name)
        descriptors.plot(calls, [one.descriptors for one in way.samples])
    memory.set_ylabel("PSS, MiB")
    memory.set_ylim(bottom=0)
    memory.legend()
    descriptors.set_ylabel("descriptors")
    descriptors.set_ylim(bottom=0)
    descriptors.set_xlabel("calls, one in ten cancelled")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def in_flight(stack: Stack, sidecar: Running) -> int:
    """Return the calls the guard believes in flight, once that is 0 or for 10 s."""
    stub = SidecarServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
    found = 0
    for _ in range(100):
        answer = stub.GetSidecar(
            sidecar_pb.GetSidecarRequest(), metadata=operator(sidecar.state)
        )
        found = answer.calls.in_flight_count
        if not found:
            break
        time.sleep(0.1)
    return found


def measure(folder: Path, calls: int) -> tuple[list[Way], int]:
    """Run all three ways; return them and what is left in flight."""
    with Stack(folder) as stack:
        upstream = stack.start("upstream", *PYTHON, "bench.soak_load")
        target = _address(upstream)
        bare = stack.start("bare", *PYTHON, "bench.pass_through", target)
        sidecar = stack.sidecar("soak", upstream=target)
        others = max(int(calls * OTHERS_SHARE), SAMPLES)
        ways = [
            Way("sidecar", sidecar.addresses["outbound"], sidecar.pid, calls, []),
            Way("pass-through", _address(bare), bare.pid, others, []),
            Way("direct", target, upstream.pid, others, []),
        ]
        with Progress() as progress:
            for way in ways:
                asyncio.run(soak(way, progress))
        return ways, in_flight(stack, sidecar)


def _address(process: Running) -> str:
    port = wait_for(lambda: process.text().split(), f"the port of {process.name}")
    return f"127.0.0.1:{int(port[0])}"


def main() -> int:
    """Soak, show, keep; exit 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak")
    parser.add_argument("--calls", type=int, default=CALLS)
    calls = parser.parse_args().calls
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        ways, left = measure(Path(folder), calls)
    found = figures(ways, left)
    show(f"{calls} calls, one in ten cancelled", found)
    keep("soak", f"python -P -m bench.soak --calls {calls}", found)
    path = RESULTS / "soak.json"
    kept = json.loads(path.read_text())
    kept["samples"] = {way.name: [asdict(one) for one in way.samples] for way in ways}
    path.write_text(json.dumps(kept, indent=2) + "\n")
    plot(ways, RESULTS / "soak.png")
    return int(any(figure.holds is False for figure in found))


if __name__ == "__main__":
    raise SystemExit(main())
