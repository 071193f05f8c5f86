"""What a sidecar weighs, and what measuring its agent costs: on against off."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, cpu_s, median, pss_mib
from tests.support.processes import Stack

SECONDS = 15.0
ROUNDS = 3
AGENT = (sys.executable, "-c", "import signal; signal.pause()")


def measure(folder: Path) -> Iterator[Figure]:
    """Yield PSS and the CPU share of measuring."""
    with Stack(folder) as stack:
        on = stack.sidecar("on", command=AGENT, upstream="127.0.0.1:1")
        time.sleep(3)
        weight = pss_mib(on.pid)  # alone: beside another one it shares its pages
        off = stack.sidecar(
            "off", "--no-measure", command=AGENT, upstream="127.0.0.1:1"
        )
        time.sleep(3)
        shares = [_shares(on.pid, off.pid) for _ in range(ROUNDS)]
        yield Figure(
            "memory",
            "PSS of a sidecar, idle, no Redis",
            weight,
            "MiB",
            bound="<= 40 MiB",
            holds=weight <= 40,
        )
        share = median([one - two for one, two in shares])
        yield Figure(
            "measuring",
            "share of a core, measuring at 1 Hz",
            share * 100,
            "%",
            f"sidecar without measuring {median([two for _, two in shares]):.4%}",
            bound="< 0.1 %",
            holds=share < 0.001,
        )


def _shares(on: int, off: int) -> tuple[float, float]:
    before = cpu_s(on), cpu_s(off)
    time.sleep(SECONDS)
    return (cpu_s(on) - before[0]) / SECONDS, (cpu_s(off) - before[1]) / SECONDS
