"""CircuitService: what the guard believes, explained, watched and overruled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, cast

import grpc.aio

from outrigger.core.access import Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.errors import Invalid, NotFound
from outrigger.core.event_log import EventLog
from outrigger.core.events import CircuitMoved, Event, Payload
from outrigger.core.rpc.events import timestamp
from outrigger.v1 import circuit_pb2, circuit_service_pb2_grpc
from outrigger.v1 import circuit_service_pb2 as pb
from sidecar.call.guard import CallGuard, CircuitView
from sidecar.policy.circuit import FailedCall, Step
from sidecar.rpc.wire import duration, page_after, page_size, page_token

_SERVICE: Final = "/outrigger.v1.CircuitService/"
_OPERATORS: Final = frozenset({Role.OPERATOR})
ACCESS: Final = {
    _SERVICE + "GetCircuit": Rule(roles=_OPERATORS),
    _SERVICE + "ListCircuits": Rule(roles=_OPERATORS),
    _SERVICE + "IsolateCircuit": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "RestoreCircuit": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "WatchCircuits": Rule(roles=_OPERATORS),
}

_STATES: Final = {
    "closed": circuit_pb2.Circuit.STATE_CLOSED,
    "open": circuit_pb2.Circuit.STATE_OPEN,
    "half_open": circuit_pb2.Circuit.STATE_HALF_OPEN,
    "isolated": circuit_pb2.Circuit.STATE_ISOLATED,
}
_WORDS: Final = {number: word for word, number in _STATES.items()}
_ORIGINS: Final = {
    "local": circuit_pb2.FailedCall.ORIGIN_LOCAL,
    "transport": circuit_pb2.FailedCall.ORIGIN_TRANSPORT,
    "upstream": circuit_pb2.FailedCall.ORIGIN_UPSTREAM,
    "unknown": circuit_pb2.FailedCall.ORIGIN_UNKNOWN,
}
_SHOWN_MAX: Final = 1000

_Context = grpc.aio.ServicerContext[Any, Any]


class CircuitServicer(circuit_service_pb2_grpc.CircuitServiceServicer):
    """Serves the circuits of one guard.

    A change is answered once it is on disk: an operator's word outlives a crash.
    """

    def __init__(
        self,
        guard: CallGuard,
        clock: Clock,
        events: EventLog,
        *,
        stored: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare.

        Args:
            guard: whose circuits.
            clock: that of the guard.
            events: where the guard's moves are published.
            stored: writes the circuits as they are and returns once it has.
        """
        self._guard = guard
        self._clock = clock
        self._events = events
        self._stored = stored

    async def GetCircuit(
        self, request: pb.GetCircuitRequest, context: _Context
    ) -> pb.GetCircuitResponse:
        """Return one circuit, whole."""
        return pb.GetCircuitResponse(circuit=self._shown(request.circuit_id))

    async def ListCircuits(
        self, request: pb.ListCircuitsRequest, context: _Context
    ) -> pb.ListCircuitsResponse:
        """Return a page of circuits by id, in short."""
        size = page_size(request.page_size)
        after = page_after(request.page_token)
        wanted = _Wanted(request.filter)
        views = sorted(self._guard.circuits(), key=lambda view: view.circuit_id)
        rest = [
            view for view in views if view.circuit_id > after and wanted.circuit(view)
        ]
        page = rest[:size]
        token = page_token(page[-1].circuit_id) if len(rest) > size else ""
        return pb.ListCircuitsResponse(
            circuits=[self._short(view) for view in page], next_page_token=token
        )

    async def IsolateCircuit(
        self, request: pb.IsolateCircuitRequest, context: _Context
    ) -> pb.IsolateCircuitResponse:
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
        return pb.IsolateCircuitResponse(circuit=self._shown(request.circuit_id))

    async def RestoreCircuit(
        self, request: pb.RestoreCircuitRequest, context: _Context
    ) -> pb.RestoreCircuitResponse:
        """End an isolation by probing."""
        await self._change(
            request.circuit_id,
            validate_only=request.validate_only,
            change=lambda now: self._guard.restore(request.circuit_id, now),
        )
        return pb.RestoreCircuitResponse(circuit=self._shown(request.circuit_id))

    async def WatchCircuits(
        self, request: pb.WatchCircuitsRequest, context: _Context
    ) -> AsyncIterator[pb.WatchCircuitsResponse]:
        """Stream where circuits stand, then how they move."""
        wanted = _Wanted(request.filter)
        with self._events.subscribed(wanted.move) as moves:
            # In the same step as the subscription: no move is between the two.
            for answer in self._present(wanted):
                yield answer
            while True:
                event, missed = await moves.take()
                yield pb.WatchCircuitsResponse(move=_moved(event), missed_count=missed)

    async def _change(
        self, circuit_id: str, *, validate_only: bool, change: Callable[[float], object]
    ) -> None:
        self._shown(circuit_id)
        if not validate_only:
            change(self._clock.monotonic())
            await self._stored()

    def _present(self, wanted: _Wanted) -> list[pb.WatchCircuitsResponse]:
        found = [view for view in self._guard.circuits() if wanted.circuit(view)]
        # Those in trouble first: of more than can be shown, they are what matters.
        found.sort(key=lambda view: (view.state == "closed", view.circuit_id))
        shown = [self._short(view) for view in found[:_SHOWN_MAX]]
        end = pb.CircuitsShown(
            shown_count=len(shown), omitted_count=len(found) - len(shown)
        )
        return [
            *(pb.WatchCircuitsResponse(present=one) for one in shown),
            pb.WatchCircuitsResponse(shown=end),
        ]

    def _shown(self, circuit_id: str) -> circuit_pb2.Circuit:
        view = self._guard.circuit(circuit_id)
        if view is None:
            raise NotFound(
                "UNKNOWN_CIRCUIT",
                f"there is no circuit {circuit_id!r}: list them, a circuit is named"
                " UPSTREAM or UPSTREAM/package.Service/Method",
                metadata={"circuit": circuit_id},
            )
        message = self._short(view)
        message.failed_calls.extend(self._failed(one) for one in view.failed_calls)
        message.history.extend(
            self._step(view.circuit_id, step) for step in view.history
        )
        return message

    def _short(self, view: CircuitView) -> circuit_pb2.Circuit:
        message = circuit_pb2.Circuit(
            name=f"circuits/{view.circuit_id}",
            circuit_id=view.circuit_id,
            state=_STATES[view.state],
            reason=view.reason,
            state_time=timestamp(self._wall(view.since)),
            window_call_count=view.window_calls,
            window_failure_count=view.window_failures,
            window_slow_count=view.window_slow,
            consecutive_failure_count=view.consecutive_failures,
            open_count=view.open_count,
            refused_count=view.refused_count,
            shadow=view.is_shadow,
        )
        if view.retry_after_s is not None:
            message.retry_after.CopyFrom(duration(view.retry_after_s))
        if view.troubled_since is not None:
            message.trouble_time.CopyFrom(timestamp(self._wall(view.troubled_since)))
        return message

    def _failed(self, one: FailedCall) -> circuit_pb2.FailedCall:
        return circuit_pb2.FailedCall(
            call_id=one.call_id,
            method=one.method,
            count_time=timestamp(self._wall(one.when)),
            status_code=max(one.code, 0),
            slow=one.code < 0,
            origin=_ORIGINS[one.origin],
            elapsed=duration(one.elapsed_s),
        )

    def _step(self, circuit_id: str, step: Step) -> circuit_pb2.CircuitMove:
        return circuit_pb2.CircuitMove(
            circuit_id=circuit_id,
            move_time=timestamp(self._wall(step.when)),
            before=_STATES[step.before],
            after=_STATES[step.after],
            reason=step.reason,
        )

    def _wall(self, when: float) -> float:
        """Return monotonic seconds as seconds since 1970."""
        return self._clock.wall() - (self._clock.monotonic() - when)


class _Wanted:
    """Which circuits, and which moves, a filter lets pass."""

    def __init__(self, asked: pb.CircuitFilter) -> None:
        """Read the filter.

        Raises:
            Invalid: BAD_CIRCUIT_STATE.
        """
        self._states = frozenset(_word(number) for number in asked.states)
        self._upstream = asked.upstream

    def circuit(self, view: CircuitView) -> bool:
        """Say whether a circuit is one of them."""
        return self._has(view.circuit_id, {view.state})

    def move(self, payload: Payload) -> bool:
        """Say whether something that happened is a move of one of them."""
        return isinstance(payload, CircuitMoved) and self._has(
            payload.circuit, {payload.before, payload.after}
        )

    def _has(self, circuit_id: str, states: set[str]) -> bool:
        upstream = circuit_id.partition("/")[0]
        return self._upstream in {"", upstream} and (
            not self._states or not self._states.isdisjoint(states)
        )


def _word(number: circuit_pb2.Circuit.State.ValueType) -> str:
    found = _WORDS.get(number)
    if found is None:
        raise Invalid(
            "BAD_CIRCUIT_STATE",
            f"circuit state {number} is not known: use closed, open, half_open or"
            " isolated",
        )
    return found


def _moved(event: Event) -> circuit_pb2.CircuitMove:
    moved = cast("CircuitMoved", event.payload)  # `_Wanted.move` let nothing else pass
    return circuit_pb2.CircuitMove(
        circuit_id=moved.circuit,
        move_time=timestamp(event.wall_s),
        before=_STATES[moved.before],
        after=_STATES[moved.after],
        reason=moved.reason,
    )
