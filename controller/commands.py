"""Sleep and wake, one path for operators and for the scheduler.

A sleep is refused where it could do harm; a wake never is: it goes to the sidecar
whatever the controller believes, and is sent again when it came too late.
"""

from typing import Final

from controller.policy.agent import Agent, State, status
from controller.policy.fleet import Answered, Asked, Fleet
from controller.registry import Registry, Result
from outrigger.core.clock import Clock
from outrigger.core.errors import Conflict, OutriggerError, Refused

_WAKE_TRIES: Final = 3


class Commands:
    """Sends commands and keeps the fleet informed of them."""

    def __init__(self, fleet: Fleet, registry: Registry, clock: Clock) -> None:
        self._fleet = fleet
        self._registry = registry
        self._clock = clock

    def check_sleep(self, agent_id: str, seen_epoch: int) -> Agent:
        """Return the agent if it may be asked to sleep; 0 sees the newest epoch.

        Raises:
            NotFound: UNKNOWN_AGENT.
            Transient: SIDECAR_AWAY.
            Conflict: STALE_EPOCH.
            Refused: AGENT_PINNED or NOT_AWAKE.
        """
        agent = self._check(agent_id, seen_epoch)
        if agent.pin is not None:
            raise Refused(
                "AGENT_PINNED",
                f"agent {agent_id} is pinned awake ({agent.pin}): unpin it first",
            )
        state, why = status(agent, self._clock.monotonic())
        if state is not State.AWAKE:
            raise Refused(
                "NOT_AWAKE",
                f"agent {agent_id} is {state.value} ({why or 'no reason given'}): only"
                " an agent that is awake can be put to sleep",
            )
        return agent

    def check_wake(self, agent_id: str, seen_epoch: int) -> Agent:
        """Return the agent if it may be asked to wake; 0 sees the newest epoch.

        Raises:
            NotFound: UNKNOWN_AGENT.
            Transient: SIDECAR_AWAY.
            Conflict: STALE_EPOCH.
        """
        return self._check(agent_id, seen_epoch)

    async def sleep(self, agent_id: str, seen_epoch: int, reason: str) -> Agent:
        """Ask an agent to sleep; return it as its sidecar answered.

        Raises:
            OutriggerError: see `check_sleep` and `Registry.command`; else the
                sidecar's own refusal.
        """
        agent = self.check_sleep(agent_id, seen_epoch)
        result = await self._send(agent, sleep=True, reason=reason)
        if result.error is not None:
            raise result.error
        return self._fleet.agent(agent_id)

    async def wake(self, agent_id: str, seen_epoch: int, reason: str) -> Agent:
        """Ask an agent to wake; return it as its sidecar answered.

        Raises:
            OutriggerError: see `check_wake` and `Registry.command`; else the
                sidecar's own refusal.
        """
        agent = self.check_wake(agent_id, seen_epoch)
        result = await self._send(agent, sleep=False, reason=reason)
        for _ in range(_WAKE_TRIES - 1):
            # The agent moved while we asked, and the caller did not insist on an
            # epoch: what he wants has not changed.
            if seen_epoch or not _is_stale(result.error):
                break
            agent = self._fleet.agent(agent_id)
            result = await self._send(agent, sleep=False, reason=reason)
        if result.error is not None:
            raise result.error
        return self._fleet.agent(agent_id)

    def _check(self, agent_id: str, seen_epoch: int) -> Agent:
        agent = self._fleet.agent(agent_id)
        self._registry.connection(agent_id)
        if seen_epoch and seen_epoch != agent.report.epoch:
            raise Conflict(
                "STALE_EPOCH",
                f"agent {agent_id} is at epoch {agent.report.epoch}, not at"
                f" {seen_epoch}: read it again, then decide anew",
                metadata={"epoch": str(agent.report.epoch)},
            )
        return agent

    async def _send(self, agent: Agent, *, sleep: bool, reason: str) -> Result:
        key = agent.agent_id
        self._fleet.apply(key, Asked(sleep), self._clock.monotonic())
        try:
            result = await self._registry.command(
                key, sleep=sleep, seen_epoch=agent.report.epoch, reason=reason
            )
        except OutriggerError:
            lost = Answered(sleep, failed=True, report=None)
            self._fleet.apply(key, lost, self._clock.monotonic())
            raise
        failed = result.error is not None and not _is_stale(result.error)
        answered = Answered(sleep, failed, result.report)
        self._fleet.apply(key, answered, self._clock.monotonic())
        return result


def _is_stale(error: OutriggerError | None) -> bool:
    return isinstance(error, Conflict) and error.reason == "STALE_EPOCH"
