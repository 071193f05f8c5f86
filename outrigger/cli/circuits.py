"""`outrigger circuits`: which upstreams are refused, why, and by hand."""

import argparse
from collections.abc import Sequence
from contextlib import aclosing
from typing import Final

from outrigger.cli import cells, exits
from outrigger.cli.audit import status_name
from outrigger.cli.flags import (
    SIDECAR,
    Call,
    Verbs,
    add_dry_run,
    add_limit,
    add_reason,
    flag_type,
)
from outrigger.cli.fleet import request_id
from outrigger.cli.output import ENDLESS_FORMS, Column
from outrigger.cli.terminal import Terminal
from outrigger.core.config import FlagParser
from outrigger.core.ids import check_upstream_name
from outrigger.v1.circuit_pb2 import Circuit, CircuitMove, FailedCall
from outrigger.v1.circuit_service_pb2 import (
    CircuitFilter,
    CircuitsShown,
    GetCircuitRequest,
    IsolateCircuitRequest,
    ListCircuitsRequest,
    RestoreCircuitRequest,
    WatchCircuitsRequest,
    WatchCircuitsResponse,
)
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub

_STATES: Final = {
    cells.word(Circuit.State.Name, number): number
    for number in Circuit.State.values()
    if number != Circuit.STATE_UNSPECIFIED
}


def _state(number: Circuit.State.ValueType) -> str:
    return cells.word(Circuit.State.Name, number)


def _standing(circuit: Circuit) -> str:
    """Return the state, marked where it refuses nothing all the same."""
    return f"{_state(circuit.state)}{' (shadow)' if circuit.shadow else ''}"


def _ended(call: FailedCall) -> str:
    return "still on its way" if call.slow else status_name(call.status_code)


_COLUMNS: Final = (
    Column("CIRCUIT", lambda c: cells.words(c.circuit_id)),
    Column("STATE", _standing),
    Column("SINCE", lambda c: cells.moment(c, "state_time")),
    Column("RETRY IN", lambda c: cells.span(c, "retry_after"), right=True),
    Column("CALLS", lambda c: str(c.window_call_count), right=True),
    Column("FAILED", lambda c: str(c.window_failure_count), right=True),
    Column("SLOW", lambda c: str(c.window_slow_count), right=True),
    Column("IN A ROW", lambda c: str(c.consecutive_failure_count), right=True),
    Column("OPENED", lambda c: str(c.open_count), right=True),
    Column("REFUSED", lambda c: str(c.refused_count), right=True),
    Column("REASON", lambda c: cells.words(c.reason)),
)
_FAILED: Final = (
    Column("COUNTED", lambda f: cells.moment(f, "count_time")),
    Column("METHOD", lambda f: cells.words(f.method)),
    Column("ENDED WITH", _ended),
    Column("MADE BY", lambda f: cells.word(FailedCall.Origin.Name, f.origin)),
    Column("AFTER", lambda f: cells.milliseconds(f.elapsed), right=True),
    Column("CALL", lambda f: cells.words(f.call_id)),
)
_HISTORY: Final = (
    Column("MOVED", lambda m: cells.moment(m, "move_time")),
    Column("FROM", lambda m: _state(m.before)),
    Column("TO", lambda m: _state(m.after)),
    Column("WHY", lambda m: cells.words(m.reason)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on circuits."""
    verbs = Verbs("circuits", "Circuits of one sidecar.", SIDECAR)
    listing = verbs.add("list", _list, "list circuits by id")
    _add_filter(listing)
    add_limit(listing)
    _add_circuit(verbs.add("show", _show, "say why a circuit is as it is"))
    isolate = verbs.add("isolate", _isolate, "refuse every call until restored")
    _add_circuit(isolate)
    add_reason(isolate, required=True)
    add_dry_run(isolate)
    restore = verbs.add("restore", _restore, "end an isolation by probing")
    _add_circuit(restore)
    add_dry_run(restore)
    watch = verbs.add(
        "watch",
        _watch,
        "show where circuits stand, then every move as it happens; ends with Ctrl-C",
        ENDLESS_FORMS,
    )
    _add_filter(watch)
    add_limit(watch)
    return verbs.run(argv, terminal)


def _add_circuit(parser: FlagParser) -> None:
    parser.add_argument(
        "circuit_id", metavar="ID", help="UPSTREAM or UPSTREAM/package.Service/Method"
    )


def _add_filter(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("which circuits; all given must match")
    group.add_argument(
        "--state",
        action="append",
        choices=tuple(_STATES),
        default=[],
        help="in this state; may be repeated",
    )
    group.add_argument(
        "--upstream",
        type=flag_type(check_upstream_name),
        help="of this upstream, its methods included",
    )


def _filter(flags: argparse.Namespace) -> CircuitFilter:
    return CircuitFilter(
        states=[_STATES[word] for word in flags.state], upstream=flags.upstream or ""
    )


async def _list(call: Call) -> int:
    stub = CircuitServiceStub(call.session.channel)
    request = ListCircuitsRequest(filter=_filter(call.flags))
    circuits = call.session.pages(
        stub.ListCircuits, request, "circuits", call.flags.limit
    )
    await call.printer.rows(circuits, _COLUMNS)
    return exits.OK


async def _show(call: Call) -> int:
    stub = CircuitServiceStub(call.session.channel)
    request = GetCircuitRequest(circuit_id=call.flags.circuit_id)
    circuit = (await call.session.call(stub.GetCircuit, request)).circuit
    if not call.printer.for_people:
        call.printer.one(circuit, ())
        return exits.OK
    for sentence in _sentences(circuit):
        call.printer.say(cells.words(sentence))
    if circuit.failed_calls:
        call.printer.say("\nThe newest calls that spoke against it, oldest first:")
        call.printer.table(_FAILED, circuit.failed_calls)
    if circuit.history:
        call.printer.say("\nHow it moved, oldest first:")
        call.printer.table(_HISTORY, circuit.history)
    return exits.OK


def _sentences(circuit: Circuit) -> list[str]:
    """Return what a person wants to know of a circuit first."""
    since = cells.moment(circuit, "state_time")
    why = f": {circuit.reason}" if circuit.reason else ""
    window = (
        f"Its window holds {circuit.window_call_count} calls:"
        f" {circuit.window_failure_count} failed, {circuit.window_slow_count} slow."
        f" Hard failures in a row: {circuit.consecutive_failure_count}."
    )
    refused = "would have refused" if circuit.shadow else "refused"
    times = "once" if circuit.open_count == 1 else f"{circuit.open_count} times"
    ever = (
        f"Since the sidecar's start it opened {times} and {refused}"
        f" {circuit.refused_count} calls."
    )
    state = _state(circuit.state)
    return [
        f"{circuit.circuit_id} is {state} since {since}{why}.",
        *_outlook(circuit),
        window,
        ever,
    ]


def _outlook(circuit: Circuit) -> list[str]:
    told = []
    if circuit.HasField("trouble_time"):
        told.append(f"It was closed last at {cells.moment(circuit, 'trouble_time')}.")
    if circuit.shadow:
        told.append("It is a shadow: it refuses nothing unless it is isolated.")
    if circuit.state == Circuit.STATE_ISOLATED:
        told.append(
            "It stays so until an operator restores it: 'outrigger circuits restore"
            f" {circuit.circuit_id}'."
        )
    if circuit.state == Circuit.STATE_HALF_OPEN:
        told.append("A few calls pass as probes; enough of them that go well close it.")
    if circuit.HasField("retry_after"):
        told.append(f"It is probed in {cells.span(circuit, 'retry_after')} or sooner.")
    return told


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


async def _watch(call: Call) -> int:
    stub = CircuitServiceStub(call.session.channel)
    request = WatchCircuitsRequest(filter=_filter(call.flags))
    left = call.flags.limit
    answers = call.session.receive(stub.WatchCircuits, request, endless=True)
    async with aclosing(answers):
        async for answer in answers:
            _tell(call, answer)
            if answer.WhichOneof("news") == "move":
                left = None if left is None else left - 1
            if left == 0:
                break
    return exits.OK


def _tell(call: Call, answer: WatchCircuitsResponse) -> None:
    if answer.missed_count:
        call.terminal.stderr.write(
            f"outrigger: circuits: {answer.missed_count} moves missed\n"
        )
    news = answer.WhichOneof("news")
    if news == "present":
        call.printer.event(answer, _present(answer.present))
    elif news == "move":
        call.printer.event(answer, _move(answer.move))
    elif news == "shown":
        call.printer.event(answer, _shown(answer.shown))


def _present(circuit: Circuit) -> str:
    since = cells.moment(circuit, "state_time")
    why = f": {circuit.reason}" if circuit.reason else ""
    told = cells.words(f"{_state(circuit.state)} since then{why}")
    return f"{since}  {cells.words(circuit.circuit_id)}  {told}"


def _move(move: CircuitMove) -> str:
    told = cells.words(f"{_state(move.before)} -> {_state(move.after)}: {move.reason}")
    when = cells.moment(move, "move_time")
    return f"{when}  {cells.words(move.circuit_id)}  {told}"


def _shown(shown: CircuitsShown) -> str:
    more = f", {shown.omitted_count} more are not shown" if shown.omitted_count else ""
    return f"-- {shown.shown_count} circuits{more}; moves from here on --"
