"""Which generations of a checkpoint may go.

Three rules stand above every limit: the two newest good generations stay; the
newest of all stays even if it is bad, because its number must not be given out a
second time; and as long as fewer than two are good nothing goes at all, bad ones
included, since they may be all there is to repair from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from outrigger.core.errors import Invalid

MIN_GOOD: Final = 2
"""Good generations that always stay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """One stored generation, as retention sees it."""

    generation: int
    wall_s: float
    """When it was saved, seconds since 1970."""
    stored_bytes: int
    """What it added on disk."""
    good: bool
    """Every byte of it was read and found good."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """How much is kept beyond what must be."""

    keep: int = 8
    """Good generations to keep, at least MIN_GOOD."""
    max_age_s: float | None = None
    """Older ones go; None means age does not matter."""
    max_bytes: int | None = None
    """Newest first, those that no longer fit go; None means size does not matter."""

    def __post_init__(self) -> None:
        if self.keep < MIN_GOOD:
            raise Invalid(
                "KEEP_TOO_FEW",
                f"keep is {self.keep}: at least {MIN_GOOD} good generations are always"
                " kept; give 2 or more",
            )


def removable(
    held: Sequence[Held], retention: Retention, now_wall_s: float
) -> tuple[int, ...]:
    """Return the generations to remove, oldest first."""
    newest_first = sorted(held, key=lambda one: one.generation, reverse=True)
    if sum(one.good for one in newest_first) < MIN_GOOD:
        return ()
    gone: list[int] = []
    good = stored = 0
    for one in newest_first:
        keeps = one.good and _fits(one, retention, now_wall_s, good, stored)
        if keeps or one is newest_first[0]:
            good += one.good
            stored += one.stored_bytes
        else:
            gone.append(one.generation)
    return tuple(reversed(gone))


def _fits(
    one: Held, retention: Retention, now_wall_s: float, good: int, stored: int
) -> bool:
    if good < MIN_GOOD:
        return True
    age_s = now_wall_s - one.wall_s
    total = stored + one.stored_bytes
    return (
        good < retention.keep
        and (retention.max_age_s is None or age_s <= retention.max_age_s)
        and (retention.max_bytes is None or total <= retention.max_bytes)
    )
