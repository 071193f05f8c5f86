"""The doorway: when calls for the agent may go on, and to which process.

Race: between "awake" and the first call handed on a fresh channel must be made, for
the process may be a new one. Until it is there the doorway is shut and calls are held
as if the agent still woke.
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
        self._connected = ""
        self.is_open = False

    def wake(self, reason: str) -> None:
        """Wake the agent for a call.

        Raises:
            Refused: NO_APP_ADDRESS when it is awake and nobody knows where it serves.
            OutriggerError: as the supervisor refuses.
        """
        if self._agent.awake and not self._agent.app_address:
            raise Refused("NO_APP_ADDRESS", f"the agent is awake, but {NO_APP}")
        self._agent.request_wake(0, reason)

    def agent_moved(self, held: HeldCalls) -> None:
        """React to any change of the agent."""
        snapshot = self._agent.snapshot()
        if not self._agent.awake:
            self.is_open = False
            if snapshot.state in _GONE and self._connected:
                self._connected = ""
                _ = self._tasks.spawn("doorway", self._connect(None))
            if snapshot.state is AgentState.FAILED:
                held.agent_failed(snapshot.reason)
        elif not self.is_open:
            _ = self._tasks.spawn("doorway", self._open(snapshot.pid, held))

    async def _open(self, pid: int, held: HeldCalls) -> None:
        address = self._agent.app_address
        if not address:
            held.agent_failed(NO_APP)
            return
        connected = f"{pid} {address}"
        if connected != self._connected:
            await self._connect(address)
            self._connected = connected
        # It may have fallen asleep meanwhile; then the next wake opens.
        if self._agent.awake and self._agent.snapshot().pid == pid:
            self.is_open = True
            held.agent_is_awake()
