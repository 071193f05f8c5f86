"""The sidecar's API server: every servicer behind the one chain."""

from dataclasses import dataclass
from typing import Final

import grpc.aio

from outrigger.core.access import Principal, Role, Tokens
from outrigger.core.clock import Clock
from outrigger.core.rpc.chain import Chain, Policy
from outrigger.core.rpc.health import Health
from outrigger.core.rpc.public import PUBLIC_ACCESS, serve_public
from outrigger.core.rpc.server import SERVER_OPTIONS
from outrigger.core.tasks import Report
from outrigger.v1 import attach_service_pb2_grpc as attach_grpc
from outrigger.v1 import checkpoint_service_pb2_grpc as checkpoint_grpc
from outrigger.v1 import circuit_service_pb2_grpc as circuit_grpc
from outrigger.v1 import fault_service_pb2_grpc as fault_grpc
from outrigger.v1 import letter_service_pb2_grpc as letter_grpc
from outrigger.v1 import sidecar_service_pb2_grpc as sidecar_grpc
from outrigger.v1 import tap_service_pb2_grpc as tap_grpc
from outrigger.v1 import upstream_service_pb2_grpc as upstream_grpc
from sidecar.agent import session
from sidecar.agent.session import AttachServicer
from sidecar.checkpoints import transfer
from sidecar.checkpoints.transfer import CheckpointServicer
from sidecar.rpc import circuits, faults, letters, sidecar, tap, upstreams
from sidecar.rpc.circuits import CircuitServicer
from sidecar.rpc.faults import FaultServicer
from sidecar.rpc.letters import LetterServicer
from sidecar.rpc.sidecar import SidecarServicer
from sidecar.rpc.tap import TapServicer
from sidecar.rpc.upstreams import UpstreamServicer

ACCESS: Final = {
    **PUBLIC_ACCESS,
    **session.ACCESS,
    **transfer.ACCESS,
    **letters.ACCESS,
    **circuits.ACCESS,
    **tap.ACCESS,
    **faults.ACCESS,
    **upstreams.ACCESS,
    **sidecar.ACCESS,
}
"""Who may call what; a method without a row is refused."""

SERVICES: Final = (
    "outrigger.v1.AttachService",
    "outrigger.v1.CheckpointService",
    "outrigger.v1.CircuitService",
    "outrigger.v1.FaultService",
    "outrigger.v1.LetterService",
    "outrigger.v1.SidecarService",
    "outrigger.v1.TapService",
    "outrigger.v1.UpstreamService",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Servicers:
    """One of each service."""

    attach: AttachServicer
    checkpoints: CheckpointServicer
    circuits: CircuitServicer
    faults: FaultServicer
    letters: LetterServicer
    sidecar: SidecarServicer
    tap: TapServicer
    upstreams: UpstreamServicer


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Whom the API knows."""

    agent_id: str
    agent_token: str
    admin_token: str

    def tokens(self) -> Tokens:
        """Return who holds which token."""
        return Tokens(
            {
                self.admin_token: Principal(Role.OPERATOR),
                self.agent_token: Principal(Role.AGENT, self.agent_id),
            }
        )


def api_server(
    servicers: Servicers, keys: Keys, *, clock: Clock, report: Report
) -> tuple[grpc.aio.Server, Health]:
    """Return the server, not yet bound, and its health, to be stopped first."""
    policy = Policy(table=ACCESS, tokens=keys.tokens(), clock=clock, report=report)
    server = grpc.aio.server(interceptors=[Chain(policy)], options=SERVER_OPTIONS)
    attach_grpc.add_AttachServiceServicer_to_server(servicers.attach, server)
    checkpoint_grpc.add_CheckpointServiceServicer_to_server(
        servicers.checkpoints, server
    )
    circuit_grpc.add_CircuitServiceServicer_to_server(servicers.circuits, server)
    fault_grpc.add_FaultServiceServicer_to_server(servicers.faults, server)
    letter_grpc.add_LetterServiceServicer_to_server(servicers.letters, server)
    sidecar_grpc.add_SidecarServiceServicer_to_server(servicers.sidecar, server)
    tap_grpc.add_TapServiceServicer_to_server(servicers.tap, server)
    upstream_grpc.add_UpstreamServiceServicer_to_server(servicers.upstreams, server)
    return server, serve_public(server, SERVICES)
