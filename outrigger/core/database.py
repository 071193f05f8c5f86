"""One SQLite file with one writer, and an answer only after the disk has it.

Every write is a function of the connection. The writer thread takes all that
wait, runs them in one transaction, commits with `synchronous=FULL` and only then
answers (group commit). A function that raises takes back only its own changes.

What a failure spoils:

- an error of the function or its SQL: that function alone;
- disk full, read-only, busy, out of memory: the batch, which is rolled back; the
  next batch simply tries again, so writing works again when the cause ends;
- any I/O error, a damaged page, a commit that failed for a reason not named
  above, or the file gone from its place: the store. Nothing more is accepted and
  nothing is tried again on that file (an fsync that failed once may answer "ok"
  the next time with the data lost), until `Database.reopen` has made a new one.

Race: a commit whose fsync failed may still be found valid after a crash, though
its callers were told that it failed. The labels of such writes are kept beside
the file; see `Database.in_doubt`.
"""

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from outrigger.core.errors import Bug, OutriggerError, Refused, Transient
from outrigger.core.store_file import (
    DoubtFile,
    Failure,
    connect,
    copy_verified,
    is_of_the_file,
    passing,
    plain_connection,
    read_error,
    swap,
)

__all__ = ["Database", "connect"]

T = TypeVar("T")
_BATCH: Final = 256


@dataclass(slots=True)
class _Job:
    work: Callable[[sqlite3.Connection], Any]
    done: asyncio.Future[Any]
    label: str


@dataclass(slots=True)
class _Reopen:
    done: asyncio.Future[None]


_Result = tuple[asyncio.Future[Any], object, BaseException | None]


class Database:
    """One file, one writer thread, short reads beside it."""

    def __init__(self, path: Path, schema: str) -> None:
        """Open and prepare the file.

        Raises:
            Corrupt: STORE_CORRUPT.
            Transient: STORE_UNOPENABLE.
        """
        self._path = path
        self._jobs: queue.SimpleQueue[_Job | _Reopen | None] = queue.SimpleQueue()
        self._failure: Failure | None = None
        self._closed = False
        self._connection = connect(path)
        try:
            self._connection.executescript(schema)
            self._inode = path.stat().st_ino
            self._doubt = DoubtFile(path)
            self._reader = plain_connection(path)
        except (sqlite3.Error, OSError) as error:
            self._connection.close()
            raise _unprepared(path, error) from error
        self._read_lock = threading.Lock()
        self._thread = threading.Thread(
            target=self._run, name=f"writer-{path.name}", daemon=True
        )
        self._thread.start()

    @property
    def failure(self) -> OutriggerError | None:
        """Return why nothing is accepted any more; None while all is well."""
        return None if self._failure is None else self._failure.error()

    @property
    def in_doubt(self) -> frozenset[str]:
        """Return labels of writes whose commit failed and may yet prove valid."""
        return self._doubt.labels

    async def settle_doubt(self, labels: frozenset[str]) -> None:
        """Forget labels, once their owner has dealt with what they name."""
        await asyncio.to_thread(self._doubt.settle, labels)

    def submit(
        self, work: Callable[[sqlite3.Connection], T], *, label: str = ""
    ) -> asyncio.Future[T]:
        """Queue `work`; the future is answered once it is on disk.

        Args:
            work: gets the connection inside a transaction; never commits.
            label: names the write should its commit end in doubt; one line.

        Raises:
            Transient: STORE_FAILED after a failed commit, until reopened.
            Refused: STORE_CLOSED.
        """
        if self._closed:
            raise _closed(self._path)
        if self._failure is not None:
            raise self._failure.error()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Job(work, done, label))
        return done

    async def write(
        self, work: Callable[[sqlite3.Connection], T], *, label: str = ""
    ) -> T:
        """Run `work` in a transaction; return once it is on disk.

        A cancelled caller does not break the batch: the work is done anyway.

        Raises:
            Transient: STORE_FAILED after a failed commit, until reopened;
                STORE_READ_ONLY, STORE_BUSY, STORE_NO_MEMORY, STORE_UNOPENABLE
                while that lasts.
            Overloaded: STORE_FULL while the disk is full.
            Refused: STORE_CLOSED.
        """
        return await asyncio.shield(self.submit(work, label=label))

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on a reading connection, off the loop.

        It sees what is committed. Keep it short: one read at a time.

        Raises:
            Corrupt: STORE_CORRUPT.
            Transient: STORE_UNREADABLE.
            Refused: STORE_CLOSED.
        """
        return await asyncio.to_thread(self._read, work)

    async def reopen(self) -> None:
        """Go on after a failure: copy all that was acknowledged into a new file.

        The copy is synchronised, dropped from the cache, read back and compared
        before it takes the old file's place. Does nothing while all is well.

        Raises:
            Corrupt: STORE_CORRUPT when the copy is not sound.
            Transient: STORE_FAILED when the disk does not take it; ask again.
            Refused: STORE_CLOSED.
        """
        if self._closed:
            raise _closed(self._path)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._jobs.put(_Reopen(done))
        await asyncio.shield(done)

    async def close(self) -> None:
        """Finish what waits and close the file; a second time changes nothing."""
        if not self._closed:
            self._closed = True
            self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._close_connections)

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        with self._read_lock:
            if self._closed:
                raise _closed(self._path)
            try:
                return work(self._reader)
            except sqlite3.Error as error:
                if is_of_the_file(error) or self._failure is not None:
                    raise read_error(self._path, error) from error
                raise

    def _close_connections(self) -> None:
        with self._read_lock:
            self._reader.close()
            self._connection.close()

    # The writer thread.

    def _run(self) -> None:
        while True:
            batch, control = self._collect()
            if batch:
                _answer_all(self._settle(batch))
            if isinstance(control, _Reopen):
                self._reopen(control)
            elif not batch:
                return

    def _collect(self) -> tuple[list[_Job], _Reopen | None]:
        """Take all that waits; an empty batch without a control means the end."""
        item = self._jobs.get()
        batch: list[_Job] = []
        while isinstance(item, _Job):
            batch.append(item)
            if len(batch) >= _BATCH:
                return batch, None
            try:
                item = self._jobs.get_nowait()
            except queue.Empty:
                return batch, None
        if item is None and batch:
            self._jobs.put(None)
        return batch, item

    def _settle(self, batch: list[_Job]) -> list[_Result]:
        if self._failure is None:
            try:
                self._check_place()
                return self._transact(batch)
            except BaseException as error:  # noqa: BLE001 - a dead writer hangs all
                failure = self._failed(batch, error)
        else:
            failure = self._failure
        return [(job.done, None, failure.error()) for job in batch]

    def _check_place(self) -> None:
        if self._path.stat().st_ino != self._inode:
            raise FileNotFoundError(f"{self._path} was replaced by another file")

    def _transact(self, batch: list[_Job]) -> list[_Result]:
        self._connection.execute("BEGIN IMMEDIATE")
        results = [self._apply(job) for job in batch]
        self._connection.execute("COMMIT")
        return results

    def _apply(self, job: _Job) -> _Result:
        self._connection.execute("SAVEPOINT job")
        value: object = None
        raised: BaseException | None = None
        try:
            value = job.work(self._connection)
        except BaseException as error:
            if isinstance(error, sqlite3.Error) and is_of_the_file(error):
                raise
            raised = _as_answer(error)
        if raised is not None:
            self._connection.execute("ROLLBACK TO job")
        self._connection.execute("RELEASE job")
        return job.done, value, raised

    def _failed(self, batch: list[_Job], error: BaseException) -> Failure:
        with suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        if isinstance(error, sqlite3.Error):
            failure = passing(self._path, error)
            if failure is not None:
                return failure
        self._doubt.add({job.label for job in batch if job.label})
        self._failure = Failure(
            Transient,
            "STORE_FAILED",
            f"{self._path} cannot be written ({error}): nothing more is accepted"
            " until it is reopened and verified; check the disk",
        )
        return self._failure

    def _reopen(self, request: _Reopen) -> None:
        raised: BaseException | None = None
        try:
            if self._failure is not None:
                self._replace()
                self._failure = None
        except OutriggerError as error:
            raised = error
        except BaseException as error:  # noqa: BLE001 - a dead writer hangs all
            raised = Transient(
                "STORE_FAILED",
                f"{self._path} cannot be reopened ({error}): check the disk",
                retry_after_s=1.0,
            )
            raised.__cause__ = error
        _answer_all([(request.done, None, raised)])

    def _replace(self) -> None:
        with self._read_lock:
            copied = self._is_open()
            if copied:
                copy_verified(self._connection, self._path)
            for connection in (self._reader, self._connection):
                with suppress(sqlite3.Error):
                    connection.close()
            if copied:
                swap(self._path)
            self._connection = connect(self._path)
            self._reader = plain_connection(self._path)
            self._inode = self._path.stat().st_ino

    def _is_open(self) -> bool:
        try:
            return self._connection.total_changes >= 0
        except sqlite3.ProgrammingError:
            return False


def _unprepared(path: Path, error: Exception) -> Transient:
    return Transient(
        "STORE_UNOPENABLE",
        f"cannot prepare {path}: {error}: check that the disk is not full and that no"
        " newer version wrote this file",
    )


def _closed(path: Path) -> Refused:
    return Refused("STORE_CLOSED", f"{path} is closed: this process is stopping")


def _as_answer(error: BaseException) -> BaseException:
    """Return what a future may carry: neither StopIteration nor a shutdown."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    raised = Bug("JOB_FAILED", f"a write raised {type(error).__name__}: see the log")
    raised.__cause__ = error
    return raised


def _answer_all(results: list[_Result]) -> None:
    """Wake each loop once for all its answers: a wake-up is a system call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Result]] = {}
    for result in results:
        by_loop.setdefault(result[0].get_loop(), []).append(result)
    for loop, own in by_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(_answer_on_loop, own)


def _answer_on_loop(results: list[_Result]) -> None:
    for done, value, raised in results:
        if done.done():
            continue
        if raised is None:
            done.set_result(value)
        else:
            done.set_exception(raised)
