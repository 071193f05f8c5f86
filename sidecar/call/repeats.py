"""Whether a call's next attempt may be made, and when.

Retries come after one another, hedges beside one another; both are attempts of the
same rule, charged to the same budget.
"""

from dataclasses import dataclass
from typing import Final

from sidecar.call.descriptor import Outcome
from sidecar.call.flight import Flight
from sidecar.policy import classify
from sidecar.policy.circuit import CircuitState
from sidecar.policy.retry import Failure, next_delay_s, pushback_s

_CLOSED: Final = CircuitState.CLOSED


@dataclass(slots=True)
class Times:
    """What a decision about a retry is made with."""

    now: float
    """Monotonic seconds."""
    active: float
    """The same as active time."""
    hint_s: float | None
    """google.rpc.RetryInfo of the failure."""
    draw: float
    """A number in [0, 1)."""


def retry_after_s(
    flight: Flight, outcome: Outcome, times: Times, *, killed: bool
) -> float | None:
    """Return when to retry; None means not at all. Charges the budget last."""
    method = flight.method
    if (
        killed
        or flight.attempts >= method.rule.max_attempts
        or not may_be_repeated(flight, outcome)
    ):
        return None
    pushback = pushback_s(outcome.trailers)
    throttled = classify.is_throttle(outcome.code)
    failure = Failure(
        step=flight.step,
        pushback_s=pushback,
        hint_s=times.hint_s or 0.0,
        room_s=flight.expires - times.now,
        typical_s=method.median.value_s() or 0.0,
        throttled=throttled,
    )
    delay_s = next_delay_s(method.retry, failure, times.draw)
    if delay_s is None or _is_shut(flight, times.active + delay_s):
        return None
    if not method.upstream.budget.spend(times.active, throttled=throttled):
        return None
    flight.step = 0 if pushback is not None else flight.step + 1
    return delay_s


def may_hedge(flight: Flight, now: float, active: float) -> bool:
    """Return whether one more attempt may be made beside others; charges the budget.

    Hedges help where a callee is healthy and one of its answers is late; where a
    circuit is not closed they would only add to the load.
    """
    method = flight.method
    return (
        now < flight.expires
        and flight.attempts < method.rule.max_attempts
        and method.circuit.state is _CLOSED
        and method.upstream.circuit.state is _CLOSED
        and method.upstream.budget.spend(active)
    )


def may_be_repeated(flight: Flight, outcome: Outcome) -> bool:
    """Return whether a failure of a call is one to try again after."""
    return (
        not outcome.committed
        and not flight.is_delivery
        and classify.is_retryable(outcome.code, outcome.origin, flight.method.codes)
    )


def _is_shut(flight: Flight, when: float) -> bool:
    """Return whether a circuit will still refuse then."""
    method = flight.method
    return (
        method.upstream.circuit.remaining_s(when) > 0
        or method.circuit.remaining_s(when) > 0
    )
