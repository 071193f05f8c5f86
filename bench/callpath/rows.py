"""Rows: what the turns of all rounds come to, per load and party."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from bench.callpath.parties import BASELINE, DIRECT, PLAIN
from bench.callpath.rounds import Memory, Turn
from bench.figures import median

_BUSY_CORES: Final = 0.9


@dataclass(frozen=True, slots=True)
class Row:
    """One party at one load: medians over the rounds, times in microseconds."""

    load: str
    is_crowded: bool
    """See `Load.is_crowded`."""
    party: str
    calls: int
    errors: int
    error: str
    p50_us: float
    p99_us: float
    least_p50_us: float
    """Of the least disturbed round: on a busy machine it repeats four times better
    than the median does."""
    added_p50_us: float | None
    """Over the direct call of the same round; of the Python client that guards
    itself, over the same client that does not."""
    added_p99_us: float | None
    calls_per_s: float
    is_floor: bool
    """The party was not what limited the calls each second: it can do more."""
    cpu_us: float | None
    """Per call: of the process in between, or what the client spends on guarding."""


def rows(turns: Sequence[Turn]) -> list[Row]:
    """Return a row per load and party, in the order they were first seen."""
    return [_row(mine, _rivals(mine, turns)) for mine in _grouped(turns)]


def memory_of(memories: Sequence[Memory]) -> list[Memory]:
    """Return what each party holds; of a client that guards itself what that adds."""
    by_name = {memory.party: memory for memory in memories}
    found = []
    for memory in memories:
        base = by_name.get(BASELINE.get(memory.party, ""))
        if base is not None:
            pss_mib = memory.pss_mib - base.pss_mib
            found.append(Memory(memory.party, pss_mib, memory.rss_mib - base.rss_mib))
        elif memory.party != PLAIN:
            found.append(memory)
    return found


def _grouped(turns: Sequence[Turn]) -> Iterator[list[Turn]]:
    groups: dict[tuple[str, str], list[Turn]] = {}
    for turn in turns:
        groups.setdefault((turn.load.name, turn.party), []).append(turn)
    return iter(groups.values())


def _rivals(mine: Sequence[Turn], turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns that these are measured over, round by round."""
    base = BASELINE.get(mine[0].party, DIRECT)
    if mine[0].party in (base, PLAIN):
        return []
    return [turn for turn in turns if turn.party == base and turn.load == mine[0].load]


def _row(mine: Sequence[Turn], rivals: Sequence[Turn]) -> Row:
    first = mine[0]
    return Row(
        load=first.load.name,
        is_crowded=first.load.is_crowded,
        party=first.party,
        calls=sum(turn.made.calls for turn in mine),
        errors=sum(turn.made.errors for turn in mine),
        error=next((turn.made.error for turn in mine if turn.made.error), ""),
        p50_us=median([turn.made.p50_us for turn in mine]),
        p99_us=median([turn.made.p99_us for turn in mine]),
        least_p50_us=min(turn.made.p50_us for turn in mine),
        added_p50_us=_over(mine, rivals, lambda turn: turn.made.p50_us),
        added_p99_us=_over(mine, rivals, lambda turn: turn.made.p99_us),
        calls_per_s=median([turn.calls_per_s for turn in mine]),
        is_floor=_is_floor(mine),
        cpu_us=_cpu_us(mine, rivals),
    )


def _over(
    mine: Sequence[Turn], rivals: Sequence[Turn], read: Callable[[Turn], float]
) -> float | None:
    if not rivals:
        return None
    pairs = zip(mine, rivals, strict=True)
    return median([read(one) - read(other) for one, other in pairs])


def _cpu_us(mine: Sequence[Turn], rivals: Sequence[Turn]) -> float | None:
    if mine[0].party in (DIRECT, PLAIN):
        return None
    if mine[0].party in BASELINE:
        return _over(mine, rivals, lambda turn: turn.cpu_us or 0.0)
    return median([turn.cpu_us or 0.0 for turn in mine])


def _is_floor(mine: Sequence[Turn]) -> bool:
    busy = [turn.busy_cores for turn in mine if turn.busy_cores is not None]
    return mine[0].load.is_crowded and bool(busy) and median(busy) < _BUSY_CORES
