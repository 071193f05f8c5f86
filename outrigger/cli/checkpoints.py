"""`outrigger checkpoints`: saved states of an agent."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from outrigger.cli import cells, exits
from outrigger.cli.flags import SIDECAR, Call, Verbs, add_dry_run, add_limit, flag_type
from outrigger.cli.new_file import new_file, open_for_reading
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.core import names, values
from outrigger.core.blocks import StateDigest
from outrigger.core.config import FlagParser
from outrigger.core.errors import Corrupt
from outrigger.v1.checkpoint_pb2 import Checkpoint
from outrigger.v1.checkpoint_service_pb2 import (
    ListCheckpointsRequest,
    PruneCheckpointsRequest,
    RestoreCheckpointRequest,
    SaveBegin,
    SaveCheckpointRequest,
    SaveCommit,
    VerifyCheckpointRequest,
)
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub

_GENERATIONS_MIN: Final = 2

_COLUMNS: Final = (
    Column("GENERATION", lambda c: str(c.generation), right=True),
    Column("AGENT", lambda c: cells.words(c.agent_id)),
    Column("EPOCH", lambda c: str(c.epoch), right=True),
    Column("SIZE", lambda c: cells.size(c.raw_size_bytes), right=True),
    Column("STORED", lambda c: cells.size(c.stored_size_bytes), right=True),
    Column("BLOCKS", lambda c: str(c.block_count), right=True),
    Column("REUSED", lambda c: str(c.reused_block_count), right=True),
    Column("DIGEST", lambda c: cells.digest(c.state_digest)),
    Column("SCHEMA", lambda c: cells.words(c.schema)),
    Column("SAVED", lambda c: cells.moment(c, "create_time")),
    Column("VERIFIED", lambda c: cells.moment(c, "verify_time")),
)
_PRUNED: Final = (
    Column("removed", lambda p: ", ".join(map(str, p.removed_generations)) or "none"),
    Column("freed", lambda p: cells.size(p.freed_bytes)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on checkpoints."""
    verbs = Verbs("checkpoints", "Saved states of one agent.", SIDECAR)
    add_limit(verbs.add("list", _list, "list checkpoints, newest first"))
    save = verbs.add("save", _save, "save a file's bytes as the newest checkpoint")
    save.add_argument("file", type=flag_type(values.path), metavar="FILE")
    save.add_argument("--schema", default="", help="name for the form of the state")
    verify = verbs.add("verify", _verify, "read every byte back and check it")
    _add_generation(verify, "the newest by default")
    restore = verbs.add("restore", _restore, "write a checkpoint's bytes to a file")
    restore.add_argument("file", type=flag_type(values.path), metavar="FILE")
    restore.add_argument("--force", action="store_true", help="replace the file")
    _add_generation(restore, "the newest good one by default")
    prune = verbs.add("prune", _prune, "remove old generations")
    prune.add_argument(
        "--keep",
        required=True,
        type=flag_type(values.between(values.integer, _GENERATIONS_MIN)),
        metavar="COUNT",
        help="generations to keep, at least 2",
    )
    add_dry_run(prune)
    return verbs.run(argv, terminal)


def _add_generation(parser: FlagParser, default: str) -> None:
    parser.add_argument(
        "--generation",
        type=flag_type(values.between(values.integer, 1)),
        default=0,
        metavar="NUMBER",
        help=f"which one; {default}",
    )


async def _list(call: Call) -> int:
    stub = CheckpointServiceStub(call.session.channel)
    request = ListCheckpointsRequest(agent_id=call.session.server.agent_id)
    found = call.session.pages(
        stub.ListCheckpoints, request, "checkpoints", call.flags.limit
    )
    await call.printer.rows(found, _COLUMNS)
    return exits.OK


async def _save(call: Call) -> int:
    stub = CheckpointServiceStub(call.session.channel)
    begin = SaveBegin(agent_id=call.session.server.agent_id, schema=call.flags.schema)
    requests = _save_requests(call.flags.file, begin)
    answer = await call.session.send(stub.SaveCheckpoint, requests)
    call.printer.one(answer.checkpoint, _COLUMNS)
    return exits.OK


def _save_requests(path: Path, begin: SaveBegin) -> Iterator[SaveCheckpointRequest]:
    """Yield a save of what the file holds while it is read."""
    with open_for_reading(path) as file:
        yield SaveCheckpointRequest(begin=begin)
        digest, size = StateDigest(), 0
        while chunk := file.read(names.CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            yield SaveCheckpointRequest(chunk=chunk)
        commit = SaveCommit(raw_size_bytes=size, state_digest=digest.digest())
        yield SaveCheckpointRequest(commit=commit)


async def _verify(call: Call) -> int:
    stub = CheckpointServiceStub(call.session.channel)
    request = VerifyCheckpointRequest(
        agent_id=call.session.server.agent_id, generation=call.flags.generation
    )
    answer = await call.session.call(stub.VerifyCheckpoint, request, long=True)
    call.printer.one(answer.checkpoint, _COLUMNS)
    return exits.OK


async def _restore(call: Call) -> int:
    path: Path = call.flags.file
    stub = CheckpointServiceStub(call.session.channel)
    request = RestoreCheckpointRequest(
        agent_id=call.session.server.agent_id, generation=call.flags.generation
    )
    checkpoint = Checkpoint()
    digest, size = StateDigest(), 0
    with new_file(path, force=call.flags.force) as file:
        async for part in call.session.receive(stub.RestoreCheckpoint, request):
            if part.HasField("checkpoint"):
                checkpoint = part.checkpoint
            file.write(part.chunk)
            digest.update(part.chunk)
            size += len(part.chunk)
        _check_whole(checkpoint, size, digest.digest())
    call.printer.one(checkpoint, _COLUMNS)
    call.printer.say(f"{size} bytes restored to {path}")
    return exits.OK


def _check_whole(checkpoint: Checkpoint, size: int, digest: bytes) -> None:
    """Check what arrived; the file gets its name only after this.

    Raises:
        Corrupt: BAD_RESTORE.
    """
    if size != checkpoint.raw_size_bytes or digest != checkpoint.state_digest:
        raise Corrupt(
            "BAD_RESTORE",
            f"what arrived of generation {checkpoint.generation} is not what was saved:"
            f" {size} of {checkpoint.raw_size_bytes} bytes, digest {digest.hex()[:12]}"
            f" against {checkpoint.state_digest.hex()[:12]}; nothing was written, try"
            " again",
        )


async def _prune(call: Call) -> int:
    stub = CheckpointServiceStub(call.session.channel)
    request = PruneCheckpointsRequest(
        agent_id=call.session.server.agent_id,
        keep=call.flags.keep,
        validate_only=call.flags.dry_run,
    )
    answer = await call.session.call(stub.PruneCheckpoints, request, long=True)
    call.printer.one(answer, _PRUNED)
    if call.flags.dry_run:
        call.printer.say("nothing was removed: this was a dry run")
    return exits.OK
