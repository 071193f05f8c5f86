"""A learnt limit against a fixed one of 1024, over a simulated callee with a knee.

Nothing here waits or reads a clock: the callee is ten workers with one queue, the
callers come at random and give up after 100 ms, all of it seeded. The callee does
not notice that a caller gave up and does the work all the same, which is what turns
an overload into an outage; in one case it does notice, as the best ones do.

`python -P -m bench.adaptive` prints the figures and keeps them.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.figures import Figure, keep, percentile, show
from sidecar.policy.gradient import Gradient, GradientSettings

WORKERS = 10
SERVICE_S = 0.02
DEADLINE_S = 0.1
CAPACITY = WORKERS / SERVICE_S
FIXED = 1024
SEED = 20


@dataclass(frozen=True, slots=True)
class Case:
    """What callers and callee do."""

    name: str
    seconds: float
    rate: Callable[[float], float]
    """Calls a second at a time."""
    service_s: Callable[[float, random.Random], float]
    """How long a worker takes for a call begun at a time."""
    workers: int = WORKERS
    notices: bool = False
    """The callee drops queued calls whose callers gave up."""


@dataclass(slots=True)
class Result:
    """What came of the calls."""

    offered: int = 0
    good: int = 0
    refused: int = 0
    late: int = 0
    took_s: list[float] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)
    """At each whole second."""


@dataclass(slots=True)
class _Sent:
    began: float
    done: bool = False


class _Run:
    """One case under one limit, event by event."""

    def __init__(self, case: Case, gradient: Gradient | None) -> None:
        self._case = case
        self._gradient = gradient
        self._draw = random.Random(SEED)
        self._work = random.Random(SEED + 1)
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = 0
        self._queue: deque[_Sent] = deque()
        self._busy = 0
        self._in_flight = 0
        self.result = Result()

    def play(self) -> Result:
        """Run the case to its end."""
        self._at(0.0, self._arrive)
        self._at(0.0, self._look)
        while self._events:
            now, _, event = heapq.heappop(self._events)
            event(now)
        return self.result

    def _at(self, when: float, event: Callable[[float], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (when, self._number, event))

    def _look(self, now: float) -> None:
        self.result.limits.append(self._limit())
        if now + 1 < self._case.seconds:
            self._at(now + 1, self._look)

    def _limit(self) -> int:
        return FIXED if self._gradient is None else self._gradient.limit

    def _arrive(self, now: float) -> None:
        following = now + self._draw.expovariate(max(self._case.rate(now), 1e-3))
        if following < self._case.seconds:
            self._at(following, self._arrive)
        self.result.offered += 1
        if self._in_flight >= self._limit():
            self.result.refused += 1
            return
        self._in_flight += 1
        sent = _Sent(now)
        self._queue.append(sent)
        self._at(now + DEADLINE_S, lambda then: self._give_up(sent, then))
        self._start(now)

    def _start(self, now: float) -> None:
        while self._case.notices and self._queue and self._queue[0].done:
            self._queue.popleft()
        if self._busy < self._case.workers and self._queue:
            self._busy += 1
            sent = self._queue.popleft()
            took_s = self._case.service_s(now, self._work)
            self._at(now + took_s, lambda then: self._finish(sent, then))

    def _finish(self, sent: _Sent, now: float) -> None:
        self._busy -= 1
        if not sent.done:
            self.result.good += 1
            self.result.took_s.append(now - sent.began)
            self._end(sent, now, dropped=False)
        self._start(now)

    def _give_up(self, sent: _Sent, now: float) -> None:
        if not sent.done:
            self.result.late += 1
            self._end(sent, now, dropped=True)

    def _end(self, sent: _Sent, now: float, *, dropped: bool) -> None:
        sent.done = True
        if self._gradient is not None:
            self._gradient.sample(
                now - sent.began, self._in_flight, now, dropped=dropped
            )
        self._in_flight -= 1


def play(case: Case, *, learnt: bool) -> Result:
    """Return what comes of a case under a learnt or under the fixed limit."""
    gradient = Gradient(GradientSettings(), now=0.0) if learnt else None
    return _Run(case, gradient).play()


def _steady(share: float) -> Callable[[float], float]:
    return lambda _: share * CAPACITY


def _twenty(_: float, work: random.Random) -> float:
    return SERVICE_S * work.uniform(0.8, 1.2)


def _shifting(now: float, work: random.Random) -> float:
    return _twenty(now, work) * (2.0 if 60 <= now < 120 else 1.0)


def _mixed(_: float, work: random.Random) -> float:
    return 0.002 if work.random() < 0.9 else 0.05


def _bursts(now: float) -> float:
    return 8 * CAPACITY if now % 10 < 0.05 else 0.1 * CAPACITY


def _gaps(now: float) -> float:
    return 0.9 * CAPACITY if now % 60 < 10 else 0.0


CASES = (
    Case("half the capacity", 60, _steady(0.5), _twenty),
    Case("nine tenths of it", 60, _steady(0.9), _twenty),
    Case("twice the capacity", 60, _steady(2.0), _twenty),
    Case("twice, for half an hour", 1800, _steady(2.0), _twenty),
    Case(
        "twice, the callee drops what was given up",
        60,
        _steady(2.0),
        _twenty,
        notices=True,
    ),
    Case("100 in flight from the first moment", 20, _steady(10.0), _twenty, 200),
    Case(
        "overload of 10 s in a minute",
        120,
        lambda now: CAPACITY * (3.0 if 30 <= now % 60 < 40 else 0.7),
        _twenty,
    ),
    Case("calls take twice as long for a minute", 180, _steady(0.8), _shifting),
    Case("twice, methods of 2 and 50 ms", 60, _steady(5.0), _mixed),
    Case("bursts of 200 calls in 50 ms", 120, _bursts, _twenty),
    Case("ten seconds in each minute", 600, _gaps, _twenty),
)


def measure(_: Path) -> Iterator[Figure]:
    """Yield goodput within the deadline and p99, learnt against fixed."""
    for case in CASES:
        fixed, learnt = play(case, learnt=False), play(case, learnt=True)
        yield Figure(
            "adaptive",
            f"{case.name}: answers within {DEADLINE_S * 1000:.0f} ms",
            learnt.good / case.seconds,
            "/s",
            f"fixed {fixed.good / case.seconds:.4g} /s of"
            f" {fixed.offered / case.seconds:.4g} asked",
            learnt.good / max(fixed.good, 1),
        )
        yield Figure(
            "adaptive",
            f"{case.name}: p99 of the answers",
            percentile(learnt.took_s, 0.99) * 1000,
            "ms",
            f"fixed {percentile(fixed.took_s, 0.99) * 1000:.4g} ms; limit"
            f" {min(learnt.limits)} to {max(learnt.limits)}, refused"
            f" {learnt.refused / learnt.offered:.1%}, timed out"
            f" {learnt.late / learnt.offered:.1%} (fixed"
            f" {fixed.late / fixed.offered:.1%})",
        )


def main() -> None:
    """Print the figures and keep them."""
    figures = list(measure(Path()))
    show("A learnt limit against a fixed one", figures)
    keep("adaptive", "python -P -m bench.adaptive", figures)


if __name__ == "__main__":
    main()
