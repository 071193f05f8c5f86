"""A journal on a folder, and letters for it."""

import itertools
import sqlite3
from contextlib import asynccontextmanager, closing

from outrigger.core.database import Database
from sidecar.call.descriptor import LetterDraft
from sidecar.letters.journal import SCHEMA, Journal
from sidecar.policy.letter import LetterLimits
from tests.support.clock import FakeClock

METHOD = "/p.S/M"
_numbers = itertools.count(1)


class ScriptedRng:
    """Draws what a test says; the tokens are not random at all."""

    def __init__(self, draw=0.5):
        self.number = draw

    def draw(self):
        return self.number

    def token_bytes(self, count):
        return bytes(count)


def a_draft(**fields):
    """A call that failed with UNAVAILABLE, with an id of its own."""
    given = {
        "letter_id": f"00000000-0000-7000-8000-{next(_numbers):012d}",
        "upstream": "tool",
        "method": METHOD,
        "metadata": (("x-trace", "1"), ("ctx-bin", b"\x00\xff"), ("empty-bin", b"")),
        "request": b"request",
        "idempotency_key": "",
        "code": 14,
        "message": "no connection",
    }
    return LetterDraft(**(given | fields))


class Office:
    """A journal with what is around it."""

    def __init__(self, folder, *, agent_id="a1", limits=None, clock=None, extra=""):
        self.path = folder / "sidecar.db"
        self.clock = clock or FakeClock()
        self.rng = ScriptedRng()
        self.events = []
        self.limits = limits or LetterLimits()
        self.db = Database(self.path, SCHEMA + extra)
        self.journal = Journal(
            self.db,
            agent_id=agent_id,
            clock=self.clock,
            rng=self.rng,
            limits=self.limits,
            publish=self.events.append,
        )

    async def take(self, **fields):
        return await self.journal.accept(a_draft(**fields))

    async def due(self, upstream="tool"):
        """Claim all that is due, as a delivery does."""
        claimed = []
        for route in await self.journal.routes():
            if route.upstream == upstream:
                claimed += await self.journal.claim(route, 1000)
        return claimed

    async def state(self, letter_id):
        return (await self.journal.get(letter_id)).state.value

    def damage(self, statement, *values):
        """Change the file behind the journal's back."""
        with closing(sqlite3.connect(self.path)) as other, other:
            other.execute(statement, values)


@asynccontextmanager
async def an_office(folder, **options):
    """An office, recovered, closed afterwards."""
    office = Office(folder, **options)
    try:
        await office.journal.recover()
        yield office
    finally:
        await office.db.close()
