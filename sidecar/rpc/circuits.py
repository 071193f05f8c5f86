"""CircuitService: what the guard believes, shown and overruled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc.aio
from google.protobuf.duration_pb2 import Duration

from outrigger.core.access import Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.errors import Invalid, NotFound
from outrigger.core.rpc.events import timestamp
from outrigger.v1 import circuit_pb2, circuit_service_pb2, circuit_service_pb2_grpc
from sidecar.call.guard import CallGuard, CircuitView
from sidecar.rpc.wire import page_after, page_size, page_token

_SERVICE: Final = "/outrigger.v1.CircuitService/"
_OPERATORS: Final = frozenset({Role.OPERATOR})
ACCESS: Final = {
    _SERVICE + "GetCircuit": Rule(roles=_OPERATORS),
    _SERVICE + "ListCircuits": Rule(roles=_OPERATORS),
    _SERVICE + "IsolateCircuit": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "RestoreCircuit": Rule(roles=_OPERATORS, mutating=True),
}

_STATES: Final = {
    "closed": circuit_pb2.Circuit.STATE_CLOSED,
    "open": circuit_pb2.Circuit.STATE_OPEN,
    "half_open": circuit_pb2.Circuit.STATE_HALF_OPEN,
    "isolated": circuit_pb2.Circuit.STATE_ISOLATED,
}

_Context = grpc.aio.ServicerContext[Any, Any]


class CircuitServicer(circuit_service_pb2_grpc.CircuitServiceServicer):
    """Serves the circuits of one guard.

    A change is answered once it is on disk: an operator's word outlives a crash.
    """

    def __init__(
        self,
        guard: CallGuard,
        clock: Clock,
        *,
        stored: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare; `stored` writes the circuits as they are and returns once it has."""
        self._guard = guard
        self._clock = clock
        self._stored = stored

    async def GetCircuit(
        self, request: circuit_service_pb2.GetCircuitRequest, context: _Context
    ) -> circuit_service_pb2.GetCircuitResponse:
        """Return one circuit."""
        return circuit_service_pb2.GetCircuitResponse(
            circuit=self._shown(request.circuit_id)
        )

    async def ListCircuits(
        self, request: circuit_service_pb2.ListCircuitsRequest, context: _Context
    ) -> circuit_service_pb2.ListCircuitsResponse:
        """Return a page of circuits by id."""
        size = page_size(request.page_size)
        after = page_after(request.page_token)
        views = sorted(self._guard.circuits(), key=lambda view: view.circuit_id)
        rest = [view for view in views if view.circuit_id > after]
        page = rest[:size]
        token = page_token(page[-1].circuit_id) if len(rest) > size else ""
        return circuit_service_pb2.ListCircuitsResponse(
            circuits=[self._message(view) for view in page], next_page_token=token
        )

    async def IsolateCircuit(
        self, request: circuit_service_pb2.IsolateCircuitRequest, context: _Context
    ) -> circuit_service_pb2.IsolateCircuitResponse:
        """Refuse every call until restored."""
        if not request.reason.strip():
            raise Invalid(
                "NO_REASON", "reason is empty: say why, it is shown until restored"
            )
        await self._change(
            request.circuit_id,
            validate_only=request.validate_only,
            change=lambda now: self._guard.isolate(
                request.circuit_id, request.reason, now
            ),
        )
        return circuit_service_pb2.IsolateCircuitResponse(
            circuit=self._shown(request.circuit_id)
        )

    async def RestoreCircuit(
        self, request: circuit_service_pb2.RestoreCircuitRequest, context: _Context
    ) -> circuit_service_pb2.RestoreCircuitResponse:
        """End an isolation by probing."""
        await self._change(
            request.circuit_id,
            validate_only=request.validate_only,
            change=lambda now: self._guard.restore(request.circuit_id, now),
        )
        return circuit_service_pb2.RestoreCircuitResponse(
            circuit=self._shown(request.circuit_id)
        )

    async def _change(
        self, circuit_id: str, *, validate_only: bool, change: Callable[[float], object]
    ) -> None:
        self._shown(circuit_id)
        if not validate_only:
            change(self._clock.monotonic())
            await self._stored()

    def _shown(self, circuit_id: str) -> circuit_pb2.Circuit:
        view = self._guard.circuit(circuit_id)
        if view is None:
            raise NotFound(
                "UNKNOWN_CIRCUIT",
                f"there is no circuit {circuit_id!r}: list them, a circuit is named"
                " UPSTREAM or UPSTREAM/package.Service/Method",
                metadata={"circuit": circuit_id},
            )
        return self._message(view)

    def _message(self, view: CircuitView) -> circuit_pb2.Circuit:
        age_s = self._clock.monotonic() - view.since
        message = circuit_pb2.Circuit(
            name=f"circuits/{view.circuit_id}",
            circuit_id=view.circuit_id,
            state=_STATES[view.state],
            reason=view.reason,
            state_time=timestamp(self._clock.wall() - age_s),
            window_call_count=view.window_calls,
            window_failure_count=view.window_failures,
            consecutive_failure_count=view.consecutive_failures,
            open_count=view.open_count,
            refused_count=view.refused_count,
        )
        if view.retry_after_s is not None:
            retry = Duration()
            retry.FromMilliseconds(int(view.retry_after_s * 1000))
            message.retry_after.CopyFrom(retry)
        return message
