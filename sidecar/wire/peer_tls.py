"""TLS towards an upstream: PEM files, checked, read, and read again when they change.

gRPC says of a bad file no more than that a handshake failed, and that once per call.
So the files are checked here, and a mistake names the file. What is in them appears
in no message.

Race: files are replaced one after the other, and certificate and key do not belong
together in between. Files are believed only if none changed while they were read;
whatever cannot be used leaves the old credentials in use.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from outrigger.core.errors import Invalid

Stamp = tuple[tuple[int, int, int], ...]
"""Inode, time of change and size of each file: another stamp, other files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTls:
    """PEM files for TLS towards an upstream."""

    ca: Path | None = None
    """Signed the upstream's certificate; None: an authority gRPC knows by itself."""
    cert: Path | None = None
    """Ours, for an upstream that asks who we are; with `key`."""
    key: Path | None = None

    @property
    def kind(self) -> str:
        """Return "tls", or "mutual" if we bring a certificate."""
        return "mutual" if self.cert else "tls"

    def mistakes(self) -> list[str]:
        """Return what is wrong with the files, one line each."""
        wrong = []
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.cert else ("key", "cert")
            wrong.append(f"{given} without {missing}: give both for mutual TLS")
        named = {"ca": self.ca, "cert": self.cert, "key": self.key}
        unreadable = [
            line
            for name, path in named.items()
            if path is not None and (line := _unreadable(name, path))
        ]
        return wrong or unreadable or self._garbage()

    def stamp(self) -> Stamp:
        """Return the state of the files.

        Raises:
            OSError: one cannot be read.
        """
        return tuple(
            (found.st_ino, found.st_mtime_ns, found.st_size)
            for found in (path.stat() for path in self._paths())
        )

    def load(self) -> tuple[grpc.ChannelCredentials, Stamp]:
        """Check and read the files.

        Raises:
            Invalid: BAD_TLS_FILE, with every mistake.
        """
        try:
            wrong = self.mistakes()
            if not wrong:
                return self._read()
        except OSError as error:
            wrong = [f"{error.filename}: {error.strerror}"]
        raise Invalid("BAD_TLS_FILE", "; ".join(wrong))

    def _read(self) -> tuple[grpc.ChannelCredentials, Stamp]:
        before = self.stamp()
        credentials = grpc.ssl_channel_credentials(*self._contents())
        if self.mistakes() or self.stamp() != before:
            raise Invalid("BAD_TLS_FILE", "the files changed while they were read")
        return credentials, before

    def _contents(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        ca, key, cert = (
            path.read_bytes() if path else None
            for path in (self.ca, self.key, self.cert)
        )
        return ca, key, cert

    def _paths(self) -> tuple[Path, ...]:
        return tuple(path for path in (self.ca, self.cert, self.key) if path)

    def _garbage(self) -> list[str]:
        # Only where there is TLS: the module costs a megabyte.
        import ssl  # noqa: PLC0415 - see above

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        wrong = []
        ca, cert, key = self.ca, self.cert, self.key
        if ca and not _holds(lambda: context.load_verify_locations(ca)):
            wrong.append(f"ca {ca} holds no certificate: give a PEM file")
        if cert and not _holds(
            lambda: context.load_cert_chain(cert, key, password=b"")
        ):
            wrong.append(
                f"cert {cert} and key {key} are not a certificate and its key: give"
                " two PEM files that belong together, the key without a passphrase"
            )
        return wrong


def _unreadable(name: str, path: Path) -> str:
    try:
        path.read_bytes()
    except OSError as error:
        return f"{name}: cannot read {path}: {error.strerror}"
    return ""


def _holds(load: Callable[[], None]) -> bool:
    """Say whether a file holds what it should."""
    try:
        load()
    except OSError:  # ssl.SSLError is one
        return False
    return True
