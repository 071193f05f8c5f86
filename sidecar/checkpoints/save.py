"""Save: one state on its way to the disk.

Blocks are hashed, compressed and written on worker threads as they come (hashlib,
lz4 and the system calls let go of the interpreter), a few at a time, so that
memory stays bounded and the loop is never blocked. Acknowledged means: synced,
read back past the page cache, and named by a manifest that was itself synced and
read back. Until that last step nothing of a save is visible.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Final, TypeVar

from outrigger.core.blocks import BLOCK_BYTES, Data
from outrigger.core.clock import Clock
from outrigger.core.errors import Invalid, OutriggerError, Refused
from outrigger.core.events import CheckpointMoved, Payload
from outrigger.core.tasks import describe
from sidecar.checkpoints.encoder import Encoder, unknown_block
from sidecar.checkpoints.heap import give_back
from sidecar.checkpoints.limits import Limits, check_digest, check_state_size
from sidecar.checkpoints.manifest import Manifest
from sidecar.checkpoints.pack import PackWriter
from sidecar.checkpoints.shelf import Shelf, Start
from sidecar.checkpoints.trim import trim

T = TypeVar("T")

_IN_FLIGHT: Final = 8
"""Jobs under way at once: 2 MiB of raw blocks, and as much again compressed."""
_BACK_AT_ONCE: Final = 16
"""Frames read back by one job, at most 4 MiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What every save of a store works with."""

    pool: Executor
    clock: Clock
    limits: Limits
    publish: Callable[[Payload], object]
    """Called on the loop."""


class Save:
    """A save under way; end it with `commit` or `abort`.

    For one task at a time. Any error of `write`, `reuse` or `commit` ends the
    save: nothing of it stays, and earlier generations are as they were.
    """

    def __init__(
        self,
        shelf: Shelf,
        start: Start,
        workshop: Workshop,
        *,
        schema: str,
        expected_size: int,
    ) -> None:
        self._shelf = shelf
        self._start = start
        self._workshop = workshop
        self._schema = schema
        self._expected_size = expected_size
        self._loop = asyncio.get_running_loop()
        room_bytes = workshop.limits.quota_bytes - start.used_bytes
        self._writer = PackWriter(shelf.frames.packs, start.generation, room_bytes)
        self._encoder = Encoder(shelf.frames, start, self._writer, self._say)
        self._jobs: deque[Future[None]] = deque()
        self._tail = bytearray()
        self._raw_bytes = 0
        self._ended_short = False
        self._over = False

    @property
    def generation(self) -> int:
        """Return the number it will have."""
        return self._start.generation

    @property
    def epoch(self) -> int:
        """Return the epoch it is saved under."""
        return self._start.epoch

    async def write(self, data: Data) -> None:
        """Take the next raw bytes.

        Raises:
            Overloaded: STATE_TOO_LARGE, QUOTA or DISK_FULL.
            Transient: DISK_FAILED.
            Invalid: AFTER_LAST_BLOCK.
            Refused: SAVE_OVER.
        """
        async with _Ending(self):
            self._grow(len(data))
            view = memoryview(data)
            while view:
                room = BLOCK_BYTES - len(self._tail)
                if len(view) >= room == BLOCK_BYTES:
                    await self._add(view[:room])
                else:
                    self._tail += view[:room]
                    await self._flush(BLOCK_BYTES)
                view = view[room:]

    async def reuse(self, name: bytes) -> None:
        """Take a whole stored block in place of its bytes.

        Raises:
            Invalid: BAD_DIGEST, UNKNOWN_BLOCK, MID_BLOCK or AFTER_LAST_BLOCK.
            Overloaded: STATE_TOO_LARGE, QUOTA or DISK_FULL.
            Transient: DISK_FAILED.
            Refused: SAVE_OVER.
        """
        async with _Ending(self):
            check_digest(name)
            if self._tail:
                raise Invalid(
                    "MID_BLOCK",
                    f"a block reference came {len(self._tail)} bytes into a block: send"
                    f" references only where the raw size so far is a multiple of"
                    f" {BLOCK_BYTES}",
                )
            known = self._start.index.get(name)
            if known is None:
                raise unknown_block(name)
            self._grow(known.raw_bytes)
            self._ended_short = known.raw_bytes < BLOCK_BYTES
            self._encoder.next_place(name)
            await self._push(self._encoder.refer, known)

    async def commit(self, raw_size: int, state_digest: bytes) -> Manifest:
        """Make it last and return what is now stored.

        Cancelled near its end it may have happened; look at the list.

        Raises:
            Invalid: WRONG_SIZE, WRONG_DIGEST, BAD_DIGEST or UNKNOWN_BLOCK.
            Conflict: STALE_EPOCH when a higher epoch was fenced meanwhile.
            Overloaded: QUOTA or DISK_FULL.
            Transient: DISK_FAILED or READ_BACK.
            Refused: SAVE_OVER.
        """
        async with _Ending(self):
            check_digest(state_digest)
            await self._flush(1)
            await self._drain()
            made = self._manifest()
            self._compare(made, raw_size, state_digest)
            await self._push(self._writer.sync)
            await self._drain()
            await self._read_back()
            self._over = True
            return await unbroken(self._workshop.pool.submit(self._finish, made))

    async def abort(self) -> None:
        """Leave nothing behind; harmless when it is over already."""
        if self._over:
            return
        self._over = True
        # On a thread of the pool, behind every job begun: it ends even if whoever
        # waits here is cancelled, and no thread writes to a closed file.
        jobs = tuple(self._jobs)
        await unbroken(self._workshop.pool.submit(self._discard, jobs))

    def check_open(self) -> None:
        """Raise Refused SAVE_OVER once it was committed or aborted."""
        if self._over:
            raise Refused(
                "SAVE_OVER", "this save was committed or aborted: begin another one"
            )

    # On the loop.

    def _grow(self, count: int) -> None:
        if count and self._ended_short:
            raise Invalid(
                "AFTER_LAST_BLOCK",
                "something follows a referenced block that is shorter than"
                f" {BLOCK_BYTES} bytes: only the last block of a state may be",
            )
        self._raw_bytes += count
        check_state_size(self._raw_bytes, self._workshop.limits)

    async def _flush(self, at_least: int) -> None:
        if len(self._tail) >= at_least:
            block, self._tail = bytes(self._tail), bytearray()
            await self._add(block)

    async def _add(self, raw: Data) -> None:
        await self._push(self._encoder.encode, self._encoder.next_place(), raw)

    async def _push(self, work: Callable[..., None], *args: object) -> None:
        while len(self._jobs) >= _IN_FLIGHT:
            await self._pop()
        self._jobs.append(self._workshop.pool.submit(work, *args))

    async def _pop(self) -> None:
        await asyncio.wrap_future(self._jobs[0])
        self._jobs.popleft()

    async def _drain(self) -> None:
        while self._jobs:
            await self._pop()

    async def _read_back(self) -> None:
        added = self._encoder.added()
        for start in range(0, len(added), _BACK_AT_ONCE):
            end = start + _BACK_AT_ONCE
            await self._push(self._writer.read_back, added[start:end])
        await self._drain()

    def _manifest(self) -> Manifest:
        blocks = self._encoder.blocks()
        return Manifest(
            agent_id=self._shelf.agent_id,
            generation=self.generation,
            parent_generation=self._start.parent_generation,
            epoch=self.epoch,
            raw_size_bytes=self._raw_bytes,
            stored_size_bytes=self._writer.size_bytes,
            reused_block_count=len(blocks) - len(self._encoder.added()),
            schema=self._schema,
            state_digest=self._encoder.state_digest(),
            created_wall_s=self._workshop.clock.wall(),
            blocks=blocks,
        )

    def _compare(self, made: Manifest, raw_size: int, state_digest: bytes) -> None:
        expected = self._expected_size or made.raw_size_bytes
        for source, count in (("commit", raw_size), ("begin", expected)):
            if count != made.raw_size_bytes:
                raise Invalid(
                    "WRONG_SIZE",
                    f"{source} says {count} bytes but {made.raw_size_bytes} came:"
                    " nothing was kept; save again",
                )
        if state_digest != made.state_digest:
            raise Invalid(
                "WRONG_DIGEST",
                f"commit says state digest {state_digest.hex()} but what came has"
                f" {made.state_digest.hex()}: nothing was kept; the digest is SHA-256"
                " over the ordered SHA-256 digests of the blocks of 256 KiB",
            )

    # On worker threads.

    def _finish(self, made: Manifest) -> Manifest:
        try:
            self._writer.close()
            self._shelf.frames.stamp(self._encoder.added())
            kept = self._shelf.keep(made)
        except BaseException:
            self._discard(())
            raise
        size, generation = kept.raw_size_bytes, kept.generation
        self._say(
            CheckpointMoved(generation=generation, action="saved", raw_size_bytes=size)
        )
        self._trim()
        self._release()
        return kept

    def _trim(self) -> None:
        """Remove what is no longer wanted; the save stands whatever happens here."""
        limits, now_wall_s = self._workshop.limits, self._workshop.clock.wall()
        try:
            done = trim(self._shelf, limits.retention, now_wall_s, validate_only=False)
        except OutriggerError as error:
            self._say(describe("checkpoints.retention", error))
            return
        for generation in done.generations:
            self._say(CheckpointMoved(generation=generation, action="pruned"))

    def _discard(self, jobs: tuple[Future[None], ...]) -> None:
        wait(jobs)
        try:
            if self.generation in self._shelf.catalog.generations():
                self._writer.close()
            else:
                self._writer.discard()
        except OutriggerError as error:
            # What stays has no manifest: it goes when the folder is next opened.
            self._say(describe("checkpoints.discard", error))
        finally:
            self._release()

    def _release(self) -> None:
        self._shelf.leave(saving=True)
        try:
            self._shelf.tidy()
        except OutriggerError as error:
            self._say(describe("checkpoints.tidy", error))
        give_back(self._raw_bytes)

    def _say(self, payload: Payload) -> None:
        self._loop.call_soon_threadsafe(self._workshop.publish, payload)


class _Ending:
    """Ends the save if what runs within fails or is cancelled."""

    def __init__(self, save: Save) -> None:
        self._save = save

    async def __aenter__(self) -> None:
        self._save.check_open()

    async def __aexit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> None:
        if error is not None:
            await self._save.abort()


async def unbroken(job: Future[T]) -> T:
    """Wait for a job that goes on even if the waiting is cancelled."""
    waiting = asyncio.wrap_future(job)
    waiting.add_done_callback(_retrieve)
    return await asyncio.shield(waiting)


def _retrieve(done: asyncio.Future[T]) -> None:
    """Mark an outcome as seen: whoever waited for it may be gone."""
    if not done.cancelled():
        done.exception()
