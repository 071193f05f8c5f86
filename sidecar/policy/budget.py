"""How many retries an upstream may be sent.

Tokens are counted in tenths, so that a retry after RESOURCE_EXHAUSTED can cost half a
token: a callee that refuses does so cheaply, and such retries wait far longer anyway.

Tokens are charged when a retry is *scheduled*. A budget that counts only retries in
flight lets a thousand simultaneous failures all pass, because all of them are still
waiting out their backoff (envoy#30205).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sidecar.policy.bounds import Mistake, above, at_least, at_most, refuse
from sidecar.policy.window import Window

_TENTHS: Final = 10
_THROTTLED: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetSettings:
    """What retries may add to the load."""

    ratio: float = 0.2
    """Retries per completed first attempt."""
    minimum: int = 10
    """Retries allowed besides, so that quiet upstreams are retried too."""
    window_s: float = 10.0
    """How long what was earned and what was spent count."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            BadSettings: BAD_BUDGET, naming every mistake.
        """
        refuse("BAD_BUDGET", "the retry budget is not possible", _mistakes(self))


class RetryBudget:
    """The retry budget of one upstream.

    In any window, retries granted stay within `ratio` x first attempts completed in
    it + `minimum`. Both are forgotten with the window: an hour of health does not
    save up for a storm, and an old storm does not starve today's retry.
    """

    __slots__ = ("_settings", "_window")

    def __init__(self, settings: BudgetSettings, *, now: float) -> None:
        self._settings = settings
        self._window = Window(now=now, window_s=settings.window_s)

    def completed(self, now: float) -> None:
        """Earn a share for a first attempt that ended, well or badly."""
        self._window.add(now, 1, 0)

    def charge(self, now: float) -> None:
        """Charge a retry that the caller made by itself; it may leave a debt."""
        self._window.add(now, 0, _TENTHS)

    def spend(self, now: float, *, throttled: bool = False) -> bool:
        """Charge one retry if it fits; call it when the retry is scheduled."""
        cost = _THROTTLED if throttled else _TENTHS
        if self._left(now) < cost:
            return False
        self._window.add(now, 0, cost)
        return True

    def left(self, now: float) -> float:
        """Return how many retries fit; negative means a debt."""
        return self._left(now) / _TENTHS

    def _left(self, now: float) -> float:
        """Return the tenths of tokens left."""
        earned, spent = self._window.read(now)
        settings = self._settings
        return (settings.minimum + settings.ratio * earned) * _TENTHS - spent


def _mistakes(settings: BudgetSettings) -> Iterator[Mistake]:
    yield from at_least(settings, 0, "ratio", "minimum")
    yield from at_most(settings, 1, "ratio")
    yield from above(settings, 0, "window_s")
