import asyncio
import errno
import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from outrigger.core.blocks import BLOCK_BYTES, digest, split, state_digest
from outrigger.core.clock import SystemClock
from outrigger.core.errors import (
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    Overloaded,
    Refused,
    Transient,
)
from outrigger.core.events import CheckpointMoved, ErrorSeen
from sidecar.checkpoints import disk
from sidecar.checkpoints.encoder import Encoder
from sidecar.checkpoints.limits import Limits
from sidecar.checkpoints.sealed import seal
from sidecar.checkpoints.store import CheckpointStore
from sidecar.policy.retention import Retention
from tests.support.checkpoints import (
    AGENT,
    Faults,
    blocks_of,
    files,
    flip,
    manifest_path,
    pack_path,
    restore,
    restore_newest,
    save_state,
)
from tests.support.clock import FakeClock

NOISE = os.urandom(2 * BLOCK_BYTES + 12_345)
FIRST, _, LAST = map(digest, split(NOISE))


@pytest.fixture
async def make(tmp_path):
    """Open stores on one root, as a restarted sidecar would."""
    opened = []

    def open_store(*, clock=None, publish=lambda payload: None, **limits):
        store = CheckpointStore(
            tmp_path / "checkpoints",
            clock=clock or SystemClock(),
            limits=Limits(**limits),
            publish=publish,
        )
        opened.append(store)
        return store

    yield open_store
    for store in opened:
        await store.close()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "checkpoints"


@pytest.fixture
def faults(monkeypatch, root):
    return Faults(monkeypatch, root)


def moves(events):
    """Return (action, generation) of what happened to checkpoints."""
    return [
        (event.action, event.generation)
        for event in events
        if isinstance(event, CheckpointMoved)
    ]


async def play(save, steps):
    """Take the steps of a save, each a method and its argument."""
    for method, data in steps:
        await getattr(save, method)(data)


async def collect(pieces, into):
    """Append pieces to a list as they come."""
    async for piece in pieces:
        into.append(piece)


class TestRoundTrip:
    @pytest.mark.parametrize(
        "size",
        [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 9 * BLOCK_BYTES + 5],
    )
    @pytest.mark.parametrize("step", [1 << 20, 100_001])
    async def test_a_state_comes_back(self, make, size, step):
        """States of every size come back from another process's store."""
        data = os.urandom(size)
        made = await save_state(make(), data, step=step, schema="v1")

        store = make()
        found = await store.newest_good(AGENT)

        assert await restore(store, found) == data
        assert (found.generation, found.parent_generation) == (1, 0)
        assert (found.raw_size_bytes, found.schema) == (size, "v1")
        assert found.state_digest == made.state_digest == state_digest(data)
        assert found.block_count == -(-size // BLOCK_BYTES)

    async def test_pieces_are_at_most_a_mebibyte(self, make):
        """Each fits into one message."""
        store = make()
        made = await save_state(store, blocks_of(*"abcdefghi"))

        sizes = [len(piece) async for piece in store.read(made)]

        assert sizes == [1 << 20, 1 << 20, BLOCK_BYTES]

    async def test_generations_rise_and_name_their_parent(self, make):
        """Each save follows the newest one."""
        store = make()
        for text in ("a", "b", "c"):
            await save_state(store, text.encode())

        listed = await store.list(AGENT)

        assert [(m.generation, m.parent_generation) for m in listed] == [
            (3, 2),
            (2, 1),
            (1, 0),
        ]
        assert (await store.manifest(AGENT)).generation == 3
        assert (await store.manifest(AGENT, 2)).state_digest == state_digest(b"b")

    async def test_agents_do_not_share(self, make):
        """What one agent stored is neither seen nor reused by another."""
        store = make()
        await save_state(store, NOISE)
        other = await save_state(store, NOISE, agent="agent-2")

        assert other.reused_block_count == 0
        assert await store.present("agent-3", [digest(NOISE[:BLOCK_BYTES])]) == ()

    async def test_files_are_for_this_user_alone(self, make, root):
        """States may hold secrets."""
        await save_state(make(), NOISE)

        for path in root.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0

    async def test_where_nothing_was_saved_nothing_is_made(self, make, root):
        """Looking leaves no folder, and says that there is nothing."""
        store = make()

        assert await store.newest_good(AGENT) is None
        assert await store.list(AGENT) == ()
        for look in (store.manifest, store.verify):
            with pytest.raises(NotFound, match="has no checkpoint"):
                await look(AGENT)
            with pytest.raises(NotFound, match="no checkpoint 7"):
                await look(AGENT, 7)
        assert list(root.iterdir()) == []

    @pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "a..b", ".", "x\n"])
    async def test_bad_ids_never_reach_a_path(self, make, root, name):
        """Every method refuses them."""
        store = make()
        for call in (
            store.begin_save(name),
            store.present(name, []),
            store.fence(name, 1),
            store.manifest(name),
            store.list(name),
            store.verify(name),
            store.newest_good(name),
            store.prune(name, 2),
        ):
            with pytest.raises(Invalid, match="agent id"):
                await call
        assert list(root.parent.rglob("*")) == [root]


class TestReuse:
    async def test_an_unchanged_state_adds_nothing(self, make, root):
        """The second generation has no pack of its own."""
        store = make()
        await save_state(store, NOISE)

        again = await save_state(store, NOISE)

        assert again.stored_size_bytes == 0
        assert again.reused_block_count == again.block_count == 3
        assert not pack_path(root, 2).exists()
        assert await restore(store, again) == NOISE

    async def test_only_what_changed_is_stored(self, make):
        """One changed block of many costs one block."""
        store = make()
        await save_state(store, blocks_of(*"abcd"))

        changed = await save_state(store, blocks_of(*"abXd"))

        assert changed.reused_block_count == 3
        assert changed.stored_size_bytes < 5000
        assert await restore(store, changed) == blocks_of(*"abXd")

    async def test_equal_blocks_are_stored_once(self, make):
        """Also within one state."""
        store = make()
        one = await save_state(store, blocks_of("a"), agent="agent-2")

        many = await save_state(store, blocks_of(*"a" * 20))

        assert many.stored_size_bytes == one.stored_size_bytes
        assert await restore(store, many) == blocks_of(*"a" * 20)

    async def test_a_reference_stands_for_a_block(self, make):
        """An append sends what was appended, and the rest by name."""
        store = make()
        await save_state(store, NOISE)
        names = [digest(block) for block in split(NOISE)]
        grown = NOISE[: 2 * BLOCK_BYTES] + b"more"

        present = await store.present(AGENT, [*names, digest(b"?")])
        save = await store.begin_save(AGENT)
        for name in names[:2]:
            await save.reuse(name)
        await save.write(b"more")
        made = await save.commit(len(grown), state_digest(grown))

        assert present == tuple(names)
        assert await restore(store, made) == grown

    async def test_a_block_may_be_named_twice(self, make):
        """A state of equal blocks is named block by block."""
        store = make()
        await save_state(store, NOISE)
        state = NOISE[:BLOCK_BYTES] * 3

        save = await store.begin_save(AGENT)
        for _ in range(3):
            await save.reuse(FIRST)
        made = await save.commit(len(state), state_digest(state))

        assert (made.block_count, made.stored_size_bytes) == (3, 0)
        assert await restore(store, made) == state

    async def test_the_last_block_may_be_a_short_reference(self, make):
        """A whole state by reference, its short end too."""
        store = make()
        await save_state(store, NOISE)

        save = await store.begin_save(AGENT)
        for block in split(NOISE):
            await save.reuse(digest(block))
        made = await save.commit(len(NOISE), state_digest(NOISE))

        assert made.stored_size_bytes == 0

    @pytest.mark.parametrize(
        ("reason", "steps"),
        [
            ("UNKNOWN_BLOCK", [("reuse", digest(b"nobody has it"))]),
            ("BAD_DIGEST", [("reuse", b"short")]),
            ("MID_BLOCK", [("write", b"0" * 10), ("reuse", FIRST)]),
            ("AFTER_LAST_BLOCK", [("reuse", LAST), ("reuse", FIRST)]),
            ("AFTER_LAST_BLOCK", [("reuse", LAST), ("write", b"more")]),
        ],
    )
    async def test_a_wrong_reference_ends_the_save(self, make, root, reason, steps):
        """By name, and nothing of it stays."""
        store = make()
        await save_state(store, NOISE)
        before = files(root)
        save = await store.begin_save(AGENT)
        await save.write(os.urandom(BLOCK_BYTES))

        with pytest.raises(Invalid) as caught:
            await play(save, steps)

        assert caught.value.reason == reason
        assert files(root) == before
        with pytest.raises(Refused, match="begin another"):
            await save.write(b"x")

    async def test_a_rotten_block_is_stored_again(self, make, root):
        """Its bytes are at hand when it is saved anew, so the rot is mended."""
        events = []
        await save_state(make(), NOISE)
        flip(pack_path(root, 1), 100)

        store = make(publish=events.append)
        healed = await save_state(store, NOISE)

        assert healed.reused_block_count == 2
        assert await restore(store, healed) == NOISE
        assert [e.reason for e in events if isinstance(e, ErrorSeen)] == ["BAD_BYTES"]
        assert await restore_newest(make()) == NOISE
        again = await save_state(make(), NOISE)  # and the good copy is the one used
        assert again.reused_block_count == 3

    async def test_a_rotten_block_is_not_offered_for_reuse(self, make, root):
        """A client is told to send its bytes; a reference to it is refused."""
        await save_state(make(), NOISE)
        flip(pack_path(root, 1), 100)
        names = [digest(block) for block in split(NOISE)]

        store = make()
        present = await store.present(AGENT, names)
        save = await store.begin_save(AGENT)

        (rotten,) = set(names) - set(present)
        await save.reuse(rotten)
        with pytest.raises(Invalid, match="send its bytes"):
            await save.commit(BLOCK_BYTES, digest(rotten))

    async def test_what_is_reused_long_after_is_read_back_first(self, make, root):
        """A stamp holds for a while only."""
        clock = FakeClock()
        store = make(clock=clock, reverify_s=60)
        await save_state(store, NOISE)
        flip(pack_path(root, 1), 100)

        trusting = await save_state(store, NOISE)
        clock.advance(61)
        careful = await save_state(store, NOISE)

        assert (trusting.reused_block_count, careful.reused_block_count) == (3, 2)

    async def test_packs_of_mostly_garbage_are_left_behind(self, make, root):
        """What still lives in them is copied on, so that they can go."""
        store = make(retention=Retention(keep=2))
        await save_state(store, os.urandom(9 * BLOCK_BYTES) + blocks_of("keep"))
        for text in ("b", "c"):
            await save_state(store, blocks_of(text, "keep"))
        moved = await save_state(store, blocks_of("d", "keep"))
        await save_state(store, blocks_of("e", "keep"))

        assert moved.reused_block_count == 0
        assert not pack_path(root, 1).exists()
        assert await restore_newest(make()) == blocks_of("e", "keep")


class TestRefusedSaves:
    @pytest.mark.parametrize(
        ("size", "name", "reason"),
        [
            (len(NOISE) - 1, state_digest(NOISE), "WRONG_SIZE"),
            (len(NOISE), state_digest(b""), "WRONG_DIGEST"),
            (len(NOISE), b"", "BAD_DIGEST"),
        ],
    )
    async def test_a_wrong_total_keeps_nothing(self, make, root, size, name, reason):
        """Size and digest are what came, or there is no checkpoint."""
        store = make()
        await save_state(store, b"before")
        before = files(root)
        save = await store.begin_save(AGENT)
        await save.write(NOISE)

        with pytest.raises(Invalid) as caught:
            await save.commit(size, name)

        assert caught.value.reason == reason
        assert files(root) == before
        assert (await save_state(store, NOISE)).generation == 2

    async def test_the_size_told_at_begin_is_checked(self, make):
        """A client that lost count is told."""
        save = await make().begin_save(AGENT, 0, "", 10)
        await save.write(b"12345")

        with pytest.raises(Invalid, match="begin says 10 bytes but 5 came"):
            await save.commit(5, state_digest(b"12345"))

    async def test_abort_leaves_nothing(self, make, root):
        """Also after blocks were written, and twice."""
        store = make()
        save = await store.begin_save(AGENT)
        await save.write(NOISE)
        await save.abort()
        await save.abort()

        assert files(root) == {}
        for call in (save.write(b""), save.reuse(b""), save.commit(0, b"")):
            with pytest.raises(Refused, match="was committed or aborted"):
                await call

    async def test_one_save_at_a_time(self, make):
        """A second save of the same agent waits for the first; others do not."""
        store = make()
        save = await store.begin_save(AGENT)

        with pytest.raises(Conflict, match="under way") as caught:
            await store.begin_save(AGENT)
        await save_state(store, b"x", agent="agent-2")
        await save.abort()

        assert caught.value.reason == "SAVE_IN_PROGRESS"
        assert (await save_state(store, b"x")).generation == 1

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ((AGENT, -1), "BAD_EPOCH"),
            ((AGENT, 1 << 63), "BAD_EPOCH"),
            ((AGENT, 0, "x" * 129), "BAD_SCHEMA"),
            ((AGENT, 0, "", -1), "NEGATIVE_SIZE"),
        ],
    )
    async def test_a_bad_begin_is_refused(self, make, arguments, reason):
        """Before anything is made."""
        with pytest.raises(Invalid) as caught:
            await make().begin_save(*arguments)

        assert caught.value.reason == reason

    async def test_a_state_too_large_is_refused(self, make, root):
        """At begin if it was announced, else when it is reached."""
        store = make(max_state_bytes=1000)
        with pytest.raises(Overloaded, match="at most 1000 bytes"):
            await store.begin_save(AGENT, 0, "", 1001)
        save = await store.begin_save(AGENT)
        await save.write(b"x" * 1000)

        with pytest.raises(Overloaded, match="at most 1000 bytes"):
            await save.write(b"x")
        assert files(root) == {}

    async def test_the_quota_holds(self, make, root):
        """What does not fit is refused, what was there stays."""
        store = make(quota_bytes=3 * BLOCK_BYTES)
        await save_state(store, NOISE)
        before = files(root)

        with pytest.raises(Overloaded) as caught:
            await save_state(store, os.urandom(len(NOISE)))

        assert caught.value.reason == "QUOTA"
        assert files(root) == before
        assert await restore_newest(store) == NOISE

    async def test_the_quota_counts_after_a_restart(self, make):
        """Bytes on disk count, not what this process wrote."""
        await save_state(make(), NOISE)

        with pytest.raises(Overloaded, match="quota"):
            await save_state(make(quota_bytes=3 * BLOCK_BYTES), os.urandom(len(NOISE)))


class TestEpochs:
    async def test_a_save_under_a_lower_epoch_is_refused(self, make):
        """Also by a store that was opened later."""
        await make().fence(AGENT, 5)
        store = make()

        with pytest.raises(Conflict) as caught:
            await store.begin_save(AGENT, 4)

        assert caught.value.reason == "STALE_EPOCH"
        assert caught.value.metadata["epoch"] == "5"
        assert (await save_state(store, b"x", epoch=5)).epoch == 5

    async def test_zero_means_the_fenced_epoch(self, make):
        """A save outside of sleeping names no epoch."""
        store = make()
        assert (await save_state(store, b"x")).epoch == 0
        await store.fence(AGENT, 7)

        assert (await save_state(store, b"x")).epoch == 7

    @pytest.mark.parametrize("fenced", [0, 5])
    async def test_an_epoch_that_was_never_issued_is_refused(self, make, fenced):
        """It would pass every later fence, and after damage block them all."""
        store = make()
        await store.fence(AGENT, fenced)

        for epoch in (fenced + 1, 1 << 62):
            with pytest.raises(Conflict, match="was never issued") as caught:
                await store.begin_save(AGENT, epoch)
            assert caught.value.reason == "FUTURE_EPOCH"
            assert caught.value.metadata["epoch"] == str(fenced)

        assert (await save_state(store, b"y", epoch=fenced)).epoch == fenced

    async def test_a_fence_that_rises_meanwhile_stops_the_commit(self, make, root):
        """Whoever was overtaken makes nothing visible."""
        store = make()
        await store.fence(AGENT, 1)
        save = await store.begin_save(AGENT, 1)
        await save.write(NOISE)
        await store.fence(AGENT, 2)

        with pytest.raises(Conflict, match="epoch 1 of agent agent-1 is over"):
            await save.commit(len(NOISE), state_digest(NOISE))
        assert files(root) == {}
        assert (await save_state(store, b"x")).generation == 1

    async def test_the_fence_never_goes_back(self, make):
        """A lower one is refused, the same one is fine."""
        store = make()
        await store.fence(AGENT, 5)
        await store.fence(AGENT, 5)

        with pytest.raises(Conflict, match="the present one is 5"):
            await store.fence(AGENT, 4)
        with pytest.raises(Invalid, match="epoch -1 cannot be"):
            await store.fence(AGENT, -1)

    @pytest.mark.parametrize(
        "damage", [b"", b"{}\n", seal({"epoc": 9}), seal({"epoch": 9})[:-1]]
    )
    @pytest.mark.parametrize("fenced", [5, 6])
    async def test_a_damaged_fence_stops_saves_until_fenced_anew(
        self, make, root, damage, fenced
    ):
        """It never lets an older epoch in."""
        store = make()
        await store.fence(AGENT, 5)
        await save_state(store, b"x")
        (root / AGENT / "fence").write_bytes(damage)

        for epoch in (0, 5, 6):
            with pytest.raises(Corrupt, match="until the agent's present epoch"):
                await store.begin_save(AGENT, epoch)
        with pytest.raises(Conflict):
            await store.fence(AGENT, 4)
        await store.fence(AGENT, fenced)

        for epoch in {5, 6, 7} - {fenced}:
            with pytest.raises(Conflict):
                await store.begin_save(AGENT, epoch)
        assert (await store.begin_save(AGENT, 0)).epoch == fenced
        assert await restore_newest(store) == b"x"


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b"\0")


def blank(path):
    path.write_bytes(b"\0" * path.stat().st_size)


class TestDamage:
    @pytest.mark.parametrize("spoil", [flip, cut, blank, os.unlink])
    async def test_a_spoiled_pack_falls_back(self, make, root, spoil):
        """The generation before is served, and an event says so."""
        events = []
        await save_state(make(), NOISE)
        await save_state(make(), b"newer")
        spoil(pack_path(root, 2))

        store = make(publish=events.append)
        assert await restore_newest(store) == NOISE

        assert moves(events) == [("refused", 2), ("fell_back", 1), ("restored", 1)]
        assert "000000000002.pack" in events[1].reason
        with pytest.raises(Corrupt):
            await store.verify(AGENT)

    @pytest.mark.parametrize("spoil", [flip, cut, grow, blank])
    async def test_a_spoiled_manifest_falls_back(self, make, root, spoil):
        """And is refused by name where it is asked for."""
        events = []
        await save_state(make(), NOISE)
        await save_state(make(), b"newer")
        spoil(manifest_path(root, 2))

        store = make(publish=events.append)
        assert await restore_newest(store) == NOISE

        assert moves(events)[:2] == [("refused", 2), ("fell_back", 1)]
        for look in (store.manifest, store.verify):
            with pytest.raises(Corrupt, match="do not end with their SHA-256"):
                await look(AGENT, 2)
        assert [m.generation for m in await store.list(AGENT)] == [1]

    async def test_swapped_files_are_seen(self, make, root):
        """Good bytes in the wrong place are bad bytes."""
        store = make()
        for text in ("a", "b", "c"):
            await save_state(store, text.encode())
        newest, middle = manifest_path(root, 3), manifest_path(root, 2)
        held = newest.read_bytes()
        newest.write_bytes(middle.read_bytes())
        middle.write_bytes(held)

        assert await restore_newest(store) == b"a"
        with pytest.raises(Corrupt, match="that of checkpoint 2"):
            await store.verify(AGENT, 3)

    async def test_swapped_packs_are_seen(self, make, root):
        """Frames are known by their digest, not by their place."""
        store = make()
        for text in ("a", "b"):
            await save_state(store, text.encode())
        one, two = pack_path(root, 1), pack_path(root, 2)
        held = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(held)

        with pytest.raises(Corrupt, match="none of the 2 checkpoints"):
            await store.newest_good(AGENT)

    async def test_what_was_pruned_since_it_was_listed_is_no_damage(
        self, make, monkeypatch
    ):
        """The next older one is served, and nothing is said to be bad."""
        events = []
        store = make(publish=events.append)
        await save_state(store, NOISE)
        catalog = store._shelves[AGENT].catalog
        listed = iter([[2, 1]])
        real = catalog.generations
        monkeypatch.setattr(catalog, "generations", lambda: next(listed, real()))

        assert (await store.newest_good(AGENT)).generation == 1
        assert moves(events) == [("saved", 1)]

    async def test_nothing_good_is_not_nothing(self, make, root):
        """An agent that has lost its state is not started afresh by mistake."""
        store = make()
        await save_state(store, NOISE)
        flip(pack_path(root, 1))

        with pytest.raises(Corrupt) as caught:
            await store.newest_good(AGENT)
        assert caught.value.reason == "NO_GOOD_CHECKPOINT"

    async def test_damage_found_while_reading_ends_the_reading(self, make, root):
        """What came before it was good; the error says that the rest is not."""
        events = []
        store = make(publish=events.append)
        data = os.urandom(9 * BLOCK_BYTES)
        made = await save_state(store, data)
        flip(pack_path(root, 1), 8 * BLOCK_BYTES)

        got = []
        with pytest.raises(Corrupt, match="is damaged between"):
            await collect(store.read(made), got)

        assert 1 <= len(got) <= 2
        assert data.startswith(b"".join(got))
        assert moves(events)[-1] == ("refused", 1)

    async def test_an_unreadable_sector_falls_back(self, make, faults):
        """EIO means these bytes are lost; other errors mean ask again."""
        store = make()
        await save_state(store, b"older")
        await save_state(store, b"newer")

        faults.on("pread", errno.EIO)
        with pytest.raises(Corrupt, match="none of the 2"):
            await store.newest_good(AGENT)
        faults.on("pread", errno.ENOMEM)
        with pytest.raises(Transient, match="the disk answered"):
            await store.newest_good(AGENT)
        faults.off()

        assert await restore_newest(store) == b"newer"

    async def test_a_newer_programs_checkpoint_is_left_alone(self, make, root):
        """It is refused by name, not served, not pruned, and its packs stay."""
        store = make()
        for text in ("a", "b", "c"):
            await save_state(store, text.encode())
        path = manifest_path(root, 3)
        document = json.loads(path.read_bytes().split(b"\n")[0])
        path.write_bytes(seal({**document, "format": 2, "blocks": "new"}))

        store = make()
        with pytest.raises(Refused, match="run the newer program"):
            await store.verify(AGENT, 3)
        assert await restore_newest(store) == b"b"
        await save_state(store, b"d")
        pruned = await store.prune(AGENT, 2)

        assert pruned.generations == (1,)
        assert all(pack_path(root, number).exists() for number in (1, 2, 3, 4))

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({"agent_id": "agent-2"}, "that of checkpoint 1 of agent agent-2"),
            ({"generation": 2}, "that of checkpoint 2"),
            ({"raw_size_bytes": 1}, "do not add up"),
            ({"state_digest": "00" * 32}, "state digest"),
            ({"state_digest": "zz"}, "malformed"),
            ({"epoch": None}, "malformed"),
            ({"blocks": [1]}, "malformed"),
            ({"blocks": [["00" * 32, 1 << 40, 1, 0, 9, "00" * 32]]}, "impossible"),
            ({"blocks": [["00" * 32, 9, 1, -5, 9, "00" * 32]]}, "impossible"),
            ({"blocks": [["00" * 32, 9, 1, 0, 9, "00" * 32]] * 2}, "not whole"),
        ],
    )
    async def test_an_impossible_manifest_is_refused(self, make, root, change, says):
        """Even when its seal is right."""
        store = make()
        await save_state(store, NOISE)
        path = manifest_path(root, 1)
        document = json.loads(path.read_bytes().split(b"\n")[0])
        path.write_bytes(seal({**document, **change}))

        with pytest.raises(Corrupt, match=says):
            await store.verify(AGENT, 1)

    @pytest.mark.parametrize(
        ("body", "says"), [(b"[]\n", "no JSON object"), (b"{\n", "is no JSON")]
    )
    async def test_a_sealed_stranger_is_refused(self, make, root, body, says):
        """A right seal over something else."""
        store = make()
        await save_state(store, NOISE)
        line = hashlib.sha256(body).hexdigest().encode() + b"\n"
        manifest_path(root, 1).write_bytes(body + line)

        with pytest.raises(Corrupt, match=says):
            await store.verify(AGENT, 1)

    async def test_a_frame_of_other_bytes_is_refused(self, make, root):
        """A manifest whose frame digest fits and whose raw digest does not."""
        store = make()
        await save_state(store, NOISE[:BLOCK_BYTES])
        path = manifest_path(root, 1)
        document = json.loads(path.read_bytes().split(b"\n")[0])
        document["blocks"][0][0] = digest(b"x").hex()
        document["state_digest"] = digest(digest(b"x")).hex()
        path.write_bytes(seal(document))

        with pytest.raises(Corrupt, match="other bytes than were saved"):
            await store.verify(AGENT, 1)

    async def test_strange_files_are_passed_over(self, make, root):
        """Notes, backups and other people's files do no harm and stay."""
        await save_state(make(), NOISE)
        for name in ("manifests/note.json", "packs/x.pack", "packs/²²", "manifests/7"):
            (root / AGENT / name).write_bytes(b"?")

        store = make()

        assert await restore_newest(store) == NOISE
        assert (root / AGENT / "packs" / "x.pack").exists()

    async def test_verify_time_is_that_of_the_oldest_byte(self, make):
        """A save is verified when made; a restart knows nothing until it looks."""
        clock = FakeClock()
        store = make(clock=clock)
        first = await save_state(store, NOISE)
        clock.advance(10)
        second = await save_state(store, NOISE[: 2 * BLOCK_BYTES] + b"x")

        assert first.verified_wall_s == first.created_wall_s
        assert second.verified_wall_s == first.created_wall_s
        fresh = make(clock=clock)
        assert (await fresh.manifest(AGENT)).verified_wall_s is None
        assert (await fresh.verify(AGENT)).verified_wall_s == clock.wall()
        assert (await fresh.list(AGENT))[0].verified_wall_s == clock.wall()


class TestRemoval:
    async def test_old_generations_go_after_a_save(self, make, root):
        """As many stay as retention says, and every one of them still restores."""
        events = []
        store = make(publish=events.append, retention=Retention(keep=3))
        for number in range(6):
            await save_state(store, blocks_of("same", str(number)))

        listed = await store.list(AGENT)

        assert [m.generation for m in listed] == [6, 5, 4]
        for found in listed:
            assert await restore(store, found) == blocks_of(
                "same", str(found.generation - 1)
            )
        assert [m for m in moves(events) if m[0] == "pruned"] == [
            ("pruned", 1),
            ("pruned", 2),
            ("pruned", 3),
        ]
        assert pack_path(root, 1).exists()  # holds the block they share
        assert not pack_path(root, 2).exists()

    async def test_prune_says_what_it_would_free(self, make, root):
        """A dry run names the same generations and bytes, and removes nothing."""
        store = make()
        for _ in range(4):
            await save_state(store, os.urandom(5000))
        before = files(root)

        would = await store.prune(AGENT, 2, validate_only=True)
        assert files(root) == before
        did = await store.prune(AGENT, 2)

        assert would == did
        assert did.generations == (1, 2)
        after = files(root)
        freed = sum(map(len, before.values())) - sum(map(len, after.values()))
        assert did.freed_bytes == freed > 10_000
        assert await store.prune(AGENT, 2) == type(did)((), 0)

    async def test_keeping_one_is_refused(self, make):
        """Two good generations stay whatever is asked."""
        with pytest.raises(Invalid, match="at least 2"):
            await make().prune(AGENT, 1)

    async def test_two_good_ones_stay_beside_bad_ones(self, make, root):
        """Bad newest generations do not count as kept."""
        for number in range(5):
            await save_state(make(), str(number).encode())
        flip(pack_path(root, 5), 0)
        flip(manifest_path(root, 4))

        store = make()
        pruned = await store.prune(AGENT, 2)

        assert pruned.generations == (1, 4)
        assert await restore_newest(store) == b"2"
        assert (await store.verify(AGENT, 2)).generation == 2

    async def test_a_reader_keeps_what_it_reads(self, make, root):
        """Pruned meanwhile, a restore still ends well; then the pack goes."""
        store = make()
        data = os.urandom(30 * BLOCK_BYTES)
        first = await save_state(store, data)
        for text in ("b", "c"):
            await save_state(store, text.encode())

        pieces = store.read(first)
        got = await anext(pieces)
        await store.prune(AGENT, 2)
        assert pack_path(root, 1).exists()
        async for piece in pieces:
            got += piece

        assert got == data
        assert not pack_path(root, 1).exists()
        with pytest.raises(NotFound, match="no checkpoint 1"):
            await restore(store, first)

    async def test_a_reader_that_goes_away_lets_go(self, make, root):
        """Half a restore does not pin packs for ever."""
        store = make()
        first = await save_state(store, os.urandom(30 * BLOCK_BYTES))
        for text in ("b", "c"):
            await save_state(store, text.encode())
        pieces = store.read(first)
        await anext(pieces)
        await store.prune(AGENT, 2)

        await pieces.aclose()

        assert not pack_path(root, 1).exists()

    async def test_a_save_revives_what_is_being_collected(self, make, root):
        """A block of a pruned generation, taken up by a save, stays."""
        store = make()
        await save_state(store, NOISE)
        for text in ("b", "c"):
            await save_state(store, text.encode())

        save = await store.begin_save(AGENT)
        await save.reuse(digest(NOISE[:BLOCK_BYTES]))
        assert (await store.prune(AGENT, 2)).generations == (1,)
        state = NOISE[:BLOCK_BYTES]
        made = await save.commit(len(state), state_digest(state))

        assert made.stored_size_bytes == 0
        assert await restore_newest(make()) == state

    async def test_a_crash_leaves_nothing_for_long(self, make, root):
        """Packs without a manifest and unfinished files go at the next open."""
        await save_state(make(), NOISE)
        for name in ("packs/000000000002.pack", "manifests/x.json.tmp", "fence.tmp"):
            (root / AGENT / name).write_bytes(b"left")
        before = set(files(root))

        store = make()
        await store.list(AGENT)

        assert before - set(files(root)) == {
            f"{AGENT}/packs/000000000002.pack",
            f"{AGENT}/manifests/x.json.tmp",
            f"{AGENT}/fence.tmp",
        }

    async def test_the_pack_of_a_lost_manifest_stays(self, make, root):
        """A manifest may be mended from a copy; its bytes must still be there."""
        await save_state(make(), NOISE)
        whole = manifest_path(root, 1).read_bytes()
        flip(manifest_path(root, 1))
        with pytest.raises(Corrupt):
            await make().newest_good(AGENT)

        manifest_path(root, 1).write_bytes(whole)

        assert await restore_newest(make()) == NOISE

    async def test_a_number_is_never_given_twice(self, make, root):
        """Not even that of a generation nobody can read."""
        store = make()
        for text in ("a", "b", "c"):
            await save_state(store, text.encode())
        flip(manifest_path(root, 3))
        await store.prune(AGENT, 2)

        assert (await save_state(make(), b"d")).generation == 4


def record(monkeypatch, log):
    """Log what is made to last, in order, as `call name`."""

    def logged(name):
        real = getattr(os, name)

        def call(first, *args, **kwargs):
            is_open = isinstance(first, int)
            place = Path(f"/proc/self/fd/{first}").readlink() if is_open else first
            log.append(f"{name} {Path(place).name}")
            return real(first, *args, **kwargs)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "rename", "pread", "posix_fadvise", "unlink"):
        logged(name)


class TestFaults:
    async def test_everything_lasts_before_it_is_relied_on(self, make, monkeypatch):
        """Frames, their name, their read-back; then the manifest and its name."""
        store = make()
        await save_state(store, NOISE)
        log = []
        record(monkeypatch, log)

        await save_state(store, b"one block")

        mine = [
            entry
            for entry in log
            if " 000000000001." not in entry and not entry.startswith("unlink")
        ]
        assert mine == [
            "fsync 000000000002.pack",
            "posix_fadvise 000000000002.pack",
            "fsync packs",
            "pread 000000000002.pack",
            "fsync 000000000002.json.tmp",
            "posix_fadvise 000000000002.json.tmp",
            "pread 000000000002.json.tmp",
            "pread 000000000002.json.tmp",
            "rename 000000000002.json.tmp",
            "fsync manifests",
            "pread 000000000002.json",
            "pread 000000000002.json",
        ]

    async def test_manifests_are_gone_for_good_before_their_packs(
        self, make, monkeypatch
    ):
        """A crash in between leaves a pack too many, never a pack too few."""
        store = make()
        for text in ("a", "b", "c"):
            await save_state(store, text.encode())
        log = []
        record(monkeypatch, log)

        await store.prune(AGENT, 2)

        assert [entry for entry in log if not entry.startswith("p")] == [
            "unlink 000000000001.json",
            "fsync manifests",
            "unlink 000000000001.pack",
        ]

    @pytest.mark.parametrize("always", [False, True])
    @pytest.mark.parametrize(
        ("error", "classes"),
        [
            (errno.EIO, (Transient, Corrupt)),
            (errno.ENOSPC, (Overloaded, Transient)),
            (errno.ENOMEM, (Transient,)),
        ],
    )
    async def test_every_call_may_fail(
        self, make, root, faults, error, classes, always
    ):
        """Whichever system call fails: a typed error and the old state, or success.

        Call after call of a save is made to fail, until one goes through untouched.
        """
        older = blocks_of("a", "b")
        await save_state(make(), older)
        old_files = files(root)
        failed = 0
        for number in range(200):
            newer = blocks_of("a", f"new {number}")
            store = make()
            faults.at(number, error, always=always)
            saved = None
            try:
                saved = await save_state(store, newer)
            except classes:
                failed += 1
            reached = len(faults.calls) > number
            faults.off()
            if saved is None and not always:
                assert await restore_newest(make()) == older
                assert files(root) == old_files
            elif saved is None:
                assert await restore_newest(make()) in {older, newer}
            else:
                assert await restore_newest(make()) == newer
                for path in (root / AGENT).rglob(f"*{saved.generation:012d}*"):
                    path.unlink()
            for path in (root / AGENT).rglob("*0000[2-9]*"):
                path.unlink()
            if not reached:
                break
        assert failed >= 15
        assert not reached

    @pytest.mark.parametrize("name", ["fsync", "pwrite", "open", "mkdir", "rename"])
    async def test_a_first_save_may_fail_too(self, make, root, faults, name):
        """Where there was nothing there is nothing, and the next one works."""
        store = make()
        faults.on(name, errno.EIO)
        with pytest.raises(Transient, match="Input/output error"):
            await save_state(store, NOISE)
        faults.off()

        assert files(root) == {}
        assert (await save_state(store, NOISE)).generation == 1

    async def test_a_full_disk_says_so(self, make, faults):
        """ENOSPC is a limit, not a mystery."""
        store = make()
        faults.on("pwrite", errno.ENOSPC)

        with pytest.raises(Overloaded) as caught:
            await save_state(store, NOISE)

        assert caught.value.reason == "DISK_FULL"

    async def test_a_write_in_parts_is_finished(self, make, monkeypatch):
        """The kernel may take less than it was given, and give less than asked."""
        write, read = os.pwrite, os.pread
        monkeypatch.setattr(
            os, "pwrite", lambda fd, data, at: write(fd, data[:999], at)
        )
        monkeypatch.setattr(os, "pread", lambda fd, n, at: read(fd, min(n, 5000), at))

        store = make()
        await save_state(store, NOISE)

        assert await restore_newest(store) == NOISE

    @pytest.mark.parametrize("suffix", ["pack", "json.tmp"])
    async def test_what_reads_back_differently_is_not_acknowledged(
        self, make, root, monkeypatch, suffix
    ):
        """A disk that lies is found out before the answer."""
        real = disk.read_at

        def lying(path, *args, **kwargs):
            data = real(path, *args, **kwargs)
            return data[:-1] + b"?" if path.name.endswith(suffix) else data

        store = make()
        monkeypatch.setattr(disk, "read_at", lying)
        with pytest.raises(Transient, match=r"read back differently"):
            await save_state(store, NOISE)
        monkeypatch.undo()

        assert files(root) == {}

    async def test_no_page_cache_advice_is_no_harm(self, make, monkeypatch):
        """File systems may refuse it."""

        def refuse(*args):
            raise OSError(errno.EINVAL, "no")

        monkeypatch.setattr(os, "posix_fadvise", refuse)
        store = make()
        await save_state(store, NOISE)

        assert (await store.verify(AGENT)).generation == 1

    async def test_what_cannot_be_swept_does_not_stop_a_restore(
        self, make, root, faults, caplog
    ):
        """A disk that takes no changes still gives back what it has."""
        await save_state(make(), NOISE)
        (root / AGENT / "packs" / "000000000009.pack").write_bytes(b"left")
        faults.on("unlink", errno.EROFS)

        assert await restore_newest(make()) == NOISE

        assert "cannot remove" in caplog.text

    async def test_failed_retention_does_not_unsay_a_save(self, make, faults):
        """The save stands, and what failed is reported."""
        events = []
        store = make(publish=events.append, retention=Retention(keep=2))
        for number in range(2):
            await save_state(store, str(number).encode())
        faults.on("unlink", errno.EIO, after=2)

        made = await save_state(store, b"2")
        faults.off()

        assert made.generation == 3
        seen = [event for event in events if isinstance(event, ErrorSeen)]
        assert [event.boundary for event in seen] == ["checkpoints.retention"]
        assert await restore_newest(make()) == b"2"

    async def test_failed_tidying_is_reported(self, make, monkeypatch):
        """After saves, aborts and reads alike; none of them fails for it."""
        events = []
        store = make(publish=events.append)
        made = await save_state(store, b"x")
        shelf = store._shelves[AGENT]

        def fails():
            raise Transient("DISK_FAILED", "no")

        monkeypatch.setattr(shelf, "tidy", fails)
        assert await restore(store, made) == b"x"
        monkeypatch.undo()
        save = await store.begin_save(AGENT)
        monkeypatch.setattr(shelf, "tidy", fails)
        await save.abort()
        await asyncio.sleep(0)

        seen = [event.boundary for event in events if isinstance(event, ErrorSeen)]
        assert seen == ["checkpoints.tidy"] * 2

    async def test_a_failed_abort_is_reported(self, make, root, faults):
        """And what it left goes with the next open."""
        events = []
        store = make(publish=events.append)
        save = await store.begin_save(AGENT)
        await save.write(NOISE)
        faults.on("unlink", errno.EIO)
        await save.abort()
        await asyncio.sleep(0)
        faults.off()

        (seen,) = events
        assert seen.boundary == "checkpoints.discard"
        await make().list(AGENT)
        assert files(root) == {}


class TestLoop:
    async def test_a_slow_disk_does_not_stop_the_loop(self, make, monkeypatch):
        """While fsync hangs, the loop and other agents' restores go on."""
        store = make()
        other = await save_state(store, b"other", agent="agent-2")
        hangs, goes_on = threading.Event(), threading.Event()
        real = disk.sync

        def slow(descriptor):
            hangs.set()
            goes_on.wait(30)
            real(descriptor)

        monkeypatch.setattr(disk, "sync", slow)
        saving = asyncio.ensure_future(save_state(store, NOISE))
        while not hangs.is_set():
            await asyncio.sleep(0.001)

        assert await restore(store, other) == b"other"
        goes_on.set()
        assert (await saving).generation == 1

    async def test_memory_is_bounded(self, make, monkeypatch):
        """A sender faster than the disk waits after a few blocks."""
        goes_on = threading.Event()
        real = Encoder.encode

        def slow(self, place, raw):
            goes_on.wait(30)
            real(self, place, raw)

        monkeypatch.setattr(Encoder, "encode", slow)
        save = await make().begin_save(AGENT)
        written = 0

        async def send():
            nonlocal written
            for number in range(30):
                await save.write(blocks_of(str(number)))
                written += 1

        sending = asyncio.ensure_future(send())
        for _ in range(50):
            await asyncio.sleep(0)
        stopped_at = written
        goes_on.set()
        await sending
        await save.abort()

        assert stopped_at <= 9
        assert written == 30

    async def test_a_cancelled_save_leaves_nothing_or_all(self, make, root):
        """Cancelled after every number of steps of the loop until it goes through."""
        store = make()
        await save_state(store, NOISE)
        steps = done = cancelled = 0
        while not done:
            newer = os.urandom(len(NOISE))
            saving = asyncio.ensure_future(save_state(store, newer))
            for _ in range(steps):
                await asyncio.sleep(0.0005)
            if saving.done():
                done += 1
            saving.cancel()
            await asyncio.gather(saving, return_exceptions=True)
            cancelled += saving.cancelled()
            steps += 1
            while store._shelves[AGENT]._saving:
                await asyncio.sleep(0.0005)
            got = await restore_newest(store)
            assert len(got) == len(NOISE)
            assert set(files(root)) == expected_files(root)
        assert cancelled >= 3

    async def test_a_cancelled_begin_gives_its_place_back(self, make, monkeypatch):
        """Whoever goes away while folders are made blocks nobody."""
        store = make()
        await store.list(AGENT)
        goes_on = threading.Event()
        shelf = store._shelves[AGENT]
        real = shelf.begin

        def slow(epoch):
            goes_on.wait(30)
            return real(epoch)

        monkeypatch.setattr(shelf, "begin", slow)
        beginning = asyncio.ensure_future(store.begin_save(AGENT))
        await asyncio.sleep(0.01)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        goes_on.set()
        monkeypatch.undo()

        assert (await save_state(store, b"x")).generation == 1


def expected_files(root):
    """Return the files that manifests account for."""
    expected = set()
    for path in (root / AGENT / "manifests").iterdir():
        document = json.loads(path.read_bytes().split(b"\n")[0])
        expected.add(str(path.relative_to(root)))
        expected |= {
            str(pack_path(root, block[2]).relative_to(root))
            for block in document["blocks"]
        }
    return expected
