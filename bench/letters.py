"""Accepted letters a second, against a bare SQLite insert with the same fsync.

Both write the same bytes in WAL mode with synchronous=FULL. The bare loop commits in
groups as large as the journal's, so that the ratio shows what the journal adds, not
what an fsync costs; one insert per commit is shown beside it.
"""

import asyncio
import hashlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, median
from outrigger.core.clock import SystemClock
from outrigger.core.database import Database
from outrigger.core.ids import letter_id
from outrigger.core.rng import SystemRng
from sidecar.call.descriptor import LetterDraft
from sidecar.letters.journal import SCHEMA, Journal
from sidecar.policy.letter import LetterLimits

COUNT = 4000
WRITERS = 128
ALONE = 300
ROUNDS = 3
BODY = os.urandom(1024)


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the journal's rate beside the bare one."""
    rounds = [
        (
            asyncio.run(_journal(folder / f"journal-{number}.db")),
            _bare(folder / f"bare-{number}.db", COUNT, WRITERS),
            _bare(folder / f"alone-{number}.db", ALONE, 1),
        )
        for number in range(ROUNDS)
    ]
    journal, grouped, alone = (
        median(list(rates)) for rates in zip(*rounds, strict=True)
    )
    yield Figure(
        "letters",
        f"accepted a second, 1 KiB, {WRITERS} writers",
        journal,
        "/s",
        f"bare insert, {WRITERS} a commit: {grouped:.0f} /s",
        journal / grouped,
        bound="0.7 x aimed at",
    )
    yield Figure(
        "letters",
        "the same against one insert a commit",
        journal,
        "/s",
        f"bare insert, one a commit: {alone:.0f} /s",
        journal / alone,
    )


async def _journal(path: Path) -> float:
    clock, rng = SystemClock(), SystemRng()
    database = Database(path, SCHEMA)
    journal = Journal(
        database,
        agent_id="bench",
        clock=clock,
        rng=rng,
        limits=LetterLimits(),
        publish=lambda _: None,
    )
    await journal.recover()

    async def writer() -> None:
        for _ in range(COUNT // WRITERS):
            identity = letter_id(clock.wall(), rng.token_bytes(10))
            await journal.accept(
                LetterDraft(
                    letter_id=identity,
                    upstream="default",
                    method="/bench.Echo/Unary",
                    metadata=(("a-key", "a value"),),
                    request=BODY,
                    idempotency_key=identity,
                    code=14,
                    message="unavailable",
                )
            )

    began = time.perf_counter()
    await asyncio.gather(*(writer() for _ in range(WRITERS)))
    rate = (COUNT // WRITERS * WRITERS) / (time.perf_counter() - began)
    await database.close()
    return rate


def _bare(path: Path, count: int, group: int) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE t (id TEXT PRIMARY KEY, digest BLOB, body BLOB)")
    began = time.perf_counter()
    for start in range(0, count, group):
        connection.execute("BEGIN IMMEDIATE")
        for number in range(start, min(start + group, count)):
            connection.execute(
                "INSERT INTO t VALUES (?, ?, ?)",
                (f"{number:036}", hashlib.sha256(BODY).digest(), BODY),
            )
        connection.execute("COMMIT")
    rate = count / (time.perf_counter() - began)
    connection.close()
    return rate
