"""`make bench-compare`: fail when the call path got worse than what is committed.

What is compared are ratios of a run, us over what was measured beside us, so that the
speed of the machine drops out. A ratio that looks worse is measured again before it
counts: the middle of three decides, for the least of three would hide a real loss.
"""

import argparse
import enum
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.callpath.compiled import Missing
from bench.callpath.loads import FULL, LOADS, QUICK, Effort
from bench.callpath.ratios import Ratio
from bench.callpath.record import committed_ratios
from bench.callpath.run import measure
from bench.figures import RESULTS, median

ALLOWED: Final = 0.10
"""How much worse a ratio may be."""
REPEATS: Final = 2
"""How often what looks worse is measured again, at most."""
_COMMITTED: Final = RESULTS / "call-path.json"
_WIDTH: Final = 140


class Verdict(enum.Enum):
    """How a ratio stands beside the committed one."""

    HOLDS = "holds"
    WORSE = "WORSE"
    MISSING = "MISSING"
    """It is committed and this run does not have it."""
    NEW = "new"
    """It is not committed yet."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One ratio in both."""

    name: str
    committed: float | None
    now: float | None
    worse_by: float
    """Share of the committed one; below 0 it got better, 0 where one is missing."""
    verdict: Verdict

    @property
    def fails(self) -> bool:
        """Say whether this alone makes the comparison fail."""
        return self.verdict in (Verdict.WORSE, Verdict.MISSING)


def compare(
    committed: Mapping[str, Ratio], now: Mapping[str, Ratio]
) -> list[Comparison]:
    """Return every ratio of either, the committed ones first and in their order."""
    fresh = [name for name in now if name not in committed]
    return [
        _compared(name, committed.get(name), now.get(name)) for name in committed
    ] + [_compared(name, None, now[name]) for name in fresh]


def _compared(name: str, committed: Ratio | None, now: Ratio | None) -> Comparison:
    before = None if committed is None else committed.value
    after = None if now is None else now.value
    if committed is None or now is None:
        verdict = Verdict.NEW if committed is None else Verdict.MISSING
        return Comparison(name, before, after, 0.0, verdict)
    worse_by = _worse_by(committed, now)
    verdict = Verdict.WORSE if worse_by > ALLOWED else Verdict.HOLDS
    return Comparison(name, before, after, worse_by, verdict)


def _worse_by(committed: Ratio, now: Ratio) -> float:
    if committed.more_is_worse:
        return now.value / committed.value - 1
    return committed.value / now.value - 1


def settled(runs: Sequence[Mapping[str, Ratio]]) -> dict[str, Ratio]:
    """Return each ratio with the median of its values in those runs that have it."""
    found: dict[str, Ratio] = {}
    for name in dict.fromkeys(name for run in runs for name in run):
        those = [run[name] for run in runs if name in run]
        value = median([one.value for one in those])
        found[name] = Ratio(name, those[0].load, value, those[0].more_is_worse)
    return found


def doubtful(
    comparisons: Sequence[Comparison], now: Mapping[str, Ratio]
) -> list[str] | None:
    """Return the loads to measure again; None if nothing looks worse.

    The list is empty where only memory does: it is read before any load.
    """
    names = [one.name for one in comparisons if one.verdict is Verdict.WORSE]
    if not names:
        return None
    return list(dict.fromkeys(now[name].load for name in names if now[name].load))


def measured(committed: Mapping[str, Ratio], effort: Effort) -> dict[str, Ratio]:
    """Measure now, and again what looks worse.

    Raises:
        Missing: there is no Go.
    """
    runs = [measure(LOADS, effort, "", warm=LOADS).ratios]
    for _ in range(REPEATS):
        now = settled(runs)
        again = doubtful(compare(committed, now), now)
        if again is None:
            break
        loads = [load for load in LOADS if load.name in again]
        runs.append(measure(loads, effort, "", warm=LOADS).ratios)
    return settled(runs)


def show(comparisons: Sequence[Comparison]) -> None:
    """Print the table, the worst first."""
    table = Table(title=f"Ratios against the committed ones; {ALLOWED:.0%} allowed")
    for column in ("ratio", "committed", "now", "worse by", ""):
        table.add_column(column)
    for one in sorted(comparisons, key=lambda one: (not one.fails, -one.worse_by)):
        table.add_row(
            one.name,
            _number(one.committed),
            _number(one.now),
            f"{one.worse_by:+.1%}",
            one.verdict.value,
        )
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def main() -> int:
    """Compare; exit 1 if one got worse or is missing, 3 if nothing can be compared."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare")
    parser.add_argument("--quick", action="store_true", help="a third of the time")
    parser.add_argument("--with", dest="file", type=Path, default=_COMMITTED)
    given = parser.parse_args()
    try:
        committed = committed_ratios(given.file)
        now = measured(committed, QUICK if given.quick else FULL)
    except Missing as missing:
        print(missing, file=sys.stderr)
        return 3
    comparisons = compare(committed, now)
    show(comparisons)
    return int(any(one.fails for one in comparisons))


if __name__ == "__main__":
    raise SystemExit(main())
