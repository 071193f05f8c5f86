"""What a supervisor knows of its agent at this moment, and shares with its steps."""

from dataclasses import dataclass
from typing import Protocol

from sidecar.agent.messages import Link, Order, Restored
from sidecar.agent.ports import Actuator, ManifestView, SupervisorPorts
from sidecar.agent.ports import SupervisorSettings as Settings
from sidecar.agent.records import Epochs, ProcessId
from sidecar.policy.lifecycle import Input


class Feed(Protocol):
    """Where steps say what came of them."""

    def __call__(
        self, given: Input, reason: str, error: BaseException | None = None, /
    ) -> None:
        """Take one input; `reason` is for a person."""
        ...


@dataclass(slots=True, kw_only=True)
class Life:
    """Facts, mutable; owned by the event loop."""

    agent_id: str
    settings: Settings
    ports: SupervisorPorts
    actuator: Actuator | None
    """None when somebody else runs the agent."""
    epochs: Epochs
    app_address: str = ""
    """Where the agent serves; empty is unknown."""
    link: Link | None = None
    welcomed: bool = False
    """The link has had its welcome."""
    agent_pid: int = 0
    """As the agent says itself."""
    is_starting: bool = False
    """A process was started and has not been awake yet."""
    restore: ManifestView | None = None
    """Checkpoint that it is to restore; None means start afresh."""
    restoring: ManifestView | None = None
    """Named in a welcome and not answered yet."""
    restore_below: int | None = None
    """Only generations below this one are tried."""
    restored: Restored | None = None
    """What the agent reported since its start."""
    generation: int = 0
    """Newest good checkpoint."""
    state_digest: bytes = b""
    begun_before: int = 0
    """Calls begun when the sleep was asked for."""
    quiesced: bool = False
    saved_generation: int = 0
    """What the agent answered to the save of this sleep."""
    verified: bool = False
    """The checkpoint of this sleep was read back."""
    former: ProcessId | None = None
    """What a sidecar before this one had started, until it is known to be gone."""
    crashes: int = 0
    """In a row; the pause before the next start grows with them."""
    failed_starts: int = 0
    """Starts in a row that ended before the agent was awake."""
    served: bool = False

    @property
    def epoch(self) -> int:
        """Return the current epoch."""
        return self.epochs.current

    def send(self, order: Order) -> None:
        """Tell the agent, if it is attached and was welcomed."""
        if self.link is not None and self.welcomed:
            self.link.send(order)

    def begin_sleep(self) -> None:
        """Forget the sleep before."""
        self.begun_before = self.ports.begun()
        self.quiesced = False
        self.saved_generation = 0
        self.verified = False

    def forget_link(self) -> None:
        """Drop the stream; what still comes from it is not heard."""
        self.link = None
        self.welcomed = False
        self.restoring = None
        self.agent_pid = 0

    @property
    def is_unproven(self) -> bool:
        """Say whether a started process still has to restore its state."""
        return self.is_starting and self.restore is not None and self.restored is None

    def know(self, manifest: ManifestView) -> None:
        """Take a checkpoint as the newest good one."""
        self.generation = manifest.generation
        self.state_digest = manifest.state_digest

    @property
    def has_new_work(self) -> bool:
        """Say whether a call began since the sleep was asked for."""
        return self.ports.begun() != self.begun_before

    @property
    def is_busy(self) -> bool:
        """Say whether a call is in flight or a lease holds."""
        now = self.ports.clock.monotonic()
        return self.ports.busy() > 0 or self.ports.leases.count(now) > 0
