"""Health of a listener: serving until its process stops.

grpcio's own servicer writes to its context instead of yielding, which the chain's
boundary around streams cannot carry. Its package ships no type hints.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health_pb2,
    health_pb2_grpc,
)

from outrigger.core.errors import NotFound

_STATUS: Final = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1.Health for the whole server and for each of its services."""

    def __init__(self, services: frozenset[str]) -> None:
        self._services = services | {""}
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Answer NOT_SERVING from now on."""
        self._stopping.set()

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthCheckResponse:
        """Return how a service is.

        Raises:
            NotFound: UNKNOWN_SERVICE.
        """
        if request.service not in self._services:
            raise NotFound(
                "UNKNOWN_SERVICE",
                f"{request.service} is not served here: list the services by"
                " reflection",
            )
        return self._answer()

    async def List(
        self,
        request: health_pb2.HealthListRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> health_pb2.HealthListResponse:
        """Return how every service is."""
        return health_pb2.HealthListResponse(
            statuses={name: self._answer() for name in self._services}
        )

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield how a service is, now and when it changes."""
        if request.service not in self._services:
            yield _STATUS(status=_STATUS.SERVICE_UNKNOWN)
            await asyncio.Event().wait()  # it may be served after an upgrade
        if not self._stopping.is_set():
            yield self._answer()
        await self._stopping.wait()
        yield self._answer()

    def _answer(self) -> health_pb2.HealthCheckResponse:
        stopping = self._stopping.is_set()
        return _STATUS(status=_STATUS.NOT_SERVING if stopping else _STATUS.SERVING)
