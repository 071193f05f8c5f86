"""Files of the checkpoint store: what is written is on the disk, or it failed.

Every system call of the store that touches a file is made here, so that a test
can fail each of them in turn. The functions raise OSError; `writing` and
`reading` turn that into the caller's next move. A failed fsync is never tried
again on the same file: the kernel may have dropped the pages and would say yes.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from outrigger.core.errors import Corrupt, Overloaded, Transient

TEMPORARY: Final = ".tmp"
"""Suffix of a file that was never finished."""

Identity = tuple[int, int, int]

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_DAMAGED: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})
_RETRY_S: Final = 1.0


@contextmanager
def writing(subject: str) -> Iterator[None]:
    """Raise what a failed write means.

    Raises:
        Overloaded: DISK_FULL.
        Transient: DISK_FAILED.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise Overloaded(
                "DISK_FULL",
                f"no space left for {subject}: nothing of it was kept and earlier"
                " checkpoints are untouched; free space, then save again",
            ) from error
        raise _failed(subject, error) from error


@contextmanager
def reading(subject: str) -> Iterator[None]:
    """Raise what a failed read means.

    Raises:
        Corrupt: FILE_MISSING or UNREADABLE: these bytes are lost.
        Transient: DISK_FAILED: they may still be good.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise Corrupt(
            "FILE_MISSING", f"{subject} is gone; restore an older generation"
        ) from error
    except OSError as error:
        if error.errno in _DAMAGED:
            raise Corrupt(
                "UNREADABLE",
                f"{subject} cannot be read ({error.strerror}); restore an older"
                " generation and look at the disk",
            ) from error
        raise _failed(subject, error) from error


def _failed(subject: str, error: OSError) -> Transient:
    return Transient(
        "DISK_FAILED",
        f"{subject}: the disk answered {error.strerror!r}; nothing half done is"
        " visible: look at the disk, then try again",
        retry_after_s=_RETRY_S,
    )


def unlike(subject: str) -> Transient:
    """Return the error of bytes that read back differently before they counted."""
    return Transient(
        "READ_BACK",
        f"{subject} read back differently from what was written: nothing of it was"
        " kept; look at the disk, then save again",
        retry_after_s=_RETRY_S,
    )


def names(folder: Path) -> list[str]:
    """Return the names in a folder; none if it is not there."""
    try:
        return [entry.name for entry in folder.iterdir()]
    except FileNotFoundError:
        return []


def size(path: Path) -> int:
    """Return a file's size; 0 if it is not there."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def identity(path: Path) -> Identity:
    """Return what changes when a file is written or replaced."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def make_folder(path: Path) -> None:
    """Make one folder for this user alone, and make it last."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make names made, changed and removed in a folder last."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(path: Path) -> int:
    """Return the descriptor of a new, empty file; whatever was there goes."""
    # A file left by a failed save may hold pages that an fsync has given up.
    remove(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def close(descriptor: int) -> None:
    """Give a descriptor back."""
    os.close(descriptor)


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view = view[count:]
        offset += count


def sync(descriptor: int) -> None:
    """Make what was written last, and drop it from the page cache.

    What is read afterwards comes from the disk where the kernel can do that; on
    tmpfs and the like there is nothing behind the cache.
    """
    os.fsync(descriptor)
    _drop(descriptor, 0, 0)


def read_at(path: Path, offset: int, count: int, *, fresh: bool = False) -> bytes:
    """Return up to `count` bytes; `fresh` reads past the page cache if it can."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if fresh:
            _drop(descriptor, offset, count)
        return _read(descriptor, offset, count)
    finally:
        os.close(descriptor)


def _read(descriptor: int, offset: int, count: int) -> bytes:
    data = os.pread(descriptor, count, offset)
    if len(data) == count or not data:
        return data
    parts = [data]
    while data:
        done = sum(map(len, parts))
        data = os.pread(descriptor, count - done, offset + done)
        parts.append(data)
    return b"".join(parts)


def _drop(descriptor: int, offset: int, count: int) -> None:
    # Advice only; a file system that does not take it is read through its cache.
    with suppress(OSError):
        os.posix_fadvise(descriptor, offset, count, os.POSIX_FADV_DONTNEED)


def put(path: Path, data: bytes) -> None:
    """Replace a small file as a whole: afterwards it is all there, and lasts.

    It is read back before it takes its name.

    Raises:
        OSError: the old file, or none, is there instead.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        _write_whole(temporary, data)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            remove(temporary)
        raise
    sync_folder(path.parent)


def _write_whole(path: Path, data: bytes) -> None:
    descriptor = create(path)
    try:
        write_at(descriptor, data, 0)
        sync(descriptor)
    finally:
        os.close(descriptor)
    if read_at(path, 0, len(data) + 1) != data:
        raise OSError(errno.EIO, "read back differently from what was written")


def remove(path: Path) -> None:
    """Remove a file if it is there."""
    path.unlink(missing_ok=True)
