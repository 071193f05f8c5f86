"""Circuits that were not closed, kept over a restart.

They come back half open: an outage that outlives the sidecar is probed, neither
trusted nor waited out again.
"""

import asyncio
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from outrigger.core.clock import Clock
from outrigger.core.database import Database
from sidecar.call.circuits import CircuitRecord

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS circuits (
    circuit_id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS circuit_ages (
    circuit_id TEXT PRIMARY KEY,
    stored_wall_s REAL NOT NULL,
    age_s REAL NOT NULL,
    openings INTEGER NOT NULL
) STRICT;
"""
"""Two tables, because the first one is older: a version that knows only that one
can still read it."""


class CircuitPort(Protocol):
    """The guard, as its keeper needs it."""

    def restored_state(self, records: Iterable[CircuitRecord], now: float) -> None:
        """Take circuits back."""
        ...

    def saved_state(self, now: float) -> tuple[CircuitRecord, ...]:
        """Return those that are not closed."""
        ...


class CircuitRecords:
    """The circuits in the sidecar's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self, wall_s: float) -> tuple[CircuitRecord, ...]:
        """Return what was not closed when the sidecar before ended.

        Args:
            wall_s: now; a circuit ages while no sidecar runs.
        """
        rows = await self._database.read(
            lambda connection: connection.execute(_LOAD).fetchall()
        )
        return tuple(_record(row, wall_s) for row in rows)

    async def store(self, records: Sequence[CircuitRecord], wall_s: float) -> None:
        """Replace what is kept, as of `wall_s`."""
        states = [(one.circuit_id, one.state, one.reason) for one in records]
        ages = [(one.circuit_id, wall_s, one.age_s, one.openings) for one in records]

        def replace(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM circuits")
            connection.executemany("INSERT INTO circuits VALUES (?, ?, ?)", states)
            connection.execute("DELETE FROM circuit_ages")
            connection.executemany("INSERT INTO circuit_ages VALUES (?, ?, ?, ?)", ages)

        await self._database.write(replace)


_LOAD: Final = """
SELECT circuit_id, state, reason, stored_wall_s, age_s, openings
FROM circuits LEFT JOIN circuit_ages USING (circuit_id)
"""

_Row = tuple[str, str, str, float | None, float | None, int | None]


def _record(row: _Row, wall_s: float) -> CircuitRecord:
    circuit_id, state, reason, stored_wall_s, age_s, openings = row
    # A clock that was set back makes nothing younger than it was.
    down_s = max(0.0, wall_s - stored_wall_s) if stored_wall_s is not None else 0.0
    return CircuitRecord(
        circuit_id=circuit_id,
        state=state,
        reason=reason,
        age_s=(age_s or 0.0) + down_s,
        openings=openings or 0,
    )


class CircuitKeeper:
    """Brings circuits back at the start and stores them whenever they move."""

    def __init__(
        self, records: CircuitRecords, guard: CircuitPort, clock: Clock
    ) -> None:
        self._records = records
        self._guard = guard
        self._clock = clock
        self._moved = asyncio.Event()

    def moved(self) -> None:
        """Take note that a circuit moved."""
        self._moved.set()

    async def recover(self) -> None:
        """Bring back what was not closed."""
        kept = await self._records.load(self._clock.wall())
        self._guard.restored_state(kept, self._clock.monotonic())

    async def store(self) -> None:
        """Store what is not closed now; return once it is on disk.

        Raises:
            OutriggerError: as the database refuses.
        """
        saved = self._guard.saved_state(self._clock.monotonic())
        await self._records.store(saved, self._clock.wall())

    async def run(self) -> None:
        """Store after every move, for ever.

        Raises:
            OutriggerError: the store did not take it; the move is kept, and the next
                run begins with it.
        """
        while True:
            await self._moved.wait()
            self._moved.clear()
            try:
                await self.store()
            except Exception:
                self._moved.set()
                raise
