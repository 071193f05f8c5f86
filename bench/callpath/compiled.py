"""The load generator and the callee: one Go program, built when a bench begins."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).parent / "loadgen"
_BUILD_S: Final = 540


class Missing(Exception):
    """Something the bench cannot do without is not here; says what, in one line."""


def build(folder: Path) -> Path:
    """Build the program into a folder and return its path.

    Raises:
        Missing: there is no Go, or it cannot build this.
    """
    go = shutil.which("go")
    if go is None:
        raise Missing(
            "Go is missing (`go` is not on the PATH): the load generator is written in"
            " it, because one in Python would be slower than what it measures"
        )
    program = folder / "loadgen"
    command = [go, "build", "-o", str(program), "."]
    built = subprocess.run(
        command,
        cwd=SOURCE,
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
        check=False,
    )
    if built.returncode != 0:
        why = " / ".join(built.stderr.split("\n")).strip(" /")
        raise Missing(f"a Go that builds {SOURCE.name} is missing: {why}")
    return program


def version() -> str:
    """Return the version of Go and of grpc-go, as built."""
    go = subprocess.run(
        ["go", "env", "GOVERSION"],  # noqa: S607 - whichever built it
        capture_output=True,
        text=True,
        check=True,
    )
    for line in (SOURCE / "go.mod").read_text().splitlines():
        if "google.golang.org/grpc " in line:
            return f"{go.stdout.strip()} with grpc-go {line.split()[-1]}"
    return go.stdout.strip()
