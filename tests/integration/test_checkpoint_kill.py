import asyncio
import os
import random
import signal
import sys
from pathlib import Path

from outrigger.core.blocks import state_digest
from outrigger.core.clock import SystemClock
from sidecar.checkpoints.store import CheckpointStore
from tests.support.checkpoints import AGENT, files, restore

ROUNDS = 30
REPOSITORY = Path(__file__).parents[2]


async def spawn(root, seed):
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "tests.support.checkpoint_saver", str(root), str(seed)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        start_new_session=True,
    )


async def lines_until_killed(process, chance):
    """Kill after some acknowledgements and a little while; return what it said."""
    said = []
    wanted = chance.randint(1, 4)
    try:
        while wanted:
            line = (await asyncio.wait_for(process.stdout.readline(), 30)).decode()
            assert line, "the saver ended by itself"
            said.append(line)
            wanted -= line.startswith("acked")
        await asyncio.sleep(chance.random() * 0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        rest = await process.stdout.read()
        await process.wait()
    complete = rest.decode().rpartition("\n")[0].splitlines()
    return [line.split() for line in said + complete]


async def test_what_was_acknowledged_survives_sigkill(tmp_path):
    """Killed at random moments, many times over the same folder.

    The last acknowledged generation, or one that was on its way, is the newest
    good one and is byte for byte what was saved; nothing half made is seen, and
    what the crash left is gone.
    """
    root = tmp_path / "checkpoints"
    chance = random.Random(11)
    tried, leftovers = {}, 0
    for number in range(ROUNDS):
        said = await lines_until_killed(await spawn(root, number), chance)
        tried |= {int(generation): name for _, generation, name in said}
        acked = max(int(g) for verb, g, _ in said if verb == "acked")
        before = set(files(root))

        store = CheckpointStore(root, clock=SystemClock())
        found = await store.newest_good(AGENT)
        leftovers += bool(before - set(files(root)))
        assert found.generation in {acked, acked + 1}
        for one in await store.list(AGENT):
            assert tried[one.generation] == one.state_digest.hex()
            assert state_digest(await restore(store, one)) == one.state_digest
        await store.close()
    assert leftovers > ROUNDS / 10
