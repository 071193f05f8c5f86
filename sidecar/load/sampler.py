"""What the agent's processes use, measured cheaply.

The tree is read from /proc/PID/task/*/children, which costs what the tree costs;
psutil's own walk looks at every process of the machine. PSS walks page tables, so
it is read at most at every tenth sample or when asked for; in between the last
value stands. CPU is the tree's total, ended and reaped children included, so a
process that comes and goes between two samples is not missed.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import psutil

from outrigger.core.clock import Clock
from sidecar.policy.agent import LoadSample

_PSS_EVERY: Final = 10
_PROCESSES_MAX: Final = 4096
_PAGE_BYTES: Final = 4096


class Sampler:
    """Samples one process tree at a time, off the loop."""

    def __init__(self, clock: Clock, *, pss_every: int = _PSS_EVERY) -> None:
        """Prepare; PSS is read at every `pss_every`-th sample."""
        self._clock = clock
        self._pss_every = pss_every
        self._own = psutil.Process()
        self._own_pss = 0
        self._known: dict[int, psutil.Process] = {}
        self._root: psutil.Process | None = None
        self._pss = 0
        self._since_pss = pss_every
        self._cpu_s = 0.0
        self._at = 0.0
        self._one_at_a_time = asyncio.Lock()

    async def sample(self, root_pid: int, *, read_pss: bool = False) -> LoadSample:
        """Return what the tree of `root_pid` uses now.

        The first sample of a process has CPU 0. A process that is not there, or 0,
        gives a sample of nothing. Memory of processes that end meanwhile is left
        out.
        """
        async with self._one_at_a_time:
            return await asyncio.to_thread(self._sample, root_pid, read_pss=read_pss)

    def _sample(self, root_pid: int, *, read_pss: bool) -> LoadSample:
        anew = self._follow(root_pid)
        tree = self._tree(root_pid) if self._root else []
        rss, cpu_s, count = self._usage(tree)
        now = self._clock.monotonic()
        ratio = 0.0 if anew or not tree else self._ratio(cpu_s, now)
        self._cpu_s, self._at = cpu_s, now
        self._since_pss += 1
        if read_pss or anew or self._since_pss >= self._pss_every:
            self._read_pss(tree)
        return LoadSample(
            wall_s=self._clock.wall(),
            cpu_ratio=ratio,
            rss_bytes=rss,
            pss_bytes=self._pss if tree else 0,
            process_count=count,
            sidecar_pss_bytes=self._own_pss,
        )

    def _follow(self, root_pid: int) -> bool:
        """Make sure whose tree is sampled; say whether it is another one."""
        if self._root and self._root.pid == root_pid and self._root.is_running():
            return False
        self._known.clear()
        self._root = None
        with suppress(psutil.Error):
            self._root = psutil.Process(root_pid) if root_pid > 0 else None
        return True

    def _tree(self, root_pid: int) -> list[psutil.Process]:
        """Return the processes, root first; forget those that are gone."""
        found: dict[int, psutil.Process] = {}
        waiting = [root_pid]
        while waiting and len(found) < _PROCESSES_MAX:
            pid = waiting.pop()
            process = self._process(pid)
            if process is not None and pid not in found:
                found[pid] = process
                waiting.extend(_children(pid))
        self._known = found
        return list(found.values())

    def _process(self, pid: int) -> psutil.Process | None:
        if self._root is not None and pid == self._root.pid:
            return self._root
        known = self._known.get(pid)
        if known is not None and known.is_running():
            return known
        try:
            return psutil.Process(pid)
        except psutil.Error:
            return None

    def _usage(self, tree: list[psutil.Process]) -> tuple[int, float, int]:
        rss, cpu_s, count = 0, 0.0, 0
        for process in tree:
            with suppress(psutil.Error), process.oneshot():
                times = process.cpu_times()
                rss += process.memory_info().rss
                cpu_s += times.user + times.system
                cpu_s += times.children_user + times.children_system
                count += 1
        return rss, cpu_s, count

    def _ratio(self, cpu_s: float, now: float) -> float:
        elapsed_s = now - self._at
        if elapsed_s <= 0:
            return 0.0
        # A process that leaves the tree takes its past with it.
        return max(cpu_s - self._cpu_s, 0.0) / elapsed_s

    def _read_pss(self, tree: list[psutil.Process]) -> None:
        self._since_pss = 0
        self._pss = sum(_pss(process) for process in tree)
        self._own_pss = _pss(self._own)


def _children(pid: int) -> Iterator[int]:
    """Yield the children of every thread of a process.

    Plain descriptors: with thirty threads, Path and file objects cost more than
    everything else in a sample.
    """
    folder = f"/proc/{pid}/task"
    with suppress(OSError):
        for task in os.listdir(folder):  # noqa: PTH208 - see above
            yield from map(int, _read(f"{folder}/{task}/children").split())


def _read(path: str) -> bytes:
    handle = os.open(path, os.O_RDONLY)
    try:
        # The kernel gives a page at a time and ends only with nothing.
        return b"".join(iter(lambda: os.read(handle, _PAGE_BYTES), b""))
    finally:
        os.close(handle)


def _pss(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_full_info().pss)
    return 0
