"""A checkpoint of 100 MB through gRPC, against the bare work on the same bytes.

The bare loop does what must be done in any case: lz4 with checksums, SHA-256,
write, fsync; and for the restore read, decompress, SHA-256.
"""

import hashlib
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import lz4.frame

from bench.figures import Figure, median
from outrigger.core.blocks import BLOCK_BYTES, state_digest
from outrigger.v1 import checkpoint_service_pb2 as pb
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from tests.support.processes import Stack, operator

STATE_BYTES = 100_000_000
CHUNK = 1 << 20
ROUNDS = 3
SAVE_LIMIT_S = 5
RESTORE_LIMIT_S = 10


def measure(folder: Path) -> Iterator[Figure]:
    """Yield save and restore times."""
    with Stack(folder) as stack:
        sidecar = stack.sidecar("ckpt", upstream="127.0.0.1:1")
        stub = CheckpointServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
        token = operator(sidecar.state)
        rounds = [_round(stub, token, folder, seed) for seed in range(ROUNDS)]
    save, restore, bare_save, bare_restore, again = (
        median(list(times)) for times in zip(*rounds, strict=True)
    )
    yield _figure("save of 100 MB", save, bare_save, SAVE_LIMIT_S)
    yield _figure("restore of 100 MB", restore, bare_restore, RESTORE_LIMIT_S)
    yield Figure(
        "checkpoint",
        "save again with 1 % changed, whole state sent",
        again,
        "s",
        f"full save {save:.2f} s",
        again / save,
    )


def _figure(what: str, took: float, bare: float, limit: float) -> Figure:
    return Figure(
        "checkpoint",
        what,
        took,
        "s",
        f"bare lz4 + sha256 + fsync {bare:.2f} s",
        took / bare,
        bound=f"< {limit} s",
        holds=took < limit,
    )


def _state(seed: int) -> bytearray:
    """Return half noise, half text: what lz4 finds in real states."""
    noise = random.Random(seed).randbytes(STATE_BYTES // 2)
    text = (b"agent memory line %d\n" * 4096)[: 1 << 16]
    return bytearray(noise + text * (STATE_BYTES // 2 // len(text) + 1))[:STATE_BYTES]


def _round(
    stub: CheckpointServiceStub, token: tuple, folder: Path, seed: int
) -> tuple[float, float, float, float, float]:
    state = _state(seed)
    save = _timed(lambda: _save(stub, token, state))
    restore = _timed(lambda: _restore(stub, token, state))
    for at in range(0, STATE_BYTES, STATE_BYTES // 4):
        state[at : at + STATE_BYTES // 400] = os.urandom(STATE_BYTES // 400)
    again = _timed(lambda: _save(stub, token, state))
    path = folder / "bare"
    bare_save = _timed(lambda: _bare_save(path, state))
    bare_restore = _timed(lambda: _bare_restore(path))
    path.unlink()
    return save, restore, bare_save, bare_restore, again


def _timed(work: object) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _save(stub: CheckpointServiceStub, token: tuple, state: bytearray) -> None:
    def messages() -> Iterator[pb.SaveCheckpointRequest]:
        yield pb.SaveCheckpointRequest(begin=pb.SaveBegin(schema="bench"))
        for at in range(0, len(state), CHUNK):
            yield pb.SaveCheckpointRequest(chunk=bytes(state[at : at + CHUNK]))
        yield pb.SaveCheckpointRequest(
            commit=pb.SaveCommit(
                raw_size_bytes=len(state), state_digest=state_digest(bytes(state))
            )
        )

    stub.SaveCheckpoint(messages(), metadata=token)


def _restore(stub: CheckpointServiceStub, token: tuple, state: bytearray) -> None:
    whole = bytearray()
    for message in stub.RestoreCheckpoint(
        pb.RestoreCheckpointRequest(), metadata=token
    ):
        whole += message.chunk
    if whole != state:
        raise SystemExit("the restored state differs from the saved one")


def _bare_save(path: Path, state: bytearray) -> None:
    with path.open("wb") as file:
        for at in range(0, len(state), BLOCK_BYTES):
            block = bytes(state[at : at + BLOCK_BYTES])
            hashlib.sha256(block).digest()
            frame = lz4.frame.compress(
                block, content_checksum=True, block_checksum=True
            )
            file.write(len(frame).to_bytes(4, "big") + frame)
        file.flush()
        os.fsync(file.fileno())


def _bare_restore(path: Path) -> None:
    with path.open("rb") as file:
        while size := file.read(4):
            frame = file.read(int.from_bytes(size, "big"))
            hashlib.sha256(lz4.frame.decompress(frame)).digest()
