"""`outrigger faults`: calls made to go wrong on purpose, for a while."""

from collections.abc import Callable, Sequence
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration

from outrigger.cli import cells, exits
from outrigger.cli.audit import status_name
from outrigger.cli.flags import SIDECAR, Call, Verbs, add_dry_run, add_limit, flag_type
from outrigger.cli.fleet import request_id
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.core import values
from outrigger.core.ids import check_upstream_name
from outrigger.v1.fault_pb2 import Fault
from outrigger.v1.fault_service_pb2 import (
    ClearFaultsRequest,
    InjectFaultRequest,
    ListFaultsRequest,
)
from outrigger.v1.fault_service_pb2_grpc import FaultServiceStub

_KINDS: Final = {
    cells.word(Fault.Kind.Name, number): number
    for number in Fault.Kind.values()
    if number != Fault.KIND_UNSPECIFIED
}
_CODES: Final = {
    code.name: int(code.value[0])
    for code in grpc.StatusCode
    if code is not grpc.StatusCode.OK
}
_LONGEST_TTL_S: Final = 3600.0
_LONGEST_DELAY_S: Final = 300.0
_SHORTEST_S: Final = 0.001


def _effect(fault: Fault) -> str:
    if fault.kind == Fault.KIND_ABORT:
        return f"abort {status_name(fault.status_code)}"
    if fault.kind == Fault.KIND_DELAY:
        return f"delay {cells.span(fault, 'delay')}"
    return cells.word(Fault.Kind.Name, fault.kind)


_COLUMNS: Final = (
    Column("FAULT", lambda f: cells.words(f.fault_id)),
    Column("MATCH", lambda f: cells.words(f.match)),
    Column("UPSTREAM", lambda f: cells.words(f.upstream or "any")),
    Column("EFFECT", _effect),
    Column("SHARE", lambda f: f"{f.share:g}", right=True),
    Column("ENDS", lambda f: cells.moment(f, "expire_time")),
    Column("ASKED", lambda f: str(f.matched_count), right=True),
    Column("HIT", lambda f: str(f.hit_count), right=True),
    Column("MESSAGE", lambda f: cells.words(f.message)),
)
_CLEARED: Final = (Column("cleared", lambda n: str(n.cleared_count)),)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on faults."""
    verbs = Verbs(
        "faults",
        "Calls made to go wrong on purpose, at a sidecar started with --allow-faults.",
        SIDECAR,
    )
    inject = verbs.add("inject", _inject, "make a share of calls go wrong for a while")
    inject.add_argument(
        "--match",
        required=True,
        type=flag_type(values.text),
        help="/package.Service/Method, /package.Service/* or *",
    )
    inject.add_argument("--kind", required=True, choices=tuple(_KINDS))
    inject.add_argument("--upstream", type=flag_type(check_upstream_name))
    inject.add_argument("--code", choices=tuple(_CODES), help="status of an abort")
    inject.add_argument("--message", default="", help="status message of an abort")
    inject.add_argument(
        "--delay", type=_time_up_to(_LONGEST_DELAY_S), help="how long a delay lasts"
    )
    inject.add_argument(
        "--share",
        type=flag_type(values.between(values.number, 0.000001, 1.0)),
        default=1.0,
        help="share of the calls that match, such as 0.1; all by default",
    )
    inject.add_argument(
        "--ttl",
        required=True,
        type=_time_up_to(_LONGEST_TTL_S),
        help="how long it is in force, at most 1h",
    )
    add_dry_run(inject)
    add_limit(verbs.add("list", _list, "list the faults in force, oldest first"))
    clear = verbs.add("clear", _clear, "end a fault, or all of them")
    clear.add_argument("fault_id", nargs="?", default="", metavar="ID")
    add_dry_run(clear)
    return verbs.run(argv, terminal)


def _time_up_to(most_s: float) -> Callable[[str], float]:
    return flag_type(values.between(values.seconds, _SHORTEST_S, most_s))


async def _inject(call: Call) -> int:
    flags = call.flags
    stub = FaultServiceStub(call.session.channel)
    request = InjectFaultRequest(
        fault=Fault(
            match=flags.match,
            upstream=flags.upstream or "",
            kind=_KINDS[flags.kind],
            share=flags.share,
            delay=_duration(flags.delay) if flags.delay else None,
            status_code=_CODES.get(flags.code, 0),
            message=flags.message,
            ttl=_duration(flags.ttl),
        ),
        validate_only=flags.dry_run,
        request_id=request_id(),
    )
    answer = await call.session.call(stub.InjectFault, request)
    call.printer.one(answer.fault, _COLUMNS)
    return exits.OK


async def _list(call: Call) -> int:
    stub = FaultServiceStub(call.session.channel)
    faults = call.session.pages(
        stub.ListFaults, ListFaultsRequest(), "faults", call.flags.limit
    )
    await call.printer.rows(faults, _COLUMNS)
    return exits.OK


async def _clear(call: Call) -> int:
    stub = FaultServiceStub(call.session.channel)
    request = ClearFaultsRequest(
        fault_id=call.flags.fault_id,
        validate_only=call.flags.dry_run,
        request_id=request_id(),
    )
    answer = await call.session.call(stub.ClearFaults, request)
    call.printer.one(answer, _CLEARED)
    return exits.OK


def _duration(seconds: float) -> Duration:
    message = Duration()
    message.FromMicroseconds(int(seconds * 1_000_000))
    return message
