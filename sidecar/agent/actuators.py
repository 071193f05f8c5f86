"""The agent as processes: started, stopped, frozen, thawed and ended.

The agent runs in a session of its own, and all that is done to it is done to the
whole session: its children are the agent too. A descendant that makes a session
of its own is not followed; the kernel tells nobody where it went.

Every method acts before it returns, so what is asked first is done first; only
the waiting is asynchronous. That is what keeps a thaw from overtaking a freeze.
"""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from outrigger.core import names
from outrigger.core.clock import Clock
from outrigger.core.errors import Bug, TimedOut, Transient
from sidecar.agent import processes
from sidecar.agent.records import ProcessId

_POLL_S: Final = 0.005
_POLL_MAX_S: Final = 0.1
_PAUSE_PER_LOOK: Final = 10.0
"""Looking reads all of /proc; so many times what a look took is left to others."""
_STOP_LOOKS: Final = 20
_SWEEP_PAUSE_MAX_S: Final = 0.5
_KILL_S: Final = 10.0
_SIGNAL_EXIT: Final = 128
"""A death by signal N is exit code 128 + N, as shells count."""


OnExit = Callable[[int, bool], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How to start the agent."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    """Whole environment of the agent."""
    folder: Path | None = None
    """Where it starts; None is where the sidecar runs."""


class ProcessActuator:
    """One agent's processes; owned by the event loop of the main thread."""

    def __init__(self, command: Command, *, clock: Clock, on_exit: OnExit) -> None:
        """Prepare; nothing is started yet.

        Args:
            command: what `spawn` starts.
            clock: to wait by.
            on_exit: called on the loop once the whole session is gone, with the
                exit code and whether we had ended it.
        """
        self._command = command
        self._clock = clock
        self._on_exit = on_exit
        self._child: subprocess.Popen[bytes] | None = None
        self._handle = -1
        self._ending = False

    @property
    def process(self) -> ProcessId | None:
        """Return the running agent; None while there is none."""
        return None if self._child is None else processes.identify(self._child.pid)

    @property
    def pid(self) -> int:
        """Return the agent's process id; 0 while there is none."""
        return 0 if self._child is None else self._child.pid

    @property
    def is_ending(self) -> bool:
        """Say whether it was told to end and has not ended yet."""
        return self._child is not None and self._ending

    def spawn(self) -> int:
        """Start the agent and return its process id.

        Blocks for the milliseconds that starting a process takes.

        Raises:
            Bug: NOT_MAIN_THREAD, STILL_RUNNING.
            Transient: CANNOT_SPAWN when the machine has no room for it.
        """
        if threading.current_thread() is not threading.main_thread():
            raise Bug(
                "NOT_MAIN_THREAD",
                "agents are started by the main thread: the kernel ends them when"
                " the thread that started them ends",
            )
        if self._child is not None:
            raise Bug("STILL_RUNNING", f"the agent runs as process {self._child.pid}")
        self._child = self._popen()
        self._ending = False
        self._handle = os.pidfd_open(self._child.pid)
        asyncio.get_running_loop().add_reader(self._handle, self._leader_ended)
        return self._child.pid

    def _popen(self) -> subprocess.Popen[bytes]:
        shim = (
            sys.executable,
            "-P",
            "-m",
            "sidecar.agent.exec_shim",
            str(os.getpid()),
            "--",
        )
        try:
            return subprocess.Popen(  # noqa: S603 - the operator's own command
                [*shim, *self._command.words],
                env=dict(self._command.environment),
                cwd=self._command.folder,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise Transient(
                "CANNOT_SPAWN",
                f"the agent cannot be started: {error}: check the machine's process"
                " and memory limits and the folder it starts in",
            ) from error

    def freeze(self) -> None:
        """Stop every process of the agent where it stands (SIGSTOP)."""
        # A process may start another one between the look and the signal.
        for _ in range(_STOP_LOOKS):
            running = [stat for stat in self._members() if not stat.is_stopped]
            if not running:
                return
            for stat in running:
                processes.send_signal(stat, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen agent run on (SIGCONT); one that runs is not disturbed."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End every process of the agent at once, frozen or not (SIGKILL)."""
        self._ending = True
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask every process of the agent to end; a frozen one is let run for it."""
        self._ending = True
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)

    @property
    def is_frozen(self) -> bool:
        """Say whether every process of the agent is stopped."""
        members = self._members()
        return bool(members) and all(stat.is_stopped for stat in members)

    @property
    def is_running(self) -> bool:
        """Say whether no process of the agent is stopped."""
        return not any(stat.is_stopped for stat in self._members())

    async def wait_frozen(self) -> None:
        """Wait until every process is stopped or gone."""
        await self._until(lambda: self._child is None or self.is_frozen)

    async def wait_running(self) -> None:
        """Wait until no process is stopped."""
        await self._until(lambda: self.is_running)

    async def wait_gone(self) -> None:
        """Wait until no process of the agent is left."""
        while self._child is not None:
            await self._clock.sleep(_POLL_S)

    async def stop(self, grace_s: float) -> None:
        """End the agent: TERM and CONT, then KILL after `grace_s` seconds.

        Raises:
            TimedOut: STILL_THERE when even KILL does not end it within 10 s.
        """
        if self._child is None:
            return
        self.terminate()
        if not await self._gone_within(grace_s):
            self.kill()
            if not await self._gone_within(_KILL_S):
                raise _still_there(self.pid)

    async def end_leftovers(self, former: ProcessId) -> None:
        """End what a sidecar before this one had started and could not end.

        Such are descendants of an agent that was killed with its sidecar, and
        agents that dropped the kernel's promise to end them.

        Raises:
            TimedOut: STILL_THERE.
        """
        agent_id = self._command.environment.get(names.ENV_AGENT_ID, "")
        marker = f"{names.ENV_AGENT_ID}={agent_id}"

        def ended() -> bool:
            found = processes.leftovers(former, marker)
            for stat in found:
                processes.send_signal(stat, signal.SIGKILL)
            return not found

        try:
            async with asyncio.timeout(_KILL_S):
                await self._until(ended)
        except TimeoutError as error:
            raise _still_there(former.pid) from error

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Look until it is so, and leave the loop to others most of the time."""
        clock = self._clock
        while True:
            began = clock.monotonic()
            if reached():
                return
            took_s = clock.monotonic() - began
            pause_s = max(_PAUSE_PER_LOOK * took_s, _POLL_S)
            await clock.sleep(min(pause_s, _POLL_MAX_S))

    async def _gone_within(self, seconds: float) -> bool:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wait_gone()
        return self._child is None

    def _members(self) -> list[processes.ProcessStat]:
        if self._child is None:
            return []
        return processes.session_members(self._child.pid)

    def _signal(self, number: signal.Signals) -> None:
        for stat in self._members():
            processes.send_signal(stat, number)

    def _leader_ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._handle)
        self._sweep(_POLL_S)

    def _sweep(self, pause_s: float) -> None:
        # What the leader leaves behind must not meet the agent's next life. Until
        # all is gone the leader stays a zombie: reaped, its number, which names
        # the session, could be given to a stranger.
        if self._members():
            self._signal(signal.SIGKILL)
            asyncio.get_running_loop().call_later(
                pause_s, self._sweep, min(2 * pause_s, _SWEEP_PAUSE_MAX_S)
            )
            return
        self._reap()

    def _reap(self) -> None:
        child, ended = self._child, self._ending
        if child is None:
            return
        code = child.wait()
        os.close(self._handle)
        self._child = None
        self._on_exit(code if code >= 0 else _SIGNAL_EXIT - code, ended)


def _still_there(pid: int) -> TimedOut:
    return TimedOut(
        "STILL_THERE",
        f"process {pid} or one that it started does not end although it was killed:"
        " it hangs in the kernel, often on a disk or network file system; mend that,"
        " or end it by hand, before the agent is started again",
    )
