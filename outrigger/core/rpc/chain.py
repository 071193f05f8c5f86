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
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from outrigger.core import names
from outrigger.core.access import (
    Places,
    Principal,
    RateLimit,
    Rule,
    Tokens,
    authorise,
)
from outrigger.core.clock import Clock
from outrigger.core.errors import Bug, Invalid, OutriggerError, TimedOut
from outrigger.core.rng import new_instance_id
from outrigger.core.rpc.audit import AuditBook, Audited, AuditSink, no_audit
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
_OK: Final = code_number(grpc.StatusCode.OK)
_CANCELLED: Final = code_number(grpc.StatusCode.CANCELLED)


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
    unary_limit_s: float = _UNARY_LIMIT_S
    """Longest a call with one response may take, whatever its own deadline."""
    max_in_flight: int = _MAX_IN_FLIGHT
    """For callers with a token; of these, agents leave some to operators."""
    counts: Counter[tuple[str, int]] = field(default_factory=Counter)
    """Calls ended, by method and gRPC status number."""
    places: Places = field(default_factory=Places)
    book: AuditBook = field(init=False)

    def __post_init__(self) -> None:
        """Open the book of the audit."""
        self.book = AuditBook(self.audit, self.clock, self.report)


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
        self._places: tuple[str, ...] = ()

    def enter(
        self, context: grpc.aio.ServicerContext[Any, Any], *, lasts: bool = False
    ) -> None:
        """Authenticate, authorise and bound the call."""
        policy = self._policy
        token = self._metadata.get(names.TOKEN_METADATA)
        self._principal = policy.tokens.principal(
            token if isinstance(token, str) else None
        )
        self._rule = authorise(policy.table, self._method, self._principal)
        if self._rule.mutating:
            policy.limit.take(self._principal.name, policy.clock.monotonic())
        self._places = policy.places.take(
            self._principal, policy.max_in_flight, lasts=lasts
        )
        _PRINCIPALS[id(context)] = self._principal

    def leave(self, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        """Give back what `enter` took, if it took it."""
        if self._places:
            del _PRINCIPALS[id(context)]
            self._policy.places.give_back(self._places)

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

    async def end(
        self,
        context: grpc.aio.ServicerContext[Any, Any],
        raised: Exception | None,
        request: object,
    ) -> None:
        """Count and record the call; what it raised is answered: raises then."""
        error = None if raised is None else self._understood(raised)
        try:
            await self._audit(error, request)
        except Bug as unrecorded:
            error = unrecorded
        if error is not None:
            await context.abort(
                status_code(error),
                error.message,
                trailing_metadata=details_metadata(error),
            )

    async def cancelled(self, request: object) -> None:
        """Count and record a call whose caller is gone: a change may be done."""
        self._policy.counts[self._method, _CANCELLED] += 1
        if self._rule.mutating:
            with suppress(Bug):  # reported already, and nobody is left to be told
                await self._policy.book.add(self._entry(_CANCELLED, "", request))

    def _understood(self, raised: Exception) -> OutriggerError:
        error = as_outrigger(raised)
        if isinstance(error, Bug):
            _log.error("%s %s failed", self._method, self._request_id, exc_info=raised)
            self._policy.report(
                describe(self._method, raised, subject=self._request_id)
            )
        return error

    async def _audit(self, error: OutriggerError | None, request: object) -> None:
        """Count the call; record it if it changed something or was refused.

        Raises:
            Bug: NOT_RECORDED.
        """
        number = _OK if error is None else code_number(status_code(error))
        self._policy.counts[self._method, number] += 1
        refused = error is not None and not isinstance(error, Bug)
        if not (self._rule.mutating or refused):
            return
        reason = "" if error is None else error.reason
        await self._policy.book.add(self._entry(number, reason, request))

    def _entry(self, number: int, reason: str, request: object) -> Audited:
        subject = getattr(request, "agent_id", "") or self._principal.agent_id
        return Audited(
            principal=self._principal.name,
            method=self._method,
            subject=str(subject),
            status_code=number,
            reason=reason,
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
        except asyncio.CancelledError:
            await call.cancelled(request)
            raise
        except Exception as error:
            await call.end(context, error, request)
            raise
        else:
            await call.end(context, None, request)
            return response
        finally:
            call.leave(context)

    return behaviour


def _streaming(inner: Any, call: _Call) -> Any:  # noqa: ANN401 - any servicer method
    async def behaviour(
        request: object, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[object]:
        try:
            call.enter(context, lasts=True)
            async for response in inner(_decoded(request), context):
                yield response
        except (grpc.aio.AbortError, grpc.aio.BaseError):
            raise
        except asyncio.CancelledError:
            await call.cancelled(request)
            raise
        except Exception as error:
            await call.end(context, error, request)
            raise
        else:
            await call.end(context, None, request)
        finally:
            call.leave(context)

    return behaviour
