"""What calls say about an outage: arithmetic over when they began and how they ended.

Times are monotonic seconds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.figures import percentile

OK = 0


@dataclass(frozen=True, slots=True)
class Made:
    """A call that is over."""

    begun: float
    ended: float
    code: int
    """gRPC status number."""
    refused_by: str = ""
    """The layer of the sidecar that refused it."""
    pushback_s: float | None = None
    """When the refusal said to come back."""

    @property
    def is_good(self) -> bool:
        """Say whether it was answered."""
        return self.code == OK


def first_success_s(calls: Iterable[Made], since: float) -> float:
    """Return how long after `since` a call that began then had an answer."""
    ended = [one.ended for one in calls if one.is_good and one.begun >= since]
    return min(ended, default=math.inf) - since


def lasting_success_s(calls: Sequence[Made], since: float) -> float:
    """Return how long after `since` the last call that failed began.

    0 if none did; infinite if the newest call failed, for that is no recovery.
    """
    later = sorted(
        (one for one in calls if one.begun >= since), key=lambda one: one.begun
    )
    if not later or not later[-1].is_good:
        return math.inf
    return max((one.begun - since for one in later if not one.is_good), default=0.0)


def slot_s(calls: Iterable[Made], at: float) -> float:
    """Return how much of the rest announced by the newest refusal is left at `at`."""
    refused = [
        (one.ended, one.pushback_s)
        for one in calls
        if one.pushback_s is not None and one.ended <= at
    ]
    if not refused:
        return 0.0
    ended, pushback_s = max(refused)
    return max(0.0, ended + pushback_s - at)


def opened_s(calls: Iterable[Made], since: float) -> float:
    """Return how long after `since` the circuit refused a call first."""
    ended = [
        one.ended for one in calls if one.refused_by == "circuit" and one.begun >= since
    ]
    return min(ended, default=math.inf) - since


def goodput_back_s(calls: Sequence[Made], since: float, share: float) -> float:
    """Return from which whole second after `since` on each has its share of answers.

    Infinite if the last second does not.
    """
    seconds: dict[int, list[bool]] = {}
    for one in calls:
        if one.begun >= since:
            seconds.setdefault(int(one.begun - since), []).append(one.is_good)
    bad = [second for second, good in seconds.items() if sum(good) < share * len(good)]
    if not seconds or max(bad, default=-1) == max(seconds):
        return math.inf
    return float(max(bad, default=-1) + 1)


def amplification(arrivals: Sequence[float], offered: Sequence[Made]) -> float:
    """Return attempts at the callee per call offered."""
    return len(arrivals) / max(len(offered), 1)


def waited_p99_s(calls: Iterable[Made]) -> float:
    """Return how long callers waited for a failure, 99th percentile."""
    waits = [one.ended - one.begun for one in calls if not one.is_good]
    return percentile(waits, 0.99) if waits else 0.0
