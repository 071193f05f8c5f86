"""What passes between an agent and its supervisor, without the wire's shapes."""

from dataclasses import dataclass
from typing import Protocol

from outrigger.core.errors import OutriggerError


@dataclass(frozen=True, slots=True)
class Hello:
    """First message of an agent."""

    pid: int
    client: str = ""
    app_address: str = ""
    resumed: bool = False
    """It still holds its state; nothing is to be restored."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The checkpoint named in the welcome has been restored."""

    generation: int
    state_digest: bytes


@dataclass(frozen=True, slots=True)
class Serving:
    """The agent serves calls."""


@dataclass(frozen=True, slots=True)
class Quiesced:
    """Nothing is in flight in the agent."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Veto:
    """The agent does not want to sleep now."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Saved:
    """The state is saved and will not change."""

    epoch: int
    generation: int


@dataclass(frozen=True, slots=True)
class Failed:
    """Something asked for could not be done; epoch 0 is the restore."""

    epoch: int
    reason: str


Message = Restored | Serving | Quiesced | Veto | Saved | Failed
"""What an agent says after its hello."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """First message to an agent; generation 0 means start afresh."""

    epoch: int
    generation: int = 0
    state_digest: bytes = b""


@dataclass(frozen=True, slots=True)
class PrepareSleep:
    """Finish what is in flight, begin nothing new."""

    epoch: int
    timeout_s: float


@dataclass(frozen=True, slots=True)
class SaveState:
    """Save the state under this epoch."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on as before."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """The process will be ended."""

    epoch: int


Order = Welcome | PrepareSleep | SaveState | Resume | Stop
"""What an agent is told."""


class Link(Protocol):
    """One Attach stream."""

    def send(self, order: Order) -> None:
        """Queue an order; never blocks and never fails."""
        ...

    def close(self, error: OutriggerError) -> None:
        """End the stream with this error."""
        ...
