"""Agents as the controller or a single sidecar offers them, behind one face."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from outrigger.cli.session import Session
from outrigger.core.errors import Invalid, NotFound
from outrigger.core.rng import new_instance_id
from outrigger.v1.agent_pb2 import Agent
from outrigger.v1.fleet_service_pb2 import (
    GetAgentRequest,
    ListAgentsRequest,
    SleepAgentRequest,
    WakeAgentRequest,
)
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.sidecar_service_pb2 import (
    GetSidecarRequest,
    SidecarServiceSleepAgentRequest,
    SidecarServiceWakeAgentRequest,
)
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How an agent is to be put to sleep or woken."""

    seen_epoch: int = 0
    reason: str = ""
    validate_only: bool = False


class Fleet(Protocol):
    """Agents that can be seen, put to sleep and woken."""

    def agents(self, limit: int | None) -> AsyncIterator[Agent]:
        """Yield agents by id."""
        ...

    async def agent(self, agent_id: str) -> Agent:
        """Return one agent; an empty id means the only one."""
        ...

    async def sleep(self, agent_id: str, order: Order) -> Agent:
        """Begin to put an agent to sleep."""
        ...

    async def wake(self, agent_id: str, order: Order) -> Agent:
        """Begin to wake an agent."""
        ...


def fleet_of(session: Session) -> Fleet:
    """Return the agents behind a connection."""
    if session.server.kind == "controller":
        return _Controlled(session)
    return _Alone(session)


def request_id() -> str:
    """Return a UUID, so that a request repeated by the network counts once."""
    return str(UUID(hex=new_instance_id()))


class _Controlled:
    """The agents of a controller."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = FleetServiceStub(session.channel)

    def agents(self, limit: int | None) -> AsyncIterator[Agent]:
        method = self._stub.ListAgents
        return self._session.pages(method, ListAgentsRequest(), "agents", limit)

    async def agent(self, agent_id: str) -> Agent:
        request = GetAgentRequest(agent_id=named(agent_id))
        return (await self._session.call(self._stub.GetAgent, request)).agent

    async def sleep(self, agent_id: str, order: Order) -> Agent:
        request = SleepAgentRequest(
            agent_id=named(agent_id),
            seen_epoch=order.seen_epoch,
            reason=order.reason,
            validate_only=order.validate_only,
            request_id=request_id(),
        )
        return (await self._session.call(self._stub.SleepAgent, request)).agent

    async def wake(self, agent_id: str, order: Order) -> Agent:
        request = WakeAgentRequest(
            agent_id=named(agent_id),
            seen_epoch=order.seen_epoch,
            reason=order.reason,
            validate_only=order.validate_only,
            request_id=request_id(),
        )
        return (await self._session.call(self._stub.WakeAgent, request)).agent


class _Alone:
    """The one agent of a sidecar."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._stub = SidecarServiceStub(session.channel)

    async def agents(self, limit: int | None) -> AsyncIterator[Agent]:
        del limit  # one agent is within any limit
        yield await self.agent("")

    async def agent(self, agent_id: str) -> Agent:
        request = GetSidecarRequest()
        agent = (await self._session.call(self._stub.GetSidecar, request)).agent
        if agent_id and agent.agent_id != agent_id:
            raise NotFound(
                "UNKNOWN_AGENT",
                f"the sidecar at {self._session.server.address} has agent"
                f" {agent.agent_id!r}, not {agent_id!r}: name that one, or none",
            )
        return agent

    async def sleep(self, agent_id: str, order: Order) -> Agent:
        await self.agent(agent_id)
        request = SidecarServiceSleepAgentRequest(
            seen_epoch=order.seen_epoch,
            reason=order.reason,
            validate_only=order.validate_only,
            request_id=request_id(),
        )
        return (await self._session.call(self._stub.SleepAgent, request)).agent

    async def wake(self, agent_id: str, order: Order) -> Agent:
        await self.agent(agent_id)
        request = SidecarServiceWakeAgentRequest(
            seen_epoch=order.seen_epoch,
            reason=order.reason,
            validate_only=order.validate_only,
            request_id=request_id(),
        )
        return (await self._session.call(self._stub.WakeAgent, request)).agent


def named(agent_id: str) -> str:
    """Return an agent's id that was given.

    Raises:
        Invalid: NO_AGENT.
    """
    if not agent_id:
        raise Invalid(
            "NO_AGENT", "which agent? Give its id; 'outrigger agents list' shows them"
        )
    return agent_id
