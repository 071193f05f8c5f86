"""Ratios: what a run says about us that another machine can say again.

Absolute times move with the machine; what we cost over the direct call, the bare
pass-through and Envoy in the same minutes moves with our code. Left out is what is
noise: the p99 of some hundred calls; the latency of a crowd, which is its calls a
second said again, and those of one call at a time, which are its latency; Envoy's
CPU for one call at a time, which is its waking up; the bare one's memory, which moves
by a third from run to run.
"""

from collections.abc import Iterator, Mapping, Sequence
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
    for parties in by_load.values():
        if OURS in parties:
            yield from _of_load(parties[OURS], parties)


def _of_load(ours: Row, parties: Mapping[str, Row]) -> Iterator[Ratio]:
    load = ours.load
    if BARE in parties:
        yield _cpu(ours, parties[BARE])
    if ours.is_crowded and ENVOY in parties:
        yield _cpu(ours, parties[ENVOY])
    if ours.is_crowded and BARE in parties:
        value = ours.calls_per_s / parties[BARE].calls_per_s
        name = f"{load}: calls a second, us / {BARE}"
        yield Ratio(name, load, value, more_is_worse=False)
    if not ours.is_crowded and DIRECT in parties:
        value = ours.least_p50_us / parties[DIRECT].least_p50_us
        yield Ratio(f"{load}: least p50, us / {DIRECT}", load, value)


def _cpu(ours: Row, other: Row) -> Ratio:
    if not ours.cpu_us or not other.cpu_us:
        raise ValueError(f"no CPU was measured of {ours.party} or {other.party}")
    name = f"{ours.load}: CPU, us / {other.party}"
    return Ratio(name, ours.load, ours.cpu_us / other.cpu_us)


def _of_memory(memory: Sequence[Memory]) -> Iterator[Ratio]:
    by_name = {one.party: one for one in memory}
    if OURS in by_name and ENVOY in by_name:
        value = by_name[OURS].pss_mib / by_name[ENVOY].pss_mib
        yield Ratio(f"memory: PSS, us / {ENVOY}", "", value)
