"""TapService: calls as they end, for operators."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from outrigger.core.access import Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.rpc.events import timestamp
from outrigger.v1 import tap_service_pb2 as pb
from outrigger.v1 import tap_service_pb2_grpc
from sidecar.call.tap import TapFilter, TapHub, TappedCall
from sidecar.rpc.wire import duration

ACCESS: Final = {
    "/outrigger.v1.TapService/Tap": Rule(roles=frozenset({Role.OPERATOR})),
}

_Context = grpc.aio.ServicerContext[Any, Any]


class TapServicer(tap_service_pb2_grpc.TapServiceServicer):
    """Serves the calls of one guard."""

    def __init__(self, hub: TapHub, clock: Clock) -> None:
        """Prepare; the clock is that of the guard."""
        self._hub = hub
        self._clock = clock

    async def Tap(
        self, request: pb.TapRequest, context: _Context
    ) -> AsyncIterator[pb.TapResponse]:
        """Stream calls that end from now on."""
        wanted = TapFilter(
            method_prefix=request.method_prefix,
            upstream=request.upstream,
            failures_only=request.failures_only,
        )
        with self._hub.tapped(wanted) as backlog:
            # Headers at once say that it has begun: what ends from now on is shown.
            await context.send_initial_metadata(())
            while True:
                call, missed = await backlog.take()
                yield pb.TapResponse(call=self._message(call), missed_count=missed)

    def _message(self, call: TappedCall) -> pb.TappedCall:
        ago_s = self._clock.monotonic() - call.ended
        return pb.TappedCall(
            call_id=call.call_id,
            end_time=timestamp(self._clock.wall() - ago_s),
            method=call.method,
            upstream=call.upstream,
            status_code=call.code,
            elapsed=duration(call.elapsed_s),
            attempt_count=call.attempts,
            refused_by=call.refused_by,
            letter_id=call.letter_id,
            delivery=call.is_delivery,
            agent_id=call.agent,
            metadata=[
                pb.TappedMetadata(key=key, value=value) for key, value in call.metadata
            ],
            omitted_metadata_count=call.omitted,
        )
