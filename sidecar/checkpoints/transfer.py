"""Transfer: the checkpoint service, between messages and the store.

An agent reaches only its own checkpoints, an operator any; saves are for the
sidecar's own agent only. What a stream of messages breaks is said in one sentence,
and nothing of it stays behind.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Final

import grpc.aio

from outrigger.core.access import Role, Rule
from outrigger.core.errors import Denied, Invalid, NotFound, OutriggerError, TimedOut
from outrigger.core.names import CHUNK_BYTES
from outrigger.core.rpc.chain import principal_of
from outrigger.core.rpc.events import timestamp
from outrigger.v1 import checkpoint_pb2, checkpoint_service_pb2_grpc
from outrigger.v1 import checkpoint_service_pb2 as pb
from sidecar.checkpoints.manifest import Manifest
from sidecar.checkpoints.save import Save
from sidecar.checkpoints.store import CheckpointStore
from sidecar.rpc.wire import page_after, page_size, page_token

_SERVICE: Final = "/outrigger.v1.CheckpointService/"
_BOTH: Final = frozenset({Role.AGENT, Role.OPERATOR})
_OPERATORS: Final = frozenset({Role.OPERATOR})

ACCESS: Final[dict[str, Rule]] = {
    _SERVICE + "SaveCheckpoint": Rule(roles=_BOTH, mutating=True),
    _SERVICE + "RestoreCheckpoint": Rule(roles=_BOTH),
    _SERVICE + "QueryBlocks": Rule(roles=_BOTH),
    _SERVICE + "GetCheckpoint": Rule(roles=_BOTH),
    _SERVICE + "ListCheckpoints": Rule(roles=_BOTH),
    _SERVICE + "VerifyCheckpoint": Rule(roles=_BOTH),
    _SERVICE + "PruneCheckpoints": Rule(roles=_OPERATORS, mutating=True),
}
"""Who may call what; one row per method."""

MAX_QUERY: Final = 4096
"""Digests asked for at once."""

_IDLE_S: Final = 30.0
_DRAIN_IDLE_S: Final = 0.2
_DRAIN_MAX_S: Final = 5.0

_Context = grpc.aio.ServicerContext[Any, Any]
_Requests = AsyncIterator[pb.SaveCheckpointRequest]


class CheckpointServicer(checkpoint_service_pb2_grpc.CheckpointServiceServicer):
    """Serves the checkpoints of one store."""

    def __init__(
        self,
        store: CheckpointStore,
        *,
        agent_id: str,
        on_saved: Callable[[Manifest, int], object],
        idle_s: float = _IDLE_S,
    ) -> None:
        """Serve `store`.

        Args:
            store: where everything is.
            agent_id: the agent that saves here, and whose checkpoints an operator
                means who names none.
            on_saved: told of every save that was acknowledged, and its epoch.
            idle_s: longest pause between two messages of a save.
        """
        self._store = store
        self._agent_id = agent_id
        self._on_saved = on_saved
        self._idle_s = idle_s

    async def SaveCheckpoint(
        self, request_iterator: _Requests, context: _Context
    ) -> pb.SaveCheckpointResponse:
        """Store a state; see the proto for the order of messages.

        Raises:
            Invalid: NO_BEGIN, SECOND_BEGIN, NO_COMMIT, EMPTY_MESSAGE or
                CHUNK_TOO_LARGE, NOT_THIS_AGENT; and as the store.
            TimedOut: SAVE_STALLED.
        """
        try:
            made = await self._save(request_iterator, context)
        except OutriggerError:
            await _drain(request_iterator)
            raise
        self._on_saved(made, made.epoch)
        return pb.SaveCheckpointResponse(checkpoint=shown(made))

    async def _save(self, requests: _Requests, context: _Context) -> Manifest:
        messages = _timely(requests, self._idle_s)
        begin = await _begin(messages)
        save = await self._store.begin_save(
            self._saver(context, begin.agent_id),
            begin.epoch,
            begin.schema,
            begin.expected_size_bytes,
        )
        try:
            # Tells a client that waits for it that `begin` was accepted.
            await context.send_initial_metadata(())
            return await _fill(save, messages)
        finally:
            await save.abort()

    async def RestoreCheckpoint(
        self, request: pb.RestoreCheckpointRequest, context: _Context
    ) -> AsyncIterator[pb.RestoreCheckpointResponse]:
        """Send a state back, verified."""
        agent_id = self._whose(context, request.agent_id)
        found = await self._to_restore(agent_id, request.generation)
        yield pb.RestoreCheckpointResponse(checkpoint=shown(found))
        async for piece in self._store.read(found):
            yield pb.RestoreCheckpointResponse(chunk=piece)

    async def QueryBlocks(
        self, request: pb.QueryBlocksRequest, context: _Context
    ) -> pb.QueryBlocksResponse:
        """Say which blocks are stored."""
        agent_id = self._whose(context, request.agent_id)
        if len(request.digests) > MAX_QUERY:
            raise Invalid(
                "TOO_MANY_DIGESTS",
                f"{len(request.digests)} digests at once are too many: ask for at most"
                f" {MAX_QUERY}, then for the next",
            )
        present = await self._store.present(agent_id, request.digests)
        return pb.QueryBlocksResponse(present_digests=present)

    async def GetCheckpoint(
        self, request: pb.GetCheckpointRequest, context: _Context
    ) -> pb.GetCheckpointResponse:
        """Return one checkpoint."""
        agent_id = self._whose(context, request.agent_id)
        found = await self._store.manifest(agent_id, request.generation)
        return pb.GetCheckpointResponse(checkpoint=shown(found))

    async def ListCheckpoints(
        self, request: pb.ListCheckpointsRequest, context: _Context
    ) -> pb.ListCheckpointsResponse:
        """Return a page of checkpoints, newest first."""
        agent_id = self._whose(context, request.agent_id)
        size = page_size(request.page_size)
        found = await self._store.list(agent_id)
        if request.page_token:
            before = _generation_of(request.page_token)
            found = tuple(one for one in found if one.generation < before)
        page = found[:size]
        last = str(page[-1].generation) if len(found) > size else ""
        return pb.ListCheckpointsResponse(
            checkpoints=map(shown, page), next_page_token=page_token(last)
        )

    async def VerifyCheckpoint(
        self, request: pb.VerifyCheckpointRequest, context: _Context
    ) -> pb.VerifyCheckpointResponse:
        """Read every byte of a checkpoint and check it."""
        agent_id = self._whose(context, request.agent_id)
        found = await self._store.verify(agent_id, request.generation)
        return pb.VerifyCheckpointResponse(checkpoint=shown(found))

    async def PruneCheckpoints(
        self, request: pb.PruneCheckpointsRequest, context: _Context
    ) -> pb.PruneCheckpointsResponse:
        """Remove old generations."""
        agent_id = self._whose(context, request.agent_id)
        done = await self._store.prune(
            agent_id, request.keep, validate_only=request.validate_only
        )
        return pb.PruneCheckpointsResponse(
            removed_generations=done.generations, freed_bytes=done.freed_bytes
        )

    async def _to_restore(self, agent_id: str, generation: int) -> Manifest:
        if generation:
            return await self._store.manifest(agent_id, generation)
        found = await self._store.newest_good(agent_id)
        if found is None:
            raise NotFound(
                "NO_CHECKPOINT",
                f"agent {agent_id} has no checkpoint yet: start it afresh, or save one",
            )
        return found

    def _saver(self, context: _Context, asked: str) -> str:
        """Return whose state is saved: what is saved here, our agent wakes with.

        Raises:
            Denied: NOT_YOURS.
            Invalid: NOT_THIS_AGENT.
        """
        agent_id = self._whose(context, asked)
        if agent_id != self._agent_id:
            raise Invalid(
                "NOT_THIS_AGENT",
                f"this sidecar saves for agent {self._agent_id!r} and not for"
                f" {agent_id!r}: save at the sidecar of that agent",
            )
        return agent_id

    def _whose(self, context: _Context, asked: str) -> str:
        who = principal_of(context)
        if who.role is not Role.AGENT:
            return asked or self._agent_id
        if asked not in {"", who.agent_id}:
            raise Denied(
                "NOT_YOURS",
                f"the checkpoints of agent {asked!r} are not those of"
                f" {who.agent_id!r}: an agent reaches only its own; leave agent_id"
                " empty",
            )
        return who.agent_id


def shown(found: Manifest) -> checkpoint_pb2.Checkpoint:
    """Return a manifest as its message."""
    message = checkpoint_pb2.Checkpoint(
        name=f"agents/{found.agent_id}/checkpoints/{found.generation}",
        agent_id=found.agent_id,
        generation=found.generation,
        parent_generation=found.parent_generation,
        epoch=found.epoch,
        raw_size_bytes=found.raw_size_bytes,
        stored_size_bytes=found.stored_size_bytes,
        state_digest=found.state_digest,
        block_count=found.block_count,
        reused_block_count=found.reused_block_count,
        schema=found.schema,
        create_time=timestamp(found.created_wall_s),
    )
    if found.verified_wall_s is not None:
        message.verify_time.CopyFrom(timestamp(found.verified_wall_s))
    return message


async def _begin(messages: _Requests) -> pb.SaveBegin:
    async for message in messages:
        if message.WhichOneof("message") == "begin":
            return message.begin
        break
    raise Invalid(
        "NO_BEGIN", "a save begins with 'begin', then chunks or blocks, then 'commit'"
    )


async def _fill(save: Save, messages: _Requests) -> Manifest:
    """Take everything up to the commit; what follows it is not read."""
    async for message in messages:
        match message.WhichOneof("message"):
            case "chunk":
                _check_chunk(message.chunk)
                await save.write(message.chunk)
            case "block":
                await save.reuse(message.block.digest)
            case "commit":
                commit = message.commit
                return await save.commit(commit.raw_size_bytes, commit.state_digest)
            case "begin":
                raise Invalid(
                    "SECOND_BEGIN",
                    "'begin' came a second time: one stream saves one state",
                )
            case _:
                raise Invalid(
                    "EMPTY_MESSAGE",
                    "a message held none of chunk, block and commit: this client may"
                    " be newer than the sidecar",
                )
    raise Invalid(
        "NO_COMMIT",
        "the stream ended without 'commit': nothing was kept; end a save with the size"
        " and the digest of the state",
    )


def _check_chunk(chunk: bytes) -> None:
    if len(chunk) > CHUNK_BYTES:
        raise Invalid(
            "CHUNK_TOO_LARGE",
            f"a chunk of {len(chunk)} bytes came: send at most {CHUNK_BYTES} at once",
        )


async def _timely(requests: _Requests, idle_s: float) -> _Requests:
    """Yield the messages; a stream that stalls must not block later saves."""
    while True:
        try:
            async with asyncio.timeout(idle_s):
                message = await anext(requests, None)
        except TimeoutError as error:
            raise TimedOut(
                "SAVE_STALLED",
                f"no message of this save came for {idle_s:g} s: nothing was kept; save"
                " again",
            ) from error
        if message is None:
            return
        yield message


async def _drain(requests: _Requests) -> None:
    """Read on for a moment before a refusal is answered.

    A grpc.aio client that is refused while it sends reports INTERNAL of its own
    instead of our status, 30 times in 100.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_MAX_S):
            while True:
                async with asyncio.timeout(_DRAIN_IDLE_S):
                    if await anext(requests, None) is None:
                        return


def _generation_of(token: str) -> int:
    stands_for = page_after(token)
    if not (stands_for.isascii() and stands_for.isdigit()):
        raise Invalid(
            "BAD_PAGE_TOKEN",
            "page_token is not one of ours: take next_page_token of the answer before",
        )
    return int(stands_for)
