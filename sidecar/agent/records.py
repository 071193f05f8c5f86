"""What must outlive the sidecar: the agent's epoch, state and process.

Epochs have one issuer, this sidecar, and strictly rise. An epoch is told to
others in the same breath in which it is taken, before any disk could answer, so
a few are reserved ahead: the reserve is on disk before one of them is told, and
a restart begins above it. That is also why a wake needs no disk.
"""

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from outrigger.core.clock import Clock
from outrigger.core.database import Database
from outrigger.core.errors import Conflict, Corrupt, Transient
from outrigger.core.events import Payload
from outrigger.core.tasks import Tasks, describe
from sidecar.policy.agent import AgentState

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS agent_lifecycle (
    agent_id TEXT PRIMARY KEY,
    epoch_reserved INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_wall_s REAL NOT NULL,
    generation INTEGER NOT NULL,
    state_digest BLOB NOT NULL,
    sleep_count INTEGER NOT NULL,
    wake_count INTEGER NOT NULL,
    last_wake_s REAL NOT NULL,
    woken_digest BLOB NOT NULL,
    pid INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,
    boot_id TEXT NOT NULL
) STRICT;
"""

EPOCHS_AHEAD: Final = 8
"""Epochs reserved on disk above the newest one told."""

_PAUSE_FIRST_S: Final = 0.1
_PAUSE_MAX_S: Final = 2.0

_COLUMNS: Final = (
    "epoch_reserved, epoch, state, reason, since_wall_s, generation, state_digest,"
    " sleep_count, wake_count, last_wake_s, woken_digest, pid, start_ticks, boot_id"
)


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process that cannot be confused with a later one of the same number."""

    pid: int
    start_ticks: int
    """Clock ticks from boot to its start, field 22 of /proc/PID/stat."""
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LifecycleRecord:
    """One agent's row."""

    epoch_reserved: int
    epoch: int
    state: AgentState
    reason: str
    since_wall_s: float
    generation: int = 0
    state_digest: bytes = b""
    sleep_count: int = 0
    wake_count: int = 0
    last_wake_s: float = 0.0
    woken_digest: bytes = b""
    process: ProcessId | None = None


class LifecycleRecords:
    """The row of one agent in the sidecar's database."""

    def __init__(self, database: Database, agent_id: str) -> None:
        self._database = database
        self._agent_id = agent_id

    async def load(self) -> LifecycleRecord | None:
        """Return what was stored last; None when nothing ever was.

        Raises:
            Corrupt: BAD_LIFECYCLE_RECORD.
        """
        row = await self._database.read(self._select)
        return None if row is None else _from_row(row)

    async def store(self, record: LifecycleRecord) -> None:
        """Store the row; return once it is on disk.

        Raises:
            Conflict: STALE_EPOCH when a higher epoch is stored already; nothing
                is changed then.
            Transient: STORE_FAILED, from the database.
        """
        await self._database.write(lambda connection: self._upsert(connection, record))

    def _select(self, connection: sqlite3.Connection) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = connection.execute(
            f"SELECT {_COLUMNS} FROM agent_lifecycle WHERE agent_id = ?",  # noqa: S608 - a constant
            (self._agent_id,),
        ).fetchone()
        return row

    def _upsert(self, connection: sqlite3.Connection, record: LifecycleRecord) -> None:
        found = connection.execute(
            "SELECT epoch, epoch_reserved FROM agent_lifecycle WHERE agent_id = ?",
            (self._agent_id,),
        ).fetchone()
        if found is not None and not _rises(found, record):
            raise Conflict(
                "STALE_EPOCH",
                f"epoch {record.epoch} of agent {self._agent_id} is older than epoch"
                f" {found[0]} on disk: another sidecar has the state directory; end"
                " one of them",
            )
        values = (self._agent_id, *_to_row(record))
        marks = ", ".join("?" * len(values))
        connection.execute(
            f"INSERT OR REPLACE INTO agent_lifecycle (agent_id, {_COLUMNS})"  # noqa: S608 - constants
            f" VALUES ({marks})",
            values,
        )


def _rises(found: tuple[int, int], record: LifecycleRecord) -> bool:
    return record.epoch >= found[0] and record.epoch_reserved >= found[1]


def _to_row(record: LifecycleRecord) -> tuple[Any, ...]:
    process = record.process or ProcessId(0, 0, "")
    return (
        record.epoch_reserved,
        record.epoch,
        record.state.value,
        record.reason,
        record.since_wall_s,
        record.generation,
        record.state_digest,
        record.sleep_count,
        record.wake_count,
        record.last_wake_s,
        record.woken_digest,
        process.pid,
        process.start_ticks,
        process.boot_id,
    )


def _from_row(row: tuple[Any, ...]) -> LifecycleRecord:
    reserved, epoch, state, reason, since, generation, digest, *rest = row
    sleeps, wakes, last_wake, woken, pid, ticks, boot_id = rest
    try:
        known = AgentState(state)
    except ValueError as error:
        raise Corrupt(
            "BAD_LIFECYCLE_RECORD",
            f"the stored state {state!r} of the agent is none that this version"
            " knows: start the version that wrote it, or move the state directory"
            " aside",
        ) from error
    return LifecycleRecord(
        epoch_reserved=reserved,
        epoch=epoch,
        state=known,
        reason=reason,
        since_wall_s=since,
        generation=generation,
        state_digest=digest,
        sleep_count=sleeps,
        wake_count=wakes,
        last_wake_s=last_wake,
        woken_digest=woken,
        process=ProcessId(pid, ticks, boot_id) if pid else None,
    )


class Epochs:
    """Issues epochs, never one that is not reserved on disk."""

    def __init__(self) -> None:
        self.current = 0
        self._durable = 0

    def begin_above(self, stored_maximum: int) -> None:
        """Never issue an epoch that a sidecar before this one may have told."""
        self.current = self._durable = stored_maximum

    @property
    def has_next(self) -> bool:
        """Say whether another epoch is reserved on disk."""
        return self.current < self._durable

    @property
    def reserve(self) -> int:
        """Return the reserve to be stored with the next record."""
        return max(self.current + EPOCHS_AHEAD, self._durable)

    def stored(self, reserve: int) -> None:
        """Take note that epochs up to `reserve` are reserved on disk."""
        self._durable = max(self._durable, reserve)

    def check(self) -> None:
        """Refuse a request that would need an epoch when none is reserved.

        Raises:
            Transient: NO_EPOCH_LEFT.
        """
        if not self.has_next:
            raise Transient(
                "NO_EPOCH_LEFT",
                f"epoch {self.current} was the last one reserved on disk and the"
                " sidecar's store does not answer: look at the error before this one",
                retry_after_s=1.0,
            )

    def issue(self) -> int:
        """Return the next epoch, which is now the current one.

        Raises:
            Transient: NO_EPOCH_LEFT.
        """
        self.check()
        self.current += 1
        return self.current


class Recorder:
    """Writes the newest record behind the caller's back, one write at a time.

    Records in between may be skipped: each one is whole. The newest is kept until it
    is on disk: after a failed write, which is reported once, it is tried again until
    the store takes it or a newer one has come.
    """

    def __init__(
        self,
        records: LifecycleRecords,
        epochs: Epochs,
        *,
        tasks: Tasks,
        clock: Clock,
        publish: Callable[[Payload], object],
    ) -> None:
        self._records = records
        self._epochs = epochs
        self._tasks = tasks
        self._clock = clock
        self._publish = publish
        self._latest: LifecycleRecord | None = None
        self._writing = False

    def put(self, record: LifecycleRecord) -> None:
        """Have `record` written soon."""
        self._latest = record
        if not self._writing:
            self._writing = True
            _ = self._tasks.spawn("agent.record", self._drain())

    async def write(self, record: LifecycleRecord) -> None:
        """Write `record` now, in place of any that waits; return once it is on disk.

        Raises:
            OutriggerError: see `LifecycleRecords.store`.
        """
        self._latest = None
        await self._store(record)

    async def _store(self, record: LifecycleRecord) -> None:
        await self._records.store(record)
        self._epochs.stored(record.epoch_reserved)

    async def _drain(self) -> None:
        pause_s = _PAUSE_FIRST_S
        try:
            while (record := self._latest) is not None:
                error = await self._try(record)
                if error is None:
                    pause_s = _PAUSE_FIRST_S
                    continue
                if pause_s == _PAUSE_FIRST_S:
                    self._publish(describe("agent.record", error))
                await self._clock.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        finally:
            self._writing = False

    async def _try(self, record: LifecycleRecord) -> Exception | None:
        """Store one record; return why it has to be tried again.

        Raises:
            Conflict: it never can be stored, a later sidecar has the directory.
        """
        try:
            await self._store(record)
        except Conflict:
            self._done(record)
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, memory knows better
            return error
        self._done(record)
        return None

    def _done(self, record: LifecycleRecord) -> None:
        if self._latest is record:
            self._latest = None
