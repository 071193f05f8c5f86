"""How often a method fails and how long it takes while it is well.

A fixed share of failures opens too late for a method that never fails and far too
often for one that fails every other time. Here the number of failures that opens a
circuit is the one that the method's own healthy history makes improbable.

What is observed is held back for up to a minute before it is believed, and dropped
if the circuit opens in the meantime: the first failures of an outage belong to the
outage. What is believed at most doubles within an hour, so that neither an outage
below the threshold nor a slow decay becomes the norm unnoticed.

Which way to err:

- The rate is taken at its upper confidence bound, and the binomial tail by a bound
  of its own, which costs about one failure more until it opens.
- A binomial takes calls to fail independently. Failures that come in clusters are
  counted as fewer: how alike the calls of ten seconds are is learnt as well, and what
  n such calls prove is what n / (1 + (n - 1) x likeness) independent ones would.
- However improbable, a circuit does not open below a tenth of failures: nine good
  calls refused for each bad one saved is no bargain. Nor below five failures, for one
  broken connection takes several calls with it.
- No rate above a half is believed, and no likeness that would more than double the
  failures in a row that prove an outage. So forty in a row are improbable whatever was
  learnt, and a callee that is gone opens the circuit of any method.
- If the circuit opens again and again without a believable stretch in between, what
  it goes by does not describe the method, be it learnt or fixed. Then for a quarter
  of an hour only what would be improbable at one half opens it. Else a method that
  fails every other time would never have any history to learn from.
"""

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from outrigger.core.errors import Invalid

_SHORTEST_S: Final = 1e-4
_STEPS_PER_OCTAVE: Final = 4
_OCTAVES: Final = 23
_BOUNDS: Final = tuple(
    _SHORTEST_S * 2 ** (step / _STEPS_PER_OCTAVE)
    for step in range(_OCTAVES * _STEPS_PER_OCTAVE + 1)
)
"""Upper bounds of the latency buckets in seconds, 19 % apart, up to 14 minutes."""
_CONFIDENCE: Final = 3.09
"""Standard deviations: one in a thousand rates is higher than believed."""
_ENOUGH_SAMPLES: Final = 100
_QUANTILE: Final = 0.99
_PIECES: Final = 3
"""Of a stretch; each as long as the window of a circuit, with the usual settings."""
_OUTLIER: Final = 3.0
"""A piece with so many times the usual failures is no worse than that: else one
brownout would pass for a method whose failures come in clusters."""
_KEPT_CALLS: Final = 2000
"""So much history does not fade, else a rare method would never have any."""
_MOST_OPENINGS: Final = 3
_STAND_DOWN_S: Final = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineSettings:
    """What is believed when, and what is improbable."""

    alpha: float = 1e-6
    """Probability below which a number of failures is no accident."""
    floor_ratio: float = 0.005
    """A method is believed to fail at least this often."""
    ceiling_ratio: float = 0.5
    """And at most this often."""
    least_ratio: float = 0.1
    """Share of failures below which a circuit never opens."""
    least_failures: int = 5
    min_calls: int = 200
    min_history_s: float = 60.0
    hold_s: float = 60.0
    """What is younger is not believed yet; at least half of it is held back."""
    half_life_s: float = 1800.0
    """Observed time after which history counts half."""
    growth_per_hour: float = 2.0
    """What is believed grows at most by this factor."""
    slow_factor: float = 3.0
    """A call is slow from so many times the 99th percentile on."""
    slow_least_s: float = 0.1

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            Invalid: BAD_BASELINE, naming every mistake.
        """
        mistakes = list(_mistakes(self))
        if mistakes:
            raise Invalid(
                "BAD_BASELINE",
                f"the baseline settings are not possible: {'; '.join(mistakes)}",
            )


class _Stretch:
    """What was observed in a piece of time, not believed yet."""

    __slots__ = ("durations", "pieces")

    def __init__(self) -> None:
        self.pieces = [(0, 0)]
        """(calls, failures), in turn."""
        self.durations = [0] * (len(_BOUNDS) + 1)

    def add(self, calls: int, failures: int) -> None:
        before, failed = self.pieces[-1]
        self.pieces[-1] = (before + calls, failed + failures)

    def total(self) -> tuple[int, int]:
        return sum(one for one, _ in self.pieces), sum(two for _, two in self.pieces)


class Baseline:
    """What one method is like while its circuit is closed."""

    __slots__ = (
        "_calls",
        "_cost",
        "_durations",
        "_ends",
        "_failures",
        "_history_s",
        "_likeness",
        "_newest",
        "_openings",
        "_p99_s",
        "_pairs",
        "_rate",
        "_resumes",
        "_settings",
        "_surplus",
        "_used",
        "_waiting",
    )

    def __init__(self, settings: BaselineSettings, *, now: float) -> None:
        self._settings = settings
        self._cost = -math.log(settings.alpha)
        self._calls = self._failures = self._history_s = 0.0
        self._durations = [0.0] * (len(_BOUNDS) + 1)
        self._rate: float | None = None
        self._p99_s: float | None = None
        self._pairs = self._surplus = self._likeness = 0.0
        self._openings = 0
        self._resumes = -math.inf
        self._used: tuple[float, float] | None = None
        self._start(now)

    def __repr__(self) -> str:
        return f"<Baseline fails {self._rate}, p99 {self._p99_s} s>"

    @property
    def rate(self) -> float | None:
        """The share of failures believed to be normal; None while unknown."""
        return self._rate

    def observe(self, calls: int, failures: int, now: float) -> None:
        """Take what ended since the last time, while the circuit is closed.

        Args:
            calls: how many ended, failures included.
            failures: how many of them counted as failures.
            now: monotonic seconds; call it about once a second.
        """
        self._newest.add(calls, failures)
        if now >= self._ends:
            self._turn(now)

    def latency(self, duration_s: float) -> None:
        """Take how long a successful call took; a sample of them is enough."""
        self._newest.durations[bisect_left(_BOUNDS, duration_s)] += 1

    def discard(self, now: float) -> None:
        """Drop what is not believed yet: the circuit went from closed to open."""
        self._openings += 1
        if self._openings >= _MOST_OPENINGS:
            self._openings = 0
            self._resumes = now + _STAND_DOWN_S
            self._used = (self._settings.ceiling_ratio, 0.0)
        self._start(now)

    def failure_threshold(self, calls: int) -> int | None:
        """Return from how many failures among so many calls on it is no accident.

        More than `calls` means that not even all of them would prove anything. Ask
        for the calls of the window, and for the failures in a row as if they were
        all there was. None means there is nothing to go by: use fixed thresholds.
        """
        if self._used is None:
            return None
        rate, likeness = self._used
        settings = self._settings
        least = max(settings.least_failures, math.ceil(settings.least_ratio * calls))
        if not likeness:
            return max(least, improbable(calls, rate, self._cost))
        weight = 1 + (calls - 1) * likeness
        alone = math.ceil(calls / weight)
        found = improbable(alone, rate, self._cost)
        if found > alone:
            return calls + 1
        return max(least, min(calls, math.ceil(found * weight)))

    def slow_s(self) -> float | None:
        """Return from when on a call is slow, in seconds; None while unknown."""
        if self._p99_s is None:
            return None
        settings = self._settings
        return max(settings.slow_least_s, settings.slow_factor * self._p99_s)

    def _start(self, now: float) -> None:
        """Begin to observe with nothing held back."""
        self._waiting: _Stretch | None = None
        self._newest = _Stretch()
        self._ends = now + self._piece_s()

    def _piece_s(self) -> float:
        return self._settings.hold_s / 2 / _PIECES

    def _turn(self, now: float) -> None:
        """End a piece, and with the last of a stretch believe the stretch before.

        A piece without calls is gone on with: nothing happened that could be
        believed, and a pause neither ages history nor counts as some.
        """
        self._ends = now + self._piece_s()
        if self._newest.pieces[-1][0]:
            if len(self._newest.pieces) == _PIECES:
                if self._waiting is not None:
                    self._believe(self._waiting)
                self._waiting, self._newest = self._newest, _Stretch()
            else:
                self._newest.pieces.append((0, 0))
        if now >= self._resumes:
            self._use()

    def _use(self) -> None:
        if self._rate is None:
            self._used = None
            return
        row = self._cost / -math.log(self._rate)
        self._used = (self._rate, min(self._likeness, 1 / (2 * row)))

    def _believe(self, stretch: _Stretch) -> None:
        settings = self._settings
        stretch_s = settings.hold_s / 2
        kept = 1.0
        if self._calls > _KEPT_CALLS:
            kept = 0.5 ** (stretch_s / settings.half_life_s)
        growth = settings.growth_per_hour ** (stretch_s / 3600)
        calls, failures = stretch.total()
        self._openings = 0
        self._history_s += stretch_s
        self._calls = self._calls * kept + calls
        self._failures = self._failures * kept + failures
        self._durations = [
            old * kept + new
            for old, new in zip(self._durations, stretch.durations, strict=True)
        ]
        self._learn_rate(growth)
        self._learn_likeness(stretch, kept)
        self._learn_p99(growth)

    def _learn_rate(self, growth: float) -> None:
        settings = self._settings
        if self._calls < settings.min_calls or self._history_s < settings.min_history_s:
            return
        seen = upper_bound(self._failures, self._calls)
        if self._rate is None:
            self._resumes = -math.inf
        else:
            seen = min(seen, self._rate * growth)
        self._rate = min(max(seen, settings.floor_ratio), settings.ceiling_ratio)

    def _learn_likeness(self, stretch: _Stretch, kept: float) -> None:
        """Learn the intra-class correlation of pieces by the method of moments.

        The variance of the failures among n calls is n p q (1 + (n - 1) x likeness);
        what is there of it beyond n p q is the surplus.
        """
        settings = self._settings
        # What is believed, and not what a brownout has just made of the average.
        seen = self._failures / self._calls
        mean = max(min(seen, self._rate or 0.5), settings.floor_ratio)
        unit = mean * (1 - mean)
        self._pairs *= kept
        self._surplus *= kept
        for calls, failures in stretch.pieces:
            away = min(failures, _OUTLIER * mean * calls) - mean * calls
            self._surplus += away * away / unit - calls
            self._pairs += calls * (calls - 1)
        self._likeness = max(self._surplus, 0.0) / max(self._pairs, 1.0)

    def _learn_p99(self, growth: float) -> None:
        if sum(self._durations) < _ENOUGH_SAMPLES:
            return
        seen_s = _quantile_s(self._durations)
        if self._p99_s is not None:
            seen_s = min(seen_s, self._p99_s * growth)
        self._p99_s = seen_s


def upper_bound(failures: float, calls: float) -> float:
    """Return the share of failures that is hardly exceeded (Wilson's interval)."""
    share = failures / calls
    weight = _CONFIDENCE**2 / calls
    spread = _CONFIDENCE * math.sqrt(share * (1 - share) / calls + weight / calls / 4)
    return (share + weight / 2 + spread) / (1 + weight)


def improbable(calls: int, rate: float, cost: float) -> int:
    """Return the least number of failures with a probability of at most e^-cost.

    By Chernoff's bound, which the tail never exceeds; calls + 1 if there is none.
    Bernstein's bound is weaker and in closed form, so it says how far to look.
    """
    mean = calls * rate
    if -calls * math.log(rate) < cost:
        return calls + 1
    reach = cost / 3 + math.sqrt(cost * cost / 9 + 2 * mean * (1 - rate) * cost)
    low, high = int(mean), min(calls, math.ceil(mean + reach))
    while high - low > 1:
        middle = (low + high) // 2
        if calls * _divergence(middle / calls, rate) >= cost:
            high = middle
        else:
            low = middle
    return high


def _divergence(share: float, rate: float) -> float:
    """Return the relative entropy of `share` against `rate`, for rate < share < 1."""
    return share * math.log(share / rate) + (1 - share) * math.log(
        (1 - share) / (1 - rate)
    )


def _quantile_s(durations: list[float]) -> float:
    """Return the upper bound of the bucket that the 99th percentile is in."""
    left = sum(durations) * _QUANTILE
    for bound, count in zip(_BOUNDS, durations, strict=False):
        left -= count
        if left <= 0:
            return bound
    return _BOUNDS[-1]


def _mistakes(settings: BaselineSettings) -> Iterator[str]:
    if not 0 < settings.alpha < 1:
        yield "alpha must be between 0 and 1"
    if not 0 < settings.floor_ratio <= settings.ceiling_ratio < 1:
        yield "expected 0 < floor_ratio <= ceiling_ratio < 1"
    if not 0 < settings.least_ratio <= 1:
        yield "least_ratio must be in (0, 1]"
    if min(settings.least_failures, settings.min_calls) < 1:
        yield "least_failures and min_calls must be 1 or more"
    times = (settings.min_history_s, settings.hold_s, settings.half_life_s)
    if not min(*times, settings.slow_least_s) > 0:
        yield "times must be more than 0 seconds"
    if not min(settings.growth_per_hour, settings.slow_factor) >= 1:
        yield "growth_per_hour and slow_factor must be 1 or more"
