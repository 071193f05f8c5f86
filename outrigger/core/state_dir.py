"""The state directory of one process: private, locked, with its token files."""

import errno
import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from outrigger.core.errors import Denied, Refused, Transient
from outrigger.core.rng import new_token

_PRIVATE_DIR: Final = 0o700
_PRIVATE_FILE: Final = 0o600
_TOKEN_CHARS: Final = 4096
_LOCK_FILE: Final = "lock"
_ADDRESS_FILE: Final = "address.json"


class StateDirectory:
    """A directory that belongs to one process at a time.

    The lock is the kernel's (flock): it ends with the process, however it ends.
    Everything else in the directory, sockets included, is touched only under it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> Self:
        """Make the directory if need be, and lock it.

        Raises:
            Transient: STATE_UNUSABLE when it cannot be made or written.
            Denied: STATE_NOT_PRIVATE when others may enter it.
            Refused: STATE_IN_USE when another process has it.
        """
        try:
            _make_folder(self.path)
            self._check_private()
            self._lock = os.open(
                self.path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, _PRIVATE_FILE
            )
        except OSError as error:
            raise _unusable(self.path, error) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            if error.errno != errno.EWOULDBLOCK:
                raise _unusable(self.path, error) from error
            raise Refused(
                "STATE_IN_USE",
                f"the state directory {self.path} is in use by another process: stop"
                " that one, or give this one a --state of its own",
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Unlock it."""
        os.close(self._lock)

    def token(self, name: str) -> str:
        """Return the secret in file `name`, made at the first time.

        Raises:
            Denied: TOKEN_NOT_PRIVATE when others may read it.
            Transient: STATE_UNUSABLE.
        """
        path = self.path / name
        try:
            if not path.exists():
                self._write(path, new_token().encode() + b"\n")
            return read_token(path)
        except OSError as error:
            raise _unusable(path, error) from error

    def new_token(self, name: str) -> str:
        """Return a fresh secret, kept in file `name`.

        Raises:
            Transient: STATE_UNUSABLE.
        """
        token = new_token()
        try:
            self._write(self.path / name, token.encode() + b"\n")
        except OSError as error:
            raise _unusable(self.path / name, error) from error
        return token

    def folder(self, name: str) -> Path:
        """Return a folder of the directory, made at the first time.

        Raises:
            Transient: STATE_UNUSABLE.
        """
        path = self.path / name
        try:
            _make_folder(path)
        except OSError as error:
            raise _unusable(path, error) from error
        return path

    def announce(self, addresses: Mapping[str, object]) -> None:
        """Write where we listen into address.json, for commands to find.

        Raises:
            Transient: STATE_UNUSABLE.
        """
        path = self.path / _ADDRESS_FILE
        try:
            self._write(path, json.dumps(dict(addresses), indent=2).encode() + b"\n")
        except OSError as error:
            raise _unusable(path, error) from error

    def _check_private(self) -> None:
        mode = stat.S_IMODE(self.path.stat().st_mode)
        if mode & 0o077:
            raise Denied(
                "STATE_NOT_PRIVATE",
                f"the state directory {self.path} has mode {mode:o}: others may enter"
                f" it; run 'chmod 700 {self.path}'",
            )

    def _write(self, path: Path, content: bytes) -> None:
        temporary = path.with_name(path.name + ".new")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def read_token(path: Path) -> str:
    """Return the secret in a file.

    Raises:
        Denied: TOKEN_NOT_PRIVATE when others may read it.
        Refused: TOKEN_EMPTY or TOKEN_MALFORMED.
        OSError: it cannot be read.
    """
    whole_mode = path.stat().st_mode
    if stat.S_ISDIR(whole_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    mode = stat.S_IMODE(whole_mode)
    if mode & 0o077:
        raise Denied(
            "TOKEN_NOT_PRIVATE",
            f"the token file {path} has mode {mode:o}: others may read it; run"
            f" 'chmod 600 {path}', and have a new one made if it may have been read",
        )
    with path.open("rb") as file:
        token = file.read(_TOKEN_CHARS + 1).decode("ascii", "replace").strip()
    if not token:
        raise Refused(
            "TOKEN_EMPTY", f"the token file {path} is empty: remove it to have one made"
        )
    if len(token) > _TOKEN_CHARS or not all("!" <= one <= "~" for one in token):
        # The library that carries it would refuse it later, and less clearly.
        raise Refused(
            "TOKEN_MALFORMED",
            f"the token file {path} does not hold a token: one word of visible ASCII"
            f" was expected, of at most {_TOKEN_CHARS} characters; remove it to have"
            " one made",
        )
    return token


def _make_folder(path: Path) -> None:
    """Make a private folder unless it is there.

    Raises:
        OSError: it cannot be made, or something else is in its place.
    """
    try:
        path.mkdir(mode=_PRIVATE_DIR, parents=True, exist_ok=True)
    except FileExistsError as error:
        why = "it is there and is not a directory"
        raise NotADirectoryError(errno.ENOTDIR, why, str(path)) from error


def _unusable(path: Path, error: OSError) -> Transient:
    return Transient(
        "STATE_UNUSABLE",
        f"cannot use {path}: {error.strerror}: check that the directory is there,"
        " belongs to this user and is not full, or give another --state",
    )
