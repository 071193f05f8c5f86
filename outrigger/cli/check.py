"""`outrigger check`: this machine, state directories, servers, Redis, settings."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from outrigger.cli import cells, exits
from outrigger.cli.check_machine import machine
from outrigger.cli.check_server import running
from outrigger.cli.check_state import state as state_findings
from outrigger.cli.connect import (
    SIDECAR_OPTIONS,
    Server,
    Where,
    add_connection_flags,
    announced,
    find_controller,
    find_sidecar,
    where_of,
)
from outrigger.cli.finding import FAIL, Finding, bad, doubtful
from outrigger.cli.output import FORMS, Column, Printer
from outrigger.cli.terminal import Terminal
from outrigger.core.config import FlagParser, state_home
from outrigger.core.errors import OutriggerError, Refused

_COLUMNS: Final = (
    Column("VERDICT", lambda f: f.verdict),
    Column("CHECK", lambda f: cells.words(f.check)),
    Column("FOUND", lambda f: cells.words(f.detail)),
    Column("WHAT TO DO", lambda f: f.advice),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Check everything named, else everything found; 1 if anything failed."""
    parser = FlagParser(
        prog="outrigger check",
        description="Check this machine, and the state and servers that are named, or"
        " else all that this user has here.",
    )
    parser.add_argument("-o", "--output", choices=FORMS, default="table")
    parser.add_argument("--redis", metavar="URL", help="check this Redis as well")
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="check this TOML file of a sidecar as well, with the OUTRIGGER_* variables"
        " that are set",
    )
    add_connection_flags(parser, SIDECAR_OPTIONS)
    flags = parser.parse_args(list(argv))
    where = where_of(flags, terminal.environ, SIDECAR_OPTIONS)
    printer = Printer(terminal, flags.output)
    return asyncio.run(_check(flags, where, terminal.environ, printer))


async def _check(
    flags: argparse.Namespace,
    where: Where,
    environ: Mapping[str, str],
    printer: Printer,
) -> int:
    verdicts: list[str] = []

    async def noted() -> AsyncIterator[Finding]:
        async for finding in _findings(flags, where, environ):
            verdicts.append(finding.verdict)
            yield finding

    await printer.rows(noted(), _COLUMNS)
    failed = verdicts.count(FAIL)
    printer.say(f"{failed} of {len(verdicts)} checks failed")
    return exits.FAILED if failed else exits.OK


async def _findings(
    flags: argparse.Namespace, where: Where, environ: Mapping[str, str]
) -> AsyncIterator[Finding]:
    states = _states(where, environ)
    ours = [address for each in states for address in _addresses(each).values()]
    for finding in machine(ours):
        yield finding
    for each in states:
        for finding in state_findings(each):
            yield finding
    async for finding in _servers(where, states, environ):
        yield finding
    for finding in _named_in_flags(flags, where, environ):
        yield finding


def _named_in_flags(
    flags: argparse.Namespace, where: Where, environ: Mapping[str, str]
) -> Iterator[Finding]:
    if flags.redis:
        from outrigger.cli.check_redis import examine  # noqa: PLC0415 - costs 10 MiB

        yield from examine(flags.redis, where.timeout_s)
    if flags.config:
        from outrigger.cli.check_config import (  # noqa: PLC0415 - imports the sidecar
            configuration,
        )

        yield from configuration(flags.config, environ)


def _states(where: Where, environ: Mapping[str, str]) -> list[Path]:
    """Return the state directories to look at."""
    if where.state_dir is not None:
        return [where.state_dir]
    if _named(where):
        return []
    home = state_home(environ)
    found = [home / "controller", *sorted(home.glob("agents/*"))]
    return [each for each in found if each.is_dir()]


def _named(where: Where) -> bool:
    return bool(where.api or where.agent or where.controller)


async def _servers(
    where: Where, states: Sequence[Path], environ: Mapping[str, str]
) -> AsyncIterator[Finding]:
    named = _named(where)
    wanted = [where] if named else [replace(where, state_dir=each) for each in states]
    expected = named or where.state_dir is not None
    for each in wanted:
        if not named and not _addresses(each.state_dir):
            continue
        try:
            server = _server_of(each, environ)
        except OutriggerError as error:
            make = bad if expected else doubtful
            yield make("server", error.message, "name one that runs, and its token")
            continue
        async for finding in running(server, expected=expected):
            yield finding


def _server_of(where: Where, environ: Mapping[str, str]) -> Server:
    if where.api or where.agent:
        return find_sidecar(where, environ)
    if where.controller or "admin" in _addresses(where.state_dir):
        return find_controller(where, environ)
    return find_sidecar(where, environ)


def _addresses(state: Path | None) -> dict[str, str]:
    """Return what a server announced; a broken file is told by the state's checks."""
    try:
        return announced(state) if state else {}
    except Refused:
        return {}
