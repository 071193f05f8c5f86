import hashlib
import os
import resource

import lz4.frame
import pytest

from outrigger.core import blocks
from outrigger.core.blocks import BLOCK_BYTES, StateDigest
from outrigger.core.errors import Corrupt, Invalid

SIZES = (1, 2, 1000, 65_536, 65_537, BLOCK_BYTES - 1, BLOCK_BYTES)


def frame_of(raw, **options):
    """Compress as a stranger might."""
    ours = {
        "block_size": lz4.frame.BLOCKSIZE_MAX256KB,
        "block_linked": False,
        "content_checksum": True,
        "block_checksum": True,
        "store_size": True,
    }
    return lz4.frame.compress(raw, **(ours | options))


def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("make", [os.urandom, lambda size: b"a" * size])
def test_a_block_comes_back(size, make):
    """Blocks of every size survive, and a frame is hardly longer than its block."""
    raw = make(size)

    frame = blocks.compress(raw)

    assert blocks.decompress(frame, size) == raw
    assert len(frame) <= size + blocks.FRAME_OVERHEAD_BYTES


@pytest.mark.parametrize("size", [0, BLOCK_BYTES + 1])
def test_a_block_has_a_size(size):
    """Empty and too long blocks are refused both ways."""
    with pytest.raises(Invalid, match="1 to 262144 bytes"):
        blocks.compress(b"x" * size)
    with pytest.raises(Invalid, match="1 to 262144 bytes"):
        blocks.decompress(frame_of(b"x"), size)


def test_every_flipped_bit_is_seen():
    """Of all single-bit flips of a frame none decompresses to anything."""
    raw = os.urandom(300) + b"z" * 300
    frame = blocks.compress(raw)

    for position in range(len(frame)):
        for bit in range(8):
            bad = bytearray(frame)
            bad[position] ^= 1 << bit
            with pytest.raises(Corrupt):
                blocks.decompress(bytes(bad), len(raw))


def test_every_truncation_is_seen():
    """A prefix of a frame is never taken for the whole."""
    raw = os.urandom(200)
    frame = blocks.compress(raw)

    for end in range(len(frame)):
        with pytest.raises(Corrupt):
            blocks.decompress(frame[:end], len(raw))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (blocks.compress(b"ab") + b"\0", "bytes follow its end"),
        (blocks.compress(b"ab") + blocks.compress(b"ab")[:20], "bytes follow its end"),
        (blocks.compress(b"ab") * 3, "cannot hold"),
        (frame_of(b"ab", content_checksum=False), "form"),
        (frame_of(b"ab", block_checksum=False), "form"),
        (frame_of(b"ab", store_size=False), "form"),
        (frame_of(b"ab" * 9), "claims 18 bytes, not 2"),
        (b"\x50\x2a\x4d\x18\x10\0\0\0" + b"\0" * 20, "does not begin"),
        (blocks.compress(b"ab")[:-5], "end is missing"),
        (b"", "cannot hold"),
    ],
)
def test_a_strange_frame_is_refused_by_name(frame, says):
    """Trailing bytes, second frames, weaker forms and lies each have a sentence."""
    with pytest.raises(Corrupt, match=says):
        blocks.decompress(frame, 2)


def test_a_dictionary_frame_is_refused():
    """A frame that asks for a dictionary does not reach lz4."""
    frame = bytearray(blocks.compress(b"ab"))
    frame[4] |= 1

    with pytest.raises(Corrupt, match="form"):
        blocks.decompress(bytes(frame), 2)


def header_checksum(header):
    """Return lz4's header byte, got by asking lz4 for the one it accepts."""
    for guess in range(256):
        try:
            lz4.frame.get_frame_info(header + bytes([guess]) + b"\0" * 8)
        except RuntimeError:
            continue
        return bytes([guess])
    raise AssertionError("no checksum fits")


def test_a_bomb_costs_no_memory():
    """A frame that says 8 GiB, and one that hides 64 MiB behind a small size."""
    honest = frame_of(b"\0" * (64 << 20))
    head = honest[:6] + BLOCK_BYTES.to_bytes(8, "little")
    hidden = head + header_checksum(head) + honest[15:]
    lying = honest[:6] + (8 << 30).to_bytes(8, "little") + honest[14:60]
    before = peak_kib()

    for frame, says in (
        (lying, "claims 8589934592"),
        (hidden, "cannot hold"),
        (hidden[:BLOCK_BYTES], "or more, not 262144"),
    ):
        with pytest.raises(Corrupt, match=says):
            blocks.decompress(frame, BLOCK_BYTES)

    assert peak_kib() - before < 8 * 1024


def test_a_frame_that_holds_more_is_refused():
    """Neither a true size nor valid checksums make a longer content pass."""
    long = frame_of(b"\0" * 100)
    head = long[:6] + (99).to_bytes(8, "little")
    frame = head + header_checksum(head) + long[15:]

    with pytest.raises(Corrupt, match="lz4 says"):
        blocks.decompress(frame, 99)


def test_want_of_memory_is_not_a_crash(monkeypatch):
    """MemoryError out of lz4 is a refusal like any other."""

    class Starved:
        def decompress(self, frame, max_length):
            raise MemoryError

    monkeypatch.setattr(lz4.frame, "LZ4FrameDecompressor", Starved)
    with pytest.raises(Corrupt, match="lz4 says"):
        blocks.decompress(frame_of(b"ab"), 2)


def test_the_state_digest_is_over_block_digests():
    """It is what the contract says, not a hash of the bytes."""
    data = os.urandom(BLOCK_BYTES + 10)
    ends = (data[:BLOCK_BYTES], data[BLOCK_BYTES:])
    root = b"".join(hashlib.sha256(end).digest() for end in ends)

    assert blocks.state_digest(data) == hashlib.sha256(root).digest()
    assert blocks.state_digest(b"") == hashlib.sha256(b"").digest()
    assert blocks.root_digest(map(blocks.digest, ends)) == blocks.state_digest(data)


@pytest.mark.parametrize("step", [1000, 65_536, BLOCK_BYTES, BLOCK_BYTES + 1])
def test_the_state_digest_does_not_depend_on_the_pieces(step):
    """Pieces of any size give the same digest, and asking changes nothing."""
    data = os.urandom(2 * BLOCK_BYTES + 77)
    state = StateDigest()
    for start in range(0, len(data), step):
        state.update(data[start : start + step])
        state.digest()

    assert state.hexdigest() == blocks.state_digest(data).hex()


def test_split_cuts_at_block_boundaries():
    """Only the last block is shorter, none is empty, nothing is lost."""
    data = os.urandom(2 * BLOCK_BYTES)

    assert [len(block) for block in blocks.split(data)] == [BLOCK_BYTES] * 2
    assert [len(block) for block in blocks.split(data + b"x")][-1] == 1
    assert b"".join(blocks.split(data)) == data
    assert list(blocks.split(b"")) == []
