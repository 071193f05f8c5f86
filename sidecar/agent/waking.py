"""The steps of waking: start or thaw, welcome, restore, prove, serve."""

from typing import Final

from outrigger.core.errors import Conflict, Corrupt, OutriggerError
from outrigger.core.events import CheckpointMoved
from outrigger.core.tasks import describe
from sidecar.agent.life import Feed, Life
from sidecar.agent.messages import Restored, Welcome
from sidecar.agent.ports import Actuator, ManifestView
from sidecar.policy.lifecycle import Input

_READY_POLL_S: Final = 0.05


class Waking:
    """Performs the waiting effects between asleep and awake."""

    def __init__(self, life: Life, feed: Feed) -> None:
        self._life = life
        self._feed = feed
        self._configured_address = life.app_address

    async def start(self, actuator: Actuator, pause_s: float = 0.0) -> None:
        """Choose what to restore and start the process, after `pause_s`."""
        life = self._life
        if pause_s:
            await life.ports.clock.sleep(pause_s)
        await actuator.wait_gone()
        await self._fence()
        life.restore = await self.choose()
        life.is_starting = True
        life.restoring = None
        life.restored = None
        # Where the dead process served a stranger may listen by now.
        life.app_address = self._configured_address
        pid = actuator.spawn()
        self._feed(Input.STARTED, f"process {pid} runs")

    async def _fence(self) -> None:
        # A full disk must not keep an agent asleep: the process that could have
        # saved under an older epoch is gone, and so is the need for the fence.
        life = self._life
        try:
            await life.ports.checkpoints.fence(life.agent_id, life.epoch)
        except OutriggerError as error:
            life.ports.publish(describe("agent.fence", error))

    async def choose(self) -> ManifestView | None:
        """Return the checkpoint to restore, verified; None means start afresh.

        Raises:
            Corrupt: NO_GOOD_CHECKPOINT when there were some and none is good.
        """
        life = self._life
        if life.restore_below is None:
            found = await life.ports.checkpoints.newest_good(life.agent_id)
        else:
            found = await self._older(life.restore_below)
        if found is not None:
            life.know(found)
        elif life.generation:
            raise Corrupt(
                "NO_GOOD_CHECKPOINT",
                f"agent {life.agent_id} had generation {life.generation}, and no"
                " checkpoint on disk is good now: it is not started without its"
                " state; put the checkpoints back, or move the state directory aside"
                " to start it afresh",
            )
        return found

    async def _older(self, below: int) -> ManifestView | None:
        """Return the newest checkpoint below a generation that verifies."""
        life = self._life
        listed = await life.ports.checkpoints.list(life.agent_id)
        older = sorted(m.generation for m in listed if m.generation < below)
        for generation in reversed(older):
            try:
                return await life.ports.checkpoints.verify(life.agent_id, generation)
            except OutriggerError as error:
                life.ports.publish(
                    describe("agent.fall_back", error, subject=str(generation))
                )
        return None

    async def fall_back(self, actuator: Actuator) -> None:
        """Have the next start restore an older checkpoint, if there is one."""
        life = self._life
        failed = life.restore.generation if life.restore else life.generation
        older = await self._older(failed)
        if older is None:
            self._feed(
                Input.EXHAUSTED,
                f"generation {failed} could not be restored and no older one is good",
            )
            return
        life.restore_below = older.generation + 1
        life.know(older)
        life.ports.publish(
            CheckpointMoved(
                generation=older.generation,
                action="fell_back",
                reason=f"generation {failed} could not be restored",
            )
        )
        if actuator.pid:
            actuator.kill()
        else:
            self._feed(Input.GONE, "it had ended already")

    def welcome(self, manifest: ManifestView | None) -> None:
        """Welcome the agent, naming what it is to restore."""
        life = self._life
        life.welcomed = True
        life.restoring = manifest
        if manifest is None:
            life.send(Welcome(life.epoch))
        else:
            life.send(Welcome(life.epoch, manifest.generation, manifest.state_digest))

    def judge(self, restored: Restored) -> None:
        """Hold what the agent restored against what it was told to restore."""
        life = self._life
        expected = life.restoring
        if expected is None:
            return
        life.restoring = None
        if restored == Restored(expected.generation, expected.state_digest):
            life.restored = restored
            self._feed(Input.RESTORED_OK, f"generation {expected.generation}")
            return
        error = Conflict(
            "DIGEST_MISMATCH",
            f"the agent restored generation {restored.generation} with digest"
            f" {restored.state_digest.hex()}, expected was generation"
            f" {expected.generation} with digest {expected.state_digest.hex()}: its"
            " state is not what it saved",
        )
        self.not_restored(Input.DIGEST_MISMATCH, error)

    def not_restored(self, given: Input, error: OutriggerError) -> None:
        """Act on a state that did not come back."""
        life = self._life
        if life.actuator is not None:
            self._feed(given, error.message, error)
        elif life.link is not None:
            # Nobody here can end it; it is told, and so are those who watch.
            life.ports.publish(describe("agent.restore", error))
            life.link.close(error)

    async def await_ready(self) -> None:
        """Wait for the app's port, or settle for a process that never attaches.

        An agent that attaches says by itself when it serves.
        """
        life = self._life
        clock = life.ports.clock
        until = clock.monotonic() + life.settings.unattached_after_s
        while True:
            if await self._app_accepts():
                self._feed(Input.SERVING, f"{life.app_address} accepts connections")
                return
            nothing_to_restore = life.restore is None and life.link is None
            if nothing_to_restore and clock.monotonic() >= until:
                self._feed(Input.UNATTACHED, "it runs and has not attached")
                return
            await clock.sleep(_READY_POLL_S)

    async def _app_accepts(self) -> bool:
        life = self._life
        if not life.app_address or life.ports.accepts is None:
            return False
        return await life.ports.accepts(life.app_address)

    async def confirm_thawed(self, actuator: Actuator) -> None:
        """Wait until every process runs; one that is being ended never will."""
        if actuator.is_ending:
            return
        await actuator.wait_running()
        self._feed(Input.THAWED, "it was frozen and runs on")

    async def deadline(self, seconds: float) -> None:
        """Give the wake up after that time."""
        await self._life.ports.clock.sleep(seconds)
        self._feed(Input.TIMED_OUT, f"it was not awake within {seconds:g} s")
