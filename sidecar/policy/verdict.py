"""What the outcome of a delivery means for the letter.

An outage is not poison. What says that the upstream is away (UNAVAILABLE, a
broken connection) or asks us to slow down costs a letter no attempt, unless
other letters to the same upstream got through since its last try: then the
upstream is not away, and it is this letter that fails.
"""

import enum
from dataclasses import dataclass
from typing import Final

from sidecar.policy.letter import Letter, LetterInput, LetterLimits

_DOUBLINGS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """How a send ended, as the policy needs it."""

    code: int
    message: str = ""
    broken: bool = False
    """The connection failed or broke: nobody answered."""
    pushback_s: float | None = None
    """The upstream's own wish, seconds; negative means: not soon."""


class Class(enum.Enum):
    """What an outcome says about the upstream and the letter."""

    OK = "ok"
    OUTAGE = "outage"
    THROTTLE = "throttle"
    TRANSIENT = "transient"
    PERMANENT = "permanent"
    DENIED = "denied"


_STATUSES: Final = (
    ("OK", Class.OK),
    ("CANCELLED", Class.TRANSIENT),
    ("UNKNOWN", Class.TRANSIENT),
    ("INVALID_ARGUMENT", Class.PERMANENT),
    ("DEADLINE_EXCEEDED", Class.TRANSIENT),  # it may have happened
    ("NOT_FOUND", Class.PERMANENT),
    ("ALREADY_EXISTS", Class.PERMANENT),  # perhaps our own duplicate succeeded
    ("PERMISSION_DENIED", Class.DENIED),
    ("RESOURCE_EXHAUSTED", Class.THROTTLE),
    ("FAILED_PRECONDITION", Class.PERMANENT),
    ("ABORTED", Class.TRANSIENT),
    ("OUT_OF_RANGE", Class.PERMANENT),
    ("UNIMPLEMENTED", Class.PERMANENT),
    ("INTERNAL", Class.TRANSIENT),
    ("UNAVAILABLE", Class.OUTAGE),
    ("DATA_LOSS", Class.PERMANENT),
    ("UNAUTHENTICATED", Class.DENIED),
)
"""Name and class of each gRPC status, by its number."""


def status_name(code: int) -> str:
    """Return the canonical name of a gRPC status number."""
    return _STATUSES[code][0] if 0 <= code < len(_STATUSES) else f"STATUS_{code}"


def classify(result: SendResult) -> Class:
    """Return what a result says; a broken connection is an outage whatever its code."""
    if result.code == 0:
        return Class.OK
    if result.broken:
        return Class.OUTAGE
    known = 0 < result.code < len(_STATUSES)
    return _STATUSES[result.code][1] if known else Class.TRANSIENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What becomes of a letter after a send."""

    what: LetterInput
    reason: str = ""
    counts: bool = False
    """An attempt is used up."""
    delay_s: float = 0.0
    """Until the next try, for RETRY."""


def backoff_s(base_s: float, cap_s: float, failures: int, draw: float) -> float:
    """Return a full-jitter pause.

    Args:
        base_s: ceiling of the first pause.
        cap_s: ceiling of all.
        failures: how many came before this one.
        draw: in [0, 1).
    """
    return draw * min(cap_s, base_s * 2.0 ** min(failures, _DOUBLINGS))


def judge(
    letter: Letter,
    result: SendResult,
    limits: LetterLimits,
    *,
    draw: float,
    peers_succeed: bool,
    now_wall_s: float,
) -> Verdict:
    """Return what a result means for the letter.

    Args:
        letter: as it was when sent.
        result: how the send ended.
        limits: attempts and pauses.
        draw: in [0, 1).
        peers_succeed: another letter to its upstream got through since this one
            failed last; so the upstream is there.
        now_wall_s: against the letter's age limit.
    """
    kind = classify(result)
    name = status_name(result.code)
    if kind is Class.OK:
        return Verdict(what=LetterInput.DELIVER)
    if kind is Class.PERMANENT:
        return Verdict(what=LetterInput.PARK, reason=name, counts=True)
    if kind is Class.DENIED:
        return Verdict(what=LetterInput.HOLD, reason=name)
    counts = kind is Class.TRANSIENT or (kind is Class.OUTAGE and peers_succeed)
    if counts and letter.attempt_count + 1 >= limits.max_attempts:
        return Verdict(what=LetterInput.PARK, reason="ATTEMPTS_EXHAUSTED", counts=True)
    if letter.expire_wall_s is not None and letter.expire_wall_s <= now_wall_s:
        return Verdict(what=LetterInput.EXPIRE, reason="AGE_LIMIT", counts=counts)
    delay_s = _delay_s(letter, result, limits, counts=counts, draw=draw)
    return Verdict(what=LetterInput.RETRY, reason=name, counts=counts, delay_s=delay_s)


def _delay_s(
    letter: Letter,
    result: SendResult,
    limits: LetterLimits,
    *,
    counts: bool,
    draw: float,
) -> float:
    cap_s = limits.backoff_max_s if counts else limits.outage_backoff_max_s
    own_s = backoff_s(limits.backoff_base_s, cap_s, letter.failure_count, draw)
    if result.pushback_s is None:
        return own_s
    asked_s = limits.backoff_max_s if result.pushback_s < 0 else result.pushback_s
    return max(own_s, min(asked_s, limits.throttle_max_s))


def crashed(letter: Letter, limits: LetterLimits) -> Verdict:
    """Return what becomes of a letter that was in flight when the process died."""
    if letter.crash_count + 1 >= limits.crash_limit:
        return Verdict(what=LetterInput.PARK, reason="CRASH_POISON")
    return Verdict(what=LetterInput.CRASH, reason="SIDECAR_DIED")
