"""Rounds: every party does the same load in turn, so that drift hits all alike."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from bench.callpath.driver import Made
from bench.callpath.loads import WARM_UP, Effort, Load
from bench.callpath.parties import Field, Party
from bench.figures import cpu_s

Told = Callable[[], object]
"""Called after each load of each party."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One party's turn at one load."""

    load: Load
    party: str
    made: Made
    cpu_us: float | None
    """CPU of the process in between, per call; None if there is none."""
    busy_cores: float | None
    """How many cores that process kept busy."""
    ends_cores: float
    """The same of caller and callee together."""

    @property
    def calls_per_s(self) -> float:
        """How many calls were done each second."""
        return self.made.calls / self.made.elapsed_s


@dataclass(frozen=True, slots=True)
class Memory:
    """What a process holds after the warm-up, in MiB."""

    party: str
    pss_mib: float
    rss_mib: float


def warm_up(field: Field, loads: Sequence[Load], told: Told) -> list[Memory]:
    """Make every load once, the same before every run, and read the memory then."""
    turns(field, loads, WARM_UP, told)
    return [
        _memory(party.name, party.pid)
        for party in field.parties
        if party.pid is not None
    ]


def turns(
    field: Field, loads: Sequence[Load], effort: Effort, told: Told
) -> list[Turn]:
    """Measure; in every round each party begins once later than in the one before."""
    found = []
    for load in loads:
        able = [party for party in field.parties if party.takes(load)]
        seconds = effort.open_seconds if load.rate else effort.seconds
        for number in range(effort.rounds):
            first = number % len(able)
            for party in (*able[first:], *able[:first]):
                found.append(_turn(field, party, load, seconds))
                told()
    return found


def _turn(field: Field, party: Party, load: Load, seconds: float) -> Turn:
    between = _Meter(party.pid)
    ends = [_Meter(pid) for pid in {party.driver.pid, field.upstream_pid} - {party.pid}]
    made = party.driver.make(load, party.target, seconds)
    used_s = between.used_s()
    ends_s = sum(end.used_s() or 0.0 for end in ends)
    return Turn(
        load,
        party.name,
        made,
        None if used_s is None else used_s / max(1, made.calls) * 1e6,
        None if used_s is None else used_s / made.elapsed_s,
        ends_s / made.elapsed_s,
    )


class _Meter:
    """CPU time of a process since now."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._began_s = 0.0 if pid is None else cpu_s(pid)

    def used_s(self) -> float | None:
        return None if self._pid is None else cpu_s(self._pid) - self._began_s


def _memory(name: str, pid: int) -> Memory:
    time.sleep(0.1)
    read = psutil.Process(pid).memory_full_info()
    return Memory(name, read.pss / (1 << 20), read.rss / (1 << 20))
