"""What keeps a journal in order: recovery, age limits, retention, the ledger."""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from outrigger.core.errors import Corrupt, NotFound
from sidecar.letters.record import letter_of
from sidecar.letters.table import (
    IN_DOUBT,
    RECORD_BYTES,
    LetterTable,
    Moves,
    cost_bytes,
    request_of,
)
from sidecar.policy.letter import (
    GONE,
    LIVE,
    Ledger,
    LetterInput,
    LetterLimits,
    LetterState,
)
from sidecar.policy.verdict import crashed

_LIVE: Final = f"state IN ({', '.join(repr(state.value) for state in LIVE)})"
_GONE: Final = f"state IN ({', '.join(repr(state.value) for state in GONE)})"


@dataclass(frozen=True, slots=True)
class KeptBack:
    """A method of an upstream with letters held for a reason."""

    upstream: str
    method: str
    reason: str


class Upkeep:
    """Order in one agent's letters; inside transactions, as LetterTable."""

    def __init__(self, table: LetterTable, agent_id: str, limits: LetterLimits) -> None:
        self._table = table
        self._agent_id = agent_id
        self._limits = limits

    def recover(self, conn: sqlite3.Connection, now_wall_s: float) -> Moves:
        """Take back what a crash left in flight, and recount what is kept."""
        moves = Moves()
        for row in self._table.rows(conn, "state = 'in_flight'"):
            try:
                letter = letter_of(row[1:], None)
            except Corrupt:
                self._table.park_broken(conn, row, moves, now_wall_s)
                continue
            verdict = crashed(letter, self._limits)
            pending = verdict.what is LetterInput.CRASH
            self._table.apply(
                conn,
                row[0],
                letter,
                verdict.what,
                moves,
                reason=verdict.reason,
                crash_count=letter.crash_count + 1,
                next_attempt_wall_s=now_wall_s if pending else None,
                end_wall_s=None if pending else now_wall_s,
            )
        self._recount(conn)
        return moves

    def release(self, conn: sqlite3.Connection, now_wall_s: float) -> Moves:
        """Take back what an orderly stop left in flight: no crash, no attempt."""
        moves = Moves()
        for row in self._table.rows(conn, "state = 'in_flight'"):
            try:
                letter = letter_of(row[1:], None)
            except Corrupt:
                self._table.park_broken(conn, row, moves, now_wall_s)
                continue
            self._table.apply(
                conn,
                row[0],
                letter,
                LetterInput.RETRY,
                moves,
                reason="STOPPED",
                next_attempt_wall_s=now_wall_s,
            )
        return moves

    def _recount(self, conn: sqlite3.Connection) -> None:
        """A damaged size would leave the caps wrong for ever."""
        kept, size = conn.execute(
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(request)), 0)"  # noqa: S608 - our own words
            " FROM letters LEFT JOIN letter_requests USING (seq)"
            f" WHERE agent_id = ? AND NOT {_GONE}",
            (self._agent_id,),
        ).fetchone()
        conn.execute(
            "UPDATE letter_counters SET kept = ?, kept_bytes = ? WHERE agent_id = ?",
            (kept, size + kept * RECORD_BYTES, self._agent_id),
        )

    def hold_doubtful(
        self, conn: sqlite3.Connection, letter_ids: frozenset[str], now_wall_s: float
    ) -> Moves:
        """Hold letters whose commit was reported failed and yet is there."""
        moves = Moves()
        for letter_id in sorted(letter_ids):
            try:
                found = self._table.load(conn, letter_id, moves, now_wall_s)
            except NotFound:
                continue
            if found is None or found[1].state is not LetterState.PENDING:
                continue
            self._table.apply(
                conn,
                *found,
                LetterInput.HOLD,
                moves,
                reason=IN_DOUBT,
                next_attempt_wall_s=None,
            )
            self._table.add_counts(conn, {"in_doubt": 1})
        return moves

    def expire(
        self, conn: sqlite3.Connection, rows: Sequence[int], now_wall_s: float
    ) -> Moves:
        """End those of `rows` that still wait and are past their age limit."""
        moves = Moves()
        for row in self._picked(conn, rows):
            try:
                letter = letter_of(row[1:], None)
            except Corrupt:
                self._table.park_broken(conn, row, moves, now_wall_s)
                continue
            waits = letter.state in {LetterState.PENDING, LetterState.HELD}
            if waits and (letter.expire_wall_s or now_wall_s + 1) <= now_wall_s:
                self._table.expire(conn, row[0], letter, moves, now_wall_s)
        return moves

    def aged(
        self, conn: sqlite3.Connection, now_wall_s: float, limit: int
    ) -> list[int]:
        """Return rows that wait and are past their age limit."""
        found = conn.execute(
            "SELECT seq FROM letters WHERE agent_id = ?"
            " AND state IN ('pending', 'held') AND expire_wall <= ? LIMIT ?",
            (self._agent_id, now_wall_s, limit),
        )
        return [row[0] for row in found]

    def kept_back(
        self, conn: sqlite3.Connection, reasons: Sequence[str]
    ) -> list[KeptBack]:
        """Return whose letters are held for one of `reasons`."""
        found = conn.execute(
            "SELECT DISTINCT upstream, method, reason FROM letters"  # noqa: S608 - our own words
            " WHERE agent_id = ? AND state = 'held'"
            f" AND reason IN ({', '.join('?' * len(reasons))})",
            (self._agent_id, *reasons),
        )
        return [KeptBack(*map(str, row)) for row in found]

    def surplus(self, conn: sqlite3.Connection, now_wall_s: float) -> list[int]:
        """Return rows of delivered and discarded letters that retention lets go."""
        rows = conn.execute(
            "SELECT seq, request_size, end_wall FROM letters"  # noqa: S608 - our own words
            f" WHERE agent_id = ? AND {_GONE} ORDER BY end_wall DESC",
            (self._agent_id,),
        )
        surplus: list[int] = []
        size = 0
        limits = self._limits
        for count, (seq, request_size, end_wall) in enumerate(rows):
            size += cost_bytes(request_size)
            old = (end_wall or 0.0) <= now_wall_s - limits.gone_kept_s
            if old or count >= limits.gone_kept or size > limits.gone_kept_bytes:
                surplus.append(seq)
        return surplus

    def forget(self, conn: sqlite3.Connection, rows: Sequence[int]) -> None:
        """Remove records that retention lets go; the ledger's counts stay."""
        for seq in rows:
            gone = conn.execute(
                "DELETE FROM letters WHERE seq = ?"  # noqa: S608 - our own words
                f" AND agent_id = ? AND {_GONE}",
                (seq, self._agent_id),
            ).rowcount
            if gone:
                conn.execute("DELETE FROM letter_requests WHERE seq = ?", (seq,))

    def ledger(self, conn: sqlite3.Connection) -> Ledger:
        """Return the durable counts, with the live ones counted row by row."""
        row = (
            conn.execute(
                "SELECT accepted, delivered, parked, expired, discarded, in_doubt"
                " FROM letter_counters WHERE agent_id = ?",
                (self._agent_id,),
            ).fetchone()
            or (0,) * 6
        )
        (live,) = conn.execute(
            "SELECT COUNT(*) FROM letters"  # noqa: S608 - our own words
            f" WHERE agent_id = ? AND {_LIVE}",
            (self._agent_id,),
        ).fetchone()
        return Ledger(
            accepted=row[0],
            delivered=row[1],
            parked=row[2],
            expired=row[3],
            discarded=row[4],
            in_doubt=row[5],
            live=live,
        )

    def scrub(
        self, conn: sqlite3.Connection, after_seq: int, limit: int
    ) -> tuple[list[int], int]:
        """Verify records and requests.

        Returns:
            Rows that are not sound, and the row to go on after; 0 at the end.
        """
        rows = self._table.rows(conn, "seq > ? ORDER BY seq LIMIT ?", after_seq, limit)
        broken = [row[0] for row in rows if not self._is_sound(conn, row)]
        return broken, rows[-1][0] if len(rows) == limit else 0

    def park_if_broken(
        self, conn: sqlite3.Connection, rows: Sequence[int], now_wall_s: float
    ) -> Moves:
        """Park those of `rows` that are not sound."""
        moves = Moves()
        for row in self._picked(conn, rows):
            if not self._is_sound(conn, row):
                self._table.park_broken(conn, row, moves, now_wall_s)
        return moves

    def _is_sound(self, conn: sqlite3.Connection, row: tuple[Any, ...]) -> bool:
        try:
            letter_of(row[1:], request_of(conn, row[0]))
        except Corrupt:
            return False
        return True

    def _picked(
        self, conn: sqlite3.Connection, rows: Sequence[int]
    ) -> Iterator[tuple[Any, ...]]:
        for seq in rows:
            yield from self._table.rows(conn, "seq = ?", seq)
