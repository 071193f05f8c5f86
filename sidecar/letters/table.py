"""The letters of one agent in SQLite: everything that happens inside a transaction.

Every function here takes the writer's connection, leaves the transaction to its
caller, and keeps the counters in step with the rows, so that the ledger is right
at every commit.
"""

import sqlite3
from dataclasses import dataclass, field, replace
from typing import Any, Final

from outrigger.core.errors import Conflict, Corrupt, Invalid, NotFound, Overloaded
from outrigger.core.events import LetterMoved
from sidecar.letters.record import (
    COLUMNS,
    INSERT,
    UNDECODABLE,
    UPDATE,
    broken_letter,
    letter_of,
    moving_of,
    row_of,
)
from sidecar.policy.letter import (
    GONE,
    LIVE,
    Attempt,
    Letter,
    LetterInput,
    LetterLimits,
    LetterState,
    moved,
    short,
)
from sidecar.policy.verdict import SendResult, Verdict

RECORD_BYTES: Final = 1024
"""What a record is taken to cost beside its request."""
IN_DOUBT: Final = "IN_DOUBT"
"""Reason of a letter held because the commit that stored it was reported failed."""
_MISSING: Final = b"\0no request is stored"
_COUNTED: Final = frozenset(
    {
        LetterState.DELIVERED,
        LetterState.PARKED,
        LetterState.EXPIRED,
        LetterState.DISCARDED,
    }
)


@dataclass(slots=True)
class Moves:
    """What a transaction did, to be told once it is committed."""

    events: list[LetterMoved] = field(default_factory=list)
    pending: set[str] = field(default_factory=set)
    """Upstreams that have something to deliver now."""

    def note(self, before: str, letter: Letter) -> None:
        """Note where a letter went."""
        self.events.append(
            LetterMoved(
                letter_id=letter.letter_id,
                before=before,
                after=letter.state.value,
                reason=letter.reason,
                method=letter.method,
            )
        )
        if letter.state is LetterState.PENDING:
            self.pending.add(letter.upstream)


@dataclass(frozen=True, slots=True)
class Route:
    """A method of an upstream that has pending letters."""

    upstream: str
    method: str
    first_due_wall_s: float


class LetterTable:
    """One agent's letters."""

    def __init__(self, agent_id: str, limits: LetterLimits) -> None:
        self._agent_id = agent_id
        self._limits = limits

    # Taking.

    def insert(
        self, conn: sqlite3.Connection, letter: Letter, moves: Moves
    ) -> tuple[Letter, bool]:
        """Store a letter, or find the one that its idempotency key already made.

        Returns:
            The letter as it is stored, and whether it is new.

        Raises:
            Overloaded: JOURNAL_FULL.
            Conflict: IDEMPOTENCY_KEY_REUSED for a different call.
            Invalid: LETTER_ID_TAKEN.
            Corrupt: LETTER_UNDECODABLE when the one there is damaged.
        """
        known = self._by_key(conn, letter.idempotency_key)
        if known is not None:
            return self._same_again(conn, *known, letter, moves), False
        self._check_room(conn, letter)
        try:
            seq = conn.execute(INSERT, row_of(letter)).lastrowid
        except sqlite3.IntegrityError as error:
            raise Invalid(
                "LETTER_ID_TAKEN",
                f"there is another letter with the id {letter.letter_id!r}: ids are"
                " never used twice",
            ) from error
        conn.execute("INSERT INTO letter_requests VALUES (?, ?)", (seq, letter.request))
        self._count(conn, letter, None, letter.state, accepted=1)
        moves.note("", letter)
        return letter, True

    def _by_key(self, conn: sqlite3.Connection, key: str) -> tuple[int, Letter] | None:
        rows = self.rows(conn, "idempotency_key = ?", key)
        return (rows[0][0], letter_of(rows[0][1:], None)) if rows else None

    def _same_again(
        self,
        conn: sqlite3.Connection,
        seq: int,
        known: Letter,
        again: Letter,
        moves: Moves,
    ) -> Letter:
        if _what_is_called(known) != _what_is_called(again):
            raise Conflict(
                "IDEMPOTENCY_KEY_REUSED",
                f"letter {known.letter_id} has this idempotency key and is a different"
                " call: use a new key for a new call",
            )
        if known.state is LetterState.HELD and known.reason == IN_DOUBT:
            return self.apply(
                conn,
                seq,
                known,
                LetterInput.RELEASE,
                moves,
                reason="ASKED_AGAIN",
                next_attempt_wall_s=again.next_attempt_wall_s,
            )
        return known

    def _check_room(self, conn: sqlite3.Connection, letter: Letter) -> None:
        row = conn.execute(
            "SELECT kept, kept_bytes FROM letter_counters WHERE agent_id = ?",
            (self._agent_id,),
        ).fetchone()
        kept, kept_bytes = row or (0, 0)
        limits = self._limits
        if (
            kept >= limits.max_letters
            or kept_bytes + cost_bytes(letter.request_size_bytes) > limits.max_bytes
        ):
            raise Overloaded(
                "JOURNAL_FULL",
                f"the journal keeps {kept} letters in {kept_bytes} bytes and takes at"
                f" most {limits.max_letters} in {limits.max_bytes}: deliver, redrive"
                " or discard some, or raise the limits",
            )

    # Moving.

    def apply(
        self,
        conn: sqlite3.Connection,
        seq: int,
        letter: Letter,
        what: LetterInput,
        moves: Moves,
        **changes: Any,  # noqa: ANN401 - fields of Letter, checked by replace()
    ) -> Letter:
        """Move a letter by the table of states and return it as it is then."""
        after = replace(letter, state=moved(letter.state, what), **changes)
        conn.execute(UPDATE, (*moving_of(after), seq))
        self._count(conn, letter, letter.state, after.state)
        moves.note(letter.state.value, after)
        return after

    def end(
        self,
        conn: sqlite3.Connection,
        letter: Letter,
        result: SendResult,
        verdict: Verdict,
        now_wall_s: float,
    ) -> Moves:
        """Record how a send ended; a second time changes nothing."""
        moves = Moves()
        found = self._out(conn, letter, moves, now_wall_s)
        if found is None:
            return moves
        seq, stored = found
        retry = verdict.what is LetterInput.RETRY
        attempt = Attempt(now_wall_s, result.code, short(result.message))
        self.apply(
            conn,
            seq,
            stored,
            verdict.what,
            moves,
            reason=verdict.reason,
            attempt_count=stored.attempt_count + verdict.counts,
            failure_count=stored.failure_count + retry,
            crash_count=0,
            next_attempt_wall_s=now_wall_s + verdict.delay_s if retry else None,
            end_wall_s=_end(verdict.what, now_wall_s),
            last_code=result.code,
            last_message=attempt.message,
            attempts=(*stored.attempts, attempt)[-self._limits.attempts_kept :],
        )
        return moves

    def put_back(
        self,
        conn: sqlite3.Connection,
        letter: Letter,
        reason: str,
        due_wall_s: float,
        now_wall_s: float,
    ) -> Moves:
        """Make a claimed letter pending again, unless its end is recorded."""
        moves = Moves()
        found = self._out(conn, letter, moves, now_wall_s)
        if found is not None:
            self.apply(
                conn,
                *found,
                LetterInput.RETRY,
                moves,
                reason=reason,
                next_attempt_wall_s=due_wall_s,
            )
        return moves

    def _out(
        self, conn: sqlite3.Connection, letter: Letter, moves: Moves, now_wall_s: float
    ) -> tuple[int, Letter] | None:
        found = self.load(conn, letter.letter_id, moves, now_wall_s)
        in_flight = found is not None and found[1].state is LetterState.IN_FLIGHT
        return found if in_flight else None

    def load(
        self, conn: sqlite3.Connection, letter_id: str, moves: Moves, now_wall_s: float
    ) -> tuple[int, Letter] | None:
        """Return a letter's row number and record; a damaged one is parked."""
        row = self.row(conn, letter_id)
        try:
            return row[0], letter_of(row[1:], None)
        except Corrupt:
            self.park_broken(conn, row, moves, now_wall_s)
            return None

    def row(self, conn: sqlite3.Connection, letter_id: str) -> tuple[Any, ...]:
        """Return a letter's row number and COLUMNS.

        Raises:
            NotFound: NO_SUCH_LETTER.
        """
        rows = self.rows(conn, "letter_id = ?", letter_id)
        if not rows:
            raise NotFound(
                "NO_SUCH_LETTER",
                f"there is no letter {letter_id!r} of {self._agent_id}: list the"
                " letters and name one that is there",
            )
        return rows[0]

    def park_broken(
        self,
        conn: sqlite3.Connection,
        row: tuple[Any, ...],
        moves: Moves,
        now_wall_s: float,
    ) -> None:
        """Park a record that is not sound, without making it look sound."""
        shown = broken_letter(row[1:])
        if shown.state in LIVE or str(row[_STATE]) != shown.state.value:
            self._set_broken(conn, row, LetterState.PARKED, moves, now_wall_s)

    def discard_broken(
        self, conn: sqlite3.Connection, seq: int, moves: Moves, now_wall_s: float
    ) -> bool:
        """Discard a parked record that is not sound; False when it is not parked."""
        for row in self.rows(conn, "seq = ? AND state = 'parked'", seq):
            self._set_broken(conn, row, LetterState.DISCARDED, moves, now_wall_s)
            return True
        return False

    def _set_broken(
        self,
        conn: sqlite3.Connection,
        row: tuple[Any, ...],
        state: LetterState,
        moves: Moves,
        now_wall_s: float,
    ) -> None:
        conn.execute(
            "UPDATE letters SET state = ?, reason = ?, end_wall = ? WHERE seq = ?",
            (state.value, UNDECODABLE, now_wall_s, row[0]),
        )
        size = len(request_of(conn, row[0]))
        shown = replace(broken_letter(row[1:]), request_size_bytes=size)
        word = str(row[_STATE])
        before = shown.state if word == shown.state.value else LetterState.PENDING
        self._count(conn, shown, before, state)
        moves.note(word, replace(shown, state=state))

    def _count(
        self,
        conn: sqlite3.Connection,
        letter: Letter,
        before: LetterState | None,
        after: LetterState,
        *,
        accepted: int = 0,
    ) -> None:
        deltas = {"accepted": accepted} if accepted else {}
        if before in _COUNTED and before is not after:
            deltas[before.value] = -1
        if after in _COUNTED and before is not after:
            deltas[after.value] = 1
        kept = (after not in GONE) - (before is not None and before not in GONE)
        if kept:
            deltas["kept"] = kept
            deltas["kept_bytes"] = kept * cost_bytes(letter.request_size_bytes)
        if deltas:
            self.add_counts(conn, deltas)

    def add_counts(self, conn: sqlite3.Connection, deltas: dict[str, int]) -> None:
        """Add to the durable counters named."""
        names = ", ".join(deltas)
        sums = ", ".join(f"{name} = {name} + excluded.{name}" for name in deltas)
        conn.execute(
            f"INSERT INTO letter_counters (agent_id, {names})"  # noqa: S608 - our own column names
            f" VALUES (?, {', '.join('?' * len(deltas))})"
            f" ON CONFLICT (agent_id) DO UPDATE SET {sums}",
            (self._agent_id, *deltas.values()),
        )

    # Delivering.

    def routes(self, conn: sqlite3.Connection) -> tuple[list[Route], list[int]]:
        """Find every route with pending letters: one index look-up each.

        Returns:
            The routes, and rows whose route or time is no route or time any more.
        """
        found: list[Route] = []
        broken: list[int] = []
        after = (b"", b"")
        while True:
            row = conn.execute(
                "SELECT seq, CAST(upstream AS BLOB), CAST(method AS BLOB),"
                " next_attempt_wall FROM letters"
                " WHERE agent_id = ? AND state = 'pending'"
                " AND (upstream, method) > (CAST(? AS TEXT), CAST(? AS TEXT))"
                " ORDER BY upstream, method, next_attempt_wall LIMIT 1",
                (self._agent_id, *after),
            ).fetchone()
            if row is None:
                return found, broken
            after = (row[1], row[2])  # as bytes: damaged text would not compare equal
            try:
                found.append(Route(row[1].decode(), row[2].decode(), float(row[3])))
            except (TypeError, ValueError):
                broken.append(row[0])

    def claim(
        self,
        conn: sqlite3.Connection,
        route: Route,
        limit: int,
        now_wall_s: float,
        *,
        suspects: bool,
    ) -> tuple[list[Letter], Moves]:
        """Mark due letters as in flight and return them with their requests.

        Args:
            conn: inside a transaction.
            route: whose letters.
            limit: how many at most.
            now_wall_s: those due until then.
            suspects: those that were in flight in a crash instead of all others.
        """
        moves = Moves()
        rows = self.rows(
            conn,
            "state = 'pending' AND upstream = ? AND method = ?"
            f" AND next_attempt_wall <= ? AND crash_count {'>' if suspects else '='} 0"
            " ORDER BY next_attempt_wall, seq LIMIT ?",
            route.upstream,
            route.method,
            now_wall_s,
            limit,
        )
        claimed = [self._claim_one(conn, row, now_wall_s, moves) for row in rows]
        return [letter for letter in claimed if letter is not None], moves

    def _claim_one(
        self,
        conn: sqlite3.Connection,
        row: tuple[Any, ...],
        now_wall_s: float,
        moves: Moves,
    ) -> Letter | None:
        try:
            letter = letter_of(row[1:], request_of(conn, row[0]))
        except Corrupt:
            self.park_broken(conn, row, moves, now_wall_s)
            return None
        if letter.expire_wall_s is not None and letter.expire_wall_s <= now_wall_s:
            self.expire(conn, row[0], letter, moves, now_wall_s)
            return None
        return self.apply(
            conn,
            row[0],
            letter,
            LetterInput.CLAIM,
            moves,
            reason="",
            next_attempt_wall_s=None,
        )

    def expire(
        self,
        conn: sqlite3.Connection,
        seq: int,
        letter: Letter,
        moves: Moves,
        now_wall_s: float,
    ) -> None:
        """End a letter that outlived its age limit."""
        self.apply(
            conn,
            seq,
            letter,
            LetterInput.EXPIRE,
            moves,
            reason="AGE_LIMIT",
            next_attempt_wall_s=None,
            end_wall_s=now_wall_s,
        )

    def rows(
        self, conn: sqlite3.Connection, condition: str, *values: object
    ) -> list[tuple[Any, ...]]:
        """Return row numbers and COLUMNS of this agent's letters."""
        return conn.execute(
            f"SELECT seq, {COLUMNS} FROM letters WHERE agent_id = ? AND {condition}",  # noqa: S608 - our own words
            (self._agent_id, *values),
        ).fetchall()


_STATE: Final = 1 + [name.strip() for name in COLUMNS.split(",")].index("state")


def request_of(conn: sqlite3.Connection, seq: int) -> bytes:
    """Return a letter's request; for a missing one, what no digest fits."""
    row = conn.execute(
        "SELECT request FROM letter_requests WHERE seq = ?", (seq,)
    ).fetchone()
    return row[0] if row is not None and isinstance(row[0], bytes) else _MISSING


def _what_is_called(letter: Letter) -> tuple[str, str, bytes]:
    return letter.upstream, letter.method, letter.request_digest


def cost_bytes(request_size_bytes: int) -> int:
    """Return what a letter counts against the cap on bytes."""
    return request_size_bytes + RECORD_BYTES


def _end(what: LetterInput, now_wall_s: float) -> float | None:
    live = what in {LetterInput.RETRY, LetterInput.HOLD}
    return None if live else now_wall_s
