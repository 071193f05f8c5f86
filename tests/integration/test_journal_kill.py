import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from sidecar.letters.journal import LetterFilter
from sidecar.policy.letter import LetterLimits, LetterState
from tests.support.letter_acceptor import request_of
from tests.support.letters import an_office

ROOT = Path(__file__).parents[2]
CHILD = ROOT / "tests" / "support" / "letter_acceptor.py"
ROUNDS = 30
SEED = 20


def start(folder):
    """A process that accepts letters until it is killed."""
    return subprocess.Popen(
        [sys.executable, "-P", str(CHILD), str(folder)],
        env={"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def killed_after(child, pause_s):
    """Kill it that long after its first word; return all it had said by then."""
    head = child.stdout.readline()
    assert head == b"ready\n", child.stderr.read().decode()
    time.sleep(pause_s)
    os.kill(child.pid, signal.SIGKILL)
    rest, errors = child.communicate(timeout=30)
    assert child.returncode == -signal.SIGKILL, errors.decode()
    whole = rest[: rest.rfind(b"\n") + 1].decode().split()
    said = list(zip(whole[::2], whole[1::2], strict=True))
    return (
        {name for word, name in said if word == "acked"},
        {name for word, name in said if word == "delivered"},
    )


async def test_every_acknowledged_letter_survives_kills_at_random_moments(tmp_path):
    """Thirty times: what was printed is there, whole, and the ledger adds up."""
    draw = random.Random(SEED)
    acked, delivered = set(), set()
    for _ in range(ROUNDS):
        some, ended = killed_after(start(tmp_path), draw.uniform(0.0, 0.15))
        acked |= some
        delivered |= ended
    async with an_office(
        tmp_path, agent_id="a", limits=LetterLimits(crash_limit=10**9)
    ) as office:
        ledger = await office.journal.ledger()
        stored = {
            letter.letter_id: letter
            async for letter in office.journal.export(LetterFilter())
        }

    assert len(acked) > ROUNDS
    assert len(delivered) > ROUNDS / 2
    assert acked <= stored.keys()
    assert all(stored[name].state is LetterState.DELIVERED for name in delivered)
    assert all(letter.request == request_of(name) for name, letter in stored.items())
    assert ledger.lost == 0
    assert ledger.accepted == len(stored)
    assert ledger.live + ledger.delivered == len(stored)


async def test_a_torn_log_loses_only_what_was_never_acknowledged(tmp_path):
    """A tail that was being written when the process died is cut off."""
    acked, _ = killed_after(start(tmp_path), 0.1)
    with (tmp_path / "sidecar.db-wal").open("ab") as log:
        log.write(os.urandom(3000))
    async with an_office(tmp_path, agent_id="a") as office:
        ids = {
            letter.letter_id async for letter in office.journal.export(LetterFilter())
        }

    assert acked <= ids
