"""The audit trail: who asked for what, why, and how it was answered.

The chain of interceptors knows the caller and the outcome, the servicer knows the
agent and the reason; both run in the call's own task, so a context variable
carries the note from one to the other.

Race: an audit that cannot be written must not stop a wake, and must stop every
other change. A change is done before its record is; so the first failure is only
reported, and from then on `check` refuses changes until a record is on disk again.
The refusals are records too, so that the first to succeed ends the refusing.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final, Protocol

from controller.policy.audit import AuditEntry
from controller.store.protocol import Store
from outrigger.core.clock import Clock
from outrigger.core.errors import OutriggerError, Transient
from outrigger.core.rpc.errors import code_number, status_code
from outrigger.core.tasks import Report, describe

SCHEDULER: Final = "scheduler"
_MOST_CHARS: Final = 512


@dataclass(frozen=True, slots=True)
class _Note:
    subject: str
    reason: str


_NOTE: ContextVar[_Note | None] = ContextVar("audit note", default=None)


class Entry(Protocol):
    """A call that ended; `outrigger.core.rpc.chain.Audited` is one."""

    @property
    def principal(self) -> str:
        """Who called."""
        ...

    @property
    def method(self) -> str:
        """Full method name."""
        ...

    @property
    def subject(self) -> str:
        """What it was about, as far as the chain saw."""
        ...

    @property
    def status_code(self) -> int:
        """Status number of gRPC."""
        ...

    @property
    def reason(self) -> str:
        """Reason of the refusal; empty when it was let through."""
        ...


def note(subject: str, reason: str = "") -> None:
    """Say what the call being handled is about, and why it was made."""
    _NOTE.set(_Note(subject, reason))


def status_number(error: OutriggerError | None) -> int:
    """Return the gRPC status number an outcome is recorded with."""
    return 0 if error is None else code_number(status_code(error))


class Trail:
    """Writes the audit; owned by the controller's loop."""

    def __init__(self, store: Store, clock: Clock, report: Report) -> None:
        self._store = store
        self._clock = clock
        self._report = report
        self._failure: OutriggerError | None = None

    def check(self) -> None:
        """Refuse a change while nothing can be recorded.

        Raises:
            Transient: AUDIT_FAILED.
        """
        if self._failure is not None:
            raise Transient(
                "AUDIT_FAILED",
                f"the audit cannot be written ({self._failure.message}): only wakes"
                " are let through until it can",
                retry_after_s=1.0,
            )

    async def called(self, entry: Entry) -> None:
        """Record a call, with what its servicer noted."""
        found = _NOTE.get()
        await self.record(
            principal=entry.principal,
            method=entry.method,
            subject=(found.subject if found else "") or entry.subject,
            status_code=entry.status_code,
            reason=entry.reason or (found.reason if found else ""),
        )

    async def record(
        self,
        *,
        principal: str,
        method: str,
        subject: str,
        status_code: int,
        reason: str,
    ) -> None:
        """Record one thing; a failure is reported and remembered, never raised."""
        entry = AuditEntry(
            wall_us=int(self._clock.wall() * 1_000_000),
            principal=principal[:_MOST_CHARS],
            method=method[:_MOST_CHARS],
            subject=subject[:_MOST_CHARS],
            status_code=status_code,
            reason=reason[:_MOST_CHARS],
        )
        try:
            await self._store.append_audit(entry)
        except OutriggerError as error:
            self._failure = error
            self._report(describe("audit", error, subject=subject))
        else:
            self._failure = None
