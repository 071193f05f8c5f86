"""The one who starts an agent, puts it to sleep, wakes it and answers for it.

Drives the table of `policy.lifecycle` on one event loop. An input is taken whole
before the next: the table is asked, the state entered, every effect begun in
order, and only then are the listeners told. Whatever waits is a step; leaving a
state cancels its steps, so an answer never meets a state that did not ask for it.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from outrigger.core.errors import Conflict, Refused
from sidecar.agent.actuators import OnExit
from sidecar.agent.effects import Effects
from sidecar.agent.hearing import Hearing
from sidecar.agent.life import Life
from sidecar.agent.machine import Machine
from sidecar.agent.messages import Hello, Link, Message, Stop
from sidecar.agent.ports import (
    Actuator,
    ManifestView,
    SleepMode,
    SupervisorPorts,
    SupervisorSettings,
)
from sidecar.agent.records import (
    Epochs,
    LifecycleRecord,
    LifecycleRecords,
    Recorder,
)
from sidecar.agent.steps import Steps
from sidecar.agent.waking import Waking
from sidecar.policy.agent import AgentSnapshot, AgentState
from sidecar.policy.lifecycle import Exit, Input, judge_exit

_FALLING_ASLEEP: Final = frozenset(
    {AgentState.QUIESCING, AgentState.CHECKPOINTING, AgentState.FROZEN}
)
_FIRST: Final = "the sidecar started"


class Supervisor:
    """One agent's life; owned by the event loop of the main thread."""

    def __init__(
        self,
        agent_id: str,
        *,
        settings: SupervisorSettings,
        ports: SupervisorPorts,
        records: LifecycleRecords,
        make_actuator: Callable[[OnExit], Actuator] | None = None,
        app_address: str = "",
    ) -> None:
        """Prepare; `start` begins.

        Args:
            agent_id: whom it is about.
            settings: how patient it is.
            ports: what it reaches.
            records: where its row is kept.
            make_actuator: makes the actuator; None means that somebody else runs
                the agent, which then only attaches.
            app_address: where the agent serves, if that is known beforehand.
        """
        self._records = records
        self._life = Life(
            agent_id=agent_id,
            settings=settings,
            ports=ports,
            actuator=make_actuator(self._ended) if make_actuator else None,
            epochs=Epochs(),
            app_address=app_address,
        )
        self._steps = Steps(ports.tasks)
        self._recorder = Recorder(
            records,
            self._life.epochs,
            tasks=ports.tasks,
            clock=ports.clock,
            publish=ports.publish,
        )
        self._machine = Machine(self._life, self._steps, self._recorder)
        feed = self._machine.feed
        waking = Waking(self._life, feed)
        self._hearing = Hearing(self._life, waking, self._machine)
        self._effects = Effects(
            self._life, self._steps, feed, waking=waking, hearing=self._hearing
        )
        self._machine.effects = self._effects.table()
        self._stopping = False
        self._has_begun = False
        self._wake_wanted: str | None = None
        self.child_exited: asyncio.Future[int] = (
            asyncio.get_running_loop().create_future()
        )
        """Done when the agent ended by itself for good, with its exit code."""
        self.child_exit_code: int | None = None
        """Exit code of the newest process that ended."""

    @property
    def awake(self) -> bool:
        """Say whether calls may be handed to the agent."""
        return self._machine.state is AgentState.AWAKE

    @property
    def app_address(self) -> str:
        """Return where the agent serves; empty is unknown."""
        return self._life.app_address

    @property
    def on_change(self) -> list[Callable[[], None]]:
        """Return the functions called after every change, on the loop; add yours."""
        return self._machine.on_change

    def snapshot(self) -> AgentSnapshot:
        """Return what is known of the agent now."""
        return self._machine.snapshot()

    async def start(self) -> None:
        """Take over from the sidecar before; start the agent unless it sleeps.

        Returns when that has begun, not when the agent is awake. Until then nothing
        is started, and what is on record of the sidecar before stays as it was, but
        for the epochs reserved: a start that is cut short or fails must leave the
        next one all it needs to know.

        Raises:
            Corrupt: BAD_LIFECYCLE_RECORD.
            TimedOut: STILL_THERE when the agent's former life does not end.
            Transient: STORE_FAILED.
        """
        life, machine = self._life, self._machine
        stored = await self._records.load()
        if stored is not None:
            life.epochs.begin_above(stored.epoch_reserved)
            life.generation = stored.generation
            life.state_digest = stored.state_digest
            life.former = stored.process
            machine.resume_from(stored)
        await self._recorder.write(self._first_record(stored))
        if life.actuator is None:
            self._has_begun = True
            machine.begin_awake("it attaches by itself")
            return
        if life.former is not None:
            await life.actuator.end_leftovers(life.former)
            life.former = None
        self._has_begun = True
        sleeps = stored is not None and stored.state is AgentState.ASLEEP
        wanted = self._wake_wanted if sleeps else _FIRST
        if wanted is not None:
            machine.feed(Input.WAKE_REQUESTED, wanted)

    def _first_record(self, stored: LifecycleRecord | None) -> LifecycleRecord:
        if stored is not None:
            return replace(stored, epoch_reserved=self._life.epochs.reserve)
        first = self._machine.record()
        return replace(first, state=AgentState.WAKING, reason=_FIRST)

    async def stop(self) -> None:
        """End the agent with the sidecar and record how it is left.

        A frozen agent whose state is on disk is left asleep; any other is asked to
        end, and the next sidecar starts it again. After a `start` that failed there
        is nothing to record: the record on disk is the sidecar's before this one.

        Raises:
            TimedOut: STILL_THERE when even KILL does not end it.
        """
        life, machine = self._life, self._machine
        self._stopping = True
        self._steps.cancel_all()
        if not self._has_begun:
            return
        if life.actuator is not None and life.actuator.pid:
            asleep = machine.state is AgentState.FROZEN and life.verified
            if asleep:
                life.actuator.kill()
            else:
                life.send(Stop(life.epoch))
            await life.actuator.stop(life.settings.stop_grace_s)
            if asleep:
                machine.feed(Input.GONE, "the sidecar ends; its state is on disk")
        await self._recorder.write(machine.record())

    def request_sleep(
        self, seen_epoch: int, reason: str, *, validate_only: bool = False
    ) -> AgentSnapshot:
        """Begin to put the agent to sleep; return it as it is now.

        Args:
            seen_epoch: epoch the caller saw; 0 means any.
            reason: why, for a person.
            validate_only: check only, change nothing.

        Raises:
            Conflict: STALE_EPOCH.
            Refused: NO_COMMAND, STOPPING, NOT_AWAKE, AGENT_NOT_ATTACHED, RESTORING.
            Transient: NO_EPOCH_LEFT.
        """
        self._check_command(seen_epoch)
        self._check_can_sleep()
        self._life.epochs.check()
        if not validate_only:
            self._machine.feed(Input.SLEEP_REQUESTED, reason)
        return self.snapshot()

    def request_wake(
        self, seen_epoch: int, reason: str, *, validate_only: bool = False
    ) -> AgentSnapshot:
        """Begin to wake the agent, whatever it is doing; return it as it is now.

        Waking one that is awake or waking changes nothing. A wake needs no disk: if
        none answers, it goes on under the old epoch. One that comes before `start`
        has done its part waits for it: a former life may still have to be ended.
        Arguments as for `request_sleep`.

        Raises:
            Conflict: STALE_EPOCH.
            Refused: NO_COMMAND, STOPPING.
        """
        self._check_command(seen_epoch)
        if not validate_only:
            self._wake(reason)
        return self.snapshot()

    def _wake(self, reason: str) -> None:
        if not self._has_begun:
            self._wake_wanted = reason
            return
        if self._machine.state is AgentState.FAILED:
            self._life.restore_below = None  # somebody may have mended the newest
        self._machine.feed(Input.WAKE_REQUESTED, reason)

    def activity(self, what: str = "a call began") -> None:
        """Say that a call or lease began; ends a sleep that is under way."""
        if self._machine.state in _FALLING_ASLEEP and not self._stopping:
            self._machine.feed(Input.ACTIVITY, what)

    def checkpoint_saved(self, manifest: ManifestView, _epoch: int = 0) -> None:
        """Take note that a checkpoint was saved and read back."""
        self._life.know(manifest)
        self._life.restore_below = None
        self._machine.tell()

    def attach(self, link: Link, hello: Hello) -> None:
        """Take a new Attach stream; it replaces the one before.

        Raises:
            Refused: NOT_STARTED when this sidecar has not started the agent.
        """
        self._hearing.attach(link, hello)

    def heard(self, link: Link, message: Message) -> None:
        """Take a message; from a stream that was replaced it is dropped."""
        self._hearing.heard(link, message)

    def detach(self, link: Link) -> None:
        """Take note that a stream has ended."""
        self._hearing.detach(link)

    def _check_command(self, seen_epoch: int) -> None:
        life = self._life
        if life.actuator is None:
            raise Refused(
                "NO_COMMAND",
                f"agent {life.agent_id} was not started by its sidecar, which can"
                " neither end nor start it: start the sidecar with the agent's"
                " command after '--'",
            )
        if self._stopping:
            raise Refused("STOPPING", "the sidecar is ending; ask the next one")
        if seen_epoch not in (0, life.epoch):
            raise Conflict(
                "STALE_EPOCH",
                f"epoch {seen_epoch} was named, agent {life.agent_id} is at epoch"
                f" {life.epoch} and {self._machine.state.value}: look at it as it is"
                " now and decide anew",
                metadata={"epoch": str(life.epoch)},
            )

    def _check_can_sleep(self) -> None:
        life, state = self._life, self._machine.state
        if state is not AgentState.AWAKE:
            raise Refused(
                "NOT_AWAKE",
                f"agent {life.agent_id} is {state.value} ({self._machine.reason}):"
                " only one that is awake can be put to sleep",
            )
        if life.settings.sleep_mode is SleepMode.FREEZE:
            return
        if life.link is None or not life.welcomed:
            raise Refused(
                "AGENT_NOT_ATTACHED",
                f"agent {life.agent_id} has not attached and cannot save its state:"
                " let it attach, or start its sidecar with --sleep-mode freeze",
            )
        if life.restoring is not None:
            raise Refused(
                "RESTORING",
                f"agent {life.agent_id} is restoring generation"
                f" {life.restoring.generation}: ask again when it has done so",
            )

    def _ended(self, code: int, ended_by_us: bool) -> None:  # noqa: FBT001 - as OnExit
        """Take the end of the process, and of everything it had started."""
        life, machine = self._life, self._machine
        self.child_exit_code = code
        life.forget_link()
        life.ports.leases.clear()
        if self._stopping:
            return
        stable = life.settings.restart.stable_s
        was_awake = machine.state is AgentState.AWAKE
        if was_awake and machine.state_age_s >= stable:
            life.crashes = 0
        is_crash = not (ended_by_us or life.verified)
        life.crashes += is_crash
        # One that had come up is started again as often as it dies: only the pause
        # grows. Given up is what never comes up.
        life.failed_starts = 0 if was_awake else life.failed_starts + is_crash
        how = Exit(
            code=code,
            ended_by_us=ended_by_us,
            saved=life.verified,
            served=life.served,
            failed_starts=life.failed_starts,
        )
        meaning = judge_exit(how, life.settings.restart)
        machine.feed(meaning, f"its process ended with exit code {code}")
        final = meaning in (Input.FINISHED, Input.CRASH_LOOPED)
        if final and not self.child_exited.done():
            self.child_exited.set_result(code)
