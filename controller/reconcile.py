"""The loop that turns the plan into commands.

Race: a command may take longer than the loop's beat. An agent whose command is
under way is left out until that one has ended; the others are not held up by it.
"""

from collections.abc import Callable
from typing import Final

from controller.commands import Commands
from controller.policy.agent import State, status
from controller.policy.fleet import Fleet
from controller.policy.schedule import Action, Decision, plan
from controller.scheduler import Scheduler
from controller.trail import SCHEDULER, Trail, status_number
from outrigger.core.clock import Clock
from outrigger.core.errors import OutriggerError
from outrigger.core.events import Alerted, ErrorSeen, Recovered
from outrigger.core.tasks import Tasks, describe

INTERVAL_S: Final = 0.25

Publish = Callable[[ErrorSeen | Alerted | Recovered, str], object]
"""Takes an event and the agent it is about."""


class Reconciler:
    """Plans again and again, and has every planned action done."""

    def __init__(  # noqa: PLR0913 - the edges of the loop, each used once
        self,
        *,
        fleet: Fleet,
        scheduler: Scheduler,
        commands: Commands,
        trail: Trail,
        clock: Clock,
        tasks: Tasks,
        publish: Publish,
    ) -> None:
        self._fleet = fleet
        self._scheduler = scheduler
        self._commands = commands
        self._trail = trail
        self._clock = clock
        self._tasks = tasks
        self._publish = publish
        self._under_way: set[str] = set()
        self._known: set[str] = set()
        self._lost: dict[str, float] = {}

    async def run(self, interval_s: float = INTERVAL_S) -> None:
        """Beat for ever."""
        while True:
            self.beat()
            await self._clock.sleep(interval_s)

    def beat(self) -> None:
        """Plan once and begin what is planned; tell who was lost or found."""
        now = self._clock.monotonic()
        self._notice(now)
        for action in plan(self._fleet, self._scheduler.settings, now):
            idle = action.agent_id not in self._under_way
            if action.decision is not Decision.NOTHING and idle:
                self._under_way.add(action.agent_id)
                _ = self._tasks.spawn(
                    f"scheduler {action.decision.value}",
                    self._act(action),
                    subject=action.agent_id,
                )

    def _notice(self, now: float) -> None:
        """Tell once when a known agent becomes unknown, and when it is back.

        Agents that only the store remembers were not known to us, so their
        silence after a start is no news.
        """
        for agent_id, agent in self._fleet.items():
            state, why = status(agent, now)
            lost_at = self._lost.get(agent_id)
            if state is State.UNKNOWN and agent_id in self._known:
                self._known.remove(agent_id)
                self._lost[agent_id] = now
                self._publish(Alerted(name="AGENT_UNKNOWN", message=why), agent_id)
            elif state is not State.UNKNOWN:
                self._known.add(agent_id)
                if lost_at is not None:
                    del self._lost[agent_id]
                    found = Recovered(subject="agent", elapsed_s=now - lost_at)
                    self._publish(found, agent_id)

    async def _act(self, action: Action) -> None:
        try:
            if action.decision is Decision.SLEEP:
                await self._sleep(action)
            else:
                await self._commands.wake(action.agent_id, 0, action.reason)
        except OutriggerError as error:
            boundary = f"scheduler {action.decision.value}"
            self._publish(describe(boundary, error), action.agent_id)
            await self._record(action, error)
        else:
            await self._record(action, None)
        finally:
            self._under_way.discard(action.agent_id)

    async def _sleep(self, action: Action) -> None:
        self._trail.check()
        await self._commands.sleep(action.agent_id, action.seen_epoch, action.reason)
        self._scheduler.sleep_count += 1

    async def _record(self, action: Action, error: OutriggerError | None) -> None:
        await self._trail.record(
            principal=SCHEDULER,
            method=action.decision.value,
            subject=action.agent_id,
            status_code=status_number(error),
            reason=action.reason if error is None else error.reason,
        )
