"""Runs of the `outrigger` command, inside the test's process and outside it."""

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from outrigger.cli.main import main


@dataclass(frozen=True)
class Result:
    """What a run left behind."""

    code: int
    out: str
    err: str


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def run_here(
    *argv: object,
    environ: Mapping[str, str] | None = None,
    stdout: io.StringIO | None = None,
) -> Result:
    """Run the command in this process; `stdout` may be a Screen."""
    out, err = stdout or io.StringIO(), io.StringIO()
    code = main([str(word) for word in argv], environ or {}, out, err)
    return Result(code, out.getvalue(), err.getvalue())


def command_line(*argv: object) -> list[str]:
    """Return the words that start the real command."""
    return [sys.executable, "-P", "-m", "outrigger.cli.main", *map(str, argv)]


def run_apart(*argv: object, environ: Mapping[str, str] | None = None) -> Result:
    """Run the real command as a process of its own."""
    done = subprocess.run(
        command_line(*argv),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **(environ or {})},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def assert_one_line(result: Result) -> None:
    """A failure is told in one line on stderr, and nothing else is there."""
    assert result.err.startswith("outrigger: ")
    assert result.err.endswith("]\n")
    assert result.err.count("\n") == 1
