"""The audit of an API server: what was changed or refused, for whom.

A record is kept whatever becomes of its caller, and callers without a valid token
cannot fill the audit: of their refusals a few are recorded and the rest counted.
"""

import asyncio
import logging
from collections.abc import Awaitable
from contextvars import Context
from dataclasses import dataclass, replace
from typing import Final, Protocol

import grpc

from outrigger.core.access import Principal, RateLimit
from outrigger.core.clock import Clock
from outrigger.core.errors import Bug, Overloaded
from outrigger.core.rpc.errors import code_number
from outrigger.core.tasks import Report, Tasks

_log = logging.getLogger("outrigger.rpc")

_STRANGER: Final = Principal(None).name
_STRANGERS_PER_S: Final = 1.0
_STRANGERS_BURST: Final = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """One call of a mutating method, or a refused call."""

    principal: str
    method: str
    subject: str
    status_code: int
    """gRPC status number it was answered with; a cancelled change may be done."""
    reason: str
    """Reason of the refusal; empty when it was let through."""


class AuditSink(Protocol):
    """Where audit entries go."""

    def __call__(self, entry: Audited, /) -> Awaitable[None]:
        """Keep one entry; it is answered to the caller only after this."""
        ...


async def no_audit(entry: Audited) -> None:
    """Log an entry; for servers that keep no audit of their own."""
    _log.info("audit %s", entry)


class AuditBook:
    """Hands entries to a sink, in an error boundary of its own."""

    def __init__(self, sink: AuditSink, clock: Clock, report: Report) -> None:
        self._sink = sink
        self._clock = clock
        self._tasks = Tasks(report, clock)
        self._strangers = RateLimit(rate_per_s=_STRANGERS_PER_S, burst=_STRANGERS_BURST)
        self._left_out = 0

    async def add(self, entry: Audited) -> None:
        """Wait until an entry is kept; it is kept also if the caller is cancelled.

        Raises:
            Bug: NOT_RECORDED when the sink raised, which was reported.
        """
        if entry.principal == _STRANGER:
            if not self._may_fill():
                self._left_out += 1
                return
            more = self._mention()
            if more:
                entry = replace(entry, reason=f"{entry.reason}; {more}")
        else:
            self._add_mention()
        await self._keep(entry)

    def _may_fill(self) -> bool:
        try:
            self._strangers.take(_STRANGER, self._clock.monotonic())
        except Overloaded:
            return False
        return True

    def _mention(self) -> str:
        """Say, once, how many refusals were left out; empty if none was."""
        count, self._left_out = self._left_out, 0
        return f"{count} more refusals were not recorded" if count else ""

    def _add_mention(self) -> None:
        more = self._mention()
        if not more:
            return
        entry = Audited(
            principal=_STRANGER,
            method="*",
            subject="",
            status_code=code_number(grpc.StatusCode.UNAUTHENTICATED),
            reason=more,
        )
        # In a context of its own: what a servicer noted there is not about this.
        _ = Context().run(self._tasks.spawn, "audit", self._write(entry))

    async def _keep(self, entry: Audited) -> None:
        failures: list[Exception] = []

        async def keep() -> None:
            try:
                await self._write(entry)
            except Exception as error:
                failures.append(error)
                raise  # the boundary reports it

        work = self._tasks.spawn("audit", keep(), subject=entry.method)
        await asyncio.wait((work,))  # cancelled, it leaves the work alone
        if failures:
            raise Bug(
                "NOT_RECORDED",
                f"{entry.method} ended with status {entry.status_code}, but the audit"
                " could not be written: look at what it changed before asking again,"
                " and at the log of this process",
            ) from failures[0]

    async def _write(self, entry: Audited) -> None:
        await self._sink(entry)
