"""How many retries an upstream may be sent.

Tokens are counted in tenths, so that a retry after RESOURCE_EXHAUSTED can cost half a
token: a callee that refuses does so cheaply, and such retries wait far longer anyway.

Tokens are charged when a retry is *scheduled*. A budget that counts only retries in
flight lets a thousand simultaneous failures all pass, because all of them are still
waiting out their backoff (envoy#30205).
"""

from dataclasses import dataclass
from typing import Final

from outrigger.core.errors import Invalid
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
            Invalid: BAD_BUDGET.
        """
        if not 0 <= self.ratio <= 1 or self.minimum < 0 or not self.window_s > 0:
            raise Invalid(
                "BAD_BUDGET",
                f"the retry budget {self} is not possible: give a ratio from 0 to 1, a"
                " minimum of 0 or more and a window of more than 0 seconds",
            )


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
