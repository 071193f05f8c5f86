import asyncio
import random
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from outrigger.core import blocks
from outrigger.core.blocks import BLOCK_BYTES, digest, split, state_digest
from outrigger.core.clock import SystemClock
from outrigger.core.errors import Corrupt
from outrigger.core.events import CheckpointMoved
from sidecar.checkpoints.limits import Limits
from sidecar.checkpoints.store import CheckpointStore
from sidecar.policy.retention import Retention
from tests.support.checkpoints import AGENT, restore, save_state

KEEP = 3
MUTATIONS = 3000

RAW = st.binary(max_size=400)
# A state as a recipe of whole blocks and a short end: hypothesis need not draw
# megabytes to reach every boundary.
RECIPE = st.tuples(st.lists(st.integers(0, 5), max_size=5), RAW)


def state_of(recipe):
    numbers, end = recipe
    whole = (bytes([number]) * (BLOCK_BYTES - 1) + b"|" for number in numbers)
    return b"".join(whole) + end


@asynccontextmanager
async def opened(root, **options):
    """Open a store for a while."""
    store = CheckpointStore(root, clock=SystemClock(), **options)
    try:
        yield store
    finally:
        await store.close()


@given(RAW, st.integers(0, 3))
def test_every_block_comes_back(raw, factor):
    """Whatever the bytes, a frame gives them back and nothing else."""
    raw = (raw or b"x") * (1 + factor * 200)

    assert blocks.decompress(blocks.compress(raw), len(raw)) == raw


@given(st.binary(min_size=1, max_size=300), st.integers(1, BLOCK_BYTES))
def test_no_stranger_is_taken_for_a_frame(frame, size):
    """Arbitrary bytes are refused by name."""
    with pytest.raises(Corrupt):
        blocks.decompress(frame, size)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=5000), st.integers(1, 2000))
def test_any_bytes_come_back(data, step):
    """Arbitrary states in arbitrary pieces, through files and back."""

    async def story():
        with tempfile.TemporaryDirectory() as folder:
            async with opened(Path(folder)) as store:
                made = await save_state(store, data, step=step)
                return made.state_digest, await restore(store, made)

    assert asyncio.run(story()) == (state_digest(data), data)


class Generations(RuleBasedStateMachine):
    """Saves, edits, references, prunes, aborts and restarts against a dict."""

    @initialize()
    def begin(self):
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.store = None
        self.model = {}
        self.newest = 0
        self.restart()

    def run(self, work):
        return self.loop.run_until_complete(work)

    @rule()
    def restart(self):
        if self.store is not None:
            self.run(self.store.close())
        self.store = CheckpointStore(
            Path(self.folder.name),
            clock=SystemClock(),
            limits=Limits(retention=Retention(keep=KEEP)),
        )

    @rule(recipe=RECIPE, step=st.sampled_from([1000, BLOCK_BYTES, 1 << 20]))
    def save(self, recipe, step):
        data = state_of(recipe)
        self.kept(self.run(save_state(self.store, data, step=step)), data)

    @rule(end=RAW)
    def append_by_reference(self, end):
        last = self.model.get(self.newest, b"")
        data = last[: len(last) // BLOCK_BYTES * BLOCK_BYTES] + end

        async def story():
            save = await self.store.begin_save(AGENT)
            for block in split(data):
                known = await self.store.present(AGENT, [digest(block)])
                await (save.reuse(known[0]) if known else save.write(block))
            return await save.commit(len(data), state_digest(data))

        self.kept(self.run(story()), data)

    @rule(recipe=RECIPE)
    def abort(self, recipe):
        async def story():
            save = await self.store.begin_save(AGENT)
            await save.write(state_of(recipe))
            await save.abort()

        self.run(story())

    @rule(keep=st.integers(2, 4))
    def prune(self, keep):
        gone = self.run(self.store.prune(AGENT, keep)).generations
        self.model = dict(sorted(self.model.items())[-keep:])
        assert not set(gone) & set(self.model)

    @invariant()
    def everything_kept_comes_back(self):
        if self.store is None:
            return
        listed = self.run(self.store.list(AGENT))
        assert [m.generation for m in listed] == sorted(self.model, reverse=True)
        for found in listed:
            data = self.model[found.generation]
            assert self.run(restore(self.store, found)) == data
            assert found.state_digest == state_digest(data)

    def kept(self, made, data):
        assert made.generation == self.newest + 1
        self.newest = made.generation
        self.model[self.newest] = data
        self.model = dict(sorted(self.model.items())[-KEEP:])

    def teardown(self):
        if self.store is not None:
            self.run(self.store.close())
            self.folder.cleanup()
        self.loop.close()


Generations.TestCase.settings = settings(
    max_examples=25, stateful_step_count=15, deadline=None
)
TestGenerations = Generations.TestCase


async def test_no_changed_byte_is_ever_served(tmp_path):
    """Thousands of single-byte changes to every stored file, one at a time.

    Each time what is served is exactly a state that was acknowledged, and a
    fall-back is announced; or nothing is served and the refusal has a name.
    """
    events = []
    chance = random.Random(20)
    states = {}
    async with opened(tmp_path / "c", publish=events.append) as store:
        for number in range(3):
            noise = chance.randbytes(700)
            data = state_of(([number, 1], noise))
            made = await save_state(store, data)
            states[made.generation] = data
        paths = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        places = [(path, at) for path in paths for at in range(path.stat().st_size)]
        outcomes = {"whole": 0, "fell_back": 0, "NO_GOOD_CHECKPOINT": 0}
        for path, at in chance.sample(places, min(MUTATIONS, len(places))):
            outcomes[await served(store, path, at, chance, states, events)] += 1
    assert sum(outcomes.values()) >= MUTATIONS
    assert outcomes["fell_back"] > MUTATIONS / 10
    assert outcomes["NO_GOOD_CHECKPOINT"] > 0


async def served(store, path, at, chance, states, events):
    """Change one byte, restore, put it back; return how that went."""
    whole = path.read_bytes()
    bad = bytearray(whole)
    bad[at] ^= chance.randrange(1, 256)
    path.write_bytes(bad)
    events.clear()
    try:
        found = await store.newest_good(AGENT)
        got = await restore(store, found)
    except Corrupt as error:
        return error.reason
    finally:
        path.write_bytes(whole)
    assert got == states[found.generation], (path, at)
    if found.generation == max(states):
        return "whole"
    assert (
        CheckpointMoved(
            generation=found.generation, action="fell_back", reason=events[-2].reason
        )
        in events
    )
    return "fell_back"
