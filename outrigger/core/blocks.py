"""Blocks: how a state is cut, named and compressed.

A state is cut into blocks of 256 KiB of raw bytes; only the last may be shorter,
none is empty. A block is named by the SHA-256 of its raw bytes, a state by the
SHA-256 over the ordered digests of its blocks (hashing everything a second time
made a save 1.65 times as long). A block is stored as one lz4 frame with content
size, content checksum and block checksums: without them 98.7 % of single-bit
flips decompressed silently.

Clients use this module too: it needs lz4, hashlib and our errors, nothing else.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Final

import lz4.frame

from outrigger.core.errors import Corrupt, Invalid

BLOCK_BYTES: Final = 256 * 1024
"""Raw bytes of every block but the last."""
DIGEST_BYTES: Final = 32
"""Length of every digest here."""
FRAME_OVERHEAD_BYTES: Final = 64
"""What a frame has at most beyond its raw bytes; lz4 stores what it cannot pack."""

Data = bytes | bytearray | memoryview

_MAGIC: Final = b"\x04\x22\x4d\x18"
# FLG: version 01, independent blocks, block checksums, content size, content
# checksum, reserved bit clear, no dictionary.
_FLAGS: Final = 0b0111_1100
# BD: 64 KiB or 256 KiB. Larger ones would let a frame choose our buffers' size.
_BLOCK_SIZES: Final = frozenset({0x40, 0x50})
_HEADER_BYTES: Final = 15


def digest(data: Data) -> bytes:
    """Return the SHA-256 that names a block."""
    return hashlib.sha256(data).digest()


def root_digest(digests: Iterable[bytes]) -> bytes:
    """Return the digest of the state with these block digests, in order."""
    root = hashlib.sha256()
    for each in digests:
        root.update(each)
    return root.digest()


def state_digest(data: Data) -> bytes:
    """Return the digest of a whole state; of an empty one, SHA-256 of nothing."""
    state = StateDigest()
    state.update(data)
    return state.digest()


def split(data: Data) -> Iterator[bytes]:
    """Cut a state into its blocks; an empty one has none."""
    view = memoryview(data)
    for start in range(0, len(view), BLOCK_BYTES):
        yield bytes(view[start : start + BLOCK_BYTES])


class StateDigest:
    """The digest of a state that comes in pieces of any size."""

    def __init__(self) -> None:
        self._root = hashlib.sha256()
        self._block = hashlib.sha256()
        self._filled = 0

    def update(self, data: Data) -> None:
        """Take the next raw bytes."""
        view = memoryview(data)
        while view:
            piece = view[: BLOCK_BYTES - self._filled]
            self._block.update(piece)
            self._filled += len(piece)
            view = view[len(piece) :]
            if self._filled == BLOCK_BYTES:
                self._root.update(self._block.digest())
                self._block = hashlib.sha256()
                self._filled = 0

    def digest(self) -> bytes:
        """Return the digest of what came so far; more may follow."""
        root = self._root.copy()
        if self._filled:
            root.update(self._block.digest())
        return root.digest()

    def hexdigest(self) -> str:
        """Return the digest in hex."""
        return self.digest().hex()


def compress(block: Data) -> bytes:
    """Return a block as one frame, at most FRAME_OVERHEAD_BYTES longer.

    Raises:
        Invalid: BAD_BLOCK_SIZE unless it has 1 to BLOCK_BYTES bytes.
    """
    _check_size(len(block))
    frame: bytes = lz4.frame.compress(
        block,
        block_size=lz4.frame.BLOCKSIZE_MAX256KB,
        block_linked=False,
        content_checksum=True,
        block_checksum=True,
        store_size=True,
    )
    return frame


def decompress(frame: Data, raw_size: int) -> bytes:
    """Return the raw bytes of a frame made by `compress`.

    What the frame says of itself decides nothing: the caller knows the size, and
    a frame of any other form, size or end is refused before memory is spent on
    it. Memory stays below a megabyte whatever the frame holds.

    Raises:
        Corrupt: BAD_FRAME.
        Invalid: BAD_BLOCK_SIZE when no block can have `raw_size` bytes.
    """
    _check_size(raw_size)
    _check_form(frame, raw_size)
    decoder = lz4.frame.LZ4FrameDecompressor()
    try:
        # One byte more than wanted, so that a frame that holds more shows it.
        raw: bytes = decoder.decompress(frame, max_length=raw_size + 1)
    except (RuntimeError, MemoryError) as error:
        raise _bad(f"lz4 says: {error}") from error
    if len(raw) != raw_size:
        raise _bad(f"it holds {len(raw)} bytes or more, not {raw_size}")
    if not decoder.eof:
        raise _bad("its end is missing")
    if decoder.unused_data:
        raise _bad("bytes follow its end")
    return raw


def _check_size(raw_size: int) -> None:
    if not 0 < raw_size <= BLOCK_BYTES:
        raise Invalid(
            "BAD_BLOCK_SIZE", f"a block has 1 to {BLOCK_BYTES} bytes, not {raw_size}"
        )


def _check_form(frame: Data, raw_size: int) -> None:
    if not _HEADER_BYTES <= len(frame) <= raw_size + FRAME_OVERHEAD_BYTES:
        raise _bad(f"{len(frame)} bytes cannot hold a block of {raw_size}")
    if bytes(frame[:4]) != _MAGIC:
        raise _bad("it does not begin as a frame")
    if frame[4] != _FLAGS or frame[5] not in _BLOCK_SIZES:
        raise _bad("its form is not the one written here")
    stated = int.from_bytes(frame[6:14], "little")
    if stated != raw_size:
        raise _bad(f"it claims {stated} bytes, not {raw_size}")


def _bad(detail: str) -> Corrupt:
    return Corrupt(
        "BAD_FRAME",
        f"a compressed block is damaged: {detail}; restore an older generation",
    )
