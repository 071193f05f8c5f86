"""The agent as its sidecar knows it: states, a snapshot, a load sample."""

import enum
from dataclasses import dataclass


class AgentState(enum.Enum):
    """Where an agent stands between awake and asleep."""

    AWAKE = "awake"
    QUIESCING = "quiescing"
    CHECKPOINTING = "checkpointing"
    FROZEN = "frozen"
    ASLEEP = "asleep"
    WAKING = "waking"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSnapshot:
    """What is known of the agent at one moment."""

    agent_id: str
    state: AgentState
    reason: str
    since_wall_s: float
    """When it entered the state, seconds since 1970."""
    epoch: int
    generation: int = 0
    """Newest good checkpoint; 0 means none."""
    state_digest: bytes = b""
    """32 bytes, or empty."""
    pid: int = 0
    sleep_count: int = 0
    wake_count: int = 0
    last_wake_s: float = 0.0
    """From the command to the proven state."""
    woken_digest: bytes = b""
    """Digest the agent reported after its newest wake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """What the agent's process tree uses."""

    wall_s: float
    cpu_ratio: float
    """Share of one core since the sample before."""
    rss_bytes: int
    pss_bytes: int
    process_count: int
    sidecar_pss_bytes: int
