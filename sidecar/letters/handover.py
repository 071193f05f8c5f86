"""What the journal knows of the shared tier: who is there, and who should be.

A letter that lives should be in its shard's stream; one that has ended should
not. Triggers put every letter whose life begins or ends on a list of things to
do, in the same transaction; a row leaves the list only in a transaction that
finds both sides alike. So nothing is forgotten by a crash, a letter that ends
while it is being handed over is taken out again, and nothing has to be searched.
"""

import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from outrigger.core.errors import Corrupt
from sidecar.letters.record import COLUMNS, letter_of
from sidecar.letters.table import request_of
from sidecar.policy.letter import LIVE, Letter

_LIVE: Final = f"({', '.join(repr(state) for state in sorted(s.value for s in LIVE))})"

SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS letter_tier (
    agent_id TEXT PRIMARY KEY,
    journal_id TEXT NOT NULL,
    shards INTEGER NOT NULL,
    handed_over INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS letter_watermarks (
    agent_id TEXT NOT NULL,
    shard INTEGER NOT NULL,
    handoff_seq INTEGER NOT NULL,
    PRIMARY KEY (agent_id, shard)
);
CREATE TABLE IF NOT EXISTS letter_handovers (
    seq INTEGER PRIMARY KEY,
    agent_id TEXT NOT NULL,
    shard INTEGER NOT NULL,
    handoff_seq INTEGER NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS letter_handovers_by_shard
    ON letter_handovers (agent_id, shard, handoff_seq);
CREATE TABLE IF NOT EXISTS letter_handover_todo (
    seq INTEGER PRIMARY KEY,
    agent_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS letter_handover_todo_by_agent
    ON letter_handover_todo (agent_id, seq);
CREATE TRIGGER IF NOT EXISTS letter_begins AFTER INSERT ON letters
    WHEN NEW.state IN {_LIVE}
BEGIN
    INSERT OR IGNORE INTO letter_handover_todo VALUES (NEW.seq, NEW.agent_id);
END;
CREATE TRIGGER IF NOT EXISTS letter_lives_or_ends AFTER UPDATE OF state ON letters
    WHEN (NEW.state IN {_LIVE}) <> (OLD.state IN {_LIVE})
BEGIN
    INSERT OR IGNORE INTO letter_handover_todo VALUES (NEW.seq, NEW.agent_id);
END;
CREATE TRIGGER IF NOT EXISTS letter_forgotten AFTER DELETE ON letters
BEGIN
    DELETE FROM letter_handover_todo WHERE seq = OLD.seq
        AND NOT EXISTS (SELECT 1 FROM letter_handovers WHERE seq = OLD.seq);
END;
"""  # noqa: S608 - our own words

Place = tuple[int, int]
"""Shard and hand-off sequence number."""


@dataclass(slots=True)
class Todo:
    """Letters whose two sides differ."""

    to_add: list[tuple[int, Letter]] = field(default_factory=list)
    """Row number and letter, whole."""
    to_remove: list[tuple[int, Place]] = field(default_factory=list)
    alike: list[int] = field(default_factory=list)
    """Rows that agree again by themselves."""
    broken: list[str] = field(default_factory=list)
    """Ids of letters that cannot be read."""

    @property
    def is_empty(self) -> bool:
        """Tell whether there is nothing to do."""
        return not (self.to_add or self.to_remove or self.alike or self.broken)


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry found in a stream."""

    handoff_seq: int
    letter_id: str
    request_digest: bytes


class Handover:
    """One agent's side of the shared tier; inside transactions, as LetterTable."""

    def __init__(self, agent_id: str) -> None:
        self._agent_id = agent_id
        self.journal_id = ""
        self.shards = 1

    def prepare(self, conn: sqlite3.Connection, journal_id: str, shards: int) -> None:
        """Fix journal id and shards the first time, and list all that lives then."""
        known = self._known(conn)
        if known is None:
            conn.execute(
                "INSERT INTO letter_tier (agent_id, journal_id, shards)"
                " VALUES (?, ?, ?)",
                (self._agent_id, journal_id, shards),
            )
            conn.execute(
                "INSERT OR IGNORE INTO letter_handover_todo"  # noqa: S608 - our own words
                " SELECT seq, agent_id FROM letters"
                f" WHERE agent_id = ? AND state IN {_LIVE}",
                (self._agent_id,),
            )
            known = (journal_id, shards)
        self.journal_id, self.shards = known

    def _known(self, conn: sqlite3.Connection) -> tuple[str, int] | None:
        row = conn.execute(
            "SELECT journal_id, shards FROM letter_tier WHERE agent_id = ?",
            (self._agent_id,),
        ).fetchone()
        return None if row is None else (row[0], row[1])

    def shard_of(self, letter_id: str) -> int:
        """Return the shard of a letter, the same for ever."""
        return zlib.crc32(letter_id.encode()) % self.shards

    def watermarks(self, conn: sqlite3.Connection) -> dict[int, int]:
        """Return the last sequence number used, by shard."""
        rows = conn.execute(
            "SELECT shard, handoff_seq FROM letter_watermarks WHERE agent_id = ?",
            (self._agent_id,),
        )
        return dict(rows.fetchall())

    def waits(self, conn: sqlite3.Connection) -> bool:
        """Tell whether there is anything to do."""
        found = conn.execute(
            "SELECT 1 FROM letter_handover_todo WHERE agent_id = ? LIMIT 1",
            (self._agent_id,),
        )
        return found.fetchone() is not None

    def counts(self, conn: sqlite3.Connection) -> tuple[int, int, dict[int, int]]:
        """Return how many were ever handed over, wait, and are there by shard."""
        (ever,) = conn.execute(
            "SELECT handed_over FROM letter_tier WHERE agent_id = ?", (self._agent_id,)
        ).fetchone()
        (waiting,) = conn.execute(
            "SELECT COUNT(*) FROM letter_handover_todo WHERE agent_id = ?",
            (self._agent_id,),
        ).fetchone()
        there = conn.execute(
            "SELECT shard, COUNT(*) FROM letter_handovers WHERE agent_id = ?"
            " GROUP BY shard",
            (self._agent_id,),
        )
        return ever, waiting, dict(there.fetchall())

    def todo(self, conn: sqlite3.Connection, limit: int, max_bytes: int) -> Todo:
        """Return some of what there is to do, oldest letter first.

        Args:
            conn: may be a reader's.
            limit: letters at most.
            max_bytes: of requests; one letter is always taken.
        """
        rows = conn.execute(
            f"SELECT t.seq, h.shard, h.handoff_seq, {_prefixed('l')}"  # noqa: S608 - our own words
            " FROM letter_handover_todo t LEFT JOIN letter_handovers h ON h.seq = t.seq"
            " LEFT JOIN letters l ON l.seq = t.seq"
            " WHERE t.agent_id = ? ORDER BY t.seq LIMIT ?",
            (self._agent_id, limit),
        ).fetchall()
        todo = Todo()
        size = 0
        for seq, shard, handoff_seq, *columns in rows:
            place = None if shard is None else (shard, handoff_seq)
            size += self._sort(conn, todo, seq, place, columns)
            if size > max_bytes:
                break
        return todo

    def _sort(
        self,
        conn: sqlite3.Connection,
        todo: Todo,
        seq: int,
        place: Place | None,
        columns: Sequence[Any],
    ) -> int:
        lives = columns[_STATE] in _LIVE_WORDS
        if lives == (place is not None):
            todo.alike.append(seq)
        elif place is not None:
            todo.to_remove.append((seq, place))
        else:
            try:
                letter = letter_of(columns, request_of(conn, seq))
            except Corrupt:
                todo.broken.append(str(columns[0]))
            else:
                todo.to_add.append((seq, letter))
                return letter.request_size_bytes
        return 0

    def record(
        self,
        conn: sqlite3.Connection,
        *,
        added: Mapping[int, Place],
        removed: Sequence[int],
        alike: Sequence[int] = (),
    ) -> None:
        """Note what Redis has taken and let go.

        A row whose two sides differ again by now stays on the list.
        """
        for seq, (shard, handoff_seq) in added.items():
            self._place(conn, seq, shard, handoff_seq)
        for seq in removed:
            conn.execute("DELETE FROM letter_handovers WHERE seq = ?", (seq,))
        self._count(conn, len(added))
        for seq in (*added, *removed, *alike):
            conn.execute(
                "DELETE FROM letter_handover_todo WHERE seq = :seq"  # noqa: S608 - our own words
                " AND EXISTS (SELECT 1 FROM letter_handovers WHERE seq = :seq)"
                " = EXISTS (SELECT 1 FROM letters WHERE seq = :seq"
                f" AND state IN {_LIVE})",
                {"seq": seq},
            )

    def _place(
        self, conn: sqlite3.Connection, seq: int, shard: int, handoff_seq: int
    ) -> None:
        conn.execute(
            "INSERT OR REPLACE INTO letter_handovers VALUES (?, ?, ?, ?)",
            (seq, self._agent_id, shard, handoff_seq),
        )
        self.advance(conn, shard, handoff_seq)

    def _count(self, conn: sqlite3.Connection, added: int) -> None:
        conn.execute(
            "UPDATE letter_tier SET handed_over = handed_over + ? WHERE agent_id = ?",
            (added, self._agent_id),
        )

    def advance(self, conn: sqlite3.Connection, shard: int, handoff_seq: int) -> None:
        """Never use a sequence number up to this one again."""
        conn.execute(
            "INSERT INTO letter_watermarks VALUES (?, ?, ?)"
            " ON CONFLICT (agent_id, shard) DO UPDATE"
            " SET handoff_seq = MAX(handoff_seq, excluded.handoff_seq)",
            (self._agent_id, shard, handoff_seq),
        )

    def refill(self, conn: sqlite3.Connection, shard: int, after: int) -> int:
        """List again what a stream has lost: all that had a number past `after`."""
        lost = conn.execute(
            "SELECT seq FROM letter_handovers"
            " WHERE agent_id = ? AND shard = ? AND handoff_seq > ?",
            (self._agent_id, shard, after),
        ).fetchall()
        for (seq,) in lost:
            conn.execute("DELETE FROM letter_handovers WHERE seq = ?", (seq,))
            conn.execute(
                "INSERT OR IGNORE INTO letter_handover_todo VALUES (?, ?)",
                (seq, self._agent_id),
            )
        return len(lost)

    def adopt(
        self, conn: sqlite3.Connection, shard: int, entries: Sequence[Entry]
    ) -> list[int]:
        """Take over what an append wrote whose answer never came.

        Returns:
            Numbers of entries that are no letters of ours, or are there twice.
        """
        strangers: list[int] = []
        for entry in entries:
            row = conn.execute(
                "SELECT seq FROM letters WHERE agent_id = ? AND letter_id = ?"
                " AND request_digest = ? AND NOT EXISTS"
                " (SELECT 1 FROM letter_handovers h WHERE h.seq = letters.seq)",
                (self._agent_id, entry.letter_id, entry.request_digest),
            ).fetchone()
            if row is None:
                strangers.append(entry.handoff_seq)
            else:
                self.record(
                    conn, added={row[0]: (shard, entry.handoff_seq)}, removed=()
                )
            self.advance(conn, shard, entry.handoff_seq)
        return strangers


_NAMES: Final = [name.strip() for name in COLUMNS.split(",")]
_STATE: Final = _NAMES.index("state")
_LIVE_WORDS: Final = frozenset(state.value for state in LIVE)


def _prefixed(table: str) -> str:
    return ", ".join(f"{table}.{name}" for name in _NAMES)
