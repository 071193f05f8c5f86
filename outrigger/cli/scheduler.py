"""`outrigger scheduler`: whether idle agents are put to sleep by themselves."""

from collections.abc import Sequence

from google.protobuf.duration_pb2 import Duration

from outrigger.cli import cells, exits
from outrigger.cli.flags import CONTROLLER, Call, Verbs, add_dry_run, flag_type
from outrigger.cli.fleet import request_id
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.core import values
from outrigger.v1.fleet_service_pb2 import (
    DisableSchedulerRequest,
    EnableSchedulerRequest,
    GetSchedulerRequest,
)
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub

_LINES = (
    Column("enabled", lambda s: "yes" if s.enabled else "no"),
    Column("keep alive", lambda s: cells.span(s, "keep_alive")),
    Column("sleeps", lambda s: str(s.sleep_count)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on the scheduler."""
    verbs = Verbs("scheduler", "Whether idle agents are put to sleep.", CONTROLLER)
    verbs.add("show", _show, "show how it is set")
    enable = verbs.add("enable", _enable, "let it put idle agents to sleep")
    enable.add_argument(
        "--keep-alive",
        type=flag_type(values.between(values.seconds, 1.0)),
        metavar="TIME",
        help="idle time after which an agent sleeps; as before, or 300s, by default",
    )
    add_dry_run(enable)
    add_dry_run(verbs.add("disable", _disable, "stop it; nobody is woken by this"))
    return verbs.run(argv, terminal)


async def _show(call: Call) -> int:
    stub = FleetServiceStub(call.session.channel)
    answer = await call.session.call(stub.GetScheduler, GetSchedulerRequest())
    call.printer.one(answer.scheduler, _LINES)
    return exits.OK


async def _enable(call: Call) -> int:
    stub = FleetServiceStub(call.session.channel)
    request = EnableSchedulerRequest(
        validate_only=call.flags.dry_run, request_id=request_id()
    )
    if call.flags.keep_alive is not None:
        keep_alive = Duration()
        keep_alive.FromMilliseconds(round(call.flags.keep_alive * 1000))
        request.keep_alive.CopyFrom(keep_alive)
    answer = await call.session.call(stub.EnableScheduler, request)
    call.printer.one(answer.scheduler, _LINES)
    return exits.OK


async def _disable(call: Call) -> int:
    stub = FleetServiceStub(call.session.channel)
    request = DisableSchedulerRequest(
        validate_only=call.flags.dry_run, request_id=request_id()
    )
    answer = await call.session.call(stub.DisableScheduler, request)
    call.printer.one(answer.scheduler, _LINES)
    return exits.OK
