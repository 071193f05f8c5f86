"""What every API listener of ours offers without a token: health and reflection.

They tell nobody anything but names, and let grpcurl work with no proto files.
"""

from collections.abc import Iterable
from typing import Final

import grpc.aio
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

from outrigger.core.access import Rule
from outrigger.core.rpc.health import Health

_HEALTH: Final = "grpc.health.v1.Health"
_REFLECTION: Final = "grpc.reflection.v1alpha.ServerReflection"

PUBLIC_ACCESS: Final = {
    f"/{_HEALTH}/Check": Rule(public=True),
    f"/{_HEALTH}/List": Rule(public=True),
    f"/{_HEALTH}/Watch": Rule(public=True),
    f"/{_REFLECTION}/ServerReflectionInfo": Rule(public=True),
}
"""Rows for the chain's table."""


def serve_public(server: grpc.aio.Server, services: Iterable[str]) -> Health:
    """Add health and reflection for these services; return the health to stop."""
    named = frozenset(services)
    health = Health(named)
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    reflection.enable_server_reflection(sorted({*named, _HEALTH, _REFLECTION}), server)
    return health
