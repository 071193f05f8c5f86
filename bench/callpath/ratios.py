"""Ratios: what a run says about us that another machine can say again.

Absolute times move with the machine; what we cost over the direct call, the bare
pass-through and Envoy in the same minutes moves with our code. The p99 are left out:
of some hundred calls they are the noise of a few.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.callpath.parties import BARE, DIRECT, ENVOY, OURS
from bench.callpath.rounds import Memory
from bench.callpath.rows import Row


@dataclass(frozen=True, slots=True)
class Ratio:
    """Us over another, in one number."""

    name: str
    load: str
    """What has to be measured again to check it; empty for memory."""
    value: float
    more_is_worse: bool = True


def ratios(rows: Sequence[Row], memory: Sequence[Memory]) -> dict[str, Ratio]:
    """Return all ratios that these rows and readings allow, by name."""
    found = [*_of_rows(rows), *_of_memory(memory)]
    return {ratio.name: ratio for ratio in found}


def _of_rows(rows: Sequence[Row]) -> Iterator[Ratio]:
    by_load: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_load.setdefault(row.load, {})[row.party] = row
    for load, parties in by_load.items():
        ours = parties.get(OURS)
        if ours is None:
            continue
        yield from _of_cpu(load, ours, parties)
        if DIRECT in parties:
            value = ours.p50_us / parties[DIRECT].p50_us
            yield Ratio(f"{load}: p50, us / direct", load, value)


def _of_cpu(load: str, ours: Row, parties: dict[str, Row]) -> Iterator[Ratio]:
    for name in (BARE, ENVOY):
        other = parties.get(name)
        if other is None or not other.cpu_us or ours.cpu_us is None:
            continue
        yield Ratio(f"{load}: CPU, us / {name}", load, ours.cpu_us / other.cpu_us)
    bare = parties.get(BARE)
    if bare is not None and "in flight" in load:
        value = ours.calls_per_s / bare.calls_per_s
        name = f"{load}: calls a second, us / {BARE}"
        yield Ratio(name, load, value, more_is_worse=False)


def _of_memory(memory: Sequence[Memory]) -> Iterator[Ratio]:
    by_name = {one.party: one for one in memory}
    ours = by_name.get(OURS)
    for name in (BARE, ENVOY):
        if ours is not None and name in by_name:
            value = ours.pss_mib / by_name[name].pss_mib
            yield Ratio(f"memory: PSS, us / {name}", "", value)
