"""Listeners and channels: the options every server and channel of ours has."""

import ipaddress
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from outrigger.core.errors import Invalid, Refused

SOCKET_PATH_BYTES: Final = 107
"""Longest Unix socket path Linux takes."""

_RECEIVED_BYTES: Final = 4 * 1024 * 1024
_SENT_BYTES: Final = 2 * _RECEIVED_BYTES
"""What was received must go out again, with what was added."""
_METADATA_BYTES: Final = 64 * 1024

SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", _RECEIVED_BYTES),
    ("grpc.max_send_message_length", _SENT_BYTES),
    ("grpc.max_metadata_size", _METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
    ("grpc.max_concurrent_streams", 1024),
)
"""For API servers. No keepalive: a frozen agent's stream must survive."""

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 1),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # not a pause: how long a dial may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", _METADATA_BYTES),
    ("grpc.absolute_max_metadata_size", 2 * _METADATA_BYTES),
)
"""For channels to our own parts and to upstreams."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """PEM files for a listener."""

    cert: Path
    key: Path
    ca: Path | None = None
    """When given, clients must bring a certificate signed by it."""

    def server_credentials(self) -> grpc.ServerCredentials:
        """Read the files.

        Raises:
            Invalid: BAD_TLS_FILE.
        """
        chain = read_secret(self.cert, "--tls-cert")
        key = read_secret(self.key, "--tls-key")
        root = read_secret(self.ca, "--tls-ca") if self.ca else None
        self._check()
        return grpc.ssl_server_credentials(
            [(key, chain)],
            root_certificates=root,
            require_client_auth=root is not None,
        )

    def _check(self) -> None:
        # Only where there is TLS: the module costs a megabyte. gRPC itself says no
        # more of a bad certificate than that it cannot listen.
        import ssl  # noqa: PLC0415 - see above

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.cert, self.key, password=b"")
        except (ssl.SSLError, OSError) as error:
            raise Invalid(
                "BAD_TLS_FILE",
                f"--tls-cert {self.cert} and --tls-key {self.key} are not a"
                f" certificate and its key ({_library_words(error)}): give two PEM"
                " files that belong together, the key without a passphrase",
            ) from error
        if self.ca is None:
            return
        try:
            context.load_verify_locations(self.ca)
        except (ssl.SSLError, OSError) as error:
            raise Invalid(
                "BAD_TLS_FILE",
                f"--tls-ca {self.ca} holds no certificates"
                f" ({_library_words(error)}): give a PEM file of the authority",
            ) from error


def _library_words(error: OSError) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()


def read_secret(path: Path, flag: str) -> bytes:
    """Return a file's bytes.

    Raises:
        Invalid: BAD_TLS_FILE, naming the flag it came from.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(
            "BAD_TLS_FILE", f"{flag}: cannot read {path}: {error.strerror}"
        ) from error


def is_loopback(address: str) -> bool:
    """Say whether only this machine reaches a listen address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_listen(address: str, flag: str, tls: TlsFiles | None) -> None:
    """Refuse addresses that cannot or must not be listened on.

    Raises:
        Invalid: SOCKET_PATH_TOO_LONG, BAD_ADDRESS or NEEDS_TLS.
    """
    if address.startswith("unix:"):
        size = len(os.fsencode(address.removeprefix("unix:")))
        if size > SOCKET_PATH_BYTES:
            raise Invalid(
                "SOCKET_PATH_TOO_LONG",
                f"{flag}: the socket path has {size} bytes, Linux takes"
                f" {SOCKET_PATH_BYTES}: choose a shorter --state directory",
            )
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and int(port) < 1 << 16):
        raise Invalid(
            "BAD_ADDRESS",
            f"{flag}: {address!r} is not an address: write HOST:PORT (port 0 to"
            " 65535, 0 takes a free one) or unix:PATH",
        )
    if tls is None and not is_loopback(address):
        raise Invalid(
            "NEEDS_TLS",
            f"{flag}: {address} is reachable from other machines and has no TLS:"
            " give --tls-cert and --tls-key, or listen on 127.0.0.1",
        )


def bind(
    server: grpc.aio.Server,
    address: str,
    flag: str,
    *,
    tls: TlsFiles | None = None,
    may_move: bool = False,
) -> str:
    """Bind a listener and return its address with the real port.

    Args:
        server: the server that will listen.
        address: HOST:PORT or unix:PATH.
        flag: named in errors.
        tls: files for TLS; Unix sockets never use it.
        may_move: take a free port when this one is taken.

    Raises:
        Invalid: see `check_listen`.
        Refused: PORT_TAKEN or SOCKET_TAKEN.
    """
    check_listen(address, flag, tls)
    if address.startswith("unix:"):
        _unlink_stale_socket(Path(address.removeprefix("unix:")))
        try:
            _add(server, address, None)
        except RuntimeError as error:
            raise Refused(
                "SOCKET_TAKEN",
                f"{flag}: cannot listen on {address}: a file that is no socket is"
                " there, or the folder is missing or not writable",
            ) from error
        return address
    host = address.rpartition(":")[0]
    credentials = tls.server_credentials() if tls else None
    for candidate in (address, f"{host}:0") if may_move else (address,):
        try:
            port = _add(server, candidate, credentials)
        except RuntimeError:
            continue
        return f"{host}:{port}"
    raise Refused(
        "PORT_TAKEN",
        f"{flag}: cannot listen on {address}: another program has the port, or the"
        " host is not one of this machine; choose another port, or 0 for a free one",
    )


def _add(
    server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None
) -> int:
    if credentials is None:
        return int(server.add_insecure_port(address))
    return int(server.add_secure_port(address, credentials))


def _unlink_stale_socket(path: Path) -> None:
    # The caller holds the state directory's lock, so nobody listens here.
    if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
        path.unlink()


def channel(target: str, options: tuple[tuple[str, Any], ...] = ()) -> grpc.aio.Channel:
    """Return a plaintext channel with our options, later ones winning."""
    merged = dict(CHANNEL_OPTIONS) | dict(options)
    return grpc.aio.insecure_channel(target, options=tuple(merged.items()))
