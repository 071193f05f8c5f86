"""A file that appears whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from outrigger.core.errors import Invalid, Refused

_PRIVATE: Final = 0o600


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Open a file for writing that gets its name only when all is on disk.

    It is readable by this user only: letters and states are somebody's data.

    Args:
        path: the name it gets.
        force: replace what is there.

    Raises:
        Invalid: FILE_EXISTS, CANNOT_WRITE when it cannot be made.
        Refused: NOT_WRITTEN when writing fails; nothing is left behind then.
    """
    part = path.parent / f".{path.name}.{os.getpid()}.part"
    try:
        _check_free(path, force=force)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
    except OSError as error:
        raise Invalid(
            "CANNOT_WRITE",
            f"cannot write {path}: {error.strerror}; name a file in a directory that"
            " this user may write",
        ) from error
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise Refused(
            "NOT_WRITTEN", f"{path} could not be written: {error.strerror or error}"
        ) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()


def _check_free(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise Invalid("CANNOT_WRITE", f"{path} is a directory: name a file in it")
    if path.exists() and not force:
        raise Invalid(
            "FILE_EXISTS", f"{path} is already there: name another, or give --force"
        )


def open_for_reading(path: Path) -> BinaryIO:
    """Open a regular file.

    Raises:
        Invalid: CANNOT_READ.
    """
    try:
        if path.exists() and not path.is_file():
            raise Invalid("CANNOT_READ", f"{path} is not a regular file: name one")
        return path.open("rb")
    except OSError as error:
        raise Invalid(
            "CANNOT_READ",
            f"cannot read {path}: {error.strerror}; name a file that this user may"
            " read",
        ) from error
