"""How the demo ends: well, badly, by Ctrl-C; and how it keeps its processes."""

import io
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
from rich.console import Console

from outrigger.core.clock import SystemClock
from outrigger.core.errors import TimedOut, Transient
from outrigger.demo import driver, story
from outrigger.demo.processes import Processes, is_alive
from outrigger.demo.verdict import Facts

ROOT = Path(__file__).resolve().parents[2]


class _Story:
    """Stands for the story; `step` is what its reading does."""

    facts = Facts()
    controller = SimpleNamespace(admin="127.0.0.1:1")
    sidecars = (
        SimpleNamespace(name="reader-1", inbound="127.0.0.1:2", outbound="127.0.0.1:3"),
    )

    def __init__(self, *_: object) -> None:
        pass

    def begin(self, redis) -> None:
        self.redis = redis

    def read(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def wake(self) -> None:
        pass

    def close(self) -> None:
        type(self).closed = True


@pytest.fixture
def play(monkeypatch, tmp_path):
    """Run the driver on a story that does nothing but what it is given."""

    def run(step=lambda _: None, *, good=True, **options):
        scripted = type("Scripted", (_Story,), {"read": step})
        claims = [SimpleNamespace(holds=good, text="claim", detail="")]
        monkeypatch.setattr(driver, "Story", scripted)
        monkeypatch.setattr(driver, "judge", lambda _: iter(claims))
        monkeypatch.setattr(driver.tempfile, "mkdtemp", lambda **_: str(folder))
        folder.mkdir(exist_ok=True)
        out = io.StringIO()
        try:
            code = driver.run_demo(
                environ={}, console=Console(file=out, width=300), **options
            )
        finally:
            assert scripted.closed
        return code, out.getvalue()

    folder = tmp_path / "demo"
    run.folder = folder
    return run


def test_good_demo_leaves_nothing(play):
    """A demo whose claims hold ends with 0 and removes its folder."""
    code, _ = play()
    assert code == 0
    assert not play.folder.exists()


def test_demo_that_does_not_hold_fails(play):
    """A claim that does not hold ends with 1 and leaves the logs."""
    code, text = play(good=False)
    assert code == 1
    assert str(play.folder) in text
    assert play.folder.exists()


def test_given_folder_is_left(play, tmp_path):
    """A state directory that the user named is never removed."""
    code, text = play(state_dir=tmp_path)
    assert code == 0
    assert str(tmp_path) in text
    assert tmp_path.exists()


def _stalls(_self) -> None:
    raise TimedOut("DEMO_STALLED", "waited too long")


def _breaks(_self) -> None:
    raise grpc.RpcError("gone")


@pytest.mark.parametrize(
    ("step", "said"), [(_stalls, "DEMO_STALLED"), (_breaks, "gone")]
)
def test_failing_demo_says_why(play, step, said):
    """What goes wrong on the way is one line and exit code 1."""
    code, text = play(step)
    assert code == 1
    assert said in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_demo(play, number):
    """Ctrl-C and SIGTERM end the demo by way of its own end."""

    def interrupted(_self) -> None:
        os.kill(os.getpid(), number)
        signal.sigtimedwait([], 5)

    with pytest.raises(KeyboardInterrupt):
        play(interrupted)


def test_kept_demo_shows_what_to_paste(play, monkeypatch):
    """With keep the demo stays until Ctrl-C and prints calls with every address."""

    def pause(_clock, _seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(driver.SystemClock, "pause", pause)
    code, text = play(keep=True)
    assert code == 0
    for part in (
        "127.0.0.1:1",
        "127.0.0.1:2",
        "127.0.0.1:3",
        "admin-token",
        "reader-1",
    ):
        assert part in text


def test_process_that_did_not_stop_is_told(play, monkeypatch):
    """A process that had to be killed at the end is named."""
    monkeypatch.setattr(driver.Processes, "stop", lambda _: ["tools"])
    assert "tools did not stop" in play()[1]


@pytest.fixture
def processes(tmp_path):
    """Real children; none outlives the test."""
    environ = {"PYTHONPATH": str(ROOT), "OUTRIGGER_TOKEN": "x", "PATH": "/bin"}
    held = Processes(tmp_path, environ, SystemClock())
    yield held
    held.stop()


def test_ended_child_is_reported_with_its_last_words(processes):
    """Waiting for a process that died says how it died and what it said last."""
    processes.start("tools", "outrigger.demo.nothing_there")
    with pytest.raises(Transient, match="No module named") as caught:
        processes.addresses("tools", 20)
    assert caught.value.reason == "CHILD_ENDED"


def test_slow_child_is_not_waited_for_for_ever(processes, tmp_path):
    """Waiting for a process that says nothing ends after the limit."""
    processes.start("deaf", "tests.support.deaf", str(tmp_path / "pid"))
    with pytest.raises(TimedOut, match="it said nothing"):
        processes.wait_for("deaf", "word", lambda: None, 0)


def test_deaf_child_is_killed(processes, tmp_path, monkeypatch):
    """A process that ignores SIGTERM is killed, and named."""
    monkeypatch.setattr("outrigger.demo.processes._STOP_S", 0.1)
    path = tmp_path / "pid"
    processes.start("deaf", "tests.support.deaf", str(path))
    pid = processes.wait_for(
        "deaf", "pid", lambda: path.read_text() if path.exists() else None, 20
    )
    assert is_alive(int(pid))
    assert processes.stop() == ["deaf"]
    assert not is_alive(int(pid))


def test_children_do_not_inherit_our_variables(processes):
    """Variables for a sidecar of the user's never reach the demo's processes."""
    assert set(processes._environ) == {"PYTHONPATH", "PATH"}


def test_story_that_stalls_says_what_it_waited_for(monkeypatch):
    """A step that never comes to its end names what was missing."""
    monkeypatch.setattr(story, "_MOVE_LIMIT_S", -1)
    played = story.Story(Path(), None, None, SystemClock())
    with pytest.raises(TimedOut, match="all asleep"):
        played._until(lambda: False, "all asleep")
