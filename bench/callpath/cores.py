"""Keeping what is measured and what measures it on different cores.

Left to itself a relay in grpc.aio is two numbers: its poller and its loop are threads
that meet on one core or on two as the kernel likes, and the same calls cost 300 or
900 us of CPU. On one core they repeat within a tenth. Everybody in between gets the
same core, one after the other; the callers and the callee get the others.
"""

import os
from collections.abc import Iterable
from pathlib import Path


def apart(between: Iterable[int], ends: Iterable[int]) -> bool:
    """Keep the processes in between on one core, both ends on the others.

    Args:
        between: process ids of what is measured.
        ends: process ids of callers and callee.

    Returns:
        False where there is only one core: nothing was done.
    """
    *others, last = sorted(os.sched_getaffinity(0))
    if not others:
        return False
    for pid in between:
        _keep(pid, [last])
    for pid in ends:
        _keep(pid, others)
    return True


def _keep(pid: int, cores: list[int]) -> None:
    """Move every thread there is; those made later follow their maker."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)
