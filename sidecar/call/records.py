"""Circuits that were not closed, kept over a restart.

They come back half open: an outage that outlives the sidecar is probed, neither
trusted nor waited out again.
"""

import sqlite3
from collections.abc import Sequence
from typing import Final

from outrigger.core.database import Database
from sidecar.call.circuits import CircuitRecord

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS circuits (
    circuit_id TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    reason TEXT NOT NULL
) STRICT;
"""


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
