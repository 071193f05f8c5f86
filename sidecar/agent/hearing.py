"""What the agent says, turned into inputs; what is out of time is dropped."""

from outrigger.core.errors import Conflict, OutriggerError, Refused, Transient
from outrigger.core.tasks import describe
from sidecar.agent.life import Life
from sidecar.agent.machine import Machine
from sidecar.agent.messages import (
    Failed,
    Hello,
    Link,
    Message,
    Quiesced,
    Restored,
    Saved,
    Serving,
    Veto,
)
from sidecar.agent.waking import Waking
from sidecar.policy import lifecycle
from sidecar.policy.agent import AgentState
from sidecar.policy.lifecycle import Input


class Hearing:
    """One agent's Attach streams; the newest one counts."""

    def __init__(self, life: Life, waking: Waking, machine: Machine) -> None:
        self._life = life
        self._waking = waking
        self._machine = machine
        self._hello = Hello(0)

    def attach(self, link: Link, hello: Hello) -> None:
        """Take a new stream; it replaces the one before.

        Raises:
            Refused: NOT_STARTED.
            Transient: FROZEN when it would have to restore its state.
        """
        life, state = self._life, self._machine.state
        strange = life.actuator is not None and not life.actuator.pid
        if strange or not lifecycle.accepts(state, Input.ATTACHED):
            raise Refused(
                "NOT_STARTED",
                f"agent {life.agent_id} is {state.value} and its sidecar has started"
                " no process for it: wake it instead of starting it by hand",
            )
        if state is AgentState.FROZEN and not hello.resumed:
            # Its state is on disk and its process may be ended any moment: a
            # restore would be judged when nobody waits for one.
            raise Transient(
                "FROZEN",
                f"agent {life.agent_id} is frozen and can restore nothing now: attach"
                " again when it runs on",
            )
        former, life.link = life.link, link
        if former is not None:
            former.close(
                Conflict("REPLACED", "the agent attached again by another stream")
            )
        life.welcomed = False
        life.restoring = None
        life.agent_pid = hello.pid
        life.app_address = hello.app_address or life.app_address
        self._hello = hello
        self._machine.feed(Input.ATTACHED, hello.client or "it attached")
        self._machine.tell()

    def welcome(self) -> None:
        """Say what to restore, after looking for it if need be."""
        life = self._life
        if self._hello.resumed and not life.is_unproven:
            self._waking.welcome(None)
        elif life.is_starting:
            self._waking.welcome(life.restore)
        elif life.link is not None:
            _ = life.ports.tasks.spawn("agent.welcome", self._look_up(life.link))

    async def _look_up(self, link: Link) -> None:
        try:
            found = await self._waking.choose()
        except OutriggerError as error:
            self._life.ports.publish(describe("agent.welcome", error))
            link.close(error)
            return
        if link is self._life.link:
            # Should it fail, what is older than this one is tried, not what is
            # older than its first start restored.
            self._life.restore = found
            self._waking.welcome(found)

    def heard(self, link: Link, message: Message) -> None:
        """Take a message, unless the stream was replaced."""
        if link is not self._life.link:
            return
        match message:
            case Restored():
                self._give_sleep_up()
                self._waking.judge(message)
            case Serving():
                self._serving()
            case Failed(0, reason):
                self._give_sleep_up()
                self._restore_failed(f"the agent: {reason}")
            case Quiesced() | Saved() | Veto() | Failed():
                self._answered(message)

    def _answered(self, message: Quiesced | Saved | Veto | Failed) -> None:
        state = self._machine.state
        if message.epoch != self._life.epoch:
            return
        match message, state:
            case Quiesced(), AgentState.QUIESCING:
                self._life.quiesced = True
            case Saved(), AgentState.CHECKPOINTING:
                self._life.saved_generation = message.generation
            case ((Veto() | Failed()), AgentState.QUIESCING):
                self._machine.feed(Input.VETOED, f"the agent: {message.reason}")
            case ((Veto() | Failed()), AgentState.CHECKPOINTING):
                self._machine.feed(Input.SAVE_FAILED, f"the agent: {message.reason}")
            case _:
                return  # an answer to a sleep that was given up

    def _give_sleep_up(self) -> None:
        # One that is only to be frozen may be put to sleep while it restores. What
        # came of that can be acted on only when it is up.
        can_judge = lifecycle.accepts(self._machine.state, Input.RESTORED_OK)
        if self._life.restoring is not None and not can_judge:
            self._machine.feed(Input.ACTIVITY, "it was still restoring its state")

    def _serving(self) -> None:
        if self._life.restoring is None:
            if self._life.welcomed:
                self._machine.feed(Input.SERVING, "the agent serves")
            return
        self._give_sleep_up()
        # While it wakes the proof may follow: the deadline decides. Awake there is
        # no deadline.
        if self._machine.state is not AgentState.WAKING:
            self._restore_failed("it serves without having restored its state")

    def _restore_failed(self, reason: str) -> None:
        life = self._life
        named = life.restoring
        if named is None:
            return
        life.restoring = None
        error = Refused("RESTORE_FAILED", f"generation {named.generation}: {reason}")
        self._waking.not_restored(Input.RESTORE_FAILED, error)

    def detach(self, link: Link) -> None:
        """Take note that a stream has ended, unless it was replaced."""
        if link is not self._life.link:
            return
        self._life.forget_link()
        self._machine.feed(Input.DETACHED, "its stream ended")
