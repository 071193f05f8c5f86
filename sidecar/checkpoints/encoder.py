"""Encoder: raw blocks to frames in a pack, each stored once.

`encode` and `refer` run on several threads at once. Of equal blocks of one state
the first comer stores and the others point to it.
"""

import threading
from collections.abc import Callable

from outrigger.core.blocks import Data, compress, digest, root_digest
from outrigger.core.errors import Corrupt, Invalid
from outrigger.core.events import ErrorSeen
from outrigger.core.tasks import describe
from sidecar.checkpoints.frames import Frames
from sidecar.checkpoints.manifest import Block
from sidecar.checkpoints.pack import PackWriter
from sidecar.checkpoints.shelf import Start


class Encoder:
    """The ordered blocks of one save."""

    def __init__(
        self,
        frames: Frames,
        start: Start,
        writer: PackWriter,
        report: Callable[[ErrorSeen], object],
    ) -> None:
        self._frames = frames
        self._start = start
        self._writer = writer
        self._report = report
        self._lock = threading.Lock()
        self._order: list[bytes] = []
        self._blocks: dict[bytes, Block | None] = {}

    # On the loop.

    def next_place(self, name: bytes = b"") -> int:
        """Return the place of the next block; its digest may come later."""
        self._order.append(name)
        return len(self._order) - 1

    def blocks(self) -> tuple[Block, ...]:
        """Return the blocks in order, once every job has ended."""
        found = (self._blocks[name] for name in self._order)
        return tuple(block for block in found if block is not None)

    def added(self) -> list[Block]:
        """Return the blocks whose frames are in this save's own pack."""
        own = self._start.generation
        return [block for block in self._blocks.values() if block and block.pack == own]

    def state_digest(self) -> bytes:
        """Return the digest of the state, once every job has ended."""
        return root_digest(self._order)

    # On worker threads.

    def encode(self, place: int, raw: Data) -> None:
        """Store a block unless it is stored.

        Raises:
            Overloaded: QUOTA or DISK_FULL.
            Transient: DISK_FAILED.
        """
        name = digest(raw)
        self._order[place] = name
        if not self._claim(name):
            return
        known = self._start.index.get(name)
        stored = self._reusable(known) if known is not None else None
        self._blocks[name] = stored or self._store(name, len(raw), compress(raw))

    def refer(self, known: Block) -> None:
        """Take a stored block, read back if that was not done lately.

        Raises:
            Invalid: UNKNOWN_BLOCK when its bytes are lost.
            Overloaded: QUOTA or DISK_FULL.
            Transient: DISK_FAILED.
        """
        if not self._claim(known.digest):
            return
        stored = self._reusable(known)
        if stored is None:
            raise unknown_block(known.digest)
        self._blocks[known.digest] = stored

    def _claim(self, name: bytes) -> bool:
        with self._lock:
            if name in self._blocks:
                return False
            self._blocks[name] = None
            return True

    def _reusable(self, known: Block) -> Block | None:
        """Return the block to name in the manifest; None if its bytes are lost."""
        try:
            if known.pack not in self._start.sparse:
                self._frames.check((known,))
                return known
            frame = self._frames.read(known)
        except Corrupt as error:
            self._report(
                describe("checkpoints.reuse", error, subject=known.digest.hex())
            )
            return None
        return self._store(known.digest, known.raw_bytes, frame)

    def _store(self, name: bytes, raw_bytes: int, frame: bytes) -> Block:
        offset = self._writer.append(frame)
        own = self._start.generation
        return Block(name, raw_bytes, own, offset, len(frame), digest(frame))


def unknown_block(name: bytes) -> Invalid:
    """Return the refusal of a reference to a block that is not there."""
    return Invalid(
        "UNKNOWN_BLOCK",
        f"no good block {name.hex()} of this agent is stored: send its bytes instead;"
        " QueryBlocks says which are",
    )
