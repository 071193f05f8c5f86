"""ConnectService: the sidecars' streams.

Race: a stream can end from three sides (its sidecar, a newer stream in its place,
our stop). Each of them ends the connection; the connection ends the stream; the
clean-up belongs to whoever lets go of the connection in the registry first.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio

from controller.policy.agent import Agent, State, status
from controller.policy.fleet import Fleet, Greeted, Left, Reported, Told
from controller.registry import Connection, Registry
from controller.rpc.wire import (
    MOST_CHARS,
    command_to_proto,
    duration,
    report_from_proto,
    result_from_proto,
    seconds,
    transition_from_event,
)
from controller.store.protocol import KnownAgent, Store
from outrigger.core.access import Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.errors import Invalid, OutriggerError, TimedOut
from outrigger.core.event_log import EventLog
from outrigger.core.ids import check_agent_id
from outrigger.core.rpc.events import event_from_proto
from outrigger.core.tasks import Tasks, describe, finish
from outrigger.v1 import connect_service_pb2, connect_service_pb2_grpc, event_pb2

TABLE: Final[dict[str, Rule]] = {
    "/outrigger.v1.ConnectService/Connect": Rule(roles=frozenset({Role.SIDECAR}))
}
"""Who may call what on the connect listener."""

HELLO_TIMEOUT_S: Final = 5.0
SILENCE_S: Final = 15.0
"""Silence after which a stream is given up; its agent is unknown long before."""

_Requests = AsyncIterator[connect_service_pb2.ConnectRequest]
_Memorable = tuple[State, int, int]
_Context = grpc.aio.ServicerContext[Any, Any]


class ConnectServicer(connect_service_pb2_grpc.ConnectServiceServicer):
    """Takes reports, results and events; hands commands down."""

    def __init__(  # noqa: PLR0913 - where each kind of message goes
        self,
        *,
        fleet: Fleet,
        registry: Registry,
        store: Store,
        events: EventLog,
        clock: Clock,
        tasks: Tasks,
        version: str,
        report_interval_s: float,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._store = store
        self._events = events
        self._clock = clock
        self._tasks = tasks
        self._version = version
        self._report_interval_s = report_interval_s
        self._silence_s = silence_s
        self._remembered: dict[str, _Memorable] = {}

    async def Connect(
        self, request_iterator: _Requests, context: _Context
    ) -> AsyncIterator[connect_service_pb2.ConnectResponse]:
        """Serve one sidecar until its stream ends.

        Raises:
            Invalid: NO_HELLO, BAD_AGENT_ID, NO_INSTANCE or NO_OPERATOR_TOKEN.
            TimedOut: NO_HELLO or SIDECAR_SILENT.
            Conflict: AGENT_TAKEN or REPLACED.
            Overloaded: TOO_MANY_AGENTS.
        """
        connection, greeted = _connection(await self._hello(request_iterator))
        agent = self._open(connection, greeted)
        reader = None
        try:
            await self._remember(agent)
            reader = self._tasks.spawn(
                "connect",
                self._read(connection, request_iterator),
                subject=connection.agent_id,
            )
            yield self._welcome()
            while (command := await connection.next_command()) is not None:
                yield command_to_proto(command)
            if connection.ending is not None:
                raise connection.ending
        finally:
            self._let_go(connection)
            if reader is not None:
                await finish(reader)

    def _open(self, connection: Connection, greeted: Greeted) -> Agent:
        """Take the connection in, without waiting, so that it cannot be left over.

        Raises:
            Conflict: AGENT_TAKEN.
            Overloaded: TOO_MANY_AGENTS.
        """
        now = self._clock.monotonic()
        present = self._fleet.get(connection.agent_id)
        heard = present is not None and status(present, now)[0] is not State.UNKNOWN
        self._registry.open(connection, heard=heard)
        try:
            return self._fleet.introduce(greeted, now)
        except OutriggerError:
            self._registry.close(connection)
            raise

    async def _hello(self, requests: _Requests) -> connect_service_pb2.ConnectHello:
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_S):
                first = await anext(requests.__aiter__(), None)
        except TimeoutError as error:
            raise TimedOut(
                "NO_HELLO", f"no hello came within {HELLO_TIMEOUT_S:g} s"
            ) from error
        if first is None or first.WhichOneof("message") != "hello":
            raise Invalid("NO_HELLO", "the first message of a stream must be a hello")
        return first.hello

    def _welcome(self) -> connect_service_pb2.ConnectResponse:
        return connect_service_pb2.ConnectResponse(
            welcome=connect_service_pb2.ConnectWelcome(
                report_interval=duration(self._report_interval_s),
                version=self._version,
            )
        )

    async def _read(self, connection: Connection, requests: _Requests) -> None:
        """Take messages until the stream ends, then end the connection."""
        try:
            while (message := await self._next(requests)) is not None:
                await self._take(connection, message)
        except OutriggerError as error:
            connection.end(error)
        finally:
            self._let_go(connection)

    async def _next(
        self, requests: _Requests
    ) -> connect_service_pb2.ConnectRequest | None:
        try:
            async with asyncio.timeout(self._silence_s):
                return await anext(requests.__aiter__(), None)
        except TimeoutError as error:
            raise TimedOut(
                "SIDECAR_SILENT",
                f"nothing came for {self._silence_s:g} s: connect anew",
            ) from error

    async def _take(
        self, connection: Connection, message: connect_service_pb2.ConnectRequest
    ) -> None:
        match message.WhichOneof("message"):
            case "report":
                await self._report(connection.agent_id, message.report)
            case "result":
                connection.answer(result_from_proto(message.result))
            case "event":
                await self._event(connection.agent_id, message.event)
            case "hello":
                raise Invalid("SECOND_HELLO", "a stream has one hello, its first")
            case _:
                pass  # a newer sidecar's kind of message: nothing depends on it

    async def _report(
        self, agent_id: str, message: connect_service_pb2.LoadReport
    ) -> None:
        given = Reported(
            message.sequence, seconds(message.elapsed), report_from_proto(message.agent)
        )
        agent = self._fleet.apply(agent_id, given, self._clock.monotonic())
        if self._remembered.get(agent_id) != _memorable(agent):
            await self._remember(agent)

    async def _event(self, agent_id: str, message: event_pb2.Event) -> None:
        event = event_from_proto(message)
        if event is None:
            return  # a newer sidecar's kind of event
        if event.sequence <= self._fleet.agent(agent_id).event_sequence:
            return  # sent again after a reconnect
        moved = transition_from_event(event)
        told = Told(event.sequence, moved)
        self._fleet.apply(agent_id, told, self._clock.monotonic())
        self._events.publish(event.payload, agent_id=agent_id)
        if moved is not None:
            await self._kept(self._store.add_transition(agent_id, moved), agent_id)

    async def _remember(self, agent: Agent) -> None:
        report = agent.report
        known = KnownAgent(
            agent_id=report.agent_id,
            group=report.group,
            sidecar_instance=report.sidecar_instance,
            state=report.state.value,
            epoch=report.epoch,
            generation=report.generation,
            seen_wall_s=self._clock.wall(),
        )
        self._remembered[report.agent_id] = _memorable(agent)
        await self._kept(self._store.remember(known), report.agent_id)

    async def _kept(self, writing: Any, agent_id: str) -> None:  # noqa: ANN401 - any awaitable
        """Wait for a write that the stream does not depend on."""
        try:
            await writing
        except OutriggerError as error:
            self._events.publish(describe("controller store", error), agent_id=agent_id)

    def _let_go(self, connection: Connection) -> None:
        connection.end()
        if self._registry.close(connection):
            now = self._clock.monotonic()
            self._fleet.apply(connection.agent_id, Left(), now)


def _memorable(agent: Agent) -> _Memorable:
    """Return what is worth a write when it changes."""
    report = agent.report
    return report.state, report.epoch, report.generation


def _connection(
    hello: connect_service_pb2.ConnectHello,
) -> tuple[Connection, Greeted]:
    agent_id = check_agent_id(hello.agent.agent_id)
    report = report_from_proto(hello.agent)
    if not report.sidecar_instance:
        raise Invalid("NO_INSTANCE", "the hello names no sidecar_instance")
    token = hello.operator_token
    if not token or len(token) > MOST_CHARS:
        raise Invalid(
            "NO_OPERATOR_TOKEN",
            f"the hello needs an operator_token of 1 to {MOST_CHARS} characters",
        )
    connection = Connection(
        agent_id=agent_id,
        instance=report.sidecar_instance,
        operator_token=token,
        addresses=report.addresses,
    )
    return connection, Greeted(report)
