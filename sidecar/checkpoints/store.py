"""Store: the checkpoints of every agent of this sidecar.

What is promised: an acknowledged generation is on the disk and was read back; no
byte is given out that was not verified; a bad generation gives way to the one
before and an event says so; two good generations are always kept.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

from outrigger.core.clock import Clock
from outrigger.core.errors import Corrupt, NotFound, OutriggerError, Refused
from outrigger.core.events import CheckpointMoved, Payload
from outrigger.core.ids import check_agent_id
from outrigger.core.tasks import describe
from sidecar.checkpoints.heap import give_back
from sidecar.checkpoints.limits import (
    Limits,
    check_digest,
    check_epoch,
    check_schema,
    check_state_size,
)
from sidecar.checkpoints.manifest import Block, Manifest
from sidecar.checkpoints.save import Save, Workshop, unbroken
from sidecar.checkpoints.shelf import Shelf
from sidecar.checkpoints.trim import Trimmed, trim
from sidecar.policy.retention import Retention

T = TypeVar("T")
P = ParamSpec("P")

_PIECE_BLOCKS: Final = 4
"""Blocks that are read at once: 1 MiB, what one message may carry."""
_AHEAD: Final = 4
"""Pieces read ahead of whoever takes them."""


def _unheard(_: Payload) -> None:
    """Drop an event; for callers that do not listen."""


class CheckpointStore:
    """Saves, verifies, restores and prunes; everything that blocks is on threads.

    One store per root at a time: the caller holds the state directory's lock.
    Every method raises Invalid BAD_AGENT_ID before a bad id reaches a path, and
    Transient DISK_FAILED when the disk fails otherwise than by losing data.
    """

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        limits: Limits | None = None,
        publish: Callable[[Payload], object] = _unheard,
    ) -> None:
        self._root = root
        self._clock = clock
        self._limits = limits or Limits()
        self._publish = publish
        self._shelves: dict[str, Shelf] = {}
        self._pool = ThreadPoolExecutor(self._limits.workers, "checkpoints")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def close(self) -> None:
        """Wait for what is under way and end the threads."""
        await asyncio.to_thread(self._pool.shutdown)

    # Saving.

    async def begin_save(
        self, agent_id: str, epoch: int = 0, schema: str = "", expected_size: int = 0
    ) -> Save:
        """Begin to save a state.

        Args:
            agent_id: whose.
            epoch: the fenced one, or 0 for whatever is fenced; any other is refused.
            schema: the agent's own name for the form of its state.
            expected_size: raw bytes, checked at commit; 0 means not known.

        Raises:
            Conflict: STALE_EPOCH, FUTURE_EPOCH or SAVE_IN_PROGRESS.
            Invalid: BAD_EPOCH, BAD_SCHEMA or NEGATIVE_SIZE.
            Overloaded: STATE_TOO_LARGE or DISK_FULL.
            Corrupt: FENCE_CORRUPT.
        """
        check_epoch(epoch)
        check_schema(schema)
        check_state_size(expected_size, self._limits)
        shelf = await self._open(agent_id)
        shelf.claim()
        try:
            start = await self._run(shelf.begin, epoch)
        except BaseException:
            shelf.leave(saving=True)
            raise
        workshop = Workshop(
            pool=self._pool,
            clock=self._clock,
            limits=self._limits,
            publish=self._publish,
        )
        return Save(shelf, start, workshop, schema=schema, expected_size=expected_size)

    async def present(
        self, agent_id: str, digests: Sequence[bytes]
    ) -> tuple[bytes, ...]:
        """Return those blocks that are stored and good, for `Save.reuse`.

        Raises:
            Invalid: BAD_DIGEST.
        """
        for name in digests:
            check_digest(name)
        shelf = await self._open(agent_id)
        return await self._run(_present, shelf, digests)

    async def fence(self, agent_id: str, epoch: int) -> None:
        """Refuse every save under another epoch from now on, durably.

        Raises:
            Invalid: BAD_EPOCH.
            Conflict: STALE_EPOCH when a higher one is fenced already.
            Overloaded: DISK_FULL.
        """
        check_epoch(epoch)
        shelf = await self._open(agent_id)
        await self._run(shelf.fence, epoch)

    # Looking.

    async def manifest(self, agent_id: str, generation: int = 0) -> Manifest:
        """Return one generation, its blocks not read; 0 means the newest readable.

        Raises:
            NotFound: NO_CHECKPOINT or NO_SUCH_GENERATION.
            Corrupt: its manifest is damaged.
            Refused: NEWER_FORMAT.
        """
        shelf = await self._open(agent_id)
        if generation:
            return await self._run(shelf.load, generation)
        readable = await self.list(agent_id)
        if not readable:
            raise _none(agent_id)
        return readable[0]

    async def list(self, agent_id: str) -> tuple[Manifest, ...]:
        """Return every generation whose manifest is readable, newest first."""
        shelf = await self._open(agent_id)
        survey = await self._run(shelf.survey)
        return tuple(map(shelf.stamped, survey.readable))

    async def verify(self, agent_id: str, generation: int = 0) -> Manifest:
        """Read every byte of a generation from disk; 0 means the newest.

        Raises:
            NotFound: NO_CHECKPOINT or NO_SUCH_GENERATION.
            Corrupt: it is not good; the reason says how.
            Refused: NEWER_FORMAT.
        """
        shelf = await self._open(agent_id)
        if not generation:
            generation = next(iter(await self._run(shelf.catalog.generations)), 0)
        if not generation:
            raise _none(agent_id)
        try:
            found = await self._verified(shelf, generation, fresh=True)
        except Corrupt as error:
            self._say(generation, "refused", error.reason)
            raise
        self._say(generation, "verified", size=found.raw_size_bytes)
        return found

    async def newest_good(self, agent_id: str) -> Manifest | None:
        """Return the newest generation that verifies; None if there is none at all.

        Every byte of it was read. What did not verify is published as refused, and
        a generation that stands in for a newer one as fell_back.

        Raises:
            Corrupt: NO_GOOD_CHECKPOINT when there are some and none is good.
        """
        shelf = await self._open(agent_id)
        refused: list[OutriggerError] = []
        for generation in await self._run(shelf.catalog.generations):
            try:
                found = await self._verified(shelf, generation, fresh=False)
            except NotFound:
                continue  # pruned since it was listed
            except (Corrupt, Refused) as error:
                self._say(generation, "refused", error.reason)
                refused.append(error)
                continue
            if refused:
                self._say(generation, "fell_back", refused[0].message)
            return found
        if refused:
            raise Corrupt(
                "NO_GOOD_CHECKPOINT",
                f"none of the {len(refused)} checkpoints of agent {agent_id} is good"
                f" (newest: {refused[0].message}): restore its folder from a backup, or"
                " move it aside to start the agent afresh",
            )
        return None

    async def read(self, manifest: Manifest) -> AsyncIterator[bytes]:
        """Yield a state's raw bytes in order, each verified, in pieces of <= 1 MiB.

        Raises:
            Corrupt: a block is not good; what came before it was.
            NotFound: NO_SUCH_GENERATION when it was pruned meanwhile.
        """
        shelf = await self._open(manifest.agent_id)
        shelf.enter()
        try:
            async with aclosing(self._pieces(shelf, manifest, fresh=False)) as pieces:
                async for piece in pieces:
                    yield piece
        except Corrupt as error:
            await self._run(shelf.load, manifest.generation)
            self._say(manifest.generation, "refused", error.reason)
            raise
        finally:
            await self._leave(shelf)
        self._say(manifest.generation, "restored", size=manifest.raw_size_bytes)

    # Removing.

    async def prune(
        self, agent_id: str, keep: int, *, validate_only: bool = False
    ) -> Trimmed:
        """Remove all but the newest `keep` good generations.

        Raises:
            Invalid: KEEP_TOO_FEW.
        """
        retention = Retention(keep=keep)
        shelf = await self._open(agent_id)
        done = await self._run(
            trim, shelf, retention, self._clock.wall(), validate_only=validate_only
        )
        if not validate_only:
            await self._run(shelf.tidy)
            for generation in done.generations:
                self._say(generation, "pruned")
        return done

    # Inside.

    async def _open(self, agent_id: str) -> Shelf:
        check_agent_id(agent_id)
        shelf = self._shelves.get(agent_id)
        if shelf is None:
            shelf = self._shelves[agent_id] = Shelf(
                self._root,
                agent_id,
                clock=self._clock,
                reverify_s=self._limits.reverify_s,
            )
        await self._run(shelf.open)
        return shelf

    async def _verified(
        self, shelf: Shelf, generation: int, *, fresh: bool
    ) -> Manifest:
        shelf.enter()
        try:
            found = await self._run(shelf.load, generation)
            async with aclosing(self._pieces(shelf, found, fresh=fresh)) as pieces:
                async for _ in pieces:
                    pass
        finally:
            await self._leave(shelf)
        return shelf.stamped(found)

    async def _pieces(
        self, shelf: Shelf, found: Manifest, *, fresh: bool
    ) -> AsyncGenerator[bytes, None]:
        blocks = found.blocks
        jobs: deque[Future[bytes]] = deque()
        for start in range(0, len(blocks), _PIECE_BLOCKS):
            piece = blocks[start : start + _PIECE_BLOCKS]
            jobs.append(self._pool.submit(shelf.frames.raw, piece, fresh=fresh))
            if len(jobs) > _AHEAD:
                yield await asyncio.wrap_future(jobs.popleft())
        while jobs:
            yield await asyncio.wrap_future(jobs.popleft())
        await self._run(give_back, found.raw_size_bytes)

    async def _leave(self, shelf: Shelf) -> None:
        shelf.leave()
        try:
            await self._run(shelf.tidy)
        except OutriggerError as error:
            self._publish(describe("checkpoints.tidy", error))

    async def _run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await unbroken(self._pool.submit(work, *args, **kwargs))

    def _say(
        self, generation: int, action: str, reason: str = "", size: int = 0
    ) -> None:
        self._publish(
            CheckpointMoved(
                generation=generation,
                action=action,
                reason=reason,
                raw_size_bytes=size,
            )
        )


def _present(shelf: Shelf, digests: Sequence[bytes]) -> tuple[bytes, ...]:
    index = shelf.index()
    return tuple(name for name in digests if _is_good(shelf, index.get(name)))


def _is_good(shelf: Shelf, known: Block | None) -> bool:
    if known is None:
        return False
    try:
        shelf.frames.check((known,))
    except Corrupt:
        return False
    return True


def _none(agent_id: str) -> NotFound:
    return NotFound(
        "NO_CHECKPOINT", f"agent {agent_id} has no checkpoint that could be read yet"
    )
