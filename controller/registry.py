"""The sidecars that are connected: commands go down, results come up.

Races, and who wins: a new stream of the same incarnation takes the old one's
place at once, for its sidecar knows better than we do that the old one is dead.
Another incarnation is refused while the first is heard of, so that two sidecars
never drive one agent. A result that comes after its command was given up is
dropped: the report that follows says what is.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Final

from controller.policy.agent import Addresses, Report
from outrigger.core.errors import (
    Conflict,
    OutriggerError,
    Overloaded,
    TimedOut,
    Transient,
)
from outrigger.core.rng import new_instance_id

RESULT_TIMEOUT_S: Final = 2.0
_MOST_COMMANDS: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Something for a sidecar to do."""

    command_id: str
    sleep: bool
    """Put the agent to sleep; else wake it."""
    seen_epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A sidecar's answer to a command."""

    command_id: str
    error: OutriggerError | None
    """None means accepted and begun."""
    report: Report | None
    """The agent as it is now, if the sidecar said."""


@dataclass(eq=False, slots=True, kw_only=True)
class Connection:
    """One sidecar's stream."""

    agent_id: str
    instance: str
    operator_token: str = field(repr=False)
    addresses: Addresses
    ending: OutriggerError | None = None
    ended: bool = False
    _outbox: asyncio.Queue[Command | None] = field(default_factory=asyncio.Queue)
    _pending: dict[str, asyncio.Future[Result]] = field(default_factory=dict)

    async def next_command(self) -> Command | None:
        """Return the next command to send; None once the connection has ended.

        A command whose caller has given it up is not sent any more.
        """
        while (command := await self._outbox.get()) is not None:
            if command.command_id in self._pending:
                return command
        return None

    def answer(self, result: Result) -> None:
        """Take a result; one that nobody waits for is dropped."""
        waiting = self._pending.get(result.command_id)
        if waiting is not None and not waiting.done():
            waiting.set_result(result)

    def end(self, error: OutriggerError | None = None) -> None:
        """End the stream, with a reason for the sidecar; only the first counts."""
        if self.ended:
            return
        self.ended, self.ending = True, error
        self._outbox.put_nowait(None)
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(_away(self.agent_id))

    async def send(self, command: Command, timeout_s: float) -> Result:
        """Send a command and wait for its result.

        Raises:
            Overloaded: TOO_MANY_COMMANDS.
            Transient: SIDECAR_AWAY when the stream ended before the result.
            TimedOut: NO_RESULT.
        """
        if self.ended:
            raise _away(self.agent_id)
        waiting_count = max(len(self._pending), self._outbox.qsize())
        if waiting_count >= _MOST_COMMANDS:
            raise Overloaded(
                "TOO_MANY_COMMANDS",
                f"{waiting_count} commands to agent {self.agent_id} are not done yet:"
                " wait for them",
                retry_after_s=timeout_s,
            )
        waiting: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._pending[command.command_id] = waiting
        self._outbox.put_nowait(command)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError as error:
            raise TimedOut(
                "NO_RESULT",
                f"the sidecar of agent {self.agent_id} gave no result within"
                f" {timeout_s:g} s: it may or may not have begun; look at the agent",
            ) from error
        finally:
            del self._pending[command.command_id]


def _away(agent_id: str) -> Transient:
    return Transient(
        "SIDECAR_AWAY",
        f"the sidecar of agent {agent_id} is not connected: it connects again by"
        " itself once it runs and reaches this controller",
        retry_after_s=1.0,
    )


class Registry:
    """Live connections by agent; owned by the controller's loop."""

    def __init__(self, *, timeout_s: float = RESULT_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._live: dict[str, Connection] = {}

    def __len__(self) -> int:
        return len(self._live)

    def open(self, connection: Connection, *, heard: bool) -> None:
        """Take in a connection; its forerunner of the same incarnation ends.

        Args:
            connection: the new one.
            heard: whether the agent's present sidecar was heard of lately.

        Raises:
            Conflict: AGENT_TAKEN.
        """
        present = self._live.get(connection.agent_id)
        if present is not None:
            if heard and present.instance != connection.instance:
                raise Conflict(
                    "AGENT_TAKEN",
                    f"another sidecar is connected as agent {connection.agent_id}:"
                    " stop one of them, or give them different agent ids",
                    retry_after_s=1.0,
                )
            present.end(Conflict("REPLACED", "a newer stream took this one's place"))
            self.close(present)
        self._live[connection.agent_id] = connection

    def close(self, connection: Connection) -> bool:
        """Let go of a connection; say whether it was the agent's present one."""
        if self._live.get(connection.agent_id) is not connection:
            return False
        del self._live[connection.agent_id]
        connection.end()
        return True

    def end_all(self, error: OutriggerError) -> None:
        """End every stream with a reason."""
        for connection in tuple(self._live.values()):
            connection.end(error)

    def connection(self, agent_id: str) -> Connection:
        """Return an agent's connection.

        Raises:
            Transient: SIDECAR_AWAY.
        """
        found = self._live.get(agent_id)
        if found is None:
            raise _away(agent_id)
        return found

    async def command(
        self, agent_id: str, *, sleep: bool, seen_epoch: int, reason: str
    ) -> Result:
        """Send a command under a fresh id and return its result.

        Raises:
            Transient: SIDECAR_AWAY.
            TimedOut: NO_RESULT.
            Overloaded: TOO_MANY_COMMANDS.
        """
        command = Command(
            command_id=new_instance_id(),
            sleep=sleep,
            seen_epoch=seen_epoch,
            reason=reason,
        )
        return await self.connection(agent_id).send(command, self._timeout_s)
