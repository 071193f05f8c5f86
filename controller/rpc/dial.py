"""Channels to the sidecars' APIs, one per incarnation of a sidecar.

A sidecar says itself where it listens, and gets back only its own operator token;
so it can misdirect calls that are about itself, and no others.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from controller.policy.agent import Addresses
from controller.registry import Connection
from outrigger.core.errors import Refused
from outrigger.core.rpc.server import (
    CHANNEL_OPTIONS,
    TlsFiles,
    channel,
    is_loopback,
    read_secret,
)
from outrigger.core.tasks import Tasks

_MOST_CHANNELS: Final = 256
_CLOSE_GRACE_S: Final = 60.0


def address_of(addresses: Addresses) -> str:
    """Return where to call a sidecar: its socket if it is on this machine.

    Raises:
        Refused: NO_SIDECAR_API.
    """
    path = addresses.api.removeprefix("unix:")
    if addresses.api.startswith("unix:") and Path(path).is_socket():
        return addresses.api
    if not addresses.api_tcp:
        raise Refused(
            "NO_SIDECAR_API",
            "the agent's sidecar has no API that this controller reaches: start it"
            " with --api HOST:PORT",
        )
    return addresses.api_tcp


class Dialer:
    """Opens channels and keeps the newest; one outlives a reconnect of its sidecar."""

    def __init__(self, tls: TlsFiles | None, tasks: Tasks) -> None:
        self._tls = tls
        self._tasks = tasks
        self._open: OrderedDict[tuple[str, str, str], grpc.aio.Channel] = OrderedDict()

    def channel(self, connection: Connection) -> grpc.aio.Channel:
        """Return the channel to a connected sidecar's API.

        Raises:
            Refused: NO_SIDECAR_API or SIDECAR_NEEDS_TLS.
            Invalid: BAD_TLS_FILE.
        """
        address = address_of(connection.addresses)
        key = (connection.agent_id, connection.instance, address)
        if key not in self._open:
            self._open[key] = self._dial(address)
        self._open.move_to_end(key)
        if len(self._open) > _MOST_CHANNELS:
            _, oldest = self._open.popitem(last=False)
            _ = self._tasks.spawn("close channel", oldest.close(_CLOSE_GRACE_S))
        return self._open[key]

    async def close(self) -> None:
        """Close every channel; its calls are cancelled."""
        while self._open:
            _, found = self._open.popitem()
            await found.close()

    def _dial(self, address: str) -> grpc.aio.Channel:
        if is_loopback(address):
            return channel(address)
        if self._tls is None or self._tls.ca is None:
            raise Refused(
                "SIDECAR_NEEDS_TLS",
                f"the sidecar's API at {address} is on another machine: start the"
                " controller with --tls-cert, --tls-key and --tls-ca to call it",
            )
        credentials = grpc.ssl_channel_credentials(
            root_certificates=read_secret(self._tls.ca, "--tls-ca"),
            private_key=read_secret(self._tls.key, "--tls-key"),
            certificate_chain=read_secret(self._tls.cert, "--tls-cert"),
        )
        return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)
