"""SidecarService: what this sidecar knows, and sleep and wake by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import grpc.aio

from outrigger import __version__
from outrigger.core.access import Role, Rule
from outrigger.core.event_log import EventLog
from outrigger.core.rpc.events import event_to_proto, timestamp
from outrigger.v1 import sidecar_service_pb2 as pb
from outrigger.v1 import sidecar_service_pb2_grpc
from sidecar.agent.supervisor import Supervisor
from sidecar.rpc.status import Status
from sidecar.rpc.wire import counts_to_proto

_SERVICE: Final = "/outrigger.v1.SidecarService/"
_OPERATORS: Final = frozenset({Role.OPERATOR})
ACCESS: Final = {
    _SERVICE + "GetSidecar": Rule(roles=frozenset({Role.OPERATOR, Role.AGENT})),
    _SERVICE + "SleepAgent": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "WakeAgent": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "Watch": Rule(roles=_OPERATORS),
}
_BY_HAND: Final = "asked by an operator"

_Context = grpc.aio.ServicerContext[Any, Any]


class SidecarServicer(sidecar_service_pb2_grpc.SidecarServiceServicer):
    """Serves one sidecar."""

    def __init__(
        self,
        status: Status,
        supervisor: Supervisor,
        events: EventLog,
        *,
        upstreams: Mapping[str, str],
        pid: int,
    ) -> None:
        self._status = status
        self._supervisor = supervisor
        self._events = events
        self._upstreams = dict(upstreams)
        self._pid = pid
        self._start_wall_s = status.clock.wall()

    async def GetSidecar(
        self, request: pb.GetSidecarRequest, context: _Context
    ) -> pb.GetSidecarResponse:
        """Return the agent and the counters."""
        return pb.GetSidecarResponse(
            agent=self._status.agent(),
            calls=counts_to_proto(
                self._status.outbound, held=self._status.inbound.held
            ),
            version=__version__,
            start_time=timestamp(self._start_wall_s),
            pid=self._pid,
            upstreams=self._upstreams,
        )

    async def SleepAgent(
        self, request: pb.SidecarServiceSleepAgentRequest, context: _Context
    ) -> pb.SidecarServiceSleepAgentResponse:
        """Begin to put the agent to sleep."""
        self._supervisor.request_sleep(
            request.seen_epoch,
            request.reason or _BY_HAND,
            validate_only=request.validate_only,
        )
        return pb.SidecarServiceSleepAgentResponse(agent=self._status.agent())

    async def WakeAgent(
        self, request: pb.SidecarServiceWakeAgentRequest, context: _Context
    ) -> pb.SidecarServiceWakeAgentResponse:
        """Begin to wake the agent."""
        self._supervisor.request_wake(
            request.seen_epoch,
            request.reason or _BY_HAND,
            validate_only=request.validate_only,
        )
        return pb.SidecarServiceWakeAgentResponse(agent=self._status.agent())

    async def Watch(
        self, request: pb.SidecarServiceWatchRequest, context: _Context
    ) -> AsyncIterator[pb.SidecarServiceWatchResponse]:
        """Stream events from now on."""
        async for event in self._events.watch():
            yield pb.SidecarServiceWatchResponse(event=event_to_proto(event))
