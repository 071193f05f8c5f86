"""When to try again (gRFC A6), as a number computed from numbers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from outrigger.core import names
from sidecar.call.descriptor import Metadata
from sidecar.policy.bounds import Mistake, above, at_least, ordered, refuse

DO_NOT_RETRY: Final = -1.0
"""What `pushback_s` returns for a callee that wants no retry."""

_MILLISECONDS: Final = re.compile(r"[0-9]{1,9}\Z")
_MAX_DOUBLINGS: Final = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySettings:
    """How long to wait before trying again."""

    base_s: float = 0.05
    """Upper bound of the first wait."""
    cap_s: float = 1.0
    """Upper bound of every wait of our own choice."""
    throttle_base_s: float = 1.0
    """Upper bound of the first wait after RESOURCE_EXHAUSTED: coming back soon to a
    callee with too much to do makes it worse."""
    throttle_cap_s: float = 20.0
    """Upper bound of every such wait."""
    pushback_max_s: float = 30.0
    """A callee that asks for more gets no retry; its status goes to the caller."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            BadSettings: BAD_RETRY, naming every mistake.
        """
        refuse("BAD_RETRY", "the retry settings are not possible", _mistakes(self))


@dataclass(slots=True, kw_only=True)
class Failure:
    """What is known when an attempt has failed and may be made again."""

    step: int
    """Waits of our own choice since the start, or since the last push-back."""
    pushback_s: float | None = None
    """From the callee; see `pushback_s`."""
    hint_s: float = 0.0
    """google.rpc.RetryInfo: the callee asks to wait at least this long."""
    room_s: float
    """From now until the caller needs its answer; may be infinite."""
    typical_s: float = 0.0
    """What the method usually takes."""
    throttled: bool = False
    """The callee said that it has too much to do."""


def pushback_s(trailers: Metadata) -> float | None:
    """Return the delay a callee asks for in `grpc-retry-pushback-ms`.

    None means it said nothing; DO_NOT_RETRY that it wants no retry, which also is
    how gRFC A6 reads a value that is negative, no whole number, or given twice.
    Leading zeros are tolerated.
    """
    given = [value for key, value in trailers if key == names.PUSHBACK_TRAILER]
    if not given:
        return None
    value = given[0]
    if len(given) > 1 or not isinstance(value, str) or not _MILLISECONDS.match(value):
        return DO_NOT_RETRY
    return int(value) / 1000


def next_delay_s(
    settings: RetrySettings, failure: Failure, draw: float
) -> float | None:
    """Return the seconds to wait before the next attempt; None means do not.

    Our own wait has full jitter: anything in [0, base x 2^step), capped. A wait
    after which the attempt cannot finish in what is left is no wait but the end.

    Args:
        settings: bounds of the wait.
        failure: what is known.
        draw: a number in [0, 1).
    """
    delay = _wanted_s(settings, failure, draw)
    if delay is None or delay + failure.typical_s >= failure.room_s:
        return None
    return delay


def _wanted_s(settings: RetrySettings, failure: Failure, draw: float) -> float | None:
    if failure.pushback_s is not None:
        asked = failure.pushback_s
        return asked if 0 <= asked <= settings.pushback_max_s else None
    if failure.hint_s > settings.pushback_max_s:
        return None
    if failure.throttled:
        base_s, cap_s = settings.throttle_base_s, settings.throttle_cap_s
    else:
        base_s, cap_s = settings.base_s, settings.cap_s
    doubled = base_s * 2.0 ** min(failure.step, _MAX_DOUBLINGS)
    # On top of the hint, or all who got the same hint would come back together.
    return max(failure.hint_s, 0.0) + draw * min(cap_s, doubled)


def _mistakes(settings: RetrySettings) -> Iterator[Mistake]:
    yield from above(
        settings, 0, "base_s", "cap_s", "throttle_base_s", "throttle_cap_s"
    )
    yield from at_least(settings, 0, "pushback_max_s")
    yield from ordered(settings, "base_s", "cap_s")
    yield from ordered(settings, "throttle_base_s", "throttle_cap_s")
