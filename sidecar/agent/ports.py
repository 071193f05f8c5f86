"""What the supervisor needs from others, and how patient it is."""

import enum
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from outrigger.core.clock import Clock
from outrigger.core.events import Payload
from outrigger.core.rng import Rng
from outrigger.core.tasks import Tasks
from sidecar.agent.records import ProcessId
from sidecar.policy.lifecycle import RestartLimits


class SleepMode(enum.Enum):
    """What sleep does to the process."""

    PROCESS = "process"
    """Saved, frozen for a while, then ended: its memory is free."""
    FREEZE = "freeze"
    """Only stopped in memory; needs no Attach and no checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorSettings:
    """How patient the supervisor is."""

    sleep_mode: SleepMode = SleepMode.PROCESS
    quiesce_timeout_s: float = 5.0
    """Longest wait for calls in flight, leases and the agent's own answer."""
    save_timeout_s: float = 60.0
    freeze_timeout_s: float = 2.0
    frozen_keep_s: float = 0.0
    """How long a frozen agent is kept before its process is ended."""
    wake_timeout_s: float = 30.0
    """From the start of a process to the proven state."""
    unattached_after_s: float = 10.0
    """An agent with nothing to restore that has not attached by then is awake."""
    stop_grace_s: float = 5.0
    """Between TERM and KILL when the sidecar ends."""
    restart: RestartLimits = field(default_factory=RestartLimits)
    poll_s: float = 0.02


class ManifestView(Protocol):
    """The part of a checkpoint's manifest that is used here."""

    @property
    def generation(self) -> int:
        """From 1, rising."""
        ...

    @property
    def epoch(self) -> int:
        """Epoch it was saved under."""
        ...

    @property
    def state_digest(self) -> bytes:
        """32 bytes."""
        ...


class CheckpointPort(Protocol):
    """The checkpoints as the supervisor needs them."""

    async def newest_good(self, agent_id: str) -> ManifestView | None:
        """Return the newest checkpoint that verifies; None when there is none."""
        ...

    async def list(self, agent_id: str) -> Sequence[ManifestView]:
        """Return all checkpoints, in any order, unverified."""
        ...

    async def verify(self, agent_id: str, generation: int) -> ManifestView:
        """Read every byte back and return the manifest.

        Raises:
            OutriggerError: it is not there or not good.
        """
        ...

    async def fence(self, agent_id: str, epoch: int) -> None:
        """Refuse saves under lower epochs from now on."""
        ...


class Actuator(Protocol):
    """The agent as a process; everything but the waiting is done on return."""

    @property
    def pid(self) -> int:
        """0 while there is no process."""
        ...

    @property
    def process(self) -> ProcessId | None:
        """The running process."""
        ...

    @property
    def is_ending(self) -> bool:
        """It was told to end and has not yet."""
        ...

    def spawn(self) -> int:
        """Start it."""
        ...

    def freeze(self) -> None:
        """Stop it in memory."""
        ...

    def thaw(self) -> None:
        """Let it run on."""
        ...

    def kill(self) -> None:
        """End it at once."""
        ...

    async def wait_frozen(self) -> None:
        """Wait until all of it is stopped."""
        ...

    async def wait_running(self) -> None:
        """Wait until none of it is stopped."""
        ...

    async def wait_gone(self) -> None:
        """Wait until none of it is left."""
        ...

    async def stop(self, grace_s: float) -> None:
        """End it gently, then not."""
        ...

    async def end_leftovers(self, former: ProcessId) -> None:
        """End what a sidecar before this one had started and could not end."""
        ...


class Leases(Protocol):
    """The keep-awake leases."""

    def count(self, now: float) -> int:
        """Return how many hold at this moment."""
        ...

    def clear(self) -> None:
        """End them all: the agent that held them is gone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorPorts:
    """Everything the supervisor reaches."""

    checkpoints: CheckpointPort
    leases: Leases
    publish: Callable[[Payload], object]
    clock: Clock
    rng: Rng
    tasks: Tasks
    busy: Callable[[], int] = lambda: 0
    """Calls in flight, in and out."""
    begun: Callable[[], int] = lambda: 0
    """Calls begun since the start; a change while falling asleep ends the sleep."""
    accepts: Callable[[str], Awaitable[bool]] | None = None
    """Whether the app's address accepts a connection."""
