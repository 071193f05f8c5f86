"""The agent as real processes: started, frozen, thawed, ended, never orphaned."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.errors import Bug, TimedOut, Transient
from sidecar.agent import actuators, exec_shim, processes
from sidecar.agent.actuators import Command, ProcessActuator
from tests.support.agent_rig import is_alive, kill, wait_for

SLEEPER = ("/bin/sleep", "100")
BREEDER = ("/bin/sh", "-c", "/bin/sleep 100 & echo $! > $PIDFILE; wait")
PARENT = """
import asyncio, os, sys
from outrigger.core.clock import SystemClock
from sidecar.agent.actuators import Command, ProcessActuator

async def main():
    command = Command(words=("/bin/sleep", "100"), environment=dict(os.environ))
    actuator = ProcessActuator(command, clock=SystemClock(), on_exit=print)
    pid = actuator.spawn()
    await asyncio.sleep(0.2)
    if sys.argv[1] == "frozen":
        actuator.freeze()
        await actuator.wait_frozen()
    print(pid, flush=True)
    await asyncio.sleep(100)

asyncio.run(main())
"""


@pytest.fixture
async def make(tmp_path):
    """Make actuators; whatever they started is ended after the test."""
    made = []

    def build(words=SLEEPER, *, folder=None, **environment):
        exits = []
        command = Command(
            words=tuple(words),
            environment=dict(os.environ) | environment,
            folder=folder,
        )
        actuator = ProcessActuator(
            command,
            clock=SystemClock(),
            on_exit=lambda code, ended: exits.append((code, ended)),
        )
        actuator.exits = exits
        made.append(actuator)
        return actuator

    yield build
    for actuator in made:
        await actuator.stop(0)


@pytest.fixture
def strays():
    """Processes that must not outlive a test that fails."""
    pids = []
    yield pids
    for pid in pids:
        kill(pid)


async def read_pid(path):
    """Wait for a process to write its number."""
    await wait_for(lambda: path.exists() and path.read_text().strip())
    return int(path.read_text())


async def became(pid, name):
    """Wait until the shim has become the command."""
    await wait_for(lambda: Path(f"/proc/{pid}/comm").read_text().strip() == name)


async def test_a_life(make):
    """Started in a session of its own, frozen, thawed, asked to end, gone."""
    actuator = make()
    assert (actuator.pid, actuator.process, actuator.is_frozen) == (0, None, False)
    await actuator.stop(1)

    pid = actuator.spawn()
    assert os.getsid(pid) == pid
    assert actuator.process == processes.identify(pid)
    await became(pid, "sleep")

    actuator.freeze()
    await actuator.wait_frozen()
    assert (actuator.is_frozen, actuator.is_running) == (True, False)
    actuator.thaw()
    await actuator.wait_running()
    assert (actuator.is_frozen, actuator.is_running) == (False, True)

    assert not actuator.is_ending
    await actuator.stop(5)
    assert (actuator.pid, actuator.exits, is_alive(pid)) == (0, [(143, True)], False)
    assert not actuator.is_ending


async def test_a_frozen_agent_is_asked_to_end_too(make):
    """TERM alone would wait for ever in a stopped process; CONT delivers it."""
    actuator = make()
    pid = actuator.spawn()
    await became(pid, "sleep")
    actuator.freeze()
    await actuator.wait_frozen()

    await actuator.stop(5)

    assert actuator.exits == [(143, True)]


async def test_an_end_of_its_own_is_told_with_its_code(make):
    """Whether we ended it or not is part of what is told."""
    actuator = make(("/bin/sh", "-c", "exit 7"))
    actuator.spawn()

    await actuator.wait_gone()

    assert actuator.exits == [(7, False)]


async def test_what_the_agent_leaves_behind_is_ended_first(make, tmp_path, strays):
    """The end is told only when nothing of the session is left, frozen or not."""
    actuator = make(BREEDER, PIDFILE=str(tmp_path / "pid"))
    pid = actuator.spawn()
    child = await read_pid(tmp_path / "pid")
    strays.append(child)
    actuator.freeze()
    await actuator.wait_frozen()
    assert processes.read_stat(child).is_stopped

    kill(pid)
    await actuator.wait_gone()

    assert not is_alive(child)
    assert actuator.exits == [(137, False)]


async def test_only_the_main_thread_may_start_agents(make):
    """The kernel would end them with the thread."""
    actuator = make()
    raised = []

    def try_it():
        try:
            actuator.spawn()
        except Bug as error:
            raised.append(error.reason)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()

    assert raised == ["NOT_MAIN_THREAD"]


async def test_one_agent_never_runs_twice(make):
    """Starting a running agent is a defect."""
    actuator = make()
    actuator.spawn()

    with pytest.raises(Bug) as refused:
        actuator.spawn()

    assert refused.value.reason == "STILL_RUNNING"


async def test_a_folder_that_is_not_there_is_named(make, tmp_path):
    """What the machine refuses is an error with its reason, and no process."""
    actuator = make(folder=tmp_path / "nowhere")

    with pytest.raises(Transient) as refused:
        actuator.spawn()

    assert refused.value.reason == "CANNOT_SPAWN"
    assert "nowhere" in refused.value.message
    assert actuator.pid == 0


async def test_one_that_cannot_be_killed_is_said(make, monkeypatch):
    """Where even KILL does not help, stopping ends with an error and not never."""
    actuator = make()
    pid = actuator.spawn()
    await became(pid, "sleep")
    monkeypatch.setattr(actuators, "_KILL_S", 0.05)
    with monkeypatch.context() as without:
        without.setattr(processes, "send_signal", lambda *_: None)
        with pytest.raises(TimedOut) as refused:
            await actuator.stop(0.05)

    assert refused.value.reason == "STILL_THERE"
    assert str(pid) in refused.value.message


@pytest.mark.parametrize("habit", ["running", "frozen"])
async def test_the_agent_dies_with_its_sidecar(habit, strays):
    """Kill -9 of the parent ends the child, and a stopped child too."""
    parent = subprocess.Popen(
        [sys.executable, "-P", "-c", PARENT, habit], stdout=subprocess.PIPE, text=True
    )
    with parent:
        pid = int(parent.stdout.readline())
        strays.append(pid)
        assert is_alive(pid)
        assert processes.read_stat(pid).is_stopped == (habit == "frozen")

        parent.kill()

    await wait_for(lambda: not is_alive(pid))


def leader_and_child(folder, *, marker="OUTRIGGER_AGENT_ID=a1"):
    """Start a session whose leader has a child; return both pids."""
    name, _, value = marker.partition("=")
    path = folder / "pid"
    leader = subprocess.Popen(
        BREEDER,
        start_new_session=True,
        env=dict(os.environ) | {name: value, "PIDFILE": str(path)},
    )
    return leader, path


async def test_what_a_former_sidecar_left_is_ended(make, tmp_path, strays):
    """A whole session by its living leader, or what is left of it by its marker."""
    actuator = make(OUTRIGGER_AGENT_ID="a1")
    for leader_first in (False, True):
        leader, path = leader_and_child(tmp_path)
        child = await read_pid(path)
        strays += [leader.pid, child]
        former = processes.identify(leader.pid)
        if leader_first:
            leader.kill()
            leader.wait()
        assert is_alive(child)

        await actuator.end_leftovers(former)

        leader.wait()
        assert not is_alive(child)
        path.unlink()


async def test_strangers_are_not_ended(make, tmp_path):
    """Another boot, another start or another agent's marker is left alone."""
    actuator = make(OUTRIGGER_AGENT_ID="a1")
    leader, path = leader_and_child(tmp_path, marker="OUTRIGGER_AGENT_ID=b2")
    child = await read_pid(path)
    me = processes.identify(leader.pid)
    try:
        other_boot = processes.ProcessId(me.pid, me.start_ticks, "another boot")
        await actuator.end_leftovers(other_boot)
        later = processes.ProcessId(me.pid, me.start_ticks - 1, me.boot_id)
        await actuator.end_leftovers(later)
        assert is_alive(leader.pid)

        leader.kill()
        leader.wait()
        await actuator.end_leftovers(me)
        assert is_alive(child)
    finally:
        kill(child)
        leader.kill()
        leader.wait()


async def test_leftovers_that_cannot_be_ended_are_said(
    make, tmp_path, monkeypatch, strays
):
    """The agent is not started beside its own former life."""
    actuator = make(OUTRIGGER_AGENT_ID="a1")
    leader, path = leader_and_child(tmp_path)
    child = await read_pid(path)
    strays += [leader.pid, child]
    monkeypatch.setattr(actuators, "_KILL_S", 0.05)
    with monkeypatch.context() as without:
        without.setattr(processes, "send_signal", lambda *_: None)
        with pytest.raises(TimedOut) as refused:
            await actuator.end_leftovers(processes.identify(leader.pid))

    assert refused.value.reason == "STILL_THERE"
    kill(leader.pid)
    kill(child)
    leader.wait()


class SlowProc:
    """A machine with so many processes that each look takes a while."""

    def __init__(self, look_s, looks):
        self.look_s = look_s
        self.looks = looks
        self.now = 0.0
        self.pauses = []

    def monotonic(self):
        return self.now

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds

    def members(self, session):
        self.now += self.look_s
        self.looks -= 1
        state = "T" if self.looks <= 0 else "R"
        return [processes.ProcessStat(session, state, session, 1)]


@pytest.mark.parametrize(
    ("look_s", "pause_s"), [(0.0, 0.005), (0.004, 0.04), (0.05, 0.1)]
)
async def test_looking_at_every_process_leaves_the_loop_to_others(
    make, monkeypatch, look_s, pause_s
):
    """The pause is ten times what a look took, 5 ms at least and 100 ms at most."""
    actuator = make()
    actuator.spawn()
    machine = SlowProc(look_s, looks=3)
    with monkeypatch.context() as slow:
        slow.setattr(actuator, "_clock", machine)
        slow.setattr(processes, "session_members", machine.members)
        await actuator.wait_frozen()
        assert machine.pauses == pytest.approx([pause_s] * 2)
        slow.setattr(processes.ProcessStat, "is_stopped", False)
        await actuator.wait_running()

    assert len(machine.pauses) == 2


def gone(*_):
    """Fail as the kernel does for a process that has just gone."""
    raise ProcessLookupError


def test_a_process_that_is_gone_is_nobody(monkeypatch):
    """Reading, naming and signalling what is gone is harmless."""
    ended = subprocess.Popen(["/bin/true"])
    stat = processes.ProcessStat(ended.pid, "R", 0, 1)
    ended.wait()

    with monkeypatch.context() as just_gone:
        just_gone.setattr(processes.os, "read", gone)
        assert processes.read_stat(os.getpid()) is None
    assert processes.read_stat(ended.pid) is None
    assert processes.identify(ended.pid) is None
    processes.send_signal(stat, signal.SIGKILL)
    assert not processes._carries(ended.pid, "A=1")


def test_a_recycled_number_is_not_signalled():
    """A process of another start time is somebody else."""
    somebody = subprocess.Popen(SLEEPER)
    now = processes.read_stat(somebody.pid)
    before = processes.ProcessStat(now.pid, "S", now.session, now.start_ticks - 1)

    processes.send_signal(before, signal.SIGKILL)

    assert somebody.poll() is None
    processes.send_signal(now, signal.SIGKILL)
    assert somebody.wait() == -signal.SIGKILL


def test_a_name_full_of_brackets_does_not_confuse_the_reader(tmp_path):
    """A program may be called anything, `) T 1 1 (` too."""
    program = tmp_path / ") T 1 (x"
    program.symlink_to("/bin/sleep")
    strange = subprocess.Popen([program, "100"])
    stat = processes.read_stat(strange.pid)
    strange.kill()
    strange.wait()

    assert stat.session == os.getsid(0)
    assert not stat.is_stopped


def shim(*words):
    """Run the shim as a program."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "sidecar.agent.exec_shim", *words],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "usage"),
        (("1", "--"), 2, "usage"),
        (("x", "--", "/bin/true"), 2, "usage"),
        (("1", "/bin/true", "x"), 2, "usage"),
        (("1", "--", "/bin/true"), 125, "the sidecar has ended"),
        ((str(os.getpid()), "--", "/nowhere"), 127, "cannot run '/nowhere'"),
        ((str(os.getpid()), "--", "/etc/passwd"), 126, "Permission denied"),
        ((str(os.getpid()), "--", "/bin/sh", "-c", "exit 9"), 9, ""),
    ],
)
def test_the_shim_says_what_it_cannot_do(words, code, says):
    """Wrong words, a dead parent or no program: one line and the shell's code."""
    result = shim(*words)

    assert result.returncode == code
    assert says in result.stderr
    assert result.stderr.count("\n") == bool(says)


def test_the_shim_starts_nothing_the_kernel_would_not_end(monkeypatch, capsys):
    """Without the kernel's promise there is no agent."""

    class Libc:
        """Refuses."""

        def prctl(self, *_):
            return -1

    monkeypatch.setattr(exec_shim.ctypes, "CDLL", lambda *_, **__: Libc())

    assert exec_shim.main([str(os.getppid()), "--", "/bin/true"]) == 125
    assert "cannot tie the agent" in capsys.readouterr().err


async def test_freezing_a_breeding_agent_stops_every_child(make, tmp_path):
    """Processes that appear while the others are being stopped are stopped too."""
    script = "while :; do /bin/sleep 0.01 & done"
    actuator = make(("/bin/sh", "-c", script))
    pid = actuator.spawn()
    await became(pid, "sh")
    await asyncio.sleep(0.05)

    actuator.freeze()
    await asyncio.wait_for(actuator.wait_frozen(), 10)
    count = len(processes.session_members(pid))
    await asyncio.sleep(0.05)

    assert len(processes.session_members(pid)) == count
    assert actuator.is_frozen
