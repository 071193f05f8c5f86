"""Outbound calls that name their upstream."""

# ruff: noqa: ANN401 - the types of grpc's interceptors are private to its stubs
from typing import Any

import grpc

from outrigger.core.names import UPSTREAM_METADATA


def to_upstream(channel: grpc.Channel, upstream: str) -> grpc.Channel:
    """Return the channel with every call on it addressed to that upstream."""
    return grpc.intercept_channel(channel, _Address(upstream))


class _Address(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
    grpc.StreamUnaryClientInterceptor,
    grpc.StreamStreamClientInterceptor,
):
    """Adds the metadata that names an upstream."""

    def __init__(self, upstream: str) -> None:
        self._entry = (UPSTREAM_METADATA, upstream)

    def intercept_unary_unary(self, go_on: Any, details: Any, request: Any) -> Any:
        return go_on(_Details(details, self._entry), request)

    def intercept_unary_stream(self, go_on: Any, details: Any, request: Any) -> Any:
        return go_on(_Details(details, self._entry), request)

    def intercept_stream_unary(self, go_on: Any, details: Any, requests: Any) -> Any:
        return go_on(_Details(details, self._entry), requests)

    def intercept_stream_stream(self, go_on: Any, details: Any, requests: Any) -> Any:
        return go_on(_Details(details, self._entry), requests)


class _Details(grpc.ClientCallDetails):
    """Call details with one more metadata entry."""

    def __init__(self, before: Any, entry: tuple[str, str]) -> None:
        self.method = before.method
        self.timeout = before.timeout
        self.metadata = (*(before.metadata or ()), entry)
        self.credentials = before.credentials
        self.wait_for_ready = before.wait_for_ready
        self.compression = before.compression
