"""One run: build, start, warm up, measure, end everything."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

from bench.callpath.compiled import build
from bench.callpath.guard_cost import guard_us
from bench.callpath.loads import WARM_UP, Effort, Load
from bench.callpath.parties import Field, started
from bench.callpath.record import Record, described
from bench.callpath.rounds import Told, turns, warm_up
from bench.callpath.rows import memory_of, rows


def measure(
    loads: Sequence[Load], effort: Effort, command: str, *, warm: Sequence[Load]
) -> Record:
    """Measure loads on every party.

    Args:
        loads: what to measure.
        effort: how often and how long.
        command: what the record says it was made with.
        warm: what is done once before, unmeasured; memory is read after it.

    Raises:
        Missing: there is no Go.
    """
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as name,
        started(build(Path(name)), Path(name)) as field,
        _progress(field, warm, loads, effort) as told,
    ):
        memory = warm_up(field, warm, told)
        found = turns(field, loads, effort, told)
        missing = field.missing
    return described(
        {
            "command": command,
            "missing": missing,
            "rows": rows(found),
            "memory": memory_of(memory),
            "guard_us": guard_us(),
        }
    )


@contextmanager
def _progress(
    field: Field, warm: Sequence[Load], loads: Sequence[Load], effort: Effort
) -> Iterator[Told]:
    total = _steps(field, warm) * WARM_UP.rounds + _steps(field, loads) * effort.rounds
    with Progress() as progress:
        task = progress.add_task("measuring the call path", total=total)
        yield lambda: progress.advance(task)


def _steps(field: Field, loads: Sequence[Load]) -> int:
    return sum(party.takes(load) for load in loads for party in field.parties)
