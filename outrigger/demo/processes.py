"""The demo's processes: started, killed and, however the demo ends, stopped."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from outrigger.core.clock import SystemClock
from outrigger.core.errors import TimedOut, Transient
from outrigger.core.names import ENV_PREFIX

T = TypeVar("T")

_POLL_S: Final = 0.05
_STOP_S: Final = 8.0
_LOG_LINES: Final = 5


class Processes:
    """Children of this process, by name; each logs into a file of the folder."""

    def __init__(
        self, folder: Path, environ: Mapping[str, str], clock: SystemClock
    ) -> None:
        self._folder = folder
        self._clock = clock
        # What the user set for a sidecar of theirs is not meant for ours.
        self._environ = {
            name: value
            for name, value in environ.items()
            if not name.startswith(ENV_PREFIX)
        }
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, module: str, *words: str) -> int:
        """Run `python -P -m module words`; return its process id."""
        with (self._folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(  # noqa: S603 - our own modules and flags
                [sys.executable, "-P", "-m", module, *words],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for us; we stop the children in our own order.
                start_new_session=True,
            )
        self._children[name] = child
        return child.pid

    def kill(self, name: str) -> None:
        """End a process by SIGKILL and wait until it is gone."""
        child = self._children.pop(name)
        child.kill()
        child.wait()

    def wait_for(
        self, name: str, what: str, ask: Callable[[], T | None], limit_s: float
    ) -> T:
        """Return what `ask` gives once it is not None, asking again and again.

        Raises:
            Transient: CHILD_ENDED when the process ended meanwhile.
            TimedOut: CHILD_SLOW after `limit_s` seconds.
        """
        deadline = self._clock.monotonic() + limit_s
        while (answer := ask()) is None:
            code = self._children[name].poll()
            if code is not None:
                raise Transient(
                    "CHILD_ENDED",
                    f"{name} ended with {code} before {what}: {self._newest(name)}",
                )
            if self._clock.monotonic() > deadline:
                raise TimedOut(
                    "CHILD_SLOW",
                    f"{name}: no {what} after {limit_s:g} s: {self._newest(name)}",
                )
            self._clock.pause(_POLL_S)
        return answer

    def addresses(self, name: str, limit_s: float) -> Mapping[str, Any]:
        """Return what the process announced in its state directory."""
        path = self._folder / name / "address.json"
        return self.wait_for(name, "addresses", lambda: _json(path), limit_s)

    def stop(self) -> Sequence[str]:
        """End every process, newest first; return those that had to be killed."""
        for child in reversed(self._children.values()):
            child.send_signal(signal.SIGTERM)
        deadline = self._clock.monotonic() + _STOP_S
        killed = []
        for name, child in reversed(self._children.items()):
            try:
                child.wait(max(deadline - self._clock.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
                killed.append(name)
        self._children.clear()
        return killed

    def _newest(self, name: str) -> str:
        log = (self._folder / f"{name}.log").read_text(errors="replace")
        return " | ".join(log.strip().splitlines()[-_LOG_LINES:]) or "it said nothing"


def is_alive(pid: int) -> bool:
    """Return whether a process is there and not only its exit status."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] != "Z"


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        return dict(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
