"""State on its way to the sidecar's disk and back."""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import grpc

from outrigger.client.errors import error_of
from outrigger.core.blocks import (
    BLOCK_BYTES,
    digest,
    root_digest,
    split,
    state_digest,
)
from outrigger.core.errors import Corrupt, Invalid
from outrigger.core.names import CHUNK_BYTES
from outrigger.v1.checkpoint_pb2 import Checkpoint
from outrigger.v1.checkpoint_service_pb2 import (
    BlockReference,
    QueryBlocksRequest,
    RestoreCheckpointRequest,
    SaveBegin,
    SaveCheckpointRequest,
    SaveCommit,
)
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub

_QUERY_MAX: Final = 4096
"""Digests in one QueryBlocks, by the contract."""
_QUERY_TIMEOUT_S: Final = 10.0
_TRANSFER_TIMEOUT_S: Final = 300.0

Metadata = tuple[tuple[str, str], ...]


class Saves:
    """Saves and restores over one channel to the sidecar's API."""

    def __init__(self, channel: grpc.Channel, metadata: Metadata, schema: str) -> None:
        self._stub = CheckpointServiceStub(channel)
        self._metadata = metadata
        self._schema = schema

    def save(self, state: bytes, epoch: int = 0) -> Checkpoint:
        """Store a state; return once the sidecar has read it back from disk.

        Blocks that the sidecar has already are named, not sent.

        Raises:
            Conflict: SAVE_IN_PROGRESS, when somebody else saves this agent;
                STALE_EPOCH. Neither is tried again here.
            OutriggerError: what the sidecar answered.
        """
        digests = [digest(block) for block in split(state)]
        present = self._present(digests)
        try:
            return self._send(state, digests, present, epoch)
        except Invalid as error:
            # A block may be pruned, or found damaged, between the question and its
            # use; without references nothing is left to go missing.
            if not present or error.reason != "UNKNOWN_BLOCK":
                raise
            return self._send(state, digests, (), epoch)

    def restore(self, generation: int = 0) -> tuple[Checkpoint, bytes]:
        """Return a checkpoint and its state, verified once more on this side.

        Raises:
            Corrupt: STATE_DIGEST_MISMATCH.
            OutriggerError: what the sidecar answered.
        """
        request = RestoreCheckpointRequest(generation=generation)
        checkpoint, parts = Checkpoint(), list[bytes]()
        try:
            for answer in self._stub.RestoreCheckpoint(
                request, timeout=_TRANSFER_TIMEOUT_S, metadata=self._metadata
            ):
                if answer.HasField("checkpoint"):
                    checkpoint = answer.checkpoint
                else:
                    parts.append(answer.chunk)
        except grpc.RpcError as error:
            raise error_of(error) from error
        state = b"".join(parts)
        require_digest(state, checkpoint.generation, checkpoint.state_digest)
        return checkpoint, state

    def _present(self, digests: Sequence[bytes]) -> frozenset[bytes]:
        wanted = list(dict.fromkeys(digests))
        present: set[bytes] = set()
        for start in range(0, len(wanted), _QUERY_MAX):
            request = QueryBlocksRequest(digests=wanted[start : start + _QUERY_MAX])
            try:
                answer = self._stub.QueryBlocks(
                    request, timeout=_QUERY_TIMEOUT_S, metadata=self._metadata
                )
            except grpc.RpcError as error:
                raise error_of(error) from error
            present.update(answer.present_digests)
        return frozenset(present)

    def _send(
        self,
        state: bytes,
        digests: Sequence[bytes],
        present: Collection[bytes],
        epoch: int,
    ) -> Checkpoint:
        begin = SaveBegin(
            epoch=epoch, schema=self._schema, expected_size_bytes=len(state)
        )
        try:
            answer = self._stub.SaveCheckpoint(
                save_messages(state, digests, present, begin),
                timeout=_TRANSFER_TIMEOUT_S,
                metadata=self._metadata,
            )
        except grpc.RpcError as error:
            raise error_of(error) from error
        return answer.checkpoint


def save_messages(
    state: bytes, digests: Sequence[bytes], present: Collection[bytes], begin: SaveBegin
) -> Iterator[SaveCheckpointRequest]:
    """Yield the messages of one save: what is present by name, the rest as bytes."""
    yield SaveCheckpointRequest(begin=begin)
    view, sent = memoryview(state), 0
    for number, name in enumerate(digests):
        start = number * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, len(state))
        if name in present:
            yield from _chunk(view[sent:start])
            yield SaveCheckpointRequest(block=BlockReference(digest=name))
            sent = end
        elif end - sent >= CHUNK_BYTES:
            yield from _chunk(view[sent:end])
            sent = end
    yield from _chunk(view[sent:])
    commit = SaveCommit(raw_size_bytes=len(state), state_digest=root_digest(digests))
    yield SaveCheckpointRequest(commit=commit)


def require_digest(state: bytes, generation: int, expected: bytes) -> None:
    """Raise unless the state is the one that the digest was made of.

    Raises:
        Corrupt: STATE_DIGEST_MISMATCH.
    """
    if state_digest(state) != expected:
        raise Corrupt(
            "STATE_DIGEST_MISMATCH",
            f"the {len(state)} bytes received as generation {generation} are not"
            " those that were saved; restore an older generation",
        )


def _chunk(piece: memoryview) -> Iterator[SaveCheckpointRequest]:
    if piece:
        yield SaveCheckpointRequest(chunk=bytes(piece))
