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
"""


class CircuitPort(Protocol):
    """The guard, as its keeper needs it."""

    def restored_state(self, records: Iterable[CircuitRecord], now: float) -> None:
        """Take circuits back."""
        ...

    def saved_state(self) -> tuple[CircuitRecord, ...]:
        """Return those that are not closed."""
        ...


class CircuitRecords:
    """The circuits in the sidecar's database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def load(self) -> tuple[CircuitRecord, ...]:
        """Return what was not closed when the sidecar before ended."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT circuit_id, state, reason FROM circuits"
            ).fetchall()
        )
        return tuple(
            CircuitRecord(circuit_id=circuit_id, state=state, reason=reason)
            for circuit_id, state, reason in rows
        )

    async def store(self, records: Sequence[CircuitRecord]) -> None:
        """Replace what is kept."""
        rows = [(one.circuit_id, one.state, one.reason) for one in records]

        def replace(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM circuits")
            connection.executemany("INSERT INTO circuits VALUES (?, ?, ?)", rows)

        await self._database.write(replace)


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
        kept = await self._records.load()
        self._guard.restored_state(kept, self._clock.monotonic())

    async def store(self) -> None:
        """Store what is not closed now; return once it is on disk.

        Raises:
            OutriggerError: as the database refuses.
        """
        await self._records.store(self._guard.saved_state())

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
