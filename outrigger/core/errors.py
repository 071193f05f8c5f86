"""Errors, named for the caller's next move.

Each class says what to do next; `reason` says in UPPER_SNAKE what happened, and
the same reason always calls for the same move. The class docstring is the text
an operator reads.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar


class OutriggerError(Exception):
    """Something went wrong in Outrigger."""

    status: ClassVar[str] = "UNKNOWN"
    """Canonical gRPC status name."""

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: Mapping[str, str] = MappingProxyType(dict(metadata or {}))
        self.retry_after_s = retry_after_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.reason}: {self.message})"


class Transient(OutriggerError):
    """Try again after a while; nothing is wrong with the request."""

    status = "UNAVAILABLE"


class TimedOut(OutriggerError):
    """It took too long; it may or may not have happened."""

    status = "DEADLINE_EXCEEDED"


class Overloaded(OutriggerError):
    """A limit is reached; come back later or ask for less."""

    status = "RESOURCE_EXHAUSTED"


class Refused(OutriggerError):
    """Not in this state; change the state first, then ask again."""

    status = "FAILED_PRECONDITION"


class Invalid(OutriggerError):
    """The request is wrong; mend it before asking again."""

    status = "INVALID_ARGUMENT"


class NotFound(Invalid):
    """There is no such thing; look at the list and name one that is there."""

    status = "NOT_FOUND"


class Denied(OutriggerError):
    """You may not; ask an operator for leave."""

    status = "PERMISSION_DENIED"


class Unauthenticated(Denied):
    """We do not know who you are; bring a valid token."""

    status = "UNAUTHENTICATED"


class Conflict(OutriggerError):
    """Somebody was faster; read the present state, then decide anew."""

    status = "ABORTED"


class Corrupt(OutriggerError):
    """Stored bytes are not what was written; restore from elsewhere."""

    status = "DATA_LOSS"


class Bug(OutriggerError):
    """A defect of ours; report it with the log."""

    status = "INTERNAL"


def cause_chain(error: BaseException) -> tuple[str, ...]:
    """Return one line per cause, outermost first; cycles end the chain."""
    lines: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        lines.append(f"{type(current).__name__}: {current}")
        current = current.__cause__ or current.__context__
    return tuple(lines)
