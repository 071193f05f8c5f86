"""A process that saves states until it is killed: python -m ... ROOT SEED.

Before each commit it prints `trying GENERATION DIGEST`, after each
acknowledgement `acked GENERATION DIGEST`.
"""

import asyncio
import random
import sys
from pathlib import Path

from outrigger.core.blocks import BLOCK_BYTES, state_digest
from outrigger.core.clock import SystemClock
from sidecar.checkpoints.limits import Limits
from sidecar.checkpoints.store import CheckpointStore
from sidecar.policy.retention import Retention

AGENT = "agent-1"


def edited(state, chance):
    """Return the state with one block changed and its end of another length."""
    state = bytearray(state)
    at = chance.randrange(5) * BLOCK_BYTES
    state[at : at + 100] = chance.randbytes(100)
    return bytes(state[: 5 * BLOCK_BYTES]) + chance.randbytes(chance.randrange(5000))


async def main(root, seed):
    chance = random.Random(seed)
    store = CheckpointStore(
        Path(root), clock=SystemClock(), limits=Limits(retention=Retention(keep=3))
    )
    state = chance.randbytes(5 * BLOCK_BYTES)
    while True:
        state = edited(state, chance)
        name = state_digest(state)
        save = await store.begin_save(AGENT)
        await save.write(state)
        print("trying", save.generation, name.hex(), flush=True)
        made = await save.commit(len(state), name)
        print("acked", made.generation, made.state_digest.hex(), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
