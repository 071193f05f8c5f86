"""`make bench-resilience`: outages, black holes and storms, with real processes."""

import argparse
import asyncio
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.callpath import envoy
from bench.figures import RESULTS, Figure, keep, show
from bench.resilience import outages, storms
from bench.resilience.plot import draw


@dataclass(frozen=True, slots=True)
class Effort:
    """How long everything takes, in seconds, and how much of it there is."""

    outage_s: float = 60.0
    hole_s: float = 20.0
    after_s: float = 25.0
    half_open_s: float = 15.0
    callers: int = 1000
    rate: float = 60.0
    """Calls per second that an ill callee is offered."""
    ill_s: float = 30.0
    well_s: float = 35.0
    plot: Path | None = None


FULL: Final = Effort()
QUICK: Final = Effort(
    outage_s=5.0,
    hole_s=6.0,
    after_s=12.0,
    half_open_s=5.0,
    callers=200,
    ill_s=6.0,
    well_s=16.0,
)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, show, and keep a full run; exit 1 if a bound does not hold."""
    given = _parser().parse_args(words)
    effort = QUICK if given.quick else FULL
    told = {name: getattr(given, name) for name in ("outage_s", "hole_s", "ill_s")}
    effort = replace(effort, **{name: value for name, value in told.items() if value})
    is_whole = effort == FULL and not given.only
    if is_whole:
        effort = replace(effort, plot=RESULTS / "resilience.png")
    figures = asyncio.run(_measured(effort, given.only or list(PARTS)))
    show("Resilience", figures)
    if is_whole:
        keep("resilience", "make bench-resilience", figures)
    return int(any(figure.holds is False for figure in figures))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.resilience")
    parser.add_argument("--quick", action="store_true", help="a smoke run, not kept")
    parser.add_argument("--only", action="append", choices=PARTS, help="not kept")
    for name, what in (
        ("outage", "how long the callee is gone"),
        ("hole", "how long it is there and does not answer"),
        ("ill", "how long it answers one call in ten"),
    ):
        parser.add_argument(
            f"--{name}", dest=f"{name}_s", type=float, metavar="SECONDS", help=what
        )
    return parser


async def _measured(effort: Effort, parts: Sequence[str]) -> list[Figure]:
    figures = []
    for name in parts:
        print(f"measuring: {name}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            figures += await PARTS[name](Path(folder), effort)
    if envoy.version() is None:
        figures.append(Figure("Envoy", "not measured: its wheel is not here", 0, ""))
    return figures


async def _outage(folder: Path, effort: Effort) -> list[Figure]:
    return await outages.gone(folder, effort.outage_s, effort.after_s)


async def _hole(folder: Path, effort: Effort) -> list[Figure]:
    return await outages.hole(folder, effort.hole_s, effort.after_s)


async def _half_open(folder: Path, effort: Effort) -> list[Figure]:
    return await storms.half_open(folder, effort.callers, effort.half_open_s)


async def _failures(folder: Path, _effort: Effort) -> list[Figure]:
    return await storms.failures(folder)


async def _ill(folder: Path, effort: Effort) -> list[Figure]:
    found = await storms.amplified(folder, effort.rate, effort.ill_s, effort.well_s)
    if effort.plot is not None:
        draw(found, effort.plot)
    return [figure for ill in found for figure in storms.of_ill(ill)]


Part = Callable[[Path, Effort], Awaitable[list[Figure]]]
PARTS: Final[dict[str, Part]] = {
    "outage": _outage,
    "hole": _hole,
    "half-open": _half_open,
    "failures": _failures,
    "ill": _ill,
}


if __name__ == "__main__":
    raise SystemExit(main())
