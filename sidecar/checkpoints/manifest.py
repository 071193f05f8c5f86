"""Manifests: what a generation consists of.

A manifest is written last, so that its being there means that everything it
names is there too. Numbers and names in it are checked on every read, and its
state digest binds the digests of its blocks and their order.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from outrigger.core.blocks import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    FRAME_OVERHEAD_BYTES,
    root_digest,
)
from outrigger.core.errors import Corrupt, Refused
from sidecar.checkpoints.sealed import seal, unseal

FORMAT: Final = 1
"""Version of the form on disk; older programs refuse newer ones by name."""
MAX_BYTES: Final = 256 * 1024 * 1024
"""No manifest is longer; one that is, is not read into memory."""


@dataclass(frozen=True, slots=True)
class Block:
    """One block of a state and where its frame lies."""

    digest: bytes
    """SHA-256 of the raw bytes."""
    raw_bytes: int
    pack: int
    """Generation whose pack file holds the frame."""
    offset: int
    frame_bytes: int
    frame_digest: bytes
    """SHA-256 of the frame, so that damage is seen before lz4 sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One generation of an agent's state."""

    agent_id: str
    generation: int
    parent_generation: int
    """Newest readable generation when it was begun; 0 means none."""
    epoch: int
    """Epoch it was saved under."""
    raw_size_bytes: int
    stored_size_bytes: int
    """Size of its own pack: what it added on disk, this file apart."""
    reused_block_count: int
    """Blocks whose frames were already stored."""
    schema: str
    state_digest: bytes
    created_wall_s: float
    blocks: tuple[Block, ...]
    verified_wall_s: float | None = None
    """When the last of its bytes was read back; None means not in this process.
    Not on disk."""

    @property
    def block_count(self) -> int:
        """Return the number of blocks, equal ones counted each."""
        return len(self.blocks)

    @property
    def subject(self) -> str:
        """Return the name for messages."""
        return f"checkpoint {self.generation} of agent {self.agent_id}"


def encode(manifest: Manifest) -> bytes:
    """Return the bytes to store."""
    return seal(
        {
            "format": FORMAT,
            "agent_id": manifest.agent_id,
            "generation": manifest.generation,
            "parent_generation": manifest.parent_generation,
            "epoch": manifest.epoch,
            "raw_size_bytes": manifest.raw_size_bytes,
            "stored_size_bytes": manifest.stored_size_bytes,
            "reused_block_count": manifest.reused_block_count,
            "schema": manifest.schema,
            "state_digest": manifest.state_digest.hex(),
            "created_wall_s": manifest.created_wall_s,
            "blocks": [
                [
                    block.digest.hex(),
                    block.raw_bytes,
                    block.pack,
                    block.offset,
                    block.frame_bytes,
                    block.frame_digest.hex(),
                ]
                for block in manifest.blocks
            ],
        }
    )


def decode(data: bytes, agent_id: str, generation: int) -> Manifest:
    """Return the manifest in `data`, which must be the one asked for.

    Raises:
        Corrupt: BROKEN_SEAL or BAD_MANIFEST.
        Refused: NEWER_FORMAT when a newer program wrote it.
    """
    subject = f"the manifest of checkpoint {generation} of agent {agent_id}"
    document = unseal(data, subject)
    if document.get("format") != FORMAT:
        raise Refused(
            "NEWER_FORMAT",
            f"{subject} has format {document.get('format')!r}, this program reads"
            f" {FORMAT}: run the newer program, or restore another generation",
        )
    try:
        manifest = _from(document)
    except (KeyError, TypeError, ValueError) as error:
        raise _bad(subject, f"a field is missing or malformed ({error})") from error
    wrong = _contradiction(manifest, agent_id, generation)
    if wrong:
        raise _bad(subject, wrong)
    return manifest


def _from(document: dict[str, Any]) -> Manifest:
    return Manifest(
        agent_id=str(document["agent_id"]),
        generation=int(document["generation"]),
        parent_generation=int(document["parent_generation"]),
        epoch=int(document["epoch"]),
        raw_size_bytes=int(document["raw_size_bytes"]),
        stored_size_bytes=int(document["stored_size_bytes"]),
        reused_block_count=int(document["reused_block_count"]),
        schema=str(document["schema"]),
        state_digest=bytes.fromhex(document["state_digest"]),
        created_wall_s=float(document["created_wall_s"]),
        blocks=tuple(_block(*fields) for fields in document["blocks"]),
    )


def _block(
    digest: str, raw: int, pack: int, offset: int, frame: int, frame_digest: str
) -> Block:
    return Block(
        bytes.fromhex(digest),
        int(raw),
        int(pack),
        int(offset),
        int(frame),
        bytes.fromhex(frame_digest),
    )


def _contradiction(manifest: Manifest, agent_id: str, generation: int) -> str:
    """Return what does not fit together; empty if all does."""
    blocks = manifest.blocks
    checks = (
        (
            (manifest.agent_id, manifest.generation) == (agent_id, generation),
            f"it is that of {manifest.subject}",
        ),
        (all(_possible(block) for block in blocks), "a block is impossible"),
        (
            all(first.raw_bytes == BLOCK_BYTES for first, _ in pairwise(blocks)),
            "a block before the last is not whole",
        ),
        (
            sum(block.raw_bytes for block in blocks) == manifest.raw_size_bytes,
            "its blocks do not add up to its size",
        ),
        (
            root_digest(block.digest for block in blocks) == manifest.state_digest,
            "its blocks do not have its state digest",
        ),
    )
    return next((text for holds, text in checks if not holds), "")


def _possible(block: Block) -> bool:
    return (
        0 < block.raw_bytes <= BLOCK_BYTES
        and 0 < block.frame_bytes <= block.raw_bytes + FRAME_OVERHEAD_BYTES
        and block.pack > 0
        and block.offset >= 0
        and len(block.digest) == len(block.frame_digest) == DIGEST_BYTES
    )


def _bad(subject: str, detail: str) -> Corrupt:
    return Corrupt(
        "BAD_MANIFEST", f"{subject} is damaged: {detail}; restore an older generation"
    )
