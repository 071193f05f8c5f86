"""Where the agent stands: asks the table, enters states, tells who listens."""

from collections.abc import Callable, Mapping
from typing import Final

from outrigger.core.errors import Conflict, Transient
from outrigger.core.events import ErrorSeen, Recovered, Transitioned
from outrigger.core.tasks import describe
from sidecar.agent.life import Life
from sidecar.agent.records import LifecycleRecord, Recorder
from sidecar.agent.steps import Steps
from sidecar.policy import lifecycle
from sidecar.policy.agent import AgentSnapshot, AgentState
from sidecar.policy.lifecycle import Effect, Input

_FAILURES: Final = frozenset(
    {
        Input.CRASHED,
        Input.CRASH_LOOPED,
        Input.DIGEST_MISMATCH,
        Input.EXHAUSTED,
        Input.FREEZE_FAILED,
        Input.RESTORE_FAILED,
        Input.SAVE_FAILED,
        Input.START_FAILED,
        Input.TIMED_OUT,
    }
)
_BROKEN: Final = frozenset({AgentState.WAKING, AgentState.FAILED})
_SLEPT: Final = frozenset({AgentState.FROZEN, AgentState.ASLEEP})

Perform = Callable[[str], None]
"""Begins one effect; gets the reason of the move."""


class Machine:
    """The state of one agent, and the only place that changes it."""

    def __init__(self, life: Life, steps: Steps, recorder: Recorder) -> None:
        self.state = AgentState.ASLEEP
        self.reason = "never started"
        self.effects: Mapping[Effect, Perform] = {}
        self.on_change: list[Callable[[], None]] = []
        self._life = life
        self._steps = steps
        self._recorder = recorder
        self._since_wall_s = life.ports.clock.wall()
        self._entered = life.ports.clock.monotonic()
        self._waking_since = self._entered
        self._failed_at: float | None = None
        self._slept = False
        self._sleep_count = 0
        self._wake_count = 0
        self._last_wake_s = 0.0
        self._woken_digest = b""

    def resume_from(self, stored: LifecycleRecord) -> None:
        """Take over what a sidecar before this one had recorded.

        Only sleep outlives a sidecar: its agents end with it, so whatever else
        the agent was, it is to be started now.
        """
        if stored.state is AgentState.ASLEEP:
            self.reason = stored.reason
            self._since_wall_s = stored.since_wall_s
        self._slept = stored.state in _SLEPT
        self._sleep_count = stored.sleep_count
        self._wake_count = stored.wake_count
        self._last_wake_s = stored.last_wake_s
        self._woken_digest = stored.woken_digest

    def begin_awake(self, reason: str) -> None:
        """Take an agent that somebody else runs as awake."""
        self.state = AgentState.AWAKE
        self.reason = reason

    @property
    def state_age_s(self) -> float:
        """Return how long it has been in its state."""
        return self._life.ports.clock.monotonic() - self._entered

    def feed(
        self, given: Input, reason: str, error: BaseException | None = None, /
    ) -> None:
        """Take one input: move, perform, tell.

        Raises:
            Bug: NO_SUCH_MOVE; nothing has changed then.
        """
        move = lifecycle.step(self.state, given)
        if given in _FAILURES:
            self._report(given, reason, error, move.state)
        if Effect.ISSUE_EPOCH in move.effects:
            self._issue_epoch()
        changed = move.state is not self.state
        if changed:
            self._enter(move.state, given, reason)
        for effect in move.effects:
            if effect is not Effect.ISSUE_EPOCH:
                self.effects[effect](reason)
        if changed or given is Input.STARTED:  # the new process is put on record
            self.tell()

    def tell(self) -> None:
        """Have the record written and the listeners told."""
        self._recorder.put(self.record())
        for listener in tuple(self.on_change):
            try:
                listener()
            except Exception as error:  # noqa: BLE001 - a listener's fault is not ours
                self._life.ports.publish(describe("agent.on_change", error))

    def _issue_epoch(self) -> None:
        # Without a disk the epoch stays. Only wakes and restarts come here then, and
        # they must not wait for a disk: the process that could still act under that
        # epoch is dead, or is the very one that is to go on.
        try:
            epoch = self._life.epochs.issue()
        except Transient as error:
            self._life.ports.publish(describe("agent.epoch", error))
            return
        _ = self._life.ports.tasks.spawn("agent.fence", self._fence(epoch))

    async def _fence(self, epoch: int) -> None:
        try:
            await self._life.ports.checkpoints.fence(self._life.agent_id, epoch)
        except Conflict:
            # Fences are written on threads: a newer epoch's may come first, and
            # then there is nothing left for this one to do.
            if epoch == self._life.epoch:
                raise

    def _report(
        self,
        given: Input,
        reason: str,
        error: BaseException | None,
        after: AgentState,
    ) -> None:
        boundary = f"agent.{self.state.value}"
        subject = f"epoch {self._life.epoch}"
        seen = (
            describe(boundary, error, subject=subject)
            if error is not None
            else ErrorSeen(
                boundary=boundary,
                reason=given.value.upper(),
                causes=(reason,),
                subject=subject,
            )
        )
        self._life.ports.publish(seen)
        if after in _BROKEN and self._failed_at is None:
            self._failed_at = self._life.ports.clock.monotonic()

    def _enter(self, after: AgentState, given: Input, reason: str) -> None:
        self._steps.cancel_all()
        before, self.state, self.reason = self.state, after, reason
        clock = self._life.ports.clock
        self._entered = clock.monotonic()
        self._since_wall_s = clock.wall()
        if after is AgentState.WAKING:
            self._waking_since = self._entered
        if after in _SLEPT and not self._slept:
            self._slept = True
            self._sleep_count += 1
        if after is AgentState.AWAKE:
            self._note_awake(before)
        self._life.ports.publish(
            Transitioned(
                before=before.value,
                after=after.value,
                input=given.value,
                reason=reason,
                epoch=self._life.epoch,
            )
        )

    def _note_awake(self, before: AgentState) -> None:
        life = self._life
        life.verified = False
        life.is_starting = False
        if before is not AgentState.WAKING:
            return
        life.served = True
        if self._slept:
            self._slept = False
            self._wake_count += 1
            self._last_wake_s = self._entered - self._waking_since
            restored = life.restored
            self._woken_digest = restored.state_digest if restored else b""
        if self._failed_at is not None:
            life.ports.publish(
                Recovered(subject="agent", elapsed_s=self._entered - self._failed_at)
            )
            self._failed_at = None

    def snapshot(self) -> AgentSnapshot:
        """Return what is known of the agent now."""
        life = self._life
        actuator = life.actuator
        return AgentSnapshot(
            agent_id=life.agent_id,
            state=self.state,
            reason=self.reason,
            since_wall_s=self._since_wall_s,
            epoch=life.epoch,
            generation=life.generation,
            state_digest=life.state_digest,
            pid=life.agent_pid if actuator is None else actuator.pid,
            sleep_count=self._sleep_count,
            wake_count=self._wake_count,
            last_wake_s=self._last_wake_s,
            woken_digest=self._woken_digest,
        )

    def record(self) -> LifecycleRecord:
        """Return what must outlive the sidecar."""
        life = self._life
        running = None if life.actuator is None else life.actuator.process
        return LifecycleRecord(
            epoch_reserved=life.epochs.reserve,
            epoch=life.epoch,
            state=self.state,
            reason=self.reason,
            since_wall_s=self._since_wall_s,
            generation=life.generation,
            state_digest=life.state_digest,
            sleep_count=self._sleep_count,
            wake_count=self._wake_count,
            last_wake_s=self._last_wake_s,
            woken_digest=self._woken_digest,
            process=running or life.former,
        )
