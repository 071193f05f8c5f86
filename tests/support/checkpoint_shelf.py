"""Checkpoints in memory: the supervisor's port and the agent's service in one."""

import asyncio
from dataclasses import dataclass

from outrigger.core.blocks import state_digest
from outrigger.core.errors import Conflict, Corrupt, NotFound
from outrigger.v1 import checkpoint_pb2, checkpoint_service_pb2
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceServicer


@dataclass(frozen=True)
class Shelved:
    """One checkpoint."""

    generation: int
    epoch: int
    raw: bytes
    state_digest: bytes


class CheckpointShelf(CheckpointServiceServicer):
    """Keeps what is saved; goes bad, slow or full when told."""

    def __init__(self):
        self.kept = {}
        self.bad = set()
        self.fenced = 0
        self.current_epoch = lambda: 0
        self.may_save = asyncio.Event()
        self.may_save.set()
        self.fence_error = None
        self.on_saved = lambda _: None

    def put(self, raw, *, epoch=0):
        """Keep a state and return its checkpoint."""
        if epoch < self.fenced:
            raise Conflict("STALE_EPOCH", f"epoch {epoch} is over")
        generation = max(self.kept, default=0) + 1
        made = Shelved(generation, epoch, raw, state_digest(raw))
        self.kept[generation] = made
        return made

    async def newest_good(self, _agent_id):
        good = [number for number in self.kept if number not in self.bad]
        return self.kept[max(good)] if good else None

    async def list(self, _agent_id):
        return list(self.kept.values())

    async def verify(self, _agent_id, generation):
        if generation not in self.kept:
            raise NotFound("NO_SUCH_CHECKPOINT", f"there is no {generation}")
        if generation in self.bad:
            raise Corrupt("BAD_CHECKPOINT", f"{generation} is rotten")
        return self.kept[generation]

    async def fence(self, _agent_id, epoch):
        if self.fence_error is not None:
            raise self.fence_error
        self.fenced = max(self.fenced, epoch)

    async def SaveCheckpoint(self, request_iterator, context):
        epoch, raw = 0, b""
        async for request in request_iterator:
            epoch = request.begin.epoch or epoch
            raw += request.chunk
        await self.may_save.wait()
        made = self.put(raw, epoch=epoch or self.current_epoch())
        self.on_saved(made)
        return checkpoint_service_pb2.SaveCheckpointResponse(
            checkpoint=checkpoint_pb2.Checkpoint(generation=made.generation)
        )

    async def RestoreCheckpoint(self, request, context):
        raw = self.kept[request.generation].raw
        yield checkpoint_service_pb2.RestoreCheckpointResponse(chunk=raw)
