"""An agent as the controller knows it, and how far its word is trusted.

Whatever is missing, late, out of order or impossible makes an agent *unknown*.
Unknown is never idle: nothing is put to sleep on a guess.
"""

import enum
from dataclasses import dataclass, field
from typing import Final

STALE_S: Final = 5.0
"""Silence after which an agent is unknown."""
SAMPLE_STALE_S: Final = 15.0
"""Age at which an unchanged load sample says nothing about now."""

_MOST_CPU_RATIO: Final = 65_536.0
_MOST_BYTES: Final = 1 << 50
_MOST_COUNT: Final = 1 << 40
_MOST_SECONDS: Final = 100 * 365 * 86_400.0
_LAST_WALL_S: Final = 253_402_300_799.0
_DIGEST_BYTES: Final = frozenset({0, 32})


class State(enum.Enum):
    """Where an agent stands; `unknown` is the controller's word only."""

    AWAKE = "awake"
    QUIESCING = "quiescing"
    CHECKPOINTING = "checkpointing"
    FROZEN = "frozen"
    ASLEEP = "asleep"
    WAKING = "waking"
    FAILED = "failed"
    UNKNOWN = "unknown"


GOING_TO_SLEEP: Final = frozenset({State.QUIESCING, State.CHECKPOINTING})
RESTING: Final = frozenset({State.FROZEN, State.ASLEEP})


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy an agent's process tree is."""

    sample_wall_s: float
    """When it was sampled, by the sidecar's wall clock; 0 means never."""
    cpu_ratio: float = 0.0
    rss_bytes: int = 0
    pss_bytes: int = 0
    process_count: int = 0
    outbound_in_flight: int = 0
    inbound_in_flight: int = 0
    keep_awake_leases: int = 0
    idle_s: float = 0.0
    """Since the newest activity, by the sidecar's monotonic clock."""
    live_letters: int = 0
    sidecar_pss_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Listeners of a sidecar; empty means not listening."""

    outbound: str = ""
    api: str = ""
    api_tcp: str = ""
    inbound: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a sidecar says of its agent."""

    agent_id: str
    state: State
    reason: str = ""
    since_wall_s: float = 0.0
    epoch: int = 0
    generation: int = 0
    state_digest: bytes = b""
    pid: int = 0
    load: Load | None = None
    """None when the sidecar sent none."""
    group: str = ""
    sidecar_instance: str = ""
    addresses: Addresses = field(default_factory=Addresses)
    sleep_count: int = 0
    wake_count: int = 0
    last_wake_s: float = 0.0
    woken_digest: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """A move of an agent between states."""

    wall_s: float
    before: str
    after: str
    input: str
    reason: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    """One agent: its newest report, and what the controller saw for itself.

    All times ending in `_at` are monotonic seconds of the controller.
    """

    report: Report
    heard_at: float
    """Newest word from the sidecar that was believed."""
    connected: bool = False
    doubt: str = ""
    """Why the newest report is not believed; empty when it is."""
    sequence: int = 0
    """Of the newest report of this stream."""
    event_sequence: int = 0
    """Of the newest event of this sidecar's incarnation."""
    awake_at: float | None = None
    """When it was first seen awake, without a break since."""
    sampled_at: float | None = None
    """When its load sample last changed."""
    sleep_asked_at: float | None = None
    wake_asked_at: float | None = None
    sleep_failed_at: float | None = None
    pin: str | None = None
    """Why it is pinned; None when it is not."""
    transitions: tuple[Transition, ...] = ()
    """Newest first."""

    @property
    def agent_id(self) -> str:
        """Return the agent's id."""
        return self.report.agent_id


def status(agent: Agent, now: float) -> tuple[State, str]:
    """Return the state the controller vouches for, and why it is in it."""
    if not agent.connected:
        return State.UNKNOWN, _last_heard(agent, "its sidecar is not connected")
    if agent.doubt:
        return State.UNKNOWN, _last_heard(agent, agent.doubt)
    silence_s = now - agent.heard_at
    if silence_s > STALE_S:
        return State.UNKNOWN, _last_heard(agent, f"no report for {silence_s:.0f} s")
    return agent.report.state, agent.report.reason


def _last_heard(agent: Agent, why: str) -> str:
    return f"{why}; when last heard of it was {agent.report.state.value}"


def flaw(report: Report) -> str:
    """Return why a report cannot be true; empty when it can."""
    checks = (
        (report.state is not State.UNKNOWN, "no state"),
        (0 <= report.since_wall_s <= _LAST_WALL_S, "an impossible time of its state"),
        (
            min(report.epoch, report.generation, report.pid) >= 0,
            "a negative epoch, generation or process id",
        ),
        (
            min(report.sleep_count, report.wake_count) >= 0,
            "a negative count of sleeps or wakes",
        ),
        (0 <= report.last_wake_s <= _MOST_SECONDS, "an impossible time to wake"),
        (
            {len(report.state_digest), len(report.woken_digest)} <= _DIGEST_BYTES,
            "a digest that is not 32 bytes",
        ),
        *(_load_checks(report.load) if report.load else ()),
    )
    wrong = next((what for good, what in checks if not good), "")
    return f"its sidecar reports {wrong}" if wrong else ""


def _load_checks(load: Load) -> tuple[tuple[bool, str], ...]:
    """Every comparison is false for NaN, so NaN never passes."""
    sizes = (load.rss_bytes, load.pss_bytes, load.sidecar_pss_bytes)
    counts = (
        load.process_count,
        load.outbound_in_flight,
        load.inbound_in_flight,
        load.keep_awake_leases,
        load.live_letters,
    )
    return (
        (
            0 <= load.cpu_ratio <= _MOST_CPU_RATIO,
            f"an impossible CPU share of {load.cpu_ratio}",
        ),
        (
            all(0 <= size <= _MOST_BYTES for size in sizes),
            "an impossible amount of memory",
        ),
        (
            all(0 <= count <= _MOST_COUNT for count in counts),
            "an impossible count of processes, calls, leases or letters",
        ),
        (
            0 <= load.idle_s <= _MOST_SECONDS,
            f"an impossible idle time of {load.idle_s} s",
        ),
        (
            0 <= load.sample_wall_s <= _LAST_WALL_S,
            "an impossible time of its load sample",
        ),
    )
