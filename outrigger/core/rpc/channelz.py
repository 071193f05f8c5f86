"""channelz: grpc's own counters of channels, sockets and servers, for operators.

Unlike health and reflection it needs a token: it names whom this process talks to.
"""

from typing import Final

import grpc.aio
from grpc_channelz.v1 import channelz  # type: ignore[import-untyped]

from outrigger.core.access import Role, Rule

SERVICE: Final = "grpc.channelz.v1.Channelz"
_METHODS: Final = (
    "GetTopChannels",
    "GetServers",
    "GetServer",
    "GetServerSockets",
    "GetChannel",
    "GetSubchannel",
    "GetSocket",
)

ACCESS: Final = {
    f"/{SERVICE}/{method}": Rule(roles=frozenset({Role.OPERATOR}))
    for method in _METHODS
}
"""Rows for the chain's table."""


def serve_channelz(server: grpc.aio.Server) -> None:
    """Add channelz to a server; it tells of the whole process."""
    channelz.add_channelz_servicer(server)
