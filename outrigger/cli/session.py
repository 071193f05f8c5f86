"""Calls to one server: its metadata, its deadlines, and its errors as ours."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol, TypeVar

import grpc
import grpc.aio

from outrigger.cli.connect import ClientTls, Server, stays_here
from outrigger.core.errors import Bug, Invalid, OutriggerError, TimedOut, Transient
from outrigger.core.rpc.errors import from_rpc_error
from outrigger.core.rpc.server import CHANNEL_OPTIONS, read_secret

_TRANSFER_FACTOR: Final = 60
_PAGE_MAX: Final = 1000

Request = TypeVar("Request")
Response = TypeVar("Response")
PageRequest = TypeVar("PageRequest", bound="PagedRequest")


class PagedRequest(Protocol):
    """A request of a list method."""

    page_size: int
    page_token: str


class Session:
    """An open connection to one server."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.channel = channel

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        long: bool = False,
    ) -> Response:
        """Return the answer to one request.

        Args:
            method: of a stub.
            request: what it takes.
            long: it may read much, so 60 times the timeout is given.

        Raises:
            OutriggerError: what was answered, or that nothing was.
        """
        limit_s = self._transfer_s if long else self.server.timeout_s
        try:
            return await method(request, timeout=limit_s, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise self._told(error, limit_s) from error

    async def receive(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Response],
        request: Request,
        *,
        endless: bool = False,
    ) -> AsyncGenerator[Response, None]:
        """Yield the answers to one request; no deadline when it is endless.

        Raises:
            OutriggerError: what was answered, or that nothing was.
        """
        limit_s = None if endless else self._transfer_s
        call = method(request, timeout=limit_s, metadata=self._metadata)
        try:
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise self._told(error, self._transfer_s) from error
        finally:
            call.cancel()

    async def send(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[Request, Response],
        requests: Iterator[Request],
    ) -> Response:
        """Return the answer to many requests.

        Raises:
            OutriggerError: what was answered, or that nothing was.
            Exception: what `requests` raised; the call is then given up.
        """
        failures: list[Exception] = []
        call = method(
            _noting(requests, failures),
            timeout=self._transfer_s,
            metadata=self._metadata,
        )
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._told(error, self._transfer_s) from error
        except asyncio.CancelledError:
            # grpc.aio cancels the call when its requests fail, and hides why.
            if failures:
                raise failures[0] from None
            raise

    async def pages(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[PageRequest, Any],
        request: PageRequest,
        field: str,
        limit: int | None = None,
    ) -> AsyncIterator[Any]:
        """Yield the things of every page, `limit` of them at most.

        Raises:
            Bug: SAME_PAGE when the server sends us round in circles.
        """
        left = limit
        while left is None or left > 0:
            request.page_size = _PAGE_MAX if left is None else min(left, _PAGE_MAX)
            response = await self.call(method, request)
            for thing in list(getattr(response, field))[:left]:
                yield thing
                left = None if left is None else left - 1
            token = response.next_page_token
            if not token:
                return
            if token == request.page_token:
                raise Bug(
                    "SAME_PAGE", f"the {self.server.kind} repeats a page of {field}"
                )
            request.page_token = token

    @property
    def _metadata(self) -> grpc.aio.Metadata:
        return grpc.aio.Metadata(*self.server.metadata)

    @property
    def _transfer_s(self) -> float:
        return self.server.timeout_s * _TRANSFER_FACTOR

    def _told(self, error: grpc.aio.AioRpcError, limit_s: float) -> OutriggerError:
        """Return the error for a person: who did not answer, and what to do."""
        server = self.server
        found = from_rpc_error(error)
        if found.reason == "PEER_UNAVAILABLE":
            return Transient(
                "NO_ANSWER",
                f"{server.address} does not answer: expected a {server.kind} there;"
                f" start it, or name another address ({found.message})",
            )
        if found.reason == "PEER_DEADLINE_EXCEEDED":
            return TimedOut(
                "NO_ANSWER_IN_TIME",
                f"{server.address} did not answer within {limit_s:g} s: look whether it"
                " happened before asking again, or give a longer --timeout",
            )
        if found.reason == "PEER_UNIMPLEMENTED":
            return Invalid(
                "NOT_OFFERED",
                f"{server.address} does not offer this: expected a {server.kind} of"
                f" this version there ({found.message})",
            )
        return found


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[Session]:
    """Open a connection; it is closed at the end, with what is in flight."""
    channel = _channel(server)
    try:
        yield Session(server, channel)
    finally:
        await channel.close()


def _channel(server: Server) -> grpc.aio.Channel:
    local = stays_here(server.address)
    # A proxy from the environment is for other machines.
    options = [*CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0 if local else 1)]
    if server.tls is None or server.address.startswith("unix:"):
        return grpc.aio.insecure_channel(server.address, options=options)
    return grpc.aio.secure_channel(
        server.address, _credentials(server.tls), options=options
    )


def _credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        root_certificates=read_secret(tls.ca, "--tls-ca"),
        private_key=read_secret(tls.key, "--tls-key") if tls.key else None,
        certificate_chain=read_secret(tls.cert, "--tls-cert") if tls.cert else None,
    )


def _noting(
    requests: Iterator[Request], failures: list[Exception]
) -> Iterator[Request]:
    try:
        yield from requests
    except Exception as error:
        failures.append(error)
        raise
