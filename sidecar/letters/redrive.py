"""Moves of many letters at once: redrive, discard, hold.

The selection is frozen when it begins: letters that come to match later are not
taken along. It runs in chunks, so that accepting never waits long behind it, and
each letter is looked at again inside the transaction that moves it.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, Final, Protocol

from outrigger.core.database import Database
from outrigger.core.errors import Corrupt, Invalid
from sidecar.letters.record import letter_of
from sidecar.letters.selection import LetterFilter, rows_of
from sidecar.letters.table import LetterTable, Moves, Route
from sidecar.policy.letter import (
    TRANSITIONS,
    Letter,
    LetterInput,
    LetterState,
    short,
)

_CHUNK: Final = 200
_Change = Callable[[Letter], dict[str, Any] | None]
"""What to change in a letter that moves; None leaves it where it is."""


class Move(Protocol):
    """Writes, and tells what moved once it is committed."""

    def __call__(
        self, work: Callable[[sqlite3.Connection], tuple[int, Moves]], /
    ) -> Awaitable[int]:
        """Run the work in a transaction."""
        ...


class Redrive:
    """Bulk moves of one agent's letters."""

    def __init__(
        self, db: Database, table: LetterTable, agent_id: str, move: Move
    ) -> None:
        self._db = db
        self._table = table
        self._agent_id = agent_id
        self._move = move

    async def select(
        self,
        chosen: LetterFilter,
        *,
        everything: bool,
        named: tuple[LetterState, ...] = (),
    ) -> Sequence[str]:
        """Return ids of the letters meant; without states: parked, expired, held.

        Args:
            chosen: which.
            everything: an empty filter means all of those.
            named: states that count too for letters that are named by their ids.

        Raises:
            Invalid: EMPTY_FILTER.
        """
        if chosen.is_empty and not everything:
            raise Invalid(
                "EMPTY_FILTER",
                "an empty filter would mean every parked, expired and held letter:"
                " narrow it, or ask for all of them in so many words",
            )
        if not chosen.states:
            ended = (LetterState.PARKED, LetterState.EXPIRED, LetterState.HELD)
            meant = (*ended, *named) if chosen.letter_ids else ended
            chosen = replace(chosen, states=meant)
        return await self.ids(chosen)

    async def ids(self, chosen: LetterFilter) -> Sequence[str]:
        """Return ids of exactly the letters a filter means, oldest first."""
        rows = await self._db.read(lambda conn: rows_of(conn, self._agent_id, chosen))
        return [letter_id for _, letter_id in rows]

    async def redrive(self, letter_ids: Sequence[str], now_wall_s: float) -> int:
        """Make letters pending again, afresh; return how many were."""

        def fresh(letter: Letter) -> dict[str, Any]:
            ttl_s = letter.ttl_s
            return {
                "reason": "REDRIVEN",
                "attempt_count": 0,
                "failure_count": 0,
                "crash_count": 0,
                "redrive_count": letter.redrive_count + 1,
                "next_attempt_wall_s": now_wall_s,
                "end_wall_s": None,
                "expire_wall_s": None if ttl_s is None else now_wall_s + ttl_s,
            }

        return await self._all(letter_ids, LetterInput.REDRIVE, fresh, now_wall_s)

    async def discard(
        self, letter_ids: Sequence[str], reason: str, now_wall_s: float
    ) -> int:
        """End letters for good; return how many were."""
        changes = {
            "reason": short(reason),
            "next_attempt_wall_s": None,
            "end_wall_s": now_wall_s,
        }
        return await self._all(
            letter_ids, LetterInput.DISCARD, lambda _: changes, now_wall_s
        )

    async def hold(self, route: Route, reason: str, now_wall_s: float) -> int:
        """Hold what is pending for a method; return how many that were."""
        chosen = LetterFilter(
            states=(LetterState.PENDING,), upstream=route.upstream, method=route.method
        )
        changes = {"reason": reason}  # and due when it was, for when it is freed
        return await self._all(
            await self.ids(chosen), LetterInput.HOLD, lambda _: changes, now_wall_s
        )

    async def free(
        self, upstream: str, method: str, reason: str, now_wall_s: float
    ) -> int:
        """Make pending again what is held for a reason; return how many that were."""
        chosen = LetterFilter(
            states=(LetterState.HELD,), upstream=upstream, method=method
        )

        def freed(letter: Letter) -> dict[str, Any] | None:
            if letter.reason != reason:
                return None
            due = letter.next_attempt_wall_s
            return {
                "reason": "RELEASED",
                "next_attempt_wall_s": now_wall_s if due is None else due,
            }

        return await self._all(
            await self.ids(chosen), LetterInput.RELEASE, freed, now_wall_s
        )

    async def _all(
        self,
        letter_ids: Sequence[str],
        what: LetterInput,
        change: _Change,
        now_wall_s: float,
    ) -> int:
        count = 0
        for start in range(0, len(letter_ids), _CHUNK):
            some = letter_ids[start : start + _CHUNK]

            def work(
                conn: sqlite3.Connection, some: Sequence[str] = some
            ) -> tuple[int, Moves]:
                moves = Moves()
                ended = [
                    self._one(conn, letter_id, what, change, moves, now_wall_s)
                    for letter_id in some
                ]
                return sum(ended), moves

            count += await self._move(work)
        return count

    def _one(
        self,
        conn: sqlite3.Connection,
        letter_id: str,
        what: LetterInput,
        change: _Change,
        moves: Moves,
        now_wall_s: float,
    ) -> bool:
        for row in self._table.rows(conn, "letter_id = ?", letter_id):
            try:
                letter = letter_of(row[1:], None)
            except Corrupt:
                return self._broken(conn, row, what, moves, now_wall_s)
            if (letter.state, what) not in TRANSITIONS:
                return False
            changes = change(letter)
            if changes is None:
                return False
            self._table.apply(conn, row[0], letter, what, moves, **changes)
            return True
        return False

    def _broken(
        self,
        conn: sqlite3.Connection,
        row: tuple[Any, ...],
        what: LetterInput,
        moves: Moves,
        now_wall_s: float,
    ) -> bool:
        """Discard is the one thing to do with a record that is not sound."""
        self._table.park_broken(conn, row, moves, now_wall_s)
        if what is not LetterInput.DISCARD:
            return False
        return self._table.discard_broken(conn, row[0], moves, now_wall_s)
