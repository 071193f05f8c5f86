"""The words a guard answers with: statuses and trailers, as data."""

import math
from collections.abc import Callable
from typing import Final

from outrigger.core import names
from outrigger.core.errors import OutriggerError, Transient
from sidecar.call.descriptor import Answer, Outcome, Trailers
from sidecar.policy.circuit import Circuit, CircuitState
from sidecar.policy.classify import Code

Details = Callable[[OutriggerError], Trailers]
"""Returns the `grpc-status-details-bin` trailers of an error of ours."""

CALLS_KILLED: Final = "CALLS_KILLED"
CIRCUIT_ISOLATED: Final = "CIRCUIT_ISOLATED"

_ENDLESS: Final = frozenset({CALLS_KILLED, CIRCUIT_ISOLATED})
_DO_NOT_RETRY: Final = (names.PUSHBACK_TRAILER, "-1")


def no_details(_error: OutriggerError) -> Trailers:
    """Return no details, where nobody makes any."""
    return ()


def refusal(error: OutriggerError, layer: str, details: Details) -> Answer:
    """Return a refusal of ours, marked as such.

    An error that says when to come back becomes a push-back.
    """
    trailers: Trailers = (*details(error), (names.REFUSED_BY_TRAILER, layer))
    after_s = error.retry_after_s
    if after_s is not None:
        # Never 0: a grpcio caller with a retry policy of its own stalls on that.
        after_ms = max(1, math.ceil(after_s * 1000))
        trailers += ((names.PUSHBACK_TRAILER, str(after_ms)),)
    elif error.reason in _ENDLESS:
        # Until an operator says otherwise; left to itself the caller would try again.
        trailers += (_DO_NOT_RETRY,)
    return Answer(int(Code[error.status]), error.message, trailers)


def circuit_error(circuit: Circuit, now: float) -> Transient:
    """Return what a call refused by a circuit is told."""
    facts = {"circuit": circuit.circuit_id, "state": circuit.state.value}
    if circuit.state is CircuitState.ISOLATED:
        return Transient(
            CIRCUIT_ISOLATED,
            f"an operator isolated {circuit.circuit_id} ({circuit.reason}); nothing was"
            " sent: calls are refused until it is restored",
            metadata=facts,
        )
    after_s = circuit.remaining_s(now)
    return Transient(
        f"CIRCUIT_{circuit.state.name}",
        f"the circuit of {circuit.circuit_id} is {circuit.state.value}"
        f" ({circuit.reason}); nothing was sent: come back in {after_s:.3f} s",
        metadata=facts,
        retry_after_s=after_s,
    )


def attempts_trailer(attempts: int) -> Trailers:
    """Return how many attempts were made, if more than the one expected."""
    return ((names.ATTEMPTS_TRAILER, str(attempts)),) if attempts > 1 else ()


def passed_on(outcome: Outcome, trailers: Trailers) -> Answer:
    """Return the upstream's own answer with ours added, given later than it came."""
    return Answer(outcome.code, outcome.message, outcome.trailers + trailers)


def with_letter(answer: Answer, letter_id: str, attempts: int) -> Answer:
    """Return the same failing status, saying that the call is safe.

    The push-back is there because a caller's own retry policy would make a second
    letter of the same call.
    """
    dropped = {names.PUSHBACK_TRAILER, names.ATTEMPTS_TRAILER}
    kept = tuple(pair for pair in answer.trailers if pair[0] not in dropped)
    return Answer(
        answer.code,
        answer.message,
        (
            *kept,
            (names.LETTER_ID_TRAILER, letter_id),
            (names.ATTEMPTS_TRAILER, str(attempts)),
            _DO_NOT_RETRY,
        ),
    )


def without_letter(answer: Answer, reason: str) -> Answer:
    """Return the same answer, saying why no letter was taken."""
    trailers = answer.trailers + no_letter_trailer(reason)
    return Answer(answer.code, answer.message, trailers)


def no_letter_trailer(reason: str) -> Trailers:
    """Return why no letter was taken; `reason` is UPPER_SNAKE."""
    return ((names.LETTER_REFUSED_TRAILER, reason),)
