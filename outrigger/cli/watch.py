"""`outrigger watch`: events as they happen, of the fleet or of one sidecar."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

from outrigger.cli import cells, exits
from outrigger.cli.flags import ANY, Call, add_limit, add_shared_flags, run_verb
from outrigger.cli.output import ENDLESS_FORMS
from outrigger.cli.terminal import Terminal
from outrigger.core.config import FlagParser
from outrigger.v1.event_pb2 import Event
from outrigger.v1.fleet_service_pb2 import FleetServiceWatchRequest
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.sidecar_service_pb2 import SidecarServiceWatchRequest
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub

_STORIES: Final[dict[str, Callable[[Any], str]]] = {
    "error": lambda e: f"{e.boundary} {e.reason} {e.subject}: {e.cause_chain}",
    "circuit": lambda e: f"{e.circuit} {e.before} -> {e.after}: {e.reason}",
    "letter": lambda e: (
        f"{e.letter_id} {e.method} {e.before or 'new'} -> {e.after}: {e.reason}"
    ),
    "checkpoint": lambda e: (
        f"generation {e.generation} {e.action}"
        f" ({cells.size(e.raw_size_bytes)}): {e.reason}"
    ),
    "transition": lambda e: (
        f"{e.before} -> {e.after} at epoch {e.epoch} ({e.input}): {e.reason}"
    ),
    "recovery": lambda e: f"{e.subject} after {cells.elapsed(e.elapsed_s)}",
    "alert": lambda e: f"{e.name}: {e.message}",
}


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Print events until interrupted, or until --limit of them were printed."""
    parser = FlagParser(
        prog="outrigger watch",
        description="Show events as they happen: of the fleet, or with --agent or"
        " --api of one sidecar. Ends with Ctrl-C.",
    )
    add_shared_flags(parser, ANY, ENDLESS_FORMS)
    add_limit(parser)
    flags = parser.parse_args(list(argv))
    return run_verb(_watch, flags, terminal, ANY)


async def _watch(call: Call) -> int:
    left = call.flags.limit
    newest = 0
    async with aclosing(_events(call)) as events:
        async for event in events:
            _tell_gap(call, newest, event.sequence)
            newest = event.sequence
            call.printer.event(event, story(event))
            left = None if left is None else left - 1
            if left == 0:
                break
    return exits.OK


def _tell_gap(call: Call, newest: int, sequence: int) -> None:
    server = call.session.server
    one_process = server.kind == "sidecar" or bool(server.agent_id)
    missed = sequence - newest - 1
    if newest and one_process and missed > 0:
        call.terminal.stderr.write(f"outrigger: watch: {missed} events missed\n")


def story(event: Event) -> str:
    """Return an event as one line for a person."""
    kind = event.WhichOneof("payload") or "unknown"
    told = _STORIES.get(kind, lambda _: "")(getattr(event, kind, None))
    when = cells.moment(event, "event_time")
    return f"{when}  {event.agent_id or '-':<12}  {kind:<10}  {cells.words(told)}"


async def _events(call: Call) -> AsyncGenerator[Event, None]:
    session = call.session
    if session.server.kind == "controller" and not session.server.agent_id:
        fleet = FleetServiceStub(session.channel)
        async for answer in session.receive(
            fleet.Watch, FleetServiceWatchRequest(), endless=True
        ):
            yield answer.event
        return
    sidecar = SidecarServiceStub(session.channel)
    async for told in session.receive(
        sidecar.Watch, SidecarServiceWatchRequest(), endless=True
    ):
        yield told.event
