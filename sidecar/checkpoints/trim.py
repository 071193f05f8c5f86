"""Trim: carry out what retention decides."""

from dataclasses import dataclass

from outrigger.core.errors import Corrupt
from sidecar.checkpoints.manifest import Manifest
from sidecar.checkpoints.shelf import Shelf
from sidecar.policy.retention import MIN_GOOD, Held, Retention, removable


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What was removed, or would be."""

    generations: tuple[int, ...]
    """Oldest first."""
    freed_bytes: int
    """Packs that somebody is reading right now are freed when that ends."""


def trim(
    shelf: Shelf, retention: Retention, now_wall_s: float, *, validate_only: bool
) -> Trimmed:
    """Remove the generations that are no longer wanted; blocks.

    What counts as good was read back, so that two generations that can be restored
    always stay.

    Raises:
        Transient: DISK_FAILED.
    """
    # Reading back costs, so first see whether anything would go at all.
    if not removable(_held(shelf, prove=False), retention, now_wall_s):
        return Trimmed((), 0)
    gone = removable(_held(shelf, prove=True), retention, now_wall_s)
    freed = shelf.freed_by(gone) if gone else 0
    if gone and not validate_only:
        shelf.remove(gone)
    return Trimmed(gone, freed)


def _held(shelf: Shelf, *, prove: bool) -> list[Held]:
    survey = shelf.survey()
    held = [
        Held(
            generation=generation,
            wall_s=0.0,
            stored_bytes=shelf.pack_bytes(generation),
            good=False,
        )
        for generation in survey.damaged
    ]
    proven = 0
    for one in survey.readable:
        good = not prove or proven >= MIN_GOOD or _is_good(shelf, one)
        proven += good
        held.append(
            Held(
                generation=one.generation,
                wall_s=one.created_wall_s,
                stored_bytes=one.stored_size_bytes,
                good=good,
            )
        )
    return held


def _is_good(shelf: Shelf, found: Manifest) -> bool:
    try:
        shelf.frames.check(found.blocks)
    except Corrupt:
        return False
    return True
