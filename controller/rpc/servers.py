"""The two listeners: operators on one, sidecars on the other."""

from dataclasses import dataclass, field
from typing import Any, Final

import grpc.aio

from controller.rpc import connect, fleet, passthrough
from controller.rpc.connect import ConnectServicer
from controller.rpc.fleet import FleetServicer
from controller.rpc.passthrough import Passthrough
from controller.trail import Trail
from outrigger.core.access import Principal, RateLimit, Role, Tokens
from outrigger.core.clock import Clock
from outrigger.core.rpc import channelz
from outrigger.core.rpc.chain import Chain, Policy
from outrigger.core.rpc.health import Health
from outrigger.core.rpc.public import PUBLIC_ACCESS, serve_public
from outrigger.core.rpc.server import SERVER_OPTIONS
from outrigger.core.tasks import Report
from outrigger.v1 import connect_service_pb2_grpc, fleet_service_pb2_grpc

ADMIN_SERVICES: Final = frozenset(
    {"outrigger.v1.FleetService", channelz.SERVICE} | passthrough.SERVICES
)
ADMIN_TABLE: Final = fleet.TABLE | passthrough.TABLE | channelz.ACCESS | PUBLIC_ACCESS
CONNECT_TABLE: Final = connect.TABLE

_CHANGES_PER_S: Final = 500.0
_CHANGES_BURST: Final = 5_000.0
"""Enough to wake a whole fleet at once by hand."""
_MOST_STREAMS: Final = 12_000
_MOST_CONNECT_MESSAGE_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Edge:
    """What the chain of either server needs."""

    token: str = field(repr=False)
    clock: Clock
    report: Report
    trail: Trail


def admin_server(
    edge: Edge,
    *,
    servicer: FleetServicer,
    others: Passthrough,
) -> tuple[grpc.aio.Server, Health]:
    """Return the operators' server, not yet bound, and its health, to stop first."""
    policy = Policy(
        table=ADMIN_TABLE,
        tokens=Tokens({edge.token: Principal(Role.OPERATOR)}),
        clock=edge.clock,
        report=edge.report,
        audit=edge.trail.called,
        limit=RateLimit(rate_per_s=_CHANGES_PER_S, burst=_CHANGES_BURST),
    )
    server = grpc.aio.server(interceptors=[Chain(policy)], options=SERVER_OPTIONS)
    fleet_service_pb2_grpc.add_FleetServiceServicer_to_server(servicer, server)
    channelz.serve_channelz(server)
    server.add_generic_rpc_handlers((others,))
    return server, serve_public(server, ADMIN_SERVICES)


def connect_server(edge: Edge, *, servicer: ConnectServicer) -> grpc.aio.Server:
    """Return the sidecars' server, not yet bound."""
    policy = Policy(
        table=CONNECT_TABLE,
        tokens=Tokens({edge.token: Principal(Role.SIDECAR)}),
        clock=edge.clock,
        report=edge.report,
        audit=edge.trail.called,
        max_in_flight=_MOST_STREAMS,
    )
    options: dict[str, Any] = dict(SERVER_OPTIONS)
    options["grpc.max_receive_message_length"] = _MOST_CONNECT_MESSAGE_BYTES
    server = grpc.aio.server(
        interceptors=[Chain(policy)], options=tuple(options.items())
    )
    connect_service_pb2_grpc.add_ConnectServiceServicer_to_server(servicer, server)
    return server
