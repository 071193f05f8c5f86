"""The command's outermost layer: finding a subcommand, and how it ends."""

import asyncio
import io
import os
import signal
import subprocess
import sys
import types

import pytest

from outrigger import __version__
from outrigger.cli import exits
from outrigger.cli import main as main_module
from outrigger.cli.main import COMMANDS, Command, main
from outrigger.cli.terminal import one_line
from outrigger.core.errors import (
    Bug,
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    OutriggerError,
    Overloaded,
    Refused,
    TimedOut,
    Transient,
    Unauthenticated,
)
from tests.support.command import assert_one_line, command_line, run_here

CLIENTS = [name for name, command in COMMANDS.items() if not command.serves]


@pytest.fixture
def stub(monkeypatch):
    """Replace the command `check` by a function of the test."""

    def install(run):
        module = types.ModuleType("outrigger.cli.stub")
        module.run = run
        monkeypatch.setitem(sys.modules, "outrigger.cli.stub", module)
        monkeypatch.setattr(
            main_module, "COMMANDS", {"check": Command("stub:run", "a stub")}
        )

    return install


@pytest.mark.parametrize(
    ("cls", "code"),
    [
        (Invalid, 2),
        (NotFound, 2),
        (Transient, 3),
        (TimedOut, 3),
        (Overloaded, 3),
        (Denied, 4),
        (Unauthenticated, 4),
        (Refused, 1),
        (Conflict, 1),
        (Corrupt, 1),
        (Bug, 1),
        (OutriggerError, 1),
    ],
)
def test_each_class_of_error_has_its_exit_code(stub, cls, code):
    """The shell sees the documented code, the person one line with the reason."""

    def fail(_argv, _terminal):
        raise cls("WHY_NOT", "what was wrong,\n what to do")

    stub(fail)
    result = run_here("check")
    assert result.code == code
    assert result.err == "outrigger: check: what was wrong, what to do [WHY_NOT]\n"
    assert result.out == ""


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "expected a command, one of demo, controller, sidecar"),
        (["nope"], "unknown command 'nope': see"),
        (["letter"], "unknown command 'letter': did you mean letters? see"),
        (["--nope"], "unknown flag '--nope': see"),
        (["letters"], "the following arguments are required: VERB"),
        (["letters", "lost"], "invalid choice: 'lost'"),
        (["letters", "list", "--nope"], "unrecognized arguments: --nope"),
        (["letters", "list", "--lim", "3"], "unrecognized arguments: --lim 3"),
        (["letters", "list", "--limit", "0"], "'0': expected at least 1"),
        (["letters", "list", "--state", "lost"], "invalid choice: 'lost'"),
        (["letters", "list", "--method", "x"], "method 'x' is not valid: write it"),
        (["letters", "list", "--upstream", "A"], "upstream name 'A' is not valid"),
        (["letters", "discard", "--all"], "arguments are required: --reason"),
        (["agents", "get", "No Good"], "agent id 'No Good' is not valid"),
        (["checkpoints", "prune", "--keep", "1"], "expected at least 2"),
        (["watch", "-o", "json"], "invalid choice: 'json'"),
        (["demo", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_wrong_usage_is_one_line_with_a_hint(argv, told):
    """Unknown words and bad values end with 2 and say where help is."""
    result = run_here(*argv)
    assert result.code == exits.USAGE
    assert told in result.err
    assert "--help'" in result.err
    assert_one_line(result)


def test_help_lists_every_command_and_the_exit_codes():
    """Help names all commands, and says what the codes mean."""
    for word in ("--help", "-h", "help"):
        result = run_here(word)
        assert result.code == exits.OK
        for name in COMMANDS:
            assert f"\n  {name} " in result.out
        assert "0 ok, 1 failed, 2 usage, 3 unavailable, 4 denied" in result.out


@pytest.mark.parametrize("name", [*CLIENTS, "demo"])
def test_each_command_has_help_of_its_own(name):
    """Help goes to stdout and ends with 0; it needs no server."""
    result = run_here(name, "--help")
    assert result.code == exits.OK
    assert result.out.startswith(f"usage: outrigger {name}")
    assert result.err == ""


def test_version_is_the_package_s():
    """The version printed is the one installed."""
    assert run_here("--version").out == f"outrigger {__version__}\n"


def test_defect_is_told_without_a_traceback(stub):
    """An error nobody foresaw is one line that says how to report it."""

    def fail(_argv, _terminal):
        raise KeyError("x")

    stub(fail)
    result = run_here("check")
    assert result.code == exits.FAILED
    assert result.err.startswith("outrigger: check: a defect of ours: KeyError: 'x';")
    assert result.err.count("\n") == 1
    debug = run_here("check", environ={"OUTRIGGER_DEBUG": "1"})
    assert "Traceback" in debug.err
    assert debug.err.endswith(result.err)


def test_interrupt_ends_with_130(stub):
    """Ctrl-C ends quietly, with the code that shells use."""

    def fail(_argv, _terminal):
        raise KeyboardInterrupt

    stub(fail)
    result = run_here("check")
    assert (result.code, result.err) == (exits.INTERRUPTED, "")


def test_interrupt_reaches_a_command_that_waits(stub):
    """A real SIGINT during a wait ends it with 130."""

    async def wait():
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)

    stub(lambda _argv, _terminal: asyncio.run(wait()))
    assert run_here("check").code == exits.INTERRUPTED


def test_reader_that_goes_away_is_no_failure(stub):
    """A closed pipe ends quietly, with the code that shells use."""

    class Closed(io.StringIO):
        def flush(self):
            raise BrokenPipeError

    stub(lambda _argv, _terminal: 0)
    err = io.StringIO()
    assert main(["check"], {}, Closed(), err) == exits.PIPE_CLOSED
    assert err.getvalue() == ""


def test_closed_pipe_leaves_no_complaint_of_the_interpreter():
    """A real pipe closed by its reader: no traceback, no 'Exception ignored'."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            command_line("--help"),
            env={"PATH": os.environ["PATH"]},  # buffered, whatever the tests are
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
            timeout=30,
        )
    assert (done.returncode, done.stderr) == (exits.PIPE_CLOSED, b"")


def test_exit_from_within_keeps_its_code(stub):
    """SystemExit carries a code, or none for success."""
    stub(lambda _argv, _terminal: sys.exit(7))
    assert run_here("check").code == 7
    stub(lambda _argv, _terminal: sys.exit())
    assert run_here("check").code == 0


def test_what_others_write_cannot_steer_the_terminal():
    """Control characters of a peer's message are not printed."""
    assert one_line("a\x1b[31m\n\tb\x07") == "a?[31m b?"


@pytest.fixture
def package(monkeypatch):
    """Put stand-ins for a process's config and app in place."""

    def install(name, run):
        config, app = (
            types.ModuleType(f"{name}.config"),
            types.ModuleType(f"{name}.app"),
        )
        config.from_args = lambda argv, environ: (argv, dict(environ))
        app.run = run
        monkeypatch.setitem(sys.modules, f"{name}.config", config)
        monkeypatch.setitem(sys.modules, f"{name}.app", app)

    return install


@pytest.mark.parametrize("name", ["sidecar", "controller"])
def test_processes_get_their_words_untouched(package, name):
    """All words, `--` included, reach the process; its code is ours."""
    got = []

    def run(config):
        got.append(config)
        return 17

    package(name, run)
    words = ["--agent-id", "a", "--", "cmd", "--help"]
    result = run_here(name, *words, environ={"X": "1"})
    assert result.code == 17
    assert got == [(words, {"X": "1"})]


def test_process_may_be_a_coroutine(package):
    """An async app runs in a loop of its own."""

    async def run(_config):
        await asyncio.sleep(0)
        return 5

    package("sidecar", run)
    assert run_here("sidecar").code == 5


def test_demo_is_told_what_was_asked(monkeypatch):
    """The demo's flags reach its driver."""
    got = []
    driver = types.ModuleType("outrigger.demo.driver")
    driver.run_demo = lambda **told: got.append(told) or 0
    monkeypatch.setitem(sys.modules, "outrigger.demo.driver", driver)
    assert (
        run_here("demo", "--keep", "--redis", "redis://h", environ={"A": "b"}).code == 0
    )
    assert got == [{"keep": True, "redis": "redis://h", "environ": {"A": "b"}}]


def test_nothing_heavy_is_imported_before_it_is_needed():
    """The command's face imports neither gRPC nor rich nor a process of ours."""
    code = (
        "import sys, outrigger.cli.main, outrigger.cli.launch;"
        "print([m for m in ('grpc', 'google.protobuf', 'rich', 'redis', 'psutil',"
        " 'sqlite3', 'sidecar', 'controller') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, check=True, timeout=30
    )
    assert done.stdout == b"[]\n"


def test_every_command_that_calls_a_server_can_be_loaded():
    """The table of commands names functions that are there."""
    for name in COMMANDS:
        assert callable(main_module._load(name))
