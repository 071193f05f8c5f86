"""Begins what the table asks for; what has to be waited for becomes a step."""

from collections.abc import Callable, Coroutine
from typing import Any

from outrigger.core.errors import Bug
from sidecar.agent.hearing import Hearing
from sidecar.agent.life import Feed, Life
from sidecar.agent.messages import Resume
from sidecar.agent.ports import Actuator
from sidecar.agent.sleeping import Sleeping
from sidecar.agent.steps import Steps
from sidecar.agent.waking import Waking
from sidecar.policy.lifecycle import Effect, Input


class Effects:
    """Performs effects; a failed step is fed back as the input it stands for."""

    def __init__(
        self, life: Life, steps: Steps, feed: Feed, *, waking: Waking, hearing: Hearing
    ) -> None:
        self._life = life
        self._steps = steps
        self._feed = feed
        self._sleeping = Sleeping(life, feed)
        self._waking = waking
        self._hearing = hearing

    def table(self) -> dict[Effect, Callable[[str], None]]:
        """Return who performs which effect; each gets the reason of the move."""
        return {
            Effect.ASK_QUIESCE: self._ask_quiesce,
            Effect.ASK_SAVE: self._ask_save,
            Effect.FREEZE: self._freeze,
            Effect.KEEP_FROZEN: self._keep_frozen,
            Effect.RELEASE: self._release,
            Effect.THAW: self._thaw,
            Effect.AWAIT_THAW: self._await_thaw,
            Effect.RESUME: lambda why: self._life.send(Resume(self._life.epoch, why)),
            Effect.START: lambda _: self._start(0.0),
            Effect.RESTART: lambda _: self._start(self._pause_s()),
            Effect.AWAIT_AGENT: self._await_agent,
            Effect.WELCOME: lambda _: self._hearing.welcome(),
            Effect.AWAIT_SERVING: self._await_serving,
            Effect.FALL_BACK: self._fall_back,
            Effect.KILL: self._kill,
        }

    def _run(self, slot: str, work: Coroutine[Any, Any, None], failed: Input) -> None:
        feed = self._feed
        self._steps.run(slot, work, lambda error: feed(failed, str(error), error))

    def _ask_quiesce(self, _: str) -> None:
        self._life.begin_sleep()
        self._run("work", self._sleeping.quiesce(), Input.TIMED_OUT)

    def _ask_save(self, _: str) -> None:
        self._run("work", self._sleeping.save(), Input.SAVE_FAILED)

    def _keep_frozen(self, _: str) -> None:
        self._run("work", self._sleeping.keep_frozen(), Input.ACTIVITY)

    def _freeze(self, _: str) -> None:
        self._actuator.freeze()
        step = self._sleeping.confirm_frozen(self._actuator)
        self._run("work", step, Input.FREEZE_FAILED)

    def _release(self, _: str) -> None:
        self._life.forget_link()
        self._actuator.kill()
        self._run("work", self._sleeping.watch_release(), Input.ACTIVITY)

    def _thaw(self, _: str) -> None:
        if not self._actuator.is_ending:
            self._actuator.thaw()

    def _await_thaw(self, _: str) -> None:
        self._arm(0.0)
        step = self._waking.confirm_thawed(self._actuator)
        self._run("work", step, Input.TIMED_OUT)

    def _start(self, pause_s: float) -> None:
        self._steps.cancel("ready")
        self._arm(pause_s)
        step = self._waking.start(self._actuator, pause_s)
        self._run("work", step, Input.START_FAILED)

    def _await_agent(self, _: str) -> None:
        if self._life.restore is None:
            self._await_serving("")

    def _await_serving(self, _: str) -> None:
        self._run("ready", self._waking.await_ready(), Input.TIMED_OUT)

    def _fall_back(self, _: str) -> None:
        self._life.forget_link()
        self._steps.cancel("ready")
        self._arm(0.0)
        step = self._waking.fall_back(self._actuator)
        self._run("work", step, Input.EXHAUSTED)

    def _kill(self, _: str) -> None:
        self._life.forget_link()
        if self._actuator.pid:
            self._actuator.kill()

    def _arm(self, extra_s: float) -> None:
        limit_s = self._life.settings.wake_timeout_s + extra_s
        self._run("deadline", self._waking.deadline(limit_s), Input.TIMED_OUT)

    def _pause_s(self) -> float:
        limits = self._life.settings.restart
        return limits.pause_s(self._life.crashes, self._life.ports.rng.draw())

    @property
    def _actuator(self) -> Actuator:
        if self._life.actuator is None:
            raise Bug("NO_ACTUATOR", "an agent that attaches by itself was moved")
        return self._life.actuator
