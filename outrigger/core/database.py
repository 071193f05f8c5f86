"""One SQLite file with one writer, and an answer only after the disk has it.

Every write is a function of the connection. The writer thread takes all that
wait, runs them in one transaction, commits with `synchronous=FULL` and only then
answers (group commit). A function that raises takes back only its own changes.

After a failed commit nothing more is accepted: the pages in memory prove
nothing any more. See `Database.reopen`.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from outrigger.core.errors import Corrupt, OutriggerError, Transient

T = TypeVar("T")
_BATCH = 256
_READERS_TIMEOUT_S = 5.0


@dataclass(slots=True)
class _Job:
    work: Callable[[sqlite3.Connection], Any]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[Any]


def connect(path: Path) -> sqlite3.Connection:
    """Open the file in WAL mode with full synchronisation.

    Raises:
        Corrupt: STORE_CORRUPT when it is not a sound database.
        Transient: STORE_UNOPENABLE when the file cannot be opened or written.
    """
    try:
        connection = sqlite3.connect(
            path,
            timeout=_READERS_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise _open_error(path, error) from error
    if verdict != "ok":
        connection.close()
        raise _corrupt(path, str(verdict))
    return connection


def _open_error(path: Path, error: sqlite3.DatabaseError) -> OutriggerError:
    if isinstance(error, sqlite3.OperationalError):
        return Transient(
            "STORE_UNOPENABLE",
            f"cannot open {path}: {error}: check that the state directory is there,"
            " writable by this user and not full",
        )
    return _corrupt(path, str(error))


def _corrupt(path: Path, detail: str) -> Corrupt:
    return Corrupt(
        "STORE_CORRUPT",
        f"{path} is not a sound database ({detail}): nothing was changed; move the"
        " state directory aside to start afresh, or restore it from a backup",
    )


class Database:
    """One file, one writer thread, short reads beside it."""

    def __init__(self, path: Path, schema: str) -> None:
        """Open and prepare the file.

        Raises:
            Corrupt: STORE_CORRUPT.
            Transient: STORE_UNOPENABLE.
        """
        self._path = path
        self._schema = schema
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._failure: Transient | None = None
        self._connection = connect(path)
        self._connection.executescript(schema)
        self._reader = connect(path)
        self._read_lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._run, name=f"writer-{path.name}", daemon=True
        )
        self._thread.start()

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction; return once it is on disk.

        A cancelled caller does not break the batch: the work is done anyway.

        Raises:
            Transient: STORE_FAILED after a failed commit, until reopened.
        """
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(work, loop, done))
        return await done

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a reading connection, off the loop."""
        return await asyncio.to_thread(self._read, work)

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._read_lock:
            return work(self._reader)

    async def close(self) -> None:
        """Finish what waits and close the file."""
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        self._reader.close()
        self._connection.close()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            batch = [job]
            ended = False
            while len(batch) < _BATCH and not ended:
                try:
                    following = self._jobs.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    ended = True
                else:
                    batch.append(following)
            self._commit(batch)
            if ended:
                return

    def _commit(self, batch: list[_Job]) -> None:
        results: list[tuple[_Job, Any, BaseException | None]] = []
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            results = [self._apply(job) for job in batch]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._failure = Transient(
                "STORE_FAILED",
                f"{self._path} cannot be written ({error}): nothing more is accepted"
                " until it is reopened and verified",
                retry_after_s=1.0,
            )
            results = [(job, None, self._failure) for job in batch]
        for job, value, raised in results:
            job.loop.call_soon_threadsafe(_answer, job.done, value, raised)

    def _apply(self, job: _Job) -> tuple[_Job, Any, BaseException | None]:
        self._connection.execute("SAVEPOINT job")
        try:
            value = job.work(self._connection)
        except sqlite3.OperationalError:
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller
            self._connection.execute("ROLLBACK TO job")
            self._connection.execute("RELEASE job")
            return job, None, error
        self._connection.execute("RELEASE job")
        return job, value, None


def _answer(
    done: asyncio.Future[Any], value: object, raised: BaseException | None
) -> None:
    if done.done():
        return
    if raised is not None:
        done.set_exception(raised)
    else:
        done.set_result(value)
