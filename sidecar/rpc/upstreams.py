"""UpstreamService: the callees of one sidecar, for operators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import grpc.aio

from outrigger.core.access import Role, Rule
from outrigger.v1 import upstream_pb2, upstream_service_pb2_grpc
from outrigger.v1 import upstream_service_pb2 as pb
from sidecar.rpc.wire import duration, page_after, page_size, page_token

ACCESS: Final = {
    "/outrigger.v1.UpstreamService/ListUpstreams": Rule(
        roles=frozenset({Role.OPERATOR})
    ),
}
_STATES: Final = {
    "IDLE": upstream_pb2.UpstreamAddress.STATE_IDLE,
    "CONNECTING": upstream_pb2.UpstreamAddress.STATE_CONNECTING,
    "READY": upstream_pb2.UpstreamAddress.STATE_READY,
    "TRANSIENT_FAILURE": upstream_pb2.UpstreamAddress.STATE_TRANSIENT_FAILURE,
    "SHUTDOWN": upstream_pb2.UpstreamAddress.STATE_SHUTDOWN,
}
_TLS: Final = {
    "off": upstream_pb2.Upstream.TLS_OFF,
    "tls": upstream_pb2.Upstream.TLS_SERVER,
    "mutual": upstream_pb2.Upstream.TLS_MUTUAL,
}
_BALANCES: Final = {
    "pick_first": upstream_pb2.Upstream.BALANCE_PICK_FIRST,
    "round_robin": upstream_pb2.Upstream.BALANCE_ROUND_ROBIN,
}

_Context = grpc.aio.ServicerContext[Any, Any]


class AddressShown(Protocol):
    """One address, as a wire shows it."""

    @property
    def address(self) -> str:
        """As it is dialled."""
        ...

    @property
    def state(self) -> str:
        """READY, CONNECTING, IDLE, TRANSIENT_FAILURE or SHUTDOWN."""
        ...

    @property
    def is_ejected(self) -> bool:
        """It gets no calls now."""
        ...

    @property
    def back_in_s(self) -> float:
        """For how long; 0 if it is not ejected."""
        ...

    @property
    def ejections(self) -> int:
        """In a row."""
        ...

    @property
    def why(self) -> str:
        """Why it was ejected last; empty if it never was."""
        ...

    @property
    def drops(self) -> int:
        """Connections that were lost."""
        ...

    @property
    def open_attempts(self) -> int:
        """Attempts on their way to it."""
        ...


class UpstreamShown(Protocol):
    """One upstream, as a wire shows it."""

    @property
    def name(self) -> str:
        """As configured."""
        ...

    @property
    def balance(self) -> str:
        """pick_first or round_robin."""
        ...

    @property
    def tls(self) -> str:
        """off, tls or mutual."""
        ...

    @property
    def addresses(self) -> Sequence[AddressShown]:
        """Every address known now."""
        ...


Places = Callable[[str], tuple[int, int]]
"""Upstream to its calls in flight and the most there may be."""


class UpstreamServicer(upstream_service_pb2_grpc.UpstreamServiceServicer):
    """Serves the upstreams of one wire."""

    def __init__(
        self, views: Callable[[], Iterable[UpstreamShown]], places: Places
    ) -> None:
        """Prepare.

        Args:
            views: every upstream as it is now.
            places: how full an upstream is, and may be.
        """
        self._views = views
        self._places = places

    async def ListUpstreams(
        self, request: pb.ListUpstreamsRequest, context: _Context
    ) -> pb.ListUpstreamsResponse:
        """Return a page of upstreams by name."""
        size = page_size(request.page_size)
        after = page_after(request.page_token)
        views = sorted(self._views(), key=lambda view: view.name)
        rest = [view for view in views if view.name > after]
        page = rest[:size]
        token = page_token(page[-1].name) if len(rest) > size else ""
        return pb.ListUpstreamsResponse(
            upstreams=[self._message(view) for view in page], next_page_token=token
        )

    def _message(self, view: UpstreamShown) -> upstream_pb2.Upstream:
        in_flight, most = self._places(view.name)
        return upstream_pb2.Upstream(
            name=f"upstreams/{view.name}",
            upstream_id=view.name,
            tls=_TLS[view.tls],
            balance=_BALANCES[view.balance],
            in_flight_count=in_flight,
            in_flight_limit=most,
            addresses=[_address(one) for one in view.addresses],
        )


def _address(one: AddressShown) -> upstream_pb2.UpstreamAddress:
    return upstream_pb2.UpstreamAddress(
        address=one.address,
        state=_STATES[one.state],
        ejected=one.is_ejected,
        ejected_for=duration(one.back_in_s) if one.is_ejected else None,
        ejection_count=one.ejections,
        reason=one.why,
        drop_count=one.drops,
        open_attempt_count=one.open_attempts,
    )
