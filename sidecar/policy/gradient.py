"""How many calls a callee can work on at once, learnt from how long they take.

After Gradient2 of Netflix' concurrency-limits. Once per window the newest round
trip is set against the long average: as long as it is no more than `tolerance`
times that, the limit grows by a share of its own square root; beyond it shrinks in
proportion, for calls are queueing somewhere.

Four things differ from there, each for a failure that is easy to provoke:

- A window's round trip is the geometric mean of its calls. With an arithmetic mean
  one call of ten seconds among a hundred of five milliseconds looks like a queue,
  and a healthy mix of methods wears the limit down to its least.
- If a limit cut by a quarter made nothing faster, it was no queue: the callee or the
  mix has changed, and what is seen now becomes the long average at once.
- While the limit is what holds calls back, the long average rises at a fiftieth of
  its speed. Otherwise a lasting overload would become the norm, and the limit would
  follow its own queue upwards.
- Drops cut the limit only if they are more than a few of the window's calls: some
  methods always time out.

Only ratios of round trips matter. An owner that knows what each method usually takes
may give durations relative to that, and then a change of the mix is no change at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Final

from sidecar.policy.bounds import Mistake, above, at_least, at_most, ordered, refuse

_SHORTEST_S: Final = 1e-6
_WARM_UP: Final = 10
"""Windows of which the long average is the plain mean before it becomes slow."""
_STEEPEST: Final = 0.5
"""No window, however slow, asks for less than this share of the limit."""
_DRIFT: Final = 2.0
"""A long average so many times the newest round trip is a memory of an overload..."""
_RECOVERY: Final = 0.9
"""...and is taken back by this factor per window."""
_DROP_SHARE: Final = 0.05
_DROP_CUT: Final = 0.9
_QUEUE_PACE: Final = 0.02
_TRIAL_CUT: Final = 0.75
_TRIAL_GAIN: Final = 0.9
"""A queue that lost a quarter of its calls is at least a tenth faster."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSettings:
    """Bounds and pace of a learnt limit."""

    initial: int = 20
    """Limit at the start."""
    least: int = 4
    """It never falls below this..."""
    most: int = 1024
    """...nor rises above this."""
    smoothing: float = 0.2
    """Share of each window's verdict that is put into effect."""
    tolerance: float = 1.5
    """Round trips up to so many times the long average are no queue."""
    window_s: float = 1.0
    """A window lasts at least this long..."""
    window_samples: int = 10
    """...and until so many calls have ended in it."""
    long_window: int = 600
    """Windows over which the long average goes."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            BadSettings: BAD_GRADIENT, naming every mistake.
        """
        refuse("BAD_GRADIENT", "the adaptive limit is not possible", _mistakes(self))


class Gradient:
    """The limit of one upstream; `limit` is how many may be in flight now."""

    __slots__ = (
        "_count",
        "_drops",
        "_ends",
        "_estimate",
        "_logs",
        "_long_s",
        "_peak",
        "_settings",
        "_starting",
        "_trial",
        "_windows",
        "limit",
    )

    def __init__(self, settings: GradientSettings, *, now: float) -> None:
        self._settings = settings
        self._estimate = float(settings.initial)
        self.limit = settings.initial
        self._long_s = 0.0
        self._windows = 0
        self._starting = True
        self._trial: tuple[float, float] | None = None
        self._peak = 0
        self._clear(now)

    def __repr__(self) -> str:
        return f"<Gradient limit {self.limit}, usual {self._long_s:.6f} s>"

    @property
    def usual_s(self) -> float | None:
        """The long average in seconds; None before the first window is over."""
        return self._long_s if self._windows else None

    def sample(
        self, rtt_s: float, in_flight: int, now: float, *, dropped: bool = False
    ) -> bool:
        """Take the end of a call; return whether the limit changed.

        Args:
            rtt_s: seconds it took, without any time the process was suspended.
            in_flight: calls in flight just before it ended, itself included.
            now: monotonic seconds.
            dropped: it timed out or was turned away (RESOURCE_EXHAUSTED,
                UNAVAILABLE). How long that took says nothing and is not counted.
        """
        if dropped:
            self._drops += 1
        else:
            self._count += 1
            # The built-in max costs as much as all the rest here.
            self._logs += log(rtt_s if rtt_s > _SHORTEST_S else _SHORTEST_S)  # noqa: FURB136 - see above
        if in_flight > self._peak:  # noqa: PLR1730 - see above
            self._peak = in_flight
        return now >= self._ends and self._close(now)

    def _close(self, now: float) -> bool:
        """End a window that has enough calls."""
        if self._count + self._drops < self._settings.window_samples:
            return False
        before = self.limit
        self._judge()
        self.limit = int(self._estimate)
        self._clear(now)
        return self.limit != before

    def _clear(self, now: float) -> None:
        self._ends = now + self._settings.window_s
        self._logs = 0.0
        self._count = self._drops = self._peak = 0

    def _judge(self) -> None:
        """Learn from the window; move the limit if it says anything about it.

        A window in which less than half of the limit was used does not: nobody was
        held back, and what failed or was slow did so for other reasons.
        """
        full = self._peak >= self._estimate / 2
        if full and self._drops > _DROP_SHARE * (self._count + self._drops):
            self._starting = False
            self._set(self._estimate * _DROP_CUT)
        elif self._count:
            short_s = exp(self._logs / self._count)
            self._learn(short_s, full=full)
            if full:
                self._move(short_s)

    def _learn(self, short_s: float, *, full: bool) -> None:
        self._windows += 1
        if self._windows <= _WARM_UP:
            pace = 1 / self._windows
        else:
            pace = 2 / (self._settings.long_window + 1)
            if full and short_s > self._long_s:
                pace *= _QUEUE_PACE
        self._long_s += (short_s - self._long_s) * pace
        if self._long_s > _DRIFT * short_s:
            self._long_s *= _RECOVERY

    def _move(self, short_s: float) -> None:
        steady = self._settings.tolerance * self._long_s / short_s
        if steady < 1:
            self._starting = False
            if self._is_other_than_queue(short_s):
                self._long_s = short_s
                steady = 1.0
        else:
            self._trial = None
        estimate = self._estimate
        wanted = estimate * max(_STEEPEST, min(1.0, steady)) + self._room()
        self._set(estimate + (wanted - estimate) * self._settings.smoothing)

    def _room(self) -> float:
        """Return how many more calls a window without a queue is worth.

        Before anything was ever slow the limit doubles in four windows, as TCP
        starts; from its square root alone it would take minutes to a few hundred.
        """
        return self._estimate if self._starting else sqrt(self._estimate)

    def _is_other_than_queue(self, short_s: float) -> bool:
        """Return whether fewer calls in flight turned out to be no faster."""
        if self._trial is None:
            self._trial = (self._estimate, short_s)
            return False
        limit, slow_s = self._trial
        if self._estimate > limit * _TRIAL_CUT:
            return False
        self._trial = None
        return short_s > slow_s * _TRIAL_GAIN

    def _set(self, estimate: float) -> None:
        settings = self._settings
        self._estimate = max(float(settings.least), min(estimate, settings.most))


def _mistakes(settings: GradientSettings) -> Iterator[Mistake]:
    yield from at_least(settings, 1, "least", "initial", "most", "tolerance")
    yield from above(settings, 0, "smoothing", "window_s")
    yield from at_most(settings, 1, "smoothing")
    yield from at_least(settings, 1, "window_samples", "long_window")
    yield from ordered(settings, "least", "initial")
    yield from ordered(settings, "initial", "most")
