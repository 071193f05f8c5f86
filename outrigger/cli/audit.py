"""`outrigger audit`: what was asked of the controller, and how it was answered."""

from collections.abc import Sequence

import grpc

from outrigger.cli import cells, exits
from outrigger.cli.flags import CONTROLLER, Call, Verbs, add_limit
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.v1.fleet_service_pb2 import ListAuditRecordsRequest
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub

_STATUS_NAMES = {int(code.value[0]): code.name for code in grpc.StatusCode}


def status_name(number: int) -> str:
    """Return the name of a gRPC status number."""
    return _STATUS_NAMES.get(number, str(number))


_COLUMNS = (
    Column("SEQUENCE", lambda r: str(r.sequence), right=True),
    Column("TIME", lambda r: cells.moment(r, "event_time")),
    Column("PRINCIPAL", lambda r: cells.words(r.principal)),
    Column("METHOD", lambda r: cells.words(r.method)),
    Column("SUBJECT", lambda r: cells.words(r.subject)),
    Column("STATUS", lambda r: status_name(r.status_code)),
    Column("REASON", lambda r: cells.words(r.reason)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on the audit."""
    verbs = Verbs("audit", "What was asked of the controller.", CONTROLLER)
    add_limit(verbs.add("list", _list, "list records, oldest first"))
    return verbs.run(argv, terminal)


async def _list(call: Call) -> int:
    stub = FleetServiceStub(call.session.channel)
    records = call.session.pages(
        stub.ListAuditRecords, ListAuditRecordsRequest(), "records", call.flags.limit
    )
    await call.printer.rows(records, _COLUMNS)
    return exits.OK
