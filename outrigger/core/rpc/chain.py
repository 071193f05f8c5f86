"""The one interceptor chain of every API server of ours.

Order, outermost first: metrics -> request id -> audit -> authenticate ->
authorise -> limits -> deadline -> handler. Audit stands outside authorisation so
that refusals are recorded too. A method without a row in the table is refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from outrigger.core import names
from outrigger.core.access import Principal, RateLimit, Rule, Tokens, authorise
from outrigger.core.clock import Clock
from outrigger.core.errors import Bug, Invalid, OutriggerError, Overloaded, TimedOut
from outrigger.core.rng import new_instance_id
from outrigger.core.rpc.errors import (
    as_outrigger,
    code_number,
    details_metadata,
    status_code,
)
from outrigger.core.tasks import Report, describe

_log = logging.getLogger("outrigger.rpc")

_MAX_IN_FLIGHT = 256
_LIMIT_CHANGES_PER_S = 50.0
_LIMIT_BURST = 200.0
_UNARY_LIMIT_S = 30.0
_REQUEST_ID_CHARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """One call of a mutating method, or any refused call."""

    principal: str
    method: str
    subject: str
    status_code: int
    """gRPC status number it was answered with."""
    reason: str
    """Reason of the refusal; empty when it was let through."""


class AuditSink(Protocol):
    """Where audit entries go."""

    def __call__(self, entry: Audited, /) -> Awaitable[None]:
        """Keep one entry; it is answered to the caller only after this."""
        ...


async def no_audit(entry: Audited) -> None:
    """Log an entry; for servers that keep no audit of their own."""
    _log.info("audit %s", entry)


@dataclass(slots=True, kw_only=True)
class Policy:
    """What a server's chain needs."""

    table: dict[str, Rule]
    """Full method name to rule."""
    tokens: Tokens
    clock: Clock
    report: Report
    """Where unexpected errors go."""
    audit: AuditSink = no_audit
    limit: RateLimit = field(
        default_factory=lambda: RateLimit(
            rate_per_s=_LIMIT_CHANGES_PER_S, burst=_LIMIT_BURST
        )
    )
    max_in_flight: int = _MAX_IN_FLIGHT
    unary_limit_s: float = _UNARY_LIMIT_S
    """Longest a call with one response may take, whatever its own deadline."""
    in_flight: int = 0
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Calls ended, by method and gRPC status number."""


_PRINCIPALS: dict[int, Principal] = {}


def principal_of(context: grpc.aio.ServicerContext[Any, Any]) -> Principal:
    """Return who makes the call being handled.

    Raises:
        Bug: NO_PRINCIPAL when the call did not come through the chain.
    """
    found = _PRINCIPALS.get(id(context))
    if found is None:
        raise Bug("NO_PRINCIPAL", "the call did not pass the interceptor chain")
    return found


class Chain(grpc.aio.ServerInterceptor):
    """Wraps every handler of a server in the chain."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails],
            Awaitable[grpc.RpcMethodHandler[Any, Any] | None],
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler wrapped; an unknown method stays UNIMPLEMENTED."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        metadata = tuple(handler_call_details.invocation_metadata or ())
        return _wrap(handler, _Call(self._policy, method, metadata))


class _Call:
    """One call on its way through the chain."""

    def __init__(
        self, policy: Policy, method: str, metadata: tuple[tuple[str, Any], ...]
    ) -> None:
        self._policy = policy
        self._method = method
        self._metadata = dict(metadata)
        given = self._metadata.get(names.REQUEST_ID_METADATA)
        self._request_id = (
            given[:_REQUEST_ID_CHARS] if isinstance(given, str) else new_instance_id()
        )
        self._principal = Principal(None)
        self._rule = Rule()

    def enter(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Authenticate, authorise and bound the call."""
        policy = self._policy
        token = self._metadata.get(names.TOKEN_METADATA)
        self._principal = policy.tokens.principal(
            token if isinstance(token, str) else None
        )
        self._rule = authorise(policy.table, self._method, self._principal)
        if self._rule.mutating:
            policy.limit.take(self._principal.name, policy.clock.monotonic())
        if policy.in_flight >= policy.max_in_flight:
            raise Overloaded(
                "TOO_MANY_CALLS",
                f"more than {policy.max_in_flight} calls are in flight here",
                retry_after_s=1.0,
            )
        policy.in_flight += 1
        _PRINCIPALS[id(context)] = self._principal

    def leave(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Give back what `enter` took, if it took it."""
        if _PRINCIPALS.pop(id(context), None) is not None:
            self._policy.in_flight -= 1

    async def bounded(self, work: Awaitable[object]) -> object:
        """Wait for a handler with one response, no longer than the limit."""
        try:
            async with asyncio.timeout(self._policy.unary_limit_s):
                return await work
        except TimeoutError as error:
            raise TimedOut(
                "TOOK_TOO_LONG",
                f"{self._method} took longer than {self._policy.unary_limit_s:g} s"
                " here; it may or may not have happened: look before asking again",
            ) from error

    async def audit(self, error: OutriggerError | None, request: object) -> None:
        """Count the call; record it if it changed something or was refused."""
        number = 0 if error is None else code_number(status_code(error))
        self._policy.counts[self._method, number] += 1
        refused = error is not None and not isinstance(error, Bug)
        if not (self._rule.mutating or refused):
            return
        subject = getattr(request, "agent_id", "") or self._principal.agent_id
        await self._policy.audit(
            Audited(
                principal=self._principal.name,
                method=self._method,
                subject=str(subject),
                status_code=number,
                reason="" if error is None else error.reason,
            )
        )

    async def refuse(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        raised: Exception,
        request: object,
    ) -> None:
        """Answer an error; always raises."""
        error = as_outrigger(raised)
        if isinstance(error, Bug):
            _log.error("%s %s failed", self._method, self._request_id, exc_info=raised)
            self._policy.report(
                describe(self._method, raised, subject=self._request_id)
            )
        await self.audit(error, request)
        await context.abort(
            status_code(error), error.message, trailing_metadata=details_metadata(error)
        )


def _wrap(
    handler: grpc.RpcMethodHandler[Any, Any], call: _Call
) -> grpc.RpcMethodHandler[Any, Any]:
    codec = {
        "request_deserializer": _decoder(handler.request_deserializer),
        "response_serializer": handler.response_serializer,
    }
    if handler.response_streaming:
        inner = handler.stream_stream or handler.unary_stream
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        return make(_streaming(inner, call), **codec)
    inner = handler.stream_unary or handler.unary_unary
    make = (
        grpc.stream_unary_rpc_method_handler
        if handler.request_streaming
        else grpc.unary_unary_rpc_method_handler
    )
    bounded = not handler.request_streaming  # an upload may take its time
    return make(_unary(inner, call, bounded=bounded), **codec)


@dataclass(frozen=True, slots=True)
class _Garbled:
    """In the place of a message that could not be read."""

    why: str


def _decoder(parse: Callable[[bytes], object] | None) -> Any:  # noqa: ANN401 - grpc's
    """Return a parser that never raises.

    The library would answer an error in it before anybody here hears of the call,
    with UNKNOWN and a traceback in the log.
    """
    if parse is None:
        return None

    def decode(raw: bytes) -> object:
        try:
            return parse(raw)
        except DecodeError as error:
            return _Garbled(str(error))

    return decode


def _decoded(request: object) -> object:
    """Return the request, or the stream of them, if it could be read.

    Raises:
        Invalid: BAD_MESSAGE; from a stream when the bad one is its next.
    """
    if isinstance(request, AsyncIterator):
        return _each_decoded(request)
    if isinstance(request, _Garbled):
        raise Invalid(
            "BAD_MESSAGE",
            f"the request is not the message that this method takes ({request.why}):"
            " check the method and the version of its proto file",
        )
    return request


async def _each_decoded(requests: AsyncIterator[object]) -> AsyncIterator[object]:
    async for request in requests:
        yield _decoded(request)


def _unary(inner: Any, call: _Call, *, bounded: bool) -> Any:  # noqa: ANN401 - any servicer method
    async def behaviour(
        request: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> object:
        try:
            call.enter(context)
            work = inner(_decoded(request), context)
            response = await (call.bounded(work) if bounded else work)
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception as error:
            await call.refuse(context, error, request)
            raise
        else:
            await call.audit(None, request)
            return response
        finally:
            call.leave(context)

    return behaviour


def _streaming(inner: Any, call: _Call) -> Any:  # noqa: ANN401 - any servicer method
    async def behaviour(
        request: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[object]:
        try:
            call.enter(context)
            async for response in inner(_decoded(request), context):
                yield response
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except Exception as error:
            await call.refuse(context, error, request)
            raise
        else:
            await call.audit(None, request)
        finally:
            call.leave(context)

    return behaviour
