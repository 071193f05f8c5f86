"""The demo as a stranger runs it: the whole story, and its early end."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from outrigger.demo.processes import is_alive
from tests.support.processes import wait_for

DEMO = [sys.executable, "-P", "-m", "outrigger.cli.main", "demo"]


@pytest.fixture
def folder():
    """A folder whose path is short enough for the sockets of a demo."""
    with tempfile.TemporaryDirectory(prefix="or-") as made:
        yield Path(made)


@pytest.fixture
def home(folder):
    """An environment whose temporary files are the test's."""
    return {**os.environ, "TMPDIR": str(folder), "COLUMNS": "200"}


def _children(folder: Path) -> set[int]:
    """Return the processes that have something of the folder in their command."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in command:
                found.add(int(entry.name))
    return found


def test_whole_story_holds(home, folder):
    """The demo ends by itself with 0, every claim holds and nothing is left over."""
    done = subprocess.run(
        DEMO, env=home, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost = 0" in done.stdout
    assert "3 of 3 state hashes equal" in done.stdout
    assert "FAILED" not in done.stdout
    assert not list(folder.iterdir())
    assert not _children(folder)


def test_terminated_demo_stops_what_it_started(home, folder):
    """SIGTERM in the middle leaves no process behind, not even an agent."""
    demo = subprocess.Popen(
        DEMO, env=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        first = demo.stdout.readline()
        assert "are up" in first
        started = _children(folder)
        agents = wait_for(lambda: _agents(started), "agents")
        demo.send_signal(signal.SIGTERM)
        demo.communicate(timeout=30)
        assert demo.returncode == 130
    finally:
        # Not SIGKILL: it would leave the demo's own processes behind.
        demo.terminate()
        demo.communicate(timeout=30)
    assert len(started) >= 5
    assert len(agents) == 3
    wait_for(lambda: not any(map(is_alive, started | agents)), "end of all")


def _agents(parents: set[int]) -> set[int]:
    """Return the children of the sidecars among these processes."""
    found = set()
    for pid in parents:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found.update(map(int, listed))
    return found
