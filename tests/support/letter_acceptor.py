"""Accepts letters as fast as it can and prints each id once it is acknowledged.

Run as `python letter_acceptor.py FOLDER`; killed by its test. Every third letter
is claimed, and every sixth delivered, so that kills meet moves as well.
"""

import asyncio
import os
import sys
from pathlib import Path

from outrigger.core.clock import SystemClock
from outrigger.core.database import Database
from outrigger.core.ids import letter_id
from outrigger.core.rng import SystemRng
from sidecar.call.descriptor import LetterDraft
from sidecar.letters.journal import SCHEMA, Journal
from sidecar.letters.table import Route
from sidecar.policy.letter import LetterInput, LetterLimits
from sidecar.policy.verdict import SendResult, Verdict

METHOD = "/p.S/M"
CALLERS = 8


def request_of(name):
    """A payload that tells whose it is, of a size that depends on it."""
    return name.encode() * (1 + int(name[-2:], 16) * 3)


async def accept(journal, clock, rng):
    while True:
        name = letter_id(clock.wall(), rng.token_bytes(10))
        draft = LetterDraft(name, "tool", METHOD, (), request_of(name), name, 0, "")
        os.write(1, f"acked {await journal.accept(draft)}\n".encode())


async def deliver(journal):
    route = Route("tool", METHOD, 0.0)
    while True:
        for n, letter in enumerate(await journal.claim(route, 4)):
            if n % 2:
                await journal.put_back(letter, "REFUSED", 0.0)
            else:
                verdict = Verdict(what=LetterInput.DELIVER)
                await journal.end(letter, SendResult(code=0), verdict)
                os.write(1, f"delivered {letter.letter_id}\n".encode())


async def main():
    clock, rng = SystemClock(), SystemRng()
    journal = Journal(
        Database(Path(sys.argv[1]) / "sidecar.db", SCHEMA),
        agent_id="a",
        clock=clock,
        rng=rng,
        limits=LetterLimits(max_letters=10**9, crash_limit=10**9, gone_kept=10**9),
        publish=lambda _: None,
    )
    await journal.recover()
    os.write(1, b"ready\n")
    callers = [accept(journal, clock, rng) for _ in range(CALLERS)]
    await asyncio.gather(*callers, deliver(journal))


if __name__ == "__main__":
    asyncio.run(main())
