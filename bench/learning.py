"""Thresholds learnt from a method's history against the fixed ones, simulated.

Real circuits, made-up traffic: Poisson arrivals and failures, all seeded, no time
passes. *Calm* traffic fails independently; *bursty* traffic comes at three times its
rate for two seconds in twenty, and fails twice as often for about five seconds at a
time, a fifth of all time, with the same mean.

A false opening is one without an outage. Where the fixed thresholds open all the
time, how soon they "find" an outage says nothing; both are shown side by side.

`python -P -m bench.learning` prints the table and keeps it.
"""

import copy
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.figures import Figure, keep, median
from sidecar.policy.baseline import Baseline, BaselineSettings
from sidecar.policy.circuit import Circuit, CircuitSettings, CircuitState
from sidecar.policy.classify import Verdict

BASELINES = (0.001, 0.01, 0.05, 0.2, 0.45)
RATES = (1.0, 10.0, 100.0)
OUTAGES = (1.0, 0.5, 0.1)
"""Added to the share of failures, up to all of them."""
CALLS = 360_000
"""Per run of false openings: an hour at 100 calls a second, 100 hours at 1."""
WARM_CALLS = 4000
TRIALS = 21
PATIENCE_S = 120.0
SEED = 3
PART = "learning"
SETTINGS = CircuitSettings()


class Method:
    """One method's circuit under traffic, as the guard would keep it."""

    def __init__(self, *, learnt: bool) -> None:
        self.circuit = Circuit("learnt" if learnt else "fixed", SETTINGS, now=0.0)
        if learnt:
            self.circuit.baseline = Baseline(BaselineSettings(), now=0.0)
        self.trips = 0
        self.lost = 0
        """Calls refused that would have succeeded."""

    def call(self, now: float, draw: float, *, fails: bool) -> None:
        """Let a call through if the circuit does, and take its outcome."""
        circuit = self.circuit
        closed = circuit.state is CircuitState.CLOSED
        ticket = circuit.admit(now)
        if ticket is None:
            self.lost += not fails
            return
        if fails:
            circuit.failed(ticket, Verdict.HARD, now, draw)
        else:
            circuit.passed(ticket, now)
        if closed and circuit.state is CircuitState.OPEN:
            self.trips += 1
            circuit.take_moves()


@dataclass(slots=True)
class Traffic:
    """Calls at random times with random outcomes."""

    share: float
    """Of failures, in the mean."""
    rate: float
    bursty: bool
    draw: random.Random
    now: float = 0.0
    _bad: bool = False
    _turns: float = 0.0

    def next(self) -> tuple[float, bool]:
        """Return when the next call is and whether it fails."""
        self.now += self.draw.expovariate(self._rate())
        return self.now, self.draw.random() < self._share()

    def _rate(self) -> float:
        return self.rate * (3 if self.bursty and self.now % 20 < 2 else 1)

    def _share(self) -> float:
        if not self.bursty:
            return self.share
        if self.now >= self._turns:
            self._bad = not self._bad
            mean_s = 5.0 if self._bad else 20.0
            self._turns = self.now + self.draw.expovariate(1 / mean_s)
        return self.share * (2.0 if self._bad else 0.75)


@dataclass(frozen=True, slots=True)
class Row:
    """What was found for one method."""

    share: float
    rate: float
    calm: tuple[float, float]
    """False openings an hour, (fixed, learnt)."""
    bursty: tuple[float, float]
    lost: tuple[float, float]
    """Share of all calls refused for nothing, bursty."""
    found: tuple[tuple[list[float], list[float]], ...]
    """Seconds until it opened, per outage; infinite if it did not."""


def rows() -> Iterator[Row]:
    """Measure every method."""
    for share in BASELINES:
        for rate in RATES:
            calm = [_false(share, rate, bursty=False, learnt=one) for one in _BOTH]
            bursty = [_false(share, rate, bursty=True, learnt=one) for one in _BOTH]
            yield Row(
                share,
                rate,
                (calm[0][0], calm[1][0]),
                (bursty[0][0], bursty[1][0]),
                (bursty[0][1], bursty[1][1]),
                tuple(_outages(share, rate)),
            )


_BOTH = (False, True)


def _run(method: Method, traffic: Traffic, calls: int) -> None:
    draw = random.Random(SEED)
    for _ in range(calls):
        now, fails = traffic.next()
        method.call(now, draw.random(), fails=fails)


def _false(
    share: float, rate: float, *, bursty: bool, learnt: bool
) -> tuple[float, float]:
    """Return false openings an hour, and the share of calls lost by them."""
    method = Method(learnt=learnt)
    traffic = Traffic(share, rate, bursty, random.Random(SEED))
    _run(method, traffic, CALLS)
    return method.trips / traffic.now * 3600, method.lost / CALLS


def _outages(share: float, rate: float) -> Iterator[tuple[list[float], list[float]]]:
    warm = [Method(learnt=learnt) for learnt in _BOTH]
    calls = int(max(WARM_CALLS, 300 * rate))
    traffic = [Traffic(share, rate, False, random.Random(SEED)) for _ in _BOTH]
    for method, coming in zip(warm, traffic, strict=True):
        _run(method, coming, calls)
    for added in OUTAGES:
        sick = min(1.0, share + added)
        yield (
            [_found(warm[0], sick, traffic[0], trial) for trial in range(TRIALS)],
            [_found(warm[1], sick, traffic[1], trial) for trial in range(TRIALS)],
        )


def _found(warm: Method, sick: float, before: Traffic, trial: int) -> float:
    """Return the seconds from the beginning of an outage to an open circuit."""
    method = copy.deepcopy(warm)
    began = before.now
    if method.circuit.state is not CircuitState.CLOSED:
        method.circuit = Circuit("fixed", CircuitSettings(), now=began)
    traffic = Traffic(sick, before.rate, False, random.Random(trial), began)
    trips = method.trips
    while traffic.now < began + PATIENCE_S:
        now, fails = traffic.next()
        method.call(now, 0.0, fails=fails)
        if method.trips > trips:
            return now - began
    return math.inf


def shifts() -> Iterator[Figure]:
    """Yield what it costs that a method's norm changes, or that it half fails."""
    for rate in RATES:
        for name, sick, seconds in (
            ("from 0.1 % to 15 % of failures for good", 0.15, 7200),
            ("from 0.1 % to 30 % for ten minutes", 0.3, 600),
        ):
            fixed, learnt = (_shifted(rate, sick, seconds, learnt=one) for one in _BOTH)
            yield Figure(
                PART,
                f"{name}, {rate:g}/s: good calls refused",
                learnt * 100,
                "%",
                f"fixed {fixed:.2%}",
            )


def _shifted(rate: float, sick: float, seconds: float, *, learnt: bool) -> float:
    method = Method(learnt=learnt)
    traffic = Traffic(0.001, rate, False, random.Random(SEED))
    _run(method, traffic, int(max(WARM_CALLS, 300 * rate)))
    traffic.share = sick
    method.lost = 0
    calls = int(seconds * rate)
    _run(method, traffic, calls)
    return method.lost / (calls * (1 - sick))


def measure(_: Path) -> Iterator[Figure]:
    """Yield false openings and times to detection, learnt against fixed."""
    for row in rows():
        yield from _figures(row)
    yield from shifts()


def _figures(row: Row) -> Iterator[Figure]:
    method = f"{row.share:.1%} fail, {row.rate:g}/s"
    for name, (fixed, learnt) in (("calm", row.calm), ("bursty", row.bursty)):
        yield Figure(
            PART,
            f"{method}: false openings an hour, {name}",
            learnt,
            "/h",
            f"fixed {fixed:.4g} /h",
        )
    yield Figure(
        PART,
        f"{method}: calls refused for nothing, bursty",
        row.lost[1] * 100,
        "%",
        f"fixed {row.lost[0]:.3%}",
    )
    for added, (fixed_s, learnt_s) in zip(OUTAGES, row.found, strict=True):
        yield Figure(
            PART,
            f"{method}: outage of {added:.0%} more found, p50 (missed in"
            f" {PATIENCE_S:g} s: {_missed(learnt_s)} of {TRIALS})",
            min(median(learnt_s), PATIENCE_S),
            "s",
            f"fixed {min(median(fixed_s), PATIENCE_S):.4g} s, missed"
            f" {_missed(fixed_s)}",
        )


def _missed(found: list[float]) -> int:
    return sum(math.isinf(one) for one in found)


def _cell(pair: tuple[list[float], list[float]]) -> str:
    return " -> ".join(f"{median(one):.2g}" for one in pair)


def _table(found: list[Row]) -> Table:
    table = Table(title="fixed -> learnt; times in seconds, p50")
    head = ("fails", "calls/s", "false/h calm", "false/h bursty", "lost bursty")
    for column in (*head, *(f"+{added:.0%} found" for added in OUTAGES)):
        table.add_column(column)
    for row in found:
        table.add_row(
            f"{row.share:.1%}",
            f"{row.rate:g}",
            *(f"{one:.3g} -> {two:.3g}" for one, two in (row.calm, row.bursty)),
            f"{row.lost[0]:.2%} -> {row.lost[1]:.2%}",
            *(_cell(pair) for pair in row.found),
        )
    return table


def main() -> None:
    """Print the table and keep the figures."""
    found = list(track(rows(), "measuring", total=len(BASELINES) * len(RATES)))
    figures = [figure for row in found for figure in _figures(row)]
    figures.extend(shifts())
    console = Console(width=150)
    console.print(_table(found))
    for figure in figures[-2 * len(RATES) :]:
        console.print(f"{figure.what} {figure.value:.2f} % ({figure.against})")
    keep("learning", "python -P -m bench.learning", figures)


if __name__ == "__main__":
    main()
