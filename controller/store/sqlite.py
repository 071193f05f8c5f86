"""The default store: one SQLite file in the state directory."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from controller.policy.agent import Transition
from controller.policy.audit import GENESIS, AuditEntry, AuditRecord, seal, verify
from controller.policy.fleet import TRANSITIONS_KEPT
from controller.store.protocol import Kept, KeptSettings, KnownAgent
from outrigger.core.clock import Clock
from outrigger.core.database import Database
from outrigger.core.errors import Corrupt
from outrigger.core.events import Payload
from outrigger.core.reopening import keep_open

AUDIT_KEPT: Final = 100_000
"""Newest audit records kept; the chain then starts at the oldest of them."""

_PRUNE_EVERY: Final = 256

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS agents (
    agent_id TEXT PRIMARY KEY,
    agent_group TEXT NOT NULL,
    sidecar_instance TEXT NOT NULL,
    state TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    seen_wall_s REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS pins (
    agent_id TEXT PRIMARY KEY,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS scheduler (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    enabled INTEGER NOT NULL,
    keep_alive_s REAL
) STRICT;
CREATE TABLE IF NOT EXISTS transitions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id TEXT NOT NULL,
    wall_s REAL NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    input TEXT NOT NULL,
    reason TEXT NOT NULL,
    epoch INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS transitions_by_agent ON transitions (agent_id, id);
CREATE TABLE IF NOT EXISTS audit (
    sequence INTEGER PRIMARY KEY,
    wall_us INTEGER NOT NULL,
    principal TEXT NOT NULL,
    method TEXT NOT NULL,
    subject TEXT NOT NULL,
    status_code INTEGER NOT NULL,
    reason TEXT NOT NULL,
    chain_digest BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS audit_ends (
    which TEXT PRIMARY KEY CHECK (which IN ('before_first', 'last')),
    sequence INTEGER NOT NULL,
    chain_digest BLOB NOT NULL
) STRICT;
"""

_AUDIT_COLUMNS: Final = (
    "sequence, wall_us, principal, method, subject, status_code, reason, chain_digest"
)


class SqliteStore:
    """A `controller.store.protocol.Store` in one file."""

    def __init__(self, path: Path, *, audit_kept: int = AUDIT_KEPT) -> None:
        """Open the file.

        Raises:
            Corrupt: STORE_CORRUPT.
            Transient: STORE_UNOPENABLE.
        """
        self._database = Database(path, SCHEMA)
        self._audit_kept = audit_kept

    async def load(self, *, seen_after_wall_s: float) -> Kept:
        """Verify the audit's chain and return what was kept.

        Raises:
            Corrupt: AUDIT_BROKEN.
        """
        await self._database.read(_verify_audit)
        await self._database.write(lambda c: _forget(c, seen_after_wall_s))
        return await self._database.read(_kept)

    async def remember(self, agent: KnownAgent) -> None:
        """Keep the newest of an agent."""
        values = (
            agent.agent_id,
            agent.group,
            agent.sidecar_instance,
            agent.state,
            agent.epoch,
            agent.generation,
            agent.seen_wall_s,
        )
        await self._execute("REPLACE INTO agents VALUES (?, ?, ?, ?, ?, ?, ?)", values)

    async def pin(self, agent_id: str, reason: str) -> None:
        """Keep a pin; a second one replaces the reason."""
        await self._execute("REPLACE INTO pins VALUES (?, ?)", (agent_id, reason))

    async def unpin(self, agent_id: str) -> None:
        """End a pin; there need be none."""
        await self._execute("DELETE FROM pins WHERE agent_id = ?", (agent_id,))

    async def set_scheduler(self, settings: KeptSettings) -> None:
        """Keep the scheduler's settings."""
        values = (int(settings.enabled), settings.keep_alive_s)
        await self._execute("REPLACE INTO scheduler VALUES (1, ?, ?)", values)

    async def add_transition(self, agent_id: str, transition: Transition) -> None:
        """Keep a transition and let go of the agent's oldest."""
        await self._database.write(lambda c: _add_transition(c, agent_id, transition))

    async def append_audit(self, entry: AuditEntry) -> AuditRecord:
        """Seal an entry and keep it."""
        return await self._database.write(
            lambda c: _append_audit(c, entry, self._audit_kept)
        )

    async def audit(self, *, after: int, limit: int) -> tuple[AuditRecord, ...]:
        """Return records with a sequence above `after`, oldest first."""
        return await self._database.read(lambda c: _audit(c, after, limit))

    async def keep_open(
        self, *, clock: Clock, publish: Callable[[Payload], object]
    ) -> None:
        """Reopen the file after a failure, until closed."""
        await keep_open(self._database, clock=clock, publish=publish)

    async def close(self) -> None:
        """Finish what waits and close the file."""
        await self._database.close()

    async def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        await self._database.write(lambda c: c.execute(statement, values).rowcount)


def _verify_audit(connection: sqlite3.Connection) -> None:
    last = verify(
        map(
            _record,
            connection.execute(f"SELECT {_AUDIT_COLUMNS} FROM audit ORDER BY sequence"),  # noqa: S608 - constant names
        ),
        *_end(connection, "before_first"),
    )
    # A chain alone does not notice that its newest records were cut off.
    if last != _end(connection, "last"):
        raise Corrupt(
            "AUDIT_BROKEN",
            f"audit records after {last[0]} are missing: keep the state directory as"
            " evidence, and start with another one or a backup",
        )


def _end(connection: sqlite3.Connection, which: str) -> tuple[int, bytes]:
    row = connection.execute(
        "SELECT sequence, chain_digest FROM audit_ends WHERE which = ?", (which,)
    ).fetchone()
    return (row[0], row[1]) if row else (0, GENESIS)


def _set_end(
    connection: sqlite3.Connection, which: str, sequence: int, digest: bytes
) -> None:
    connection.execute(
        "REPLACE INTO audit_ends VALUES (?, ?, ?)", (which, sequence, digest)
    )


def _append_audit(
    connection: sqlite3.Connection, entry: AuditEntry, kept: int
) -> AuditRecord:
    sequence, digest = _end(connection, "last")
    record = seal(digest, sequence + 1, entry)
    connection.execute(
        "INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            record.sequence,
            entry.wall_us,
            entry.principal,
            entry.method,
            entry.subject,
            entry.status_code,
            entry.reason,
            record.chain_digest,
        ),
    )
    _set_end(connection, "last", record.sequence, record.chain_digest)
    if record.sequence % min(_PRUNE_EVERY, kept) == 0:
        _prune_audit(connection, record.sequence - kept)
    return record


def _prune_audit(connection: sqlite3.Connection, until: int) -> None:
    row = connection.execute(
        "SELECT chain_digest FROM audit WHERE sequence = ?", (until,)
    ).fetchone()
    if row is None:
        return
    _set_end(connection, "before_first", until, row[0])
    connection.execute("DELETE FROM audit WHERE sequence <= ?", (until,))


def _audit(
    connection: sqlite3.Connection, after: int, limit: int
) -> tuple[AuditRecord, ...]:
    rows = connection.execute(
        f"SELECT {_AUDIT_COLUMNS} FROM audit"  # noqa: S608 - constant names
        " WHERE sequence > ? ORDER BY sequence LIMIT ?",
        (after, limit),
    )
    return tuple(_record(row) for row in rows)


def _record(row: tuple[Any, ...]) -> AuditRecord:
    sequence, wall_us, principal, method, subject, status_code, reason, digest = row
    entry = AuditEntry(
        wall_us=wall_us,
        principal=principal,
        method=method,
        subject=subject,
        status_code=status_code,
        reason=reason,
    )
    return AuditRecord(sequence=sequence, entry=entry, chain_digest=digest)


def _add_transition(
    connection: sqlite3.Connection, agent_id: str, moved: Transition
) -> None:
    connection.execute(
        "INSERT INTO transitions"
        " (agent_id, wall_s, before, after, input, reason, epoch)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            agent_id,
            moved.wall_s,
            moved.before,
            moved.after,
            moved.input,
            moved.reason,
            moved.epoch,
        ),
    )
    connection.execute(
        "DELETE FROM transitions WHERE agent_id = ?1 AND id NOT IN ("
        "SELECT id FROM transitions WHERE agent_id = ?1 ORDER BY id DESC LIMIT ?2)",
        (agent_id, TRANSITIONS_KEPT),
    )


def _forget(connection: sqlite3.Connection, seen_after_wall_s: float) -> None:
    connection.execute(
        "DELETE FROM agents WHERE seen_wall_s < ?"
        " AND agent_id NOT IN (SELECT agent_id FROM pins)",
        (seen_after_wall_s,),
    )
    connection.execute(
        "DELETE FROM transitions WHERE agent_id NOT IN (SELECT agent_id FROM agents)"
    )


def _kept(connection: sqlite3.Connection) -> Kept:
    agents = connection.execute(
        "SELECT agent_id, agent_group, sidecar_instance, state, epoch, generation,"
        " seen_wall_s FROM agents ORDER BY agent_id"
    )
    known = tuple(
        KnownAgent(
            agent_id=row[0],
            group=row[1],
            sidecar_instance=row[2],
            state=row[3],
            epoch=row[4],
            generation=row[5],
            seen_wall_s=row[6],
        )
        for row in agents
    )
    pins = dict(connection.execute("SELECT agent_id, reason FROM pins").fetchall())
    return Kept(
        agents=known,
        pins=pins,
        transitions=_transitions(connection),
        settings=_settings(connection),
    )


def _transitions(
    connection: sqlite3.Connection,
) -> dict[str, tuple[Transition, ...]]:
    found: dict[str, tuple[Transition, ...]] = {}
    rows = connection.execute(
        "SELECT agent_id, wall_s, before, after, input, reason, epoch"
        " FROM transitions ORDER BY id DESC"
    )
    for agent_id, wall_s, before, after, given, reason, epoch in rows:
        moved = Transition(
            wall_s=wall_s,
            before=before,
            after=after,
            input=given,
            reason=reason,
            epoch=epoch,
        )
        found[agent_id] = (*found.get(agent_id, ()), moved)
    return found


def _settings(connection: sqlite3.Connection) -> KeptSettings:
    row = connection.execute("SELECT enabled, keep_alive_s FROM scheduler").fetchone()
    if row is None:
        return KeptSettings()
    return KeptSettings(enabled=bool(row[0]), keep_alive_s=row[1])
