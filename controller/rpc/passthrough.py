"""Calls that are about one agent's sidecar, passed on to it as bytes.

RPCs of a sidecar's services, all but the agent's own Attach, with the metadata
`outrigger-agent: ID` go to that sidecar's API under its operator token. Nothing is
decoded, and what the sidecar answers (status, message, trailers) is what the caller
gets.
"""

from __future__ import annotations  # RpcMethodHandler is generic for type checkers only

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor

from controller.policy.fleet import Fleet
from controller.registry import Registry
from controller.rpc.dial import Dialer
from controller.trail import Trail, note
from outrigger.core import names
from outrigger.core.access import Role, Rule
from outrigger.core.errors import Invalid, Transient
from outrigger.core.ids import check_agent_id
from outrigger.core.rpc.chain import principal_of
from outrigger.core.rpc.errors import (
    DETAILS_KEY,
    code_number,
    error_info,
    from_rpc_error,
)
from outrigger.v1 import (
    checkpoint_service_pb2,
    circuit_service_pb2,
    fault_service_pb2,
    letter_service_pb2,
    sidecar_service_pb2,
    tap_service_pb2,
    upstream_service_pb2,
)

_SERVICES: Final = (
    letter_service_pb2.DESCRIPTOR.services_by_name["LetterService"],
    circuit_service_pb2.DESCRIPTOR.services_by_name["CircuitService"],
    checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"],
    sidecar_service_pb2.DESCRIPTOR.services_by_name["SidecarService"],
    tap_service_pb2.DESCRIPTOR.services_by_name["TapService"],
    fault_service_pb2.DESCRIPTOR.services_by_name["FaultService"],
    upstream_service_pb2.DESCRIPTOR.services_by_name["UpstreamService"],
)
_METHODS: Final[dict[str, MethodDescriptor]] = {
    f"/{service.full_name}/{method.name}": method
    for service in _SERVICES
    for method in service.methods
}
_READS: Final = (
    "Get",
    "List",
    "Query",
    "Watch",
    "Export",
    "Verify",
    "RestoreCheck",
    "Tap",
)
"""How the names of methods begin that change nothing."""

SERVICES: Final = frozenset(service.full_name for service in _SERVICES)
TABLE: Final[dict[str, Rule]] = {
    name: Rule(
        roles=frozenset({Role.OPERATOR}), mutating=not method.name.startswith(_READS)
    )
    for name, method in _METHODS.items()
}
"""Who may call what: operators only, whatever the sidecar allows to others."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Metadata = tuple[tuple[str, str | bytes], ...]
_NOT_PASSED: Final = frozenset(
    {names.TOKEN_METADATA, names.AGENT_METADATA, "user-agent", "te", "content-type"}
)


@dataclass(frozen=True, slots=True)
class _Way:
    """Where one call goes."""

    agent_id: str
    method: str
    channel: grpc.aio.Channel
    metadata: _Metadata
    timeout_s: float | None


class Passthrough(grpc.GenericRpcHandler):
    """Handles every method of the sidecars' services, of any arity."""

    def __init__(
        self, *, fleet: Fleet, registry: Registry, dialer: Dialer, trail: Trail
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._dialer = dialer
        self._trail = trail

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of a method; None when it is no sidecar's."""
        name = handler_call_details.method
        method = _METHODS.get(name)
        if method is None:
            return None
        if method.server_streaming:
            return self._streaming(name, method)
        make = (
            grpc.stream_unary_rpc_method_handler
            if method.client_streaming
            else grpc.unary_unary_rpc_method_handler
        )

        async def behaviour(request: Any, context: _Context) -> bytes:  # noqa: ANN401 - one message or a stream of them
            way = self._way(name, context)
            opened: Any = (
                way.channel.stream_unary(name)
                if method.client_streaming
                else way.channel.unary_unary(name)
            )
            call = opened(request, metadata=way.metadata, timeout=way.timeout_s)
            try:
                response: bytes = await call
            except grpc.aio.AioRpcError as error:
                await self._refuse(way, context, error)
            except asyncio.CancelledError as error:
                _pass_on_cancel(way, error)
            await _send_headers(context, await call.initial_metadata())
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))
            return response

        return make(behaviour)

    def _streaming(
        self, name: str, method: MethodDescriptor
    ) -> grpc.RpcMethodHandler[Any, Any]:
        make = (
            grpc.stream_stream_rpc_method_handler
            if method.client_streaming
            else grpc.unary_stream_rpc_method_handler
        )

        async def behaviour(request: Any, context: _Context) -> AsyncIterator[bytes]:  # noqa: ANN401 - one message or a stream of them
            way = self._way(name, context)
            opened: Any = (
                way.channel.stream_stream(name)
                if method.client_streaming
                else way.channel.unary_stream(name)
            )
            call = opened(request, metadata=way.metadata, timeout=way.timeout_s)
            try:
                async for message in call:
                    yield message
            except grpc.aio.AioRpcError as error:
                await self._refuse(way, context, error)
            except asyncio.CancelledError as error:
                _pass_on_cancel(way, error)
            finally:
                call.cancel()
            context.set_trailing_metadata(tuple(await call.trailing_metadata()))

        return make(behaviour)

    def _way(self, name: str, context: _Context) -> _Way:
        """Find the sidecar a call is for.

        Raises:
            Invalid: NO_AGENT or BAD_AGENT_ID.
            NotFound: UNKNOWN_AGENT.
            Transient: SIDECAR_AWAY.
            Refused: NO_SIDECAR_API or SIDECAR_NEEDS_TLS.
        """
        given = tuple(context.invocation_metadata() or ())
        agent_id = _agent_id(given)
        note(agent_id)
        if TABLE[name].mutating and not name.endswith("/WakeAgent"):
            self._trail.check()
        self._fleet.agent(agent_id)
        connection = self._registry.connection(agent_id)
        passed = tuple((k, v) for k, v in given if k not in _NOT_PASSED)
        return _Way(
            agent_id=agent_id,
            method=name,
            channel=self._dialer.channel(connection),
            metadata=(*passed, (names.TOKEN_METADATA, connection.operator_token)),
            timeout_s=context.time_remaining(),
        )

    async def _refuse(
        self, way: _Way, context: _Context, error: grpc.aio.AioRpcError
    ) -> NoReturn:
        """Answer as the sidecar answered, and audit it: the chain sees no abort.

        Raises:
            Transient: SIDECAR_AWAY when the sidecar was not reached.
        """
        trailers = tuple(error.trailing_metadata())
        details = next((v for k, v in trailers if k == DETAILS_KEY), None)
        own = error_info(details if isinstance(details, bytes) else None)
        if error.code() is grpc.StatusCode.UNAVAILABLE and own is None:
            raise _away(way, error.details() or "no answer") from error
        if TABLE[way.method].mutating:
            await self._trail.record(
                principal=principal_of(context).name,
                method=way.method,
                subject=way.agent_id,
                status_code=code_number(error.code()),
                reason=from_rpc_error(error).reason,
            )
        await _send_headers(context, error.initial_metadata())
        await context.abort(
            error.code(), error.details() or "", trailing_metadata=trailers
        )


def _away(way: _Way, why: str) -> Transient:
    return Transient(
        "SIDECAR_AWAY",
        f"the API of agent {way.agent_id}'s sidecar cannot be reached from the"
        f" controller ({why}): check that it runs, and its --api",
        retry_after_s=1.0,
    )


def _pass_on_cancel(way: _Way, error: asyncio.CancelledError) -> NoReturn:
    """Tell our caller's cancellation from a channel that closed under the call."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise error
    raise _away(way, "its sidecar was replaced") from error


def _agent_id(metadata: _Metadata) -> str:
    given = [value for key, value in metadata if key == names.AGENT_METADATA]
    if len(given) != 1 or not isinstance(given[0], str):
        raise Invalid(
            "NO_AGENT",
            f"this method belongs to a sidecar: name its agent once in metadata"
            f" '{names.AGENT_METADATA}'",
        )
    return check_agent_id(given[0])


async def _send_headers(context: _Context, headers: Any) -> None:  # noqa: ANN401 - grpc's own metadata
    """Pass on headers; none leaves a failure Trailers-Only."""
    passed = tuple(headers or ())
    if passed:
        await context.send_initial_metadata(passed)
