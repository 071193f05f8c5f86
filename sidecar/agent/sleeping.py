"""The steps of falling asleep: quiesce, save, freeze, keep, end."""

import asyncio
from typing import Final

from outrigger.core.errors import Refused
from outrigger.core.events import Alerted
from sidecar.agent.life import Feed, Life
from sidecar.agent.messages import PrepareSleep, SaveState
from sidecar.agent.ports import Actuator, SleepMode
from sidecar.policy.lifecycle import Input

_NEW_WORK: Final = "a call or lease began"
_RELEASE_ALERT_S: Final = 10.0
_LOOK_MAX_S: Final = 0.25
"""Longest pause between two looks at a frozen agent."""


class Sleeping:
    """Performs the waiting effects between awake and asleep."""

    def __init__(self, life: Life, feed: Feed) -> None:
        self._life = life
        self._feed = feed

    async def quiesce(self) -> None:
        """Wait until nothing is in flight, here and in the agent."""
        life = self._life
        limit_s = life.settings.quiesce_timeout_s
        life.send(PrepareSleep(life.epoch, limit_s))
        try:
            async with asyncio.timeout(limit_s):
                while not self._is_quiet():
                    if life.has_new_work:
                        self._feed(Input.ACTIVITY, _NEW_WORK)
                        return
                    await life.ports.clock.sleep(life.settings.poll_s)
        except TimeoutError:
            self._feed(Input.TIMED_OUT, self._still_busy(limit_s))
            return
        self._feed(Input.QUIESCED, "nothing is in flight")

    def _is_quiet(self) -> bool:
        life = self._life
        agent_is_quiet = life.quiesced or life.link is None
        return agent_is_quiet and not life.is_busy

    def _still_busy(self, limit_s: float) -> str:
        life = self._life
        now = life.ports.clock.monotonic()
        return (
            f"after {limit_s:g} s there were {life.ports.busy()} calls in flight,"
            f" {life.ports.leases.count(now)} keep-awake leases, and the agent had"
            f" {'' if life.quiesced else 'not '}answered"
        )

    async def save(self) -> None:
        """Have the state saved and read it back from disk."""
        life = self._life
        if life.settings.sleep_mode is SleepMode.FREEZE:
            self._feed(Input.NOTHING_TO_SAVE, "it stays in memory")
            return
        await life.ports.checkpoints.fence(life.agent_id, life.epoch)
        life.send(SaveState(life.epoch))
        limit_s = life.settings.save_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                answered = await self._await_saved()
        except TimeoutError:
            self._feed(Input.TIMED_OUT, f"no state was saved within {limit_s:g} s")
            return
        if answered:
            await self._verify()

    async def _await_saved(self) -> bool:
        life = self._life
        while not life.saved_generation:
            if life.has_new_work:
                self._feed(Input.ACTIVITY, _NEW_WORK)
                return False
            await life.ports.clock.sleep(life.settings.poll_s)
        return True

    async def _verify(self) -> None:
        life = self._life
        manifest = await life.ports.checkpoints.verify(
            life.agent_id, life.saved_generation
        )
        if manifest.epoch != life.epoch:
            raise Refused(
                "WRONG_EPOCH",
                f"the agent says that generation {manifest.generation} is the save of"
                f" epoch {life.epoch}, but it was saved under {manifest.epoch}: pass"
                " the epoch of the save order on to SaveCheckpoint",
            )
        life.know(manifest)
        life.verified = True
        if life.has_new_work or life.is_busy:
            self._feed(Input.ACTIVITY, _NEW_WORK)
        else:
            self._feed(Input.SAVED, f"generation {manifest.generation} is on disk")

    async def confirm_frozen(self, actuator: Actuator) -> None:
        """Wait until every process is stopped."""
        limit_s = self._life.settings.freeze_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await actuator.wait_frozen()
        except TimeoutError:
            self._feed(Input.FREEZE_FAILED, f"it was not stopped within {limit_s:g} s")
            return
        self._feed(Input.FROZEN_OK, "every process is stopped")

    async def keep_frozen(self) -> None:
        """Look for work until the process may go; for ever if it is only frozen.

        What the agent sent before it was stopped may still have been under way, and
        an open stream may pass a message at any time.
        """
        life = self._life
        clock, pause_s = life.ports.clock, life.settings.poll_s
        until = clock.monotonic() + max(life.settings.frozen_keep_s, pause_s)
        only_frozen = life.settings.sleep_mode is SleepMode.FREEZE
        while only_frozen or clock.monotonic() < until:
            left_s = until - clock.monotonic()
            await clock.sleep(pause_s if only_frozen else min(pause_s, left_s))
            if life.has_new_work or life.is_busy:
                self._feed(Input.ACTIVITY, _NEW_WORK)
                return
            pause_s = min(2 * pause_s, _LOOK_MAX_S)
        self._feed(Input.RELEASE_DUE, "nothing came after the freeze")

    async def watch_release(self) -> None:
        """Tell an operator when the process does not go."""
        await self._life.ports.clock.sleep(_RELEASE_ALERT_S)
        self._life.ports.publish(
            Alerted(
                name="AGENT_DOES_NOT_END",
                message=f"agent {self._life.agent_id} was killed"
                f" {_RELEASE_ALERT_S:g} s ago and is still there: it hangs in the"
                " kernel, often on a disk or network file system",
            )
        )
