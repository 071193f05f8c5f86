"""Checks of a state directory: who may enter it, room, and sound databases."""

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from outrigger.cli import cells
from outrigger.cli.connect import announced
from outrigger.cli.finding import Finding, bad, doubtful, good
from outrigger.core import names
from outrigger.core.errors import Refused
from outrigger.core.rpc.server import SOCKET_PATH_BYTES

_OTHERS: Final = 0o077
_FREE_FAIL_BYTES: Final = 64 << 20
_FREE_WARN_BYTES: Final = 1 << 30
_SECRETS: Final = (names.TOKEN_FILE, names.ADMIN_TOKEN_FILE, names.JOIN_TOKEN_FILE)


def state(directory: Path) -> Iterator[Finding]:
    """Yield what a state directory is like; nothing in it is changed."""
    check = f"state {directory}"
    if not directory.is_dir():
        yield bad(
            check,
            "there is no such directory",
            "name another with --state-dir, or start a server with it first",
        )
        return
    yield _privacy(check, directory)
    yield _room(check, shutil.disk_usage(directory).free)
    yield _socket_path(check, directory)
    yield _address(check, directory)
    for name in _SECRETS:
        if (directory / name).exists():
            yield _secret(check, directory / name)
    for database in sorted(directory.glob("*.db")):
        yield _database(check, database)


def _privacy(check: str, directory: Path) -> Finding:
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode & _OTHERS:
        return bad(
            check, f"mode {mode:o}: others may enter", f"run 'chmod 700 {directory}'"
        )
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return bad(check, "this user may not write it", "run as the user of the server")
    return good(check, "private and writable")


def _room(check: str, free_bytes: int) -> Finding:
    detail = f"{cells.size(free_bytes)} free"
    if free_bytes < _FREE_FAIL_BYTES:
        return bad(check, detail, "make room: letters and checkpoints will be refused")
    if free_bytes < _FREE_WARN_BYTES:
        return doubtful(check, detail, "make room before letters are refused")
    return good(check, detail)


def _socket_path(check: str, directory: Path) -> Finding:
    longest = max(names.API_SOCKET, names.OUTBOUND_SOCKET, key=len)
    length = len(os.fsencode(directory.absolute() / longest))
    if length > SOCKET_PATH_BYTES:
        return bad(
            check,
            f"its sockets' paths have {length} bytes, Linux takes {SOCKET_PATH_BYTES}",
            "choose a shorter --state directory",
        )
    return good(check, "its sockets' paths are short enough")


def _address(check: str, directory: Path) -> Finding:
    try:
        known = announced(directory)
    except Refused as error:
        return bad(check, error.message, "restart the server")
    if not known:
        return good(check, "no server has announced itself here")
    return good(check, "announces " + ", ".join(f"{k} {v}" for k, v in known.items()))


def _secret(check: str, path: Path) -> Finding:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & _OTHERS:
        return bad(
            check,
            f"{path.name} has mode {mode:o}: others may read it",
            f"run 'chmod 600 {path}', then remove it to have a new one made",
        )
    return good(check, f"{path.name} is private")


def _database(check: str, path: Path) -> Finding:
    """Let SQLite read the whole structure, without writing a byte."""
    try:
        with closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.Error as error:
        found = [str(error)]
    if found == ["ok"]:
        return good(check, f"{path.name} is sound")
    return bad(
        check,
        f"{path.name} is damaged: {'; '.join(found)}",
        "stop the server, keep a copy of the directory, then restore from a backup",
    )
