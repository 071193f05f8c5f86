"""`outrigger tap`: the calls of an agent as they end."""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from typing import Final

from outrigger.cli import cells, exits
from outrigger.cli.audit import status_name
from outrigger.cli.connect import SIDECAR_OPTIONS, Server, find_sidecar, where_of
from outrigger.cli.flags import (
    Call,
    Reach,
    add_limit,
    add_shared_flags,
    flag_type,
    run_verb,
)
from outrigger.cli.output import ENDLESS_FORMS
from outrigger.cli.terminal import Terminal
from outrigger.core import values
from outrigger.core.config import FlagParser
from outrigger.core.errors import Invalid
from outrigger.core.ids import check_agent_id, check_upstream_name
from outrigger.v1.tap_service_pb2 import TappedCall, TapRequest
from outrigger.v1.tap_service_pb2_grpc import TapServiceStub


def _find(flags: argparse.Namespace, environ: Mapping[str, str]) -> Server:
    """Go to the sidecar that a flag names, else by way of the controller.

    Raises:
        Invalid: BAD_USAGE, two different agents are named.
    """
    named = flags.named
    if flags.agent is not None and named not in {None, flags.agent}:
        raise Invalid(
            "BAD_USAGE",
            f"{named!r} and --agent {flags.agent!r} are two agents: name one",
        )
    if named is not None and flags.api is None:
        flags.agent = named
    return find_sidecar(where_of(flags, environ, SIDECAR_OPTIONS), environ)


_REACH: Final = Reach(SIDECAR_OPTIONS, _find)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Print calls until interrupted, or until --limit of them were printed."""
    parser = FlagParser(
        prog="outrigger tap",
        description="Show an agent's outbound calls as they end: how each went, and"
        " its metadata without secrets. Ends with Ctrl-C.",
    )
    parser.add_argument(
        "named",
        nargs="?",
        type=flag_type(check_agent_id),
        metavar="AGENT",
        help="whose calls, by way of the controller",
    )
    group = parser.add_argument_group("which calls; all given must match")
    group.add_argument(
        "--method",
        type=flag_type(values.text),
        metavar="PREFIX",
        help="how the method begins, such as /package.Service/",
    )
    group.add_argument("--upstream", type=flag_type(check_upstream_name))
    group.add_argument(
        "--failures", action="store_true", help="only calls that did not end OK"
    )
    add_limit(parser)
    add_shared_flags(parser, _REACH, ENDLESS_FORMS)
    return run_verb(_tap, parser.parse_args(list(argv)), terminal, _REACH)


async def _tap(call: Call) -> int:
    request = TapRequest(
        method_prefix=call.flags.method or "",
        upstream=call.flags.upstream or "",
        failures_only=call.flags.failures,
    )
    left = call.flags.limit
    stub = TapServiceStub(call.session.channel)
    answers = call.session.receive(stub.Tap, request, endless=True)
    async with aclosing(answers):
        async for answer in answers:
            if answer.missed_count:
                call.terminal.stderr.write(
                    f"outrigger: tap: {answer.missed_count} calls missed\n"
                )
            call.printer.event(answer, line_of(answer.call))
            left = None if left is None else left - 1
            if left == 0:
                break
    return exits.OK


def line_of(call: TappedCall) -> str:
    """Return a call as one line for a person."""
    words = [
        cells.moment(call, "end_time"),
        status_name(call.status_code),
        cells.milliseconds(call.elapsed),
        call.method,
        f"to {call.upstream or 'nowhere'}",
        *_circumstances(call),
        f"call {call.call_id}",
        *(f"{entry.key}={entry.value}" for entry in call.metadata),
    ]
    if call.omitted_metadata_count:
        words.append(f"and {call.omitted_metadata_count} more entries of metadata")
    return "  ".join(cells.words(word) for word in words)


def _circumstances(call: TappedCall) -> list[str]:
    """Return what only some calls have."""
    words = []
    if call.delivery:
        words.append("a letter's delivery")
    if call.attempt_count > 1:
        words.append(f"{call.attempt_count} attempts")
    if call.refused_by:
        words.append(f"refused by {call.refused_by}")
    if call.letter_id:
        words.append(f"became letter {call.letter_id}")
    return words
