"""The doorway: when calls for the agent may go on, and to which process.

Race: between "awake" and the first call handed on a fresh channel must be made, for
the process may be a new one, or serve elsewhere since it attached again. Until the
channel is there the doorway is shut and calls are held as if the agent still woke.
One task at a time connects, so that an older connection never replaces a newer one.
"""

from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from outrigger.core.errors import Refused
from outrigger.core.tasks import Tasks
from sidecar.policy.agent import AgentSnapshot, AgentState

NO_APP: Final = (
    "it has not said where it serves calls: let it say so when it attaches, or start"
    " its sidecar with --app TARGET"
)

_GONE: Final = frozenset({AgentState.ASLEEP, AgentState.FAILED})
"""No process listens any more: a channel left there would dial for ever."""


class AgentPort(Protocol):
    """The supervisor, as the doorway needs it."""

    @property
    def awake(self) -> bool:
        """Say whether the agent serves."""
        ...

    @property
    def app_address(self) -> str:
        """Return where; empty is unknown."""
        ...

    def snapshot(self) -> AgentSnapshot:
        """Return the agent as it is now."""
        ...

    def request_wake(self, seen_epoch: int, reason: str) -> AgentSnapshot:
        """Begin to wake it."""
        ...


class HeldCalls(Protocol):
    """The calls that wait at the doorway."""

    def agent_is_awake(self) -> None:
        """Hand them on."""
        ...

    def agent_failed(self, reason: str) -> None:
        """Give them up."""
        ...


class Doorway:
    """Between the calls for one agent and the agent; owned by the event loop."""

    def __init__(
        self,
        agent: AgentPort,
        *,
        connect: Callable[[str | None], Coroutine[Any, Any, None]],
        tasks: Tasks,
    ) -> None:
        """Begin shut.

        Args:
            agent: who calls are for.
            connect: makes a fresh channel to an address; None drops the one there is.
            tasks: where connecting runs.
        """
        self._agent = agent
        self._connect = connect
        self._tasks = tasks
        self._pid = 0
        self._address = ""
        """Where the channel leads; empty is nowhere."""
        self._is_connecting = False
        self.is_open = False

    def wake(self, reason: str) -> None:
        """Wake the agent for a call.

        Raises:
            Refused: NO_APP_ADDRESS when it is awake and nobody knows where it serves.
            OutriggerError: as the supervisor refuses.
        """
        if not self._agent.awake:
            self._agent.request_wake(0, reason)
        elif not self._agent.app_address:
            raise Refused("NO_APP_ADDRESS", f"the agent is awake, but {NO_APP}")

    def agent_moved(self, held: HeldCalls) -> None:
        """React to any change of the agent."""
        awake, snapshot = self._agent.awake, self._agent.snapshot()
        if snapshot.state is AgentState.FAILED:
            held.agent_failed(snapshot.reason)
        leads_there = self._leads_to(*self._wanted())
        if awake and leads_there and self.is_open:
            self._pid = snapshot.pid or self._pid
            return
        self.is_open = False
        if (awake or not leads_there) and not self._is_connecting:
            self._is_connecting = True
            _ = self._tasks.spawn("doorway", self._open(held))

    def _wanted(self) -> tuple[int, str]:
        """Return to which process and address the channel should lead now."""
        snapshot = self._agent.snapshot()
        if self._agent.awake:
            return snapshot.pid, self._agent.app_address
        if snapshot.state in _GONE:
            return 0, ""
        return self._pid, self._address

    def _leads_to(self, pid: int, address: str) -> bool:
        # An agent that somebody else runs has no pid while its stream is broken; a
        # fresh channel for that would cancel the calls on this one.
        return address == self._address and (pid == self._pid or 0 in (pid, self._pid))

    async def _open(self, held: HeldCalls) -> None:
        try:
            while not self._leads_to(*(wanted := self._wanted())):
                await self._connect(wanted[1] or None)
                self._pid, self._address = wanted
        finally:
            self._is_connecting = False
        # It may have fallen asleep meanwhile; then the next wake opens.
        if not self._agent.awake:
            return
        if not self._address:
            held.agent_failed(NO_APP)
            return
        self._pid = self._agent.snapshot().pid or self._pid
        self.is_open = True
        held.agent_is_awake()
