"""What the kernel says about processes: read from /proc, signalled by handle.

Numbers are recycled, so a process is recognised by number, start time and boot,
and signalled through a pidfd that was opened before it was recognised.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sidecar.agent.records import ProcessId

_PROC: Final = Path("/proc")
_STAT_BYTES: Final = 4096
_STOPPED: Final = frozenset("Tt")
_DEAD: Final = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """The part of /proc/PID/stat that is used here."""

    pid: int
    state: str
    """One letter: R, S, D, T (stopped), t (traced), Z (zombie), ..."""
    session: int
    start_ticks: int

    @property
    def is_stopped(self) -> bool:
        """Say whether it can do nothing until it is continued."""
        return self.state in _STOPPED

    @property
    def is_dead(self) -> bool:
        """Say whether it has ended and only waits to be reaped."""
        return self.state in _DEAD


def read_stat(pid: int) -> ProcessStat | None:
    """Return what is known of a process; None when there is none."""
    # Plain descriptors: this is asked of every process of the machine.
    try:
        handle = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except OSError:
        return None
    try:
        text = os.read(handle, _STAT_BYTES)
    except OSError:  # gone between the two calls
        return None
    finally:
        os.close(handle)
    # The name, in brackets, may hold anything; what follows the last one is ours.
    fields = text.rpartition(b")")[2].split()
    return ProcessStat(pid, fields[0].decode(), int(fields[3]), int(fields[19]))


def session_members(session: int) -> list[ProcessStat]:
    """Return the living processes of a session; reads all of /proc."""
    found = (read_stat(pid) for pid in _pids())
    return [
        stat
        for stat in found
        if stat is not None and stat.session == session and not stat.is_dead
    ]


def _pids() -> Iterator[int]:
    names = os.listdir(_PROC)  # noqa: PTH208 - names, not a Path for each of them
    return (int(name) for name in names if name.isdigit())


def boot_id() -> str:
    """Return the name of this boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> ProcessId | None:
    """Return what tells a living process from later ones; None if it is gone."""
    stat = read_stat(pid)
    if stat is None or stat.is_dead:
        return None
    return ProcessId(pid, stat.start_ticks, boot_id())


def send_signal(stat: ProcessStat, number: signal.Signals) -> None:
    """Signal the very process that was read, or nobody."""
    with suppress(OSError):  # gone in between is what a KILL wants anyway
        handle = os.pidfd_open(stat.pid)
        try:
            again = read_stat(stat.pid)
            if again is not None and again.start_ticks == stat.start_ticks:
                signal.pidfd_send_signal(handle, number)
        finally:
            os.close(handle)


def leftovers(process: ProcessId, marker: str) -> list[ProcessStat]:
    """Return what still lives of a session that a former sidecar had started.

    Args:
        process: the session's leader as it was recorded.
        marker: a whole `NAME=value` from the environment of the agent; where the
            leader is gone its number may have been given away, and only members
            that carry the marker are the agent's.
    """
    if process.boot_id != boot_id():
        return []
    leader = read_stat(process.pid)
    if leader is not None and leader.start_ticks != process.start_ticks:
        return []
    members = session_members(process.pid)
    if leader is not None:
        return members
    return [stat for stat in members if _carries(stat.pid, marker)]


def _carries(pid: int, marker: str) -> bool:
    try:
        environment = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return False
    return marker.encode() in environment.split(b"\0")
