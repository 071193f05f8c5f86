"""FleetService: the controller's admin API."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Final, cast

import grpc.aio

from controller.commands import Commands
from controller.policy.agent import GOING_TO_SLEEP, RESTING, Agent
from controller.policy.fleet import Fleet, Pinned
from controller.policy.schedule import explain
from controller.rpc.answers import Answers, check_request_id
from controller.rpc.wire import (
    MOST_CHARS,
    agent_to_proto,
    audit_to_proto,
    explanation_to_proto,
    page_size,
    page_start,
    page_token,
    scheduler_to_proto,
    seconds,
)
from controller.scheduler import Scheduler
from controller.store.protocol import Store
from controller.trail import Trail, note
from outrigger.core.access import Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.errors import Invalid, OutriggerError
from outrigger.core.event_log import EventLog
from outrigger.core.events import Event
from outrigger.core.ids import check_agent_id
from outrigger.core.rpc.events import event_to_proto
from outrigger.core.tasks import describe
from outrigger.v1 import agent_pb2, fleet_service_pb2, fleet_service_pb2_grpc

_SERVICE: Final = "/outrigger.v1.FleetService/"
_OPERATORS: Final = frozenset({Role.OPERATOR})
_READ: Final = Rule(roles=_OPERATORS)
_CHANGE: Final = Rule(roles=_OPERATORS, mutating=True)

TABLE: Final[dict[str, Rule]] = {
    _SERVICE + "GetAgent": _READ,
    _SERVICE + "ListAgents": _READ,
    _SERVICE + "SleepAgent": _CHANGE,
    _SERVICE + "WakeAgent": _CHANGE,
    _SERVICE + "PinAgent": _CHANGE,
    _SERVICE + "UnpinAgent": _CHANGE,
    _SERVICE + "ExplainAgent": _READ,
    _SERVICE + "GetScheduler": _READ,
    _SERVICE + "EnableScheduler": _CHANGE,
    _SERVICE + "DisableScheduler": _CHANGE,
    _SERVICE + "ListAuditRecords": _READ,
    _SERVICE + "Watch": _READ,
}
"""Who may call what; a method that is not listed is refused."""

_NO_REASON: Final = "asked by an operator"

_Context = grpc.aio.ServicerContext[Any, Any]


class FleetServicer(fleet_service_pb2_grpc.FleetServiceServicer):
    """Agents, pins, the scheduler, the audit and the fleet's events."""

    def __init__(  # noqa: PLR0913 - everything the admin API shows or moves
        self,
        *,
        fleet: Fleet,
        commands: Commands,
        scheduler: Scheduler,
        store: Store,
        trail: Trail,
        events: EventLog,
        answers: Answers,
        clock: Clock,
    ) -> None:
        self._fleet = fleet
        self._commands = commands
        self._scheduler = scheduler
        self._store = store
        self._trail = trail
        self._events = events
        self._answers = answers
        self._clock = clock

    async def GetAgent(
        self, request: fleet_service_pb2.GetAgentRequest, context: _Context
    ) -> fleet_service_pb2.GetAgentResponse:
        """Return one agent."""
        agent = self._fleet.agent(check_agent_id(request.agent_id))
        return fleet_service_pb2.GetAgentResponse(agent=self._shown(agent))

    async def ListAgents(
        self, request: fleet_service_pb2.ListAgentsRequest, context: _Context
    ) -> fleet_service_pb2.ListAgentsResponse:
        """Return a page of agents, by id."""
        most = page_size(request.page_size)
        start = page_start(request.page_token)
        ids = sorted(agent_id for agent_id in self._fleet if agent_id > start)
        page = ids[:most]
        return fleet_service_pb2.ListAgentsResponse(
            agents=[self._shown(self._fleet.agent(agent_id)) for agent_id in page],
            next_page_token=page_token(page[-1]) if len(ids) > most else "",
        )

    async def SleepAgent(
        self, request: fleet_service_pb2.SleepAgentRequest, context: _Context
    ) -> fleet_service_pb2.SleepAgentResponse:
        """Ask an agent to sleep, once per request id."""
        agent_id, reason = _asked(request.agent_id, request.reason)
        seen = _epoch(request.seen_epoch)
        if request.validate_only:
            check_request_id(request.request_id)
            agent = self._shown(self._commands.check_sleep(agent_id, seen))
            return fleet_service_pb2.SleepAgentResponse(agent=agent)
        self._trail.check()

        async def do() -> agent_pb2.Agent:
            return self._shown(await self._commands.sleep(agent_id, seen, reason))

        asked = request.SerializeToString(deterministic=True)
        agent = await self._answers.once("sleep", request.request_id, asked, do)
        return fleet_service_pb2.SleepAgentResponse(agent=agent)

    async def WakeAgent(
        self, request: fleet_service_pb2.WakeAgentRequest, context: _Context
    ) -> fleet_service_pb2.WakeAgentResponse:
        """Ask an agent to wake, once per request id; never held up by the audit."""
        agent_id, reason = _asked(request.agent_id, request.reason)
        seen = _epoch(request.seen_epoch)
        if request.validate_only:
            check_request_id(request.request_id)
            agent = self._shown(self._commands.check_wake(agent_id, seen))
            return fleet_service_pb2.WakeAgentResponse(agent=agent)

        async def do() -> agent_pb2.Agent:
            return self._shown(await self._commands.wake(agent_id, seen, reason))

        asked = request.SerializeToString(deterministic=True)
        agent = await self._answers.once("wake", request.request_id, asked, do)
        return fleet_service_pb2.WakeAgentResponse(agent=agent)

    async def PinAgent(
        self, request: fleet_service_pb2.PinAgentRequest, context: _Context
    ) -> fleet_service_pb2.PinAgentResponse:
        """Pin an agent awake, durably, and wake it if it rests."""
        agent_id, reason = _asked(request.agent_id, request.reason, default="")
        check_request_id(request.request_id)
        agent = self._fleet.agent(agent_id)
        if not reason:
            raise Invalid("NO_REASON", "a pin needs a reason: say why, for the audit")
        if not request.validate_only:
            self._trail.check()
            await self._store.pin(agent_id, reason)
            now = self._clock.monotonic()
            agent = await self._woken(self._fleet.apply(agent_id, Pinned(reason), now))
        return fleet_service_pb2.PinAgentResponse(agent=self._shown(agent))

    async def UnpinAgent(
        self, request: fleet_service_pb2.UnpinAgentRequest, context: _Context
    ) -> fleet_service_pb2.UnpinAgentResponse:
        """End a pin, durably."""
        agent_id, _ = _asked(request.agent_id, "", default="")
        check_request_id(request.request_id)
        agent = self._fleet.agent(agent_id)
        if not request.validate_only:
            self._trail.check()
            await self._store.unpin(agent_id)
            now = self._clock.monotonic()
            agent = self._fleet.apply(agent_id, Pinned(None), now)
        return fleet_service_pb2.UnpinAgentResponse(agent=self._shown(agent))

    async def ExplainAgent(
        self, request: fleet_service_pb2.ExplainAgentRequest, context: _Context
    ) -> fleet_service_pb2.ExplainAgentResponse:
        """Say what the scheduler would do with an agent, and why."""
        agent = self._fleet.agent(check_agent_id(request.agent_id))
        now = self._clock.monotonic()
        action = explain(self._fleet, agent.agent_id, self._scheduler.settings, now)
        return explanation_to_proto(agent, action, now)

    async def GetScheduler(
        self, request: fleet_service_pb2.GetSchedulerRequest, context: _Context
    ) -> fleet_service_pb2.GetSchedulerResponse:
        """Say how the scheduler is set."""
        return fleet_service_pb2.GetSchedulerResponse(scheduler=self._set())

    async def EnableScheduler(
        self, request: fleet_service_pb2.EnableSchedulerRequest, context: _Context
    ) -> fleet_service_pb2.EnableSchedulerResponse:
        """Let the scheduler act, durably."""
        check_request_id(request.request_id)
        given = request.HasField("keep_alive")
        keep_alive_s = seconds(request.keep_alive) if given else None
        shown = self._scheduler.enabled(keep_alive_s)
        note("scheduler", f"keep-alive {shown.keep_alive_s:g} s")
        if not request.validate_only:
            self._trail.check()
            await self._scheduler.enable(keep_alive_s)
        return fleet_service_pb2.EnableSchedulerResponse(
            scheduler=scheduler_to_proto(shown, self._scheduler.sleep_count)
        )

    async def DisableScheduler(
        self, request: fleet_service_pb2.DisableSchedulerRequest, context: _Context
    ) -> fleet_service_pb2.DisableSchedulerResponse:
        """Stop the scheduler: like a wake, not held up by the audit."""
        check_request_id(request.request_id)
        note("scheduler")
        if not request.validate_only:
            await self._scheduler.disable()
        return fleet_service_pb2.DisableSchedulerResponse(scheduler=self._set())

    async def ListAuditRecords(
        self, request: fleet_service_pb2.ListAuditRecordsRequest, context: _Context
    ) -> fleet_service_pb2.ListAuditRecordsResponse:
        """Return a page of the audit, oldest first."""
        most = page_size(request.page_size)
        after = _sequence(page_start(request.page_token))
        records = await self._store.audit(after=after, limit=most + 1)
        more = len(records) > most
        return fleet_service_pb2.ListAuditRecordsResponse(
            records=[audit_to_proto(record) for record in records[:most]],
            next_page_token=page_token(str(records[most - 1].sequence)) if more else "",
        )

    async def Watch(
        self, request: fleet_service_pb2.FleetServiceWatchRequest, context: _Context
    ) -> AsyncIterator[fleet_service_pb2.FleetServiceWatchResponse]:
        """Yield events of the whole fleet from now on."""
        watch = cast("AsyncGenerator[Event]", self._events.watch())
        async with aclosing(watch) as events:
            async for event in events:
                yield fleet_service_pb2.FleetServiceWatchResponse(
                    event=event_to_proto(event)
                )

    async def _woken(self, agent: Agent) -> Agent:
        """Wake a pinned agent that rests; the reconciler tries again if that fails."""
        if agent.report.state not in RESTING | GOING_TO_SLEEP:
            return agent
        try:
            return await self._commands.wake(agent.agent_id, 0, f"pinned: {agent.pin}")
        except OutriggerError as error:
            failure = describe("wake of a pinned agent", error)
            self._events.publish(failure, agent_id=agent.agent_id)
            return self._fleet.agent(agent.agent_id)

    def _shown(self, agent: Agent) -> agent_pb2.Agent:
        return agent_to_proto(agent, self._clock.monotonic())

    def _set(self) -> fleet_service_pb2.Scheduler:
        return scheduler_to_proto(self._scheduler.settings, self._scheduler.sleep_count)


def _asked(agent_id: str, reason: str, default: str = _NO_REASON) -> tuple[str, str]:
    """Check what a change is about, and note it for the audit."""
    checked, why = check_agent_id(agent_id), reason[:MOST_CHARS] or default
    note(checked, why)
    return checked, why


def _epoch(seen_epoch: int) -> int:
    if seen_epoch < 0:
        raise Invalid(
            "BAD_EPOCH",
            f"seen_epoch {seen_epoch} is not valid: give the agent's epoch, or 0 for"
            " the newest",
        )
    return seen_epoch


def _sequence(start: str) -> int:
    if not start:
        return 0
    if not (start.isascii() and start.isdigit()):
        raise Invalid(
            "BAD_PAGE_TOKEN", "page_token is not one of ListAuditRecords: pass it back"
        )
    return int(start)
