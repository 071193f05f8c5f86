"""Flags that commands share, and how a verb is found and run."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from outrigger.cli.connect import (
    CONTROLLER_OPTIONS,
    EITHER_OPTIONS,
    SIDECAR_OPTIONS,
    Server,
    add_connection_flags,
    find_controller,
    find_sidecar,
    where_of,
)
from outrigger.cli.output import FORMS, Printer
from outrigger.cli.session import Session, connected
from outrigger.cli.terminal import Terminal
from outrigger.core import values
from outrigger.core.clock import Clock, SystemClock
from outrigger.core.config import FlagParser, Option
from outrigger.core.errors import OutriggerError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One verb being run."""

    flags: argparse.Namespace
    session: Session
    printer: Printer
    terminal: Terminal
    clock: Clock


Verb = Callable[[Call], Awaitable[int]]


@dataclass(frozen=True, slots=True)
class Reach:
    """Which server a command talks to: its flags, and how to find it."""

    options: tuple[Option, ...]
    find: Callable[[argparse.Namespace, Mapping[str, str]], Server]


def _to_sidecar(flags: argparse.Namespace, environ: Mapping[str, str]) -> Server:
    return find_sidecar(where_of(flags, environ, SIDECAR_OPTIONS), environ)


def _to_controller(flags: argparse.Namespace, environ: Mapping[str, str]) -> Server:
    return find_controller(where_of(flags, environ, CONTROLLER_OPTIONS), environ)


def _to_either(flags: argparse.Namespace, environ: Mapping[str, str]) -> Server:
    """Go to the controller, unless a flag names a sidecar."""
    where = where_of(flags, environ, EITHER_OPTIONS)
    if flags.api is not None:
        return find_sidecar(where, environ)
    return find_controller(where, environ)


def _to_any(flags: argparse.Namespace, environ: Mapping[str, str]) -> Server:
    """Go to the controller, unless a flag names an agent or a sidecar."""
    where = where_of(flags, environ, SIDECAR_OPTIONS)
    if flags.api is not None or flags.agent is not None:
        return find_sidecar(where, environ)
    return find_controller(where, environ)


SIDECAR: Final = Reach(SIDECAR_OPTIONS, _to_sidecar)
CONTROLLER: Final = Reach(CONTROLLER_OPTIONS, _to_controller)
EITHER: Final = Reach(EITHER_OPTIONS, _to_either)
ANY: Final = Reach(SIDECAR_OPTIONS, _to_any)


def flag_type(parse: Callable[[str], T]) -> Callable[[str], T]:
    """Return a parser for argparse, which keeps what was expected."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except (ValueError, OutriggerError) as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from error

    return parsed


class Verbs:
    """The verbs of one command."""

    def __init__(self, command: str, about: str, reach: Reach) -> None:
        self._reach = reach
        self._parser = FlagParser(prog=f"outrigger {command}", description=about)
        self._verbs = self._parser.add_subparsers(
            dest="verb", required=True, metavar="VERB"
        )

    def add(
        self, name: str, verb: Verb, about: str, forms: Sequence[str] = FORMS
    ) -> FlagParser:
        """Add a verb and return its parser, to add its own flags to."""
        parser = self._verbs.add_parser(name, help=about, description=about)
        parser.set_defaults(act=verb)
        add_shared_flags(parser, self._reach, forms)
        return parser

    def run(self, argv: Sequence[str], terminal: Terminal) -> int:
        """Parse the words after the command and run the verb they name.

        Raises:
            OutriggerError: whatever keeps it from being done.
        """
        flags = self._parser.parse_args(list(argv))
        return run_verb(flags.act, flags, terminal, self._reach)


def add_shared_flags(
    parser: argparse.ArgumentParser, reach: Reach, forms: Sequence[str] = FORMS
) -> None:
    """Add the flags of every command: output form and which server."""
    parser.add_argument(
        "-o", "--output", choices=forms, default="table", help="form of the result"
    )
    add_connection_flags(parser, reach.options)


def run_verb(
    verb: Verb, flags: argparse.Namespace, terminal: Terminal, reach: Reach
) -> int:
    """Find the server, connect and run."""
    server = reach.find(flags, terminal.environ)
    printer = Printer(terminal, flags.output)

    async def work() -> int:
        async with connected(server) as session:
            return await verb(Call(flags, session, printer, terminal, SystemClock()))

    return asyncio.run(work())


def add_limit(parser: argparse.ArgumentParser) -> None:
    """Add --limit; without it every page is fetched."""
    parser.add_argument(
        "--limit",
        type=flag_type(values.between(values.integer, 1)),
        metavar="COUNT",
        help="most to show; all by default",
    )


def add_reason(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Add --reason, kept with what is changed."""
    parser.add_argument(
        "--reason",
        metavar="TEXT",
        type=flag_type(values.text),
        required=required,
        help="why; kept with what is changed",
    )


def add_dry_run(parser: argparse.ArgumentParser) -> None:
    """Add --dry-run: the server checks and changes nothing."""
    parser.add_argument(
        "--dry-run", action="store_true", help="check only, change nothing"
    )
