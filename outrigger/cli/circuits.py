"""`outrigger circuits`: which upstreams are refused, and by hand."""

from collections.abc import Sequence

from outrigger.cli import cells, exits
from outrigger.cli.flags import SIDECAR, Call, Verbs, add_dry_run, add_limit, add_reason
from outrigger.cli.fleet import request_id
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.core.config import FlagParser
from outrigger.v1.circuit_pb2 import Circuit
from outrigger.v1.circuit_service_pb2 import (
    IsolateCircuitRequest,
    ListCircuitsRequest,
    RestoreCircuitRequest,
)
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub

_COLUMNS = (
    Column("CIRCUIT", lambda c: cells.words(c.circuit_id)),
    Column("STATE", lambda c: cells.word(Circuit.State.Name, c.state)),
    Column("SINCE", lambda c: cells.moment(c, "state_time")),
    Column("RETRY IN", lambda c: cells.span(c, "retry_after"), right=True),
    Column("CALLS", lambda c: str(c.window_call_count), right=True),
    Column("FAILED", lambda c: str(c.window_failure_count), right=True),
    Column("IN A ROW", lambda c: str(c.consecutive_failure_count), right=True),
    Column("OPENED", lambda c: str(c.open_count), right=True),
    Column("REFUSED", lambda c: str(c.refused_count), right=True),
    Column("REASON", lambda c: cells.words(c.reason)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on circuits."""
    verbs = Verbs("circuits", "Circuits of one sidecar.", SIDECAR)
    add_limit(verbs.add("list", _list, "list circuits by id"))
    isolate = verbs.add("isolate", _isolate, "refuse every call until restored")
    _add_circuit(isolate)
    add_reason(isolate, required=True)
    add_dry_run(isolate)
    restore = verbs.add("restore", _restore, "end an isolation by probing")
    _add_circuit(restore)
    add_dry_run(restore)
    return verbs.run(argv, terminal)


def _add_circuit(parser: FlagParser) -> None:
    parser.add_argument(
        "circuit_id", metavar="ID", help="UPSTREAM or UPSTREAM/package.Service/Method"
    )


async def _list(call: Call) -> int:
    stub = CircuitServiceStub(call.session.channel)
    circuits = call.session.pages(
        stub.ListCircuits, ListCircuitsRequest(), "circuits", call.flags.limit
    )
    await call.printer.rows(circuits, _COLUMNS)
    return exits.OK


async def _isolate(call: Call) -> int:
    stub = CircuitServiceStub(call.session.channel)
    request = IsolateCircuitRequest(
        circuit_id=call.flags.circuit_id,
        reason=call.flags.reason,
        validate_only=call.flags.dry_run,
        request_id=request_id(),
    )
    answer = await call.session.call(stub.IsolateCircuit, request)
    call.printer.one(answer.circuit, _COLUMNS)
    return exits.OK


async def _restore(call: Call) -> int:
    stub = CircuitServiceStub(call.session.channel)
    request = RestoreCircuitRequest(
        circuit_id=call.flags.circuit_id,
        validate_only=call.flags.dry_run,
        request_id=request_id(),
    )
    answer = await call.session.call(stub.RestoreCircuit, request)
    call.printer.one(answer.circuit, _COLUMNS)
    return exits.OK
