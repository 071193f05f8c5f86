"""`make bench`: every figure of the first version, side by side in one run."""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import Progress

from bench import (
    adaptive,
    call,
    checkpoint,
    detecting,
    learning,
    letters,
    measuring,
    sleeping,
)
from bench.figures import Figure, keep, show

PARTS: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "call": call.measure,
    "detection": detecting.measure,
    "adaptive": adaptive.measure,
    "learning": learning.measure,
    "letters": letters.measure,
    "checkpoint": checkpoint.measure,
    "sleep": sleeping.measure,
    "measuring": measuring.measure,
}


def main() -> int:
    """Run the parts asked for; exit 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--only", choices=PARTS, action="append")
    chosen = parser.parse_args().only or list(PARTS)
    figures: list[Figure] = []
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(chosen))
        for name in chosen:
            progress.update(task, description=name)
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                figures.extend(PARTS[name](Path(folder)))
            progress.advance(task)
    show("Outrigger, first version", figures)
    if chosen == list(PARTS):
        keep("bench", "make bench", figures)
    return int(any(figure.holds is False for figure in figures))


if __name__ == "__main__":
    raise SystemExit(main())
