"""What the controller keeps, and what every store of it promises.

Every method answers once the change is on disk (or acknowledged, for a store on
another machine). `tests/support/store_contract.py` holds each store to it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from controller.policy.agent import Transition
from controller.policy.audit import AuditEntry, AuditRecord
from outrigger.core.clock import Clock
from outrigger.core.events import Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownAgent:
    """What is kept of an agent between two lives of the controller."""

    agent_id: str
    group: str
    sidecar_instance: str
    state: str
    """As last heard; nobody vouches for it any more."""
    epoch: int
    generation: int
    seen_wall_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptSettings:
    """What an operator set; None means never set."""

    enabled: bool = False
    keep_alive_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Everything a controller starts from."""

    agents: tuple[KnownAgent, ...]
    """By id."""
    pins: dict[str, str]
    """Agent id to the reason of its pin."""
    transitions: dict[str, tuple[Transition, ...]]
    """Agent id to its transitions, newest first."""
    settings: KeptSettings


class Store(Protocol):
    """Known agents, pins, the scheduler's settings, transitions and the audit."""

    async def load(self, *, seen_after_wall_s: float) -> Kept:
        """Verify the audit's chain and return what was kept.

        Agents seen last before `seen_after_wall_s` that are not pinned are
        forgotten.

        Raises:
            Corrupt: AUDIT_BROKEN.
        """
        ...

    async def remember(self, agent: KnownAgent) -> None:
        """Keep the newest of an agent."""
        ...

    async def pin(self, agent_id: str, reason: str) -> None:
        """Keep a pin; a second one replaces the reason."""
        ...

    async def unpin(self, agent_id: str) -> None:
        """End a pin; there need be none."""
        ...

    async def set_scheduler(self, settings: KeptSettings) -> None:
        """Keep the scheduler's settings."""
        ...

    async def add_transition(self, agent_id: str, transition: Transition) -> None:
        """Keep a transition; only the newest of each agent stay."""
        ...

    async def append_audit(self, entry: AuditEntry) -> AuditRecord:
        """Seal an entry and keep it; only the newest stay."""
        ...

    async def audit(self, *, after: int, limit: int) -> tuple[AuditRecord, ...]:
        """Return records with a sequence above `after`, oldest first."""
        ...

    async def keep_open(
        self, *, clock: Clock, publish: Callable[[Payload], object]
    ) -> None:
        """Watch over the store and bring it back after a failure, until closed."""
        ...

    async def close(self) -> None:
        """Finish what waits and let go of the store."""
        ...
