"""What a status means: for circuits, for retries, for letters.

| status | circuit of the method | sent again | letter |
|---|---|---|---|
| UNAVAILABLE | hard | by default | yes |
| INTERNAL, UNKNOWN | hard | if idempotent | yes |
| DEADLINE_EXCEEDED | hard, unless the caller was hasty | if idempotent | yes |
| DATA_LOSS | hard | no | no |
| RESOURCE_EXHAUSTED | soft | if idempotent, slowly | yes |
| ABORTED | answers a probe | if idempotent | no |
| INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS | answers a probe | no | no |
| FAILED_PRECONDITION, OUT_OF_RANGE | answers a probe | no | no |
| all others | do not count | no | no |

What *answers a probe* is definite: it does not count while the circuit is closed, but
a callee that gives such an answer to a probe is there again. UNIMPLEMENTED and the
statuses about identity are not among them: something in front of a dead callee
gives these too.

A failure of the transport counts at the upstream's circuit instead, and any answer
of the callee there as a success: a callee that answers is reachable. What the relay
itself refuses counts nowhere. Only UNAVAILABLE is retried by default (AIP-194).
"""

import enum
from typing import Final

from sidecar.call.descriptor import Origin


class Code(enum.IntEnum):
    """gRPC status numbers."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Verdict(enum.Enum):
    """What an outcome says about the health of a callee."""

    SUCCESS = "success"
    HARD = "hard"
    """Counts in a row and in the ratio, and fails a probe."""
    SOFT = "soft"
    """Counts in the ratio and fails a probe: alive, but with too much to do."""
    ANSWERED = "answered"
    """A definite answer: a probe that gets one succeeds; else it says nothing."""
    IGNORED = "ignored"
    """Says nothing."""


class Repeat(enum.Enum):
    """What sending a method twice does."""

    DEFAULT = "default"
    IDEMPOTENT = "idempotent"
    UNSAFE = "unsafe"


_HARD: Final = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE}
    | {Code.DATA_LOSS}
)
_IDEMPOTENT: Final = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED}
    | {Code.INTERNAL, Code.UNAVAILABLE}
)
_BY_DEFAULT: Final = frozenset({Code.UNAVAILABLE})
_OUTAGE: Final = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL}
    | {Code.UNAVAILABLE}
)
_DEFINITE: Final = frozenset(
    {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.ALREADY_EXISTS}
    | {Code.FAILED_PRECONDITION, Code.ABORTED, Code.OUT_OF_RANGE}
)
_OF_ANSWER: Final[dict[int, Verdict]] = {
    **dict.fromkeys(_HARD, Verdict.HARD),
    **dict.fromkeys(_DEFINITE, Verdict.ANSWERED),
    Code.RESOURCE_EXHAUSTED: Verdict.SOFT,
}
_REFUSED_LAYERS: Final = frozenset({"circuit", "limit", "deadline"})


def of_upstream(code: int, origin: Origin) -> Verdict:
    """Return what an outcome says about reaching the upstream at all."""
    if code == Code.OK or origin is Origin.UPSTREAM:
        return Verdict.SUCCESS
    if origin is Origin.TRANSPORT and code in _HARD:
        return Verdict.HARD
    return Verdict.IGNORED


def of_method(
    code: int, origin: Origin, *, patience_s: float, median_s: float | None
) -> Verdict:
    """Return what an outcome says about the method.

    Args:
        code: gRPC status number.
        origin: who made it.
        patience_s: how long the caller's deadline let the attempt run.
        median_s: what the method usually takes; None means not known.
    """
    if code == Code.OK:
        return Verdict.SUCCESS
    if origin is Origin.TRANSPORT:
        return Verdict.IGNORED
    if code == Code.DEADLINE_EXCEEDED:
        # Whoever noticed it first, we or the callee: an attempt was made and no
        # answer came. Left out, a black hole would never open a circuit.
        hasty = median_s is not None and patience_s < median_s
        return Verdict.IGNORED if hasty else Verdict.HARD
    return (
        Verdict.IGNORED
        if origin is Origin.LOCAL
        else _OF_ANSWER.get(code, Verdict.IGNORED)
    )


def retryable_codes(repeat: Repeat) -> frozenset[int]:
    """Return the statuses after which a method of a kind is sent again.

    An unsafe method never is: no status that comes through this wire proves that
    the callee did not see the call.
    """
    if repeat is Repeat.UNSAFE:
        return frozenset()
    return _BY_DEFAULT if repeat is Repeat.DEFAULT else _IDEMPOTENT


def is_retryable(code: int, origin: Origin, codes: frozenset[int]) -> bool:
    """Return whether such a failure may be sent again."""
    return code in codes and not _is_own(code, origin)


def is_throttle(code: int) -> bool:
    """Return whether the callee says that it has too much to do."""
    return code == Code.RESOURCE_EXHAUSTED


def is_outage(code: int, origin: Origin) -> bool:
    """Return whether such a failure may become a letter: it may yet succeed."""
    return code in _OUTAGE and not _is_own(code, origin)


def may_be_letter(layer: str) -> bool:
    """Return whether a refusal by this layer of the guard may become a letter."""
    return layer in _REFUSED_LAYERS


def _is_own(code: int, origin: Origin) -> bool:
    """Return whether the relay refused; running out of time is no refusal."""
    return origin is Origin.LOCAL and code != Code.DEADLINE_EXCEEDED
