"""Checks of this machine: what the kernel offers, and which ports are free."""

import ctypes
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

import google.protobuf
import grpc

from outrigger.cli.finding import Finding, bad, doubtful, good
from outrigger.core import names

_PYTHON: Final = (3, 11)
_PR_GET_PDEATHSIG: Final = 2
_FILES_MIN: Final = 1024
_PORTS: Final = (
    ("controller admin", names.DEFAULT_CONTROLLER_ADMIN),
    ("controller connect", names.DEFAULT_CONTROLLER_CONNECT),
    ("sidecar outbound", names.DEFAULT_OUTBOUND),
    ("sidecar api", names.DEFAULT_API_TCP),
    ("sidecar inbound", names.DEFAULT_INBOUND),
)


def machine(ours: Iterable[str], proc: Path = Path("/proc/self")) -> Iterator[Finding]:
    """Yield what this machine offers.

    Args:
        ours: addresses our running servers have announced.
        proc: this process in procfs.
    """
    yield python(sys.version_info[:3])
    yield good(
        "libraries",
        f"grpcio {grpc.__version__}, protobuf {google.protobuf.__version__},"
        f" SQLite {sqlite3.sqlite_version}",
    )
    yield death_signal(ctypes.CDLL(None).prctl)
    yield stopping([sys.executable, "-ISc", "input()"])
    yield proportional_memory(proc)
    yield child_lists(proc)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    known = frozenset(ours)
    for name, address in _PORTS:
        yield port(name, address, ours=address in known)


def python(version: tuple[int, int, int]) -> Finding:
    """Check the interpreter's version."""
    shown = ".".join(map(str, version))
    if version[:2] < _PYTHON:
        return bad("python", shown, "install Python 3.11 or newer")
    return good("python", shown)


def death_signal(prctl: Callable[..., int]) -> Finding:
    """Check that an agent can be made to end with its sidecar."""
    held = ctypes.c_int()
    if prctl(_PR_GET_PDEATHSIG, ctypes.byref(held), 0, 0, 0) != 0:
        return bad(
            "parent death signal",
            "prctl(PR_SET_PDEATHSIG) is refused",
            "run on Linux, and let the sandbox allow prctl: without it an agent"
            " outlives a killed sidecar",
        )
    return good("parent death signal", "offered")


def stopping(command: list[str]) -> Finding:
    """Check that a process can be stopped in memory, as freezing does."""
    child = subprocess.Popen(command, stdin=subprocess.PIPE)  # noqa: S603 - our own
    try:
        os.kill(child.pid, signal.SIGSTOP)
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        if os.WIFSTOPPED(status):
            return good("freezing", "a child could be stopped")
        return bad(
            "freezing",
            "a child ended instead of stopping",
            "let the sandbox allow SIGSTOP to own children, or keep to --sleep-mode"
            " process",
        )
    finally:
        child.kill()
        child.communicate()


def proportional_memory(proc: Path) -> Finding:
    """Check that memory can be counted without counting shared pages twice."""
    try:
        readable = b"Pss:" in (proc / "smaps_rollup").read_bytes()
    except OSError:
        readable = False
    if readable:
        return good("memory measure", "smaps_rollup is readable")
    return doubtful(
        "memory measure",
        "smaps_rollup is not readable",
        "memory of agents will be shown as 0; needs Linux 4.14 and ptrace access to"
        " own processes",
    )


def child_lists(proc: Path) -> Finding:
    """Check that descendants can be found cheaply."""
    if next(proc.glob("task/*/children"), None) is not None:
        return good("process tree", "lists of children are readable")
    return doubtful(
        "process tree",
        "/proc/PID/task/TID/children is missing",
        "use a kernel with CONFIG_PROC_CHILDREN: an agent's own children will not be"
        " measured",
    )


def open_files(limit: int) -> Finding:
    """Check the limit of open files."""
    if 0 <= limit < _FILES_MIN:
        return doubtful(
            "open files", str(limit), f"raise it: ulimit -n {_FILES_MIN} or more"
        )
    return good("open files", "no limit" if limit < 0 else str(limit))


def port(name: str, address: str, *, ours: bool) -> Finding:
    """Check that a default port is free, or taken by ourselves."""
    check = f"port of {name}"
    if ours:
        return good(check, f"{address} is in use by our own server")
    host, _, number = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(number)))
        except OSError as error:
            return doubtful(
                check,
                f"{address} is taken ({error.strerror})",
                "nothing, if a server of ours has it; else a default port gives way to"
                " a free one, an explicit one does not",
            )
    return good(check, f"{address} is free")
