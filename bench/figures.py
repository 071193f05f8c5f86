"""Figures: percentiles, the machine, and the table they end up in."""

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
_WIDTH = 160


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number beside what it is measured against."""

    part: str
    what: str
    value: float
    unit: str
    against: str = ""
    """What it is compared with, measured in the same run."""
    ratio: float | None = None
    """value / that."""
    bound: str = ""
    """What issue or design ask for."""
    holds: bool | None = None


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value at or below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def median(values: Sequence[float]) -> float:
    """Return the middle value."""
    return statistics.median(values)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used, all threads, to the nanosecond.

    Its CPU-time clock is numbered as clock_getcpuclockid(3) does it.
    """
    return time.clock_gettime((~pid << 3) | 2)


def pss_mib(pid: int) -> float:
    """Return the proportional resident memory of a process in MiB."""
    return psutil.Process(pid).memory_full_info().pss / (1 << 20)


def machine() -> str:
    """Return what this was measured on, without naming the host."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = psutil.virtual_memory().total / (1 << 30)
    return (
        f"{os.cpu_count()} cores of {model}, {memory:.0f} GiB,"
        f" Linux {platform.release()}, Python {platform.python_version()}"
    )


def show(title: str, figures: Sequence[Figure]) -> None:
    """Print the figures as a table."""
    table = Table(title=title)
    for column in ("part", "what", "value", "against", "ratio", "bound", "holds"):
        table.add_column(column)
    for figure in figures:
        table.add_row(*cells(figure))
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


def keep(name: str, command: str, figures: Sequence[Figure]) -> None:
    """Write the figures as Markdown and JSON beside command and machine."""
    RESULTS.mkdir(exist_ok=True)
    head = ["part", "what", "value", "against", "ratio", "bound", "holds"]
    lines = [
        f"# {name}",
        "",
        f"Command: `{command}`",
        "",
        f"Machine: {machine()}",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cells(figure)) + " |" for figure in figures),
    ]
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n")
    (RESULTS / f"{name}.json").write_text(
        json.dumps(
            {
                "command": command,
                "machine": machine(),
                "figures": [asdict(figure) for figure in figures],
            },
            indent=2,
        )
        + "\n"
    )


def cells(figure: Figure) -> tuple[str, ...]:
    """Return one row."""
    return (
        figure.part,
        figure.what,
        f"{figure.value:.4g} {figure.unit}",
        figure.against,
        "" if figure.ratio is None else f"{figure.ratio:.2f} x",
        figure.bound,
        "" if figure.holds is None else ("yes" if figure.holds else "NO"),
    )
