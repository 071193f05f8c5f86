"""A process that makes calls as it is told: one JSON line in, one out.

The Go load generator speaks this, and so does the Python client whose breakers are
measured in the process itself.
"""

import json
import subprocess
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bench.callpath.loads import Load
from tests.support.processes import ROOT


@dataclass(frozen=True, slots=True)
class Made:
    """What came of one load."""

    calls: int
    errors: int
    error: str
    """The first one."""
    elapsed_s: float
    p50_us: float
    p99_us: float


class Driver:
    """One such process; leaving the context ends it."""

    def __init__(self, *command: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _where: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def make(self, load: Load, target: str, seconds: float) -> Made:
        """Make the calls of a load and wait for their end.

        Raises:
            RuntimeError: the process ended instead of answering.
        """
        asked = {
            "target": target,
            "kind": load.kind,
            "bytes": load.size_bytes,
            "in_flight": load.in_flight,
            "seconds": seconds,
            "rate": load.rate,
        }
        return _read(self._ask(json.dumps(asked)))

    def _ask(self, line: str) -> str:
        into, out = self._process.stdin, self._process.stdout
        if into is None or out is None:
            raise RuntimeError("a driver without pipes")
        into.write(line + "\n")
        into.flush()
        answer = out.readline()
        if not answer:
            raise RuntimeError(f"the driver ended at {line}; see above for its words")
        return answer


def _read(line: str) -> Made:
    said = json.loads(line)
    return Made(
        said["calls"],
        said["errors"],
        said["error"],
        said["elapsed_s"],
        said["p50_us"],
        said["p99_us"],
    )
