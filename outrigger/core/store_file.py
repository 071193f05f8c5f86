"""The file under a `Database`: opening, judging its errors, copying and swapping it.

A swap is two steps, so that no crash can pair a file with another's log:

1. the finished copy gets the name `<file>.reopened` (from here on it is the truth);
2. the old `-wal` and `-shm` go, then the copy takes the old file's place.

`connect` finishes step 2 when a crash came in between.
"""

import os
import sqlite3
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from outrigger.core.errors import Corrupt, OutriggerError, Overloaded, Transient

_BUSY_TIMEOUT_S: Final = 5.0
_SIDE_FILES: Final = ("-wal", "-shm", "-journal")
_PRIMARY: Final = 0xFF
_LENIENT_TEXT: Final = partial(str, encoding="utf-8", errors="replace")
"""One text with a flipped bit must not fail a query over all others; who stores
text that matters keeps a checksum of it."""

_DAMAGED: Final = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
)
"""What the connection holds in memory proves nothing after one of these."""
_PASSING: Final[dict[int, tuple[type[OutriggerError], str, str]]] = {
    sqlite3.SQLITE_FULL: (Overloaded, "STORE_FULL", "make room on the disk"),
    sqlite3.SQLITE_READONLY: (
        Transient,
        "STORE_READ_ONLY",
        "make the state directory writable",
    ),
    sqlite3.SQLITE_BUSY: (Transient, "STORE_BUSY", "end the other user of the file"),
    sqlite3.SQLITE_LOCKED: (Transient, "STORE_BUSY", "try again"),
    sqlite3.SQLITE_NOMEM: (Transient, "STORE_NO_MEMORY", "free some memory"),
    sqlite3.SQLITE_CANTOPEN: (
        Transient,
        "STORE_UNOPENABLE",
        "check the directory and the limit on open files",
    ),
}
"""What ends when its cause ends; the transaction is rolled back, nothing else."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a write failed; makes one error per caller."""

    kind: type[OutriggerError]
    reason: str
    message: str

    def error(self) -> OutriggerError:
        """Return a fresh error: a raised one carries its raiser's traceback."""
        return self.kind(self.reason, self.message, retry_after_s=1.0)


def code_of(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code; 0 for errors of the Python module."""
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY


def is_of_the_file(error: sqlite3.Error) -> bool:
    """Tell whether an error is the file's, not that of the statement which met it."""
    return code_of(error) in _DAMAGED or code_of(error) in _PASSING


def passing(path: Path, error: sqlite3.Error) -> Failure | None:
    """Return the failure if it ends by itself with its cause, else None."""
    found = _PASSING.get(code_of(error))
    if found is None:
        return None
    kind, reason, advice = found
    return Failure(
        kind, reason, f"{path} took no write ({error}): nothing was stored; {advice}"
    )


def read_error(path: Path, error: sqlite3.Error) -> OutriggerError:
    """Return what a failed read is to its caller."""
    if code_of(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
        return _corrupt(path, str(error))
    return Transient(
        "STORE_UNREADABLE", f"{path} cannot be read ({error}): check the disk"
    )


def connect(path: Path) -> sqlite3.Connection:
    """Open the file in WAL mode with full synchronisation.

    A file that is not sound is looked at read-only and left as it is.

    Raises:
        Corrupt: STORE_CORRUPT when it is not a sound database.
        Transient: STORE_UNOPENABLE when the file cannot be opened or written.
    """
    try:
        _finish_swap(path)
        if path.exists() and path.stat().st_size:
            _check(path)
        connection = plain_connection(path)
    except sqlite3.DatabaseError as error:
        raise _open_error(path, error) from error
    except OSError as error:
        raise _unopenable(path, str(error)) from error
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _open_error(path, error) from error
    return connection


def plain_connection(path: Path) -> sqlite3.Connection:
    """Open without looking at the file; the caller begins and commits."""
    connection = sqlite3.connect(
        path, timeout=_BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    connection.text_factory = _LENIENT_TEXT
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    return connection


def _check(path: Path) -> None:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as looked:
        verdict = looked.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _corrupt(path, str(verdict))


def _open_error(path: Path, error: sqlite3.DatabaseError) -> OutriggerError:
    if isinstance(error, sqlite3.OperationalError):
        return _unopenable(path, str(error))
    return _corrupt(path, str(error))


def _unopenable(path: Path, detail: str) -> Transient:
    return Transient(
        "STORE_UNOPENABLE",
        f"cannot open {path}: {detail}: check that the state directory is there,"
        " writable by this user and not full",
    )


def _corrupt(path: Path, detail: str) -> Corrupt:
    return Corrupt(
        "STORE_CORRUPT",
        f"{path} is not a sound database ({detail}): nothing was changed; move the"
        " state directory aside to start afresh, or restore it from a backup",
    )


def copy_verified(source: sqlite3.Connection, path: Path) -> None:
    """Make `<path>.reopened`: what `source` sees, read back from the disk.

    Raises:
        Corrupt: STORE_CORRUPT when the copy is not sound or not the same.
        OSError, sqlite3.Error: the disk does not take it.
    """
    copy = path.with_name(path.name + ".copy")
    _remove(copy)
    with closing(plain_connection(copy)) as target:
        source.backup(target)
    with copy.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    uri = f"{copy.absolute().as_uri()}?immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as read_back:
        verdict = read_back.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _corrupt(path, str(verdict))
        _compare(source, read_back, path)
    copy.replace(_reopened(path))
    sync_folder(path.parent)


def _compare(one: sqlite3.Connection, other: sqlite3.Connection, path: Path) -> None:
    names = [
        row[0]
        for row in one.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
    ]
    for name in names:
        query = f'SELECT * FROM "{name}"'  # noqa: S608 - a name from the schema
        rows = zip(one.execute(query), other.execute(query), strict=True)
        try:
            same = all(mine == theirs for mine, theirs in rows)
        except ValueError:
            same = False
        if not same:
            raise _corrupt(path, f"the copy of table {name} differs")


def swap(path: Path) -> None:
    """Put `<path>.reopened` in place; every connection must be closed before."""
    _finish_swap(path)


def _finish_swap(path: Path) -> None:
    if not _reopened(path).exists():
        return
    for suffix in _SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    sync_folder(path.parent)
    _reopened(path).replace(path)
    sync_folder(path.parent)


def _reopened(path: Path) -> Path:
    return path.with_name(path.name + ".reopened")


def _remove(path: Path) -> None:
    for suffix in ("", *_SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DoubtFile:
    """Names of writes whose commit failed: they may turn out valid after a crash.

    Kept beside the database because the database is what failed. Best effort: a
    disk that takes no file at all leaves only the memory of this process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path.with_name(path.name + ".doubt")
        self._lock = threading.Lock()
        self._labels: frozenset[str] = frozenset()
        with suppress(FileNotFoundError):
            self._labels = frozenset(self._path.read_text("utf-8").split())

    @property
    def labels(self) -> frozenset[str]:
        """Return the names not settled yet."""
        return self._labels

    def add(self, labels: set[str]) -> None:
        """Remember names, on disk if it takes them."""
        with self._lock:
            self._labels |= labels
            with suppress(OSError):
                self._store()

    def settle(self, labels: frozenset[str]) -> None:
        """Forget names.

        Raises:
            OSError: they are forgotten here, but not on disk.
        """
        with self._lock:
            self._labels -= labels
            self._store()

    def _store(self) -> None:
        if not self._labels:
            self._path.unlink(missing_ok=True)
            return
        with self._path.open("w", encoding="utf-8") as file:
            file.write("\n".join(sorted(self._labels)))
            file.flush()
            os.fsync(file.fileno())
