"""The `outrigger` command: finds the subcommand, and turns errors into exit codes.

Subcommands are imported when they are asked for: a sidecar must not carry rich or
the controller in its memory, and `--help` must not wait for gRPC.
"""

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Final, TextIO, cast

from outrigger import __version__
from outrigger.cli import exits
from outrigger.cli.terminal import Terminal, one_line
from outrigger.core.errors import Invalid, OutriggerError

Run = Callable[[Sequence[str], Terminal], int]


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand and where it is."""

    where: str
    """`module:function` under outrigger.cli."""
    summary: str
    serves: bool = False
    """A process of its own, which sets up its log itself."""


COMMANDS: Final[Mapping[str, Command]] = {
    "demo": Command("launch:demo", "the whole story on this machine", serves=True),
    "controller": Command("launch:controller", "run a controller", serves=True),
    "sidecar": Command("launch:sidecar", "run a sidecar beside an agent", serves=True),
    "agents": Command("agents:run", "list, get, sleep, wake, pin, unpin, explain"),
    "scheduler": Command("scheduler:run", "show, enable, disable"),
    "letters": Command(
        "letters:run", "list, show, redrive, discard, export, import, ledger"
    ),
    "circuits": Command("circuits:run", "list, show, isolate, restore, watch"),
    "tap": Command("tap:run", "show an agent's calls as they end"),
    "upstreams": Command("upstreams:run", "list the callees and their connections"),
    "faults": Command("faults:run", "inject, list, clear: trouble on purpose"),
    "checkpoints": Command("checkpoints:run", "list, save, verify, restore, prune"),
    "audit": Command("audit:run", "list what was asked of the controller"),
    "watch": Command("watch:run", "show events as they happen"),
    "check": Command("check:run", "examine this machine, state and servers"),
}

_DEBUG: Final = "OUTRIGGER_DEBUG"


def entry() -> int:
    """Run the command line of this process; the console script's function."""
    environ = dict(os.environ)
    # Our one line on stderr says it; the C core would say it again, at length. Set
    # behind the copy: an agent is to inherit what its operator set, no more.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return main(sys.argv[1:], environ, sys.stdout, sys.stderr)


def main(
    argv: Sequence[str], environ: Mapping[str, str], stdout: TextIO, stderr: TextIO
) -> int:
    """Run one command line and return its exit code; nothing escapes.

    Args:
        argv: the words after `outrigger`.
        environ: the environment; nothing else is read from it later.
        stdout: where results go.
        stderr: where the one line about a failure goes.
    """
    terminal = Terminal(environ, stdout, stderr)
    with redirect_stdout(stdout), redirect_stderr(stderr):
        try:
            code = _run(argv, terminal)
            stdout.flush()
        except BrokenPipeError:
            _silence(stdout)
            return exits.PIPE_CLOSED
        except KeyboardInterrupt:
            return exits.INTERRUPTED
        except SystemExit as leaving:
            return leaving.code if isinstance(leaving.code, int) else exits.OK
        except Exception as error:  # noqa: BLE001 - the outermost boundary
            return _tell(error, argv, terminal)
        return code


def _run(argv: Sequence[str], terminal: Terminal) -> int:
    if not argv:
        raise Invalid(
            "BAD_USAGE",
            f"expected a command, one of {', '.join(COMMANDS)}; see 'outrigger --help'",
        )
    word, rest = argv[0], argv[1:]
    if word in {"-h", "--help", "help"}:
        terminal.stdout.write(_help())
        return exits.OK
    if word == "--version":
        terminal.stdout.write(f"outrigger {__version__}\n")
        return exits.OK
    return _load(word)(rest, terminal)


def _load(word: str) -> Run:
    command = COMMANDS.get(word)
    if command is None:
        kind = "flag" if word.startswith("-") else "command"
        near = difflib.get_close_matches(word, COMMANDS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise Invalid(
            "BAD_USAGE", f"unknown {kind} {word!r}: {hint}see 'outrigger --help'"
        )
    module, _, function = command.where.partition(":")
    found = importlib.import_module(f"outrigger.cli.{module}")
    return cast("Run", getattr(found, function))


def _help() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{each.summary}" for name, each in COMMANDS.items()]
    return (
        "usage: outrigger COMMAND ...\n\n"
        "A gRPC sidecar for agents: circuits, letters, checkpoints, sleep and wake.\n\n"
        "commands:\n" + "\n".join(lines) + "\n\n"
        "'outrigger COMMAND --help' shows a command's flags.\n"
        "exit codes: 0 ok, 1 failed, 2 usage, 3 unavailable, 4 denied\n"
    )


def _tell(error: Exception, argv: Sequence[str], terminal: Terminal) -> int:
    """Print the one line about a failure and return the exit code."""
    if terminal.environ.get(_DEBUG):
        traceback.print_exception(error, file=terminal.stderr)
    name = f"{argv[0]}: " if argv and argv[0] in COMMANDS else ""
    if isinstance(error, OutriggerError):
        line, code = f"{error.message} [{error.reason}]", exits.exit_code(error)
    else:
        line = (
            f"a defect of ours: {type(error).__name__}: {error}; report it with the"
            f" output of the same command under {_DEBUG}=1"
        )
        code = exits.FAILED
    terminal.stderr.write(one_line(f"outrigger: {name}{line}") + "\n")
    return code


def _silence(stdout: TextIO) -> None:
    # The interpreter flushes stdout once more at its end and would complain.
    if stdout is sys.__stdout__:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


if __name__ == "__main__":
    sys.exit(entry())
