"""Frames: the stored blocks of one agent, and when each was last read back."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from outrigger.core.blocks import decompress, digest
from outrigger.core.clock import Clock
from outrigger.core.errors import Corrupt
from sidecar.checkpoints import pack
from sidecar.checkpoints.manifest import Block, Manifest


class Frames:
    """Reads frames and stamps the good ones; called from many threads."""

    def __init__(self, packs: Path, *, clock: Clock, reverify_s: float) -> None:
        self.packs = packs
        self._clock = clock
        self._reverify_s = reverify_s
        # Monotonic second of the last good read-back, by pack and offset. Single
        # operations only, so that threads need no lock.
        self._stamps: dict[tuple[int, int], float] = {}

    def read(self, block: Block, *, fresh: bool = False) -> bytes:
        """Return a frame, checked; `fresh` reads past the page cache if it can.

        Raises:
            Corrupt: BAD_BYTES, FILE_MISSING or UNREADABLE.
            Transient: DISK_FAILED.
        """
        try:
            frame = pack.read_frame(self.packs, block, fresh=fresh)
        except Corrupt:
            self._stamps.pop(_place(block), None)
            raise
        self.stamp((block,))
        return frame

    def raw(self, blocks: Sequence[Block], *, fresh: bool = False) -> bytes:
        """Return the raw bytes of consecutive blocks, every byte verified.

        Raises:
            Corrupt: BAD_BYTES, BAD_FRAME, FILE_MISSING or UNREADABLE.
            Transient: DISK_FAILED.
        """
        return b"".join(self._raw(block, fresh=fresh) for block in blocks)

    def _raw(self, block: Block, *, fresh: bool) -> bytes:
        raw = decompress(self.read(block, fresh=fresh), block.raw_bytes)
        if digest(raw) != block.digest:
            self._stamps.pop(_place(block), None)
            raise Corrupt(
                "BAD_BYTES",
                "a block decompresses to other bytes than were saved; restore an older"
                " generation",
            )
        return raw

    def check(self, blocks: Iterable[Block]) -> None:
        """Read back, past the page cache, what was not read back lately.

        Raises:
            Corrupt: BAD_BYTES, FILE_MISSING or UNREADABLE.
            Transient: DISK_FAILED.
        """
        for block in blocks:
            if not self._is_recent(block):
                self.read(block, fresh=True)

    def stamp(self, blocks: Iterable[Block]) -> None:
        """Note that these were read back just now."""
        now = self._clock.monotonic()
        for block in blocks:
            self._stamps[_place(block)] = now

    def keep_stamps(self, blocks: Iterable[Block]) -> None:
        """Forget the stamps of all but these."""
        for stale in self._stamps.keys() - {_place(block) for block in blocks}:
            self._stamps.pop(stale, None)

    def verified_wall_s(self, found: Manifest) -> float | None:
        """Return when the last byte of a generation was read back.

        None means that some were not since this process began.
        """
        now = self._clock.monotonic()
        oldest = now
        for block in found.blocks:
            stamp = self._stamps.get(_place(block))
            if stamp is None:
                return None
            oldest = min(oldest, stamp)
        return self._clock.wall() - (now - oldest)

    def _is_recent(self, block: Block) -> bool:
        stamp = self._stamps.get(_place(block))
        now = self._clock.monotonic()
        return stamp is not None and now - stamp <= self._reverify_s


def _place(block: Block) -> tuple[int, int]:
    return block.pack, block.offset
