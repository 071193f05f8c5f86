"""`outrigger upstreams`: the callees of one sidecar and their connections."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Final

from outrigger.cli import cells, exits
from outrigger.cli.flags import SIDECAR, Call, Verbs, add_limit
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.v1.upstream_pb2 import Upstream, UpstreamAddress
from outrigger.v1.upstream_service_pb2 import ListUpstreamsRequest
from outrigger.v1.upstream_service_pb2_grpc import UpstreamServiceStub


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the table: an address beside its upstream."""

    upstream: Upstream
    address: UpstreamAddress


def _ejected(line: _Line) -> str:
    address = line.address
    if not address.ejected:
        return cells.NONE
    return f"for {cells.span(address, 'ejected_for')}"


_COLUMNS: Final = (
    Column("UPSTREAM", lambda n: cells.words(n.upstream.upstream_id)),
    Column("ADDRESS", lambda n: cells.words(n.address.address)),
    Column("STATE", lambda n: cells.word(UpstreamAddress.State.Name, n.address.state)),
    Column("TLS", lambda n: cells.word(Upstream.Tls.Name, n.upstream.tls)),
    Column("EJECTED", _ejected),
    Column("TIMES", lambda n: cells.count(n.address.ejection_count), right=True),
    Column("DROPS", lambda n: cells.count(n.address.drop_count), right=True),
    Column("OPEN", lambda n: cells.count(n.address.open_attempt_count), right=True),
    Column(
        "PLACES",
        lambda n: f"{n.upstream.in_flight_count}/{n.upstream.in_flight_limit}",
        right=True,
    ),
    Column("WHY EJECTED", lambda n: cells.words(n.address.reason)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on upstreams."""
    verbs = Verbs("upstreams", "The callees of one sidecar.", SIDECAR)
    add_limit(verbs.add("list", _list, "list upstreams and their addresses by name"))
    return verbs.run(argv, terminal)


async def _list(call: Call) -> int:
    stub = UpstreamServiceStub(call.session.channel)
    upstreams = call.session.pages(
        stub.ListUpstreams, ListUpstreamsRequest(), "upstreams", call.flags.limit
    )
    if call.printer.for_people:
        await call.printer.rows(_lines(upstreams), _COLUMNS)
    else:
        await call.printer.rows(upstreams, _COLUMNS)
    return exits.OK


async def _lines(upstreams: AsyncIterator[Upstream]) -> AsyncIterator[_Line]:
    async for upstream in upstreams:
        # One that has no address yet is there all the same.
        for address in upstream.addresses or (UpstreamAddress(),):
            yield _Line(upstream, address)
