"""What the demo claims, and whether the processes' own numbers bear it out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class AgentFacts:
    """What one agent and its sidecar said of themselves."""

    name: str
    sent: int = 0
    """Calls the agent made, by its sidecar's count."""
    retried: int = 0
    buffered: int = 0
    """Calls that became letters, by the journal's count."""
    delivered: int = 0
    live: int = 0
    lost: int = 0
    handed_over: int = 0
    """Letters that Redis holds a copy of."""
    sleeps: int = 0
    wakes: int = 0
    passages: int = 0
    """In its index, by its own count."""
    letters: int = 0
    """Calls it knows to have become letters, by its own count."""
    digest_before: str = ""
    """Of the index, said by the agent before its sleep."""
    digest_saved: str = ""
    """Of the checkpoint, said by the sidecar."""
    digest_woken: str = ""
    """Of what the new process restored, as its sidecar was told."""
    digest_after: str = ""
    """Of the index, said by the new process."""
    pids: tuple[int, ...] = ()
    """Process ids, oldest first."""
    survived_sleep: bool = False
    """Whether the old process was still there while it was said to sleep."""
    awake_bytes: int = 0
    asleep_bytes: int = 0
    wake_s: float = 0.0


@dataclass(slots=True)
class Facts:
    """Everything that was read back from the processes."""

    agents: Sequence[AgentFacts] = ()
    total: int = 0
    """Passages in the corpus."""
    seen_distinct: int = 0
    """Different calls that reached the tool server, by its own file."""
    seen_calls: int = 0
    kills: int = 0
    redis: bool = False
    """Whether the sidecars were given a Redis."""
    circuit_opened: bool = False
    answered_from_sleep: bool = False
    """Whether a call for a sleeping agent was answered."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim and what came of it."""

    text: str
    holds: bool
    detail: str = field(default="")


def judge(facts: Facts) -> Iterator[Claim]:
    """Yield every claim of the demo with its verdict."""
    agents = facts.agents
    lost = sum(agent.lost for agent in agents)
    is_whole = bool(agents) and all(agent.lost == 0 for agent in agents)
    yield Claim("no letter is lost", is_whole, f"lost = {lost}")
    live = sum(agent.live for agent in agents)
    buffered, delivered = _sum(agents, "buffered"), _sum(agents, "delivered")
    yield Claim(
        "every call that became a letter was delivered",
        live == 0 and buffered == delivered,
        f"{buffered} buffered, {delivered} delivered, {live} live",
    )
    yield Claim(
        "the outage made letters and opened a circuit",
        buffered > 0 and facts.circuit_opened and facts.kills > 0,
        f"{buffered} letters, tool server killed {facts.kills} time(s)",
    )
    yield Claim(
        "every passage reached the tool server",
        facts.seen_distinct == facts.total > 0,
        f"{facts.seen_distinct} of {facts.total} in {facts.seen_calls} calls",
    )
    yield Claim(
        "every passage is in an index",
        _sum(agents, "passages") == facts.total,
        f"{_sum(agents, 'passages')} of {facts.total}",
    )
    known, letters = _sum(agents, "letters"), _sum(agents, "buffered")
    yield Claim(
        "every letter an agent knows of is in a journal",
        all(agent.letters <= agent.buffered for agent in agents),
        f"agents know of {known}, journals of {letters}",
    )
    if facts.redis:
        copies = _sum(agents, "handed_over")
        yield Claim("Redis was given letters", copies > 0, f"{copies} of {letters}")
    yield from _slept(agents)
    yield Claim(
        "a call for a sleeping agent woke it and was answered",
        facts.answered_from_sleep,
    )


def _slept(agents: Sequence[AgentFacts]) -> Iterator[Claim]:
    sleeps, wakes = _sum(agents, "sleeps"), _sum(agents, "wakes")
    yield Claim(
        "every agent slept and woke",
        all(agent.sleeps and agent.wakes for agent in agents),
        f"{sleeps} sleeps, {wakes} wakes",
    )
    yield Claim(
        "asleep means the process is gone",
        all(_was_replaced(agent) for agent in agents),
        ", ".join("/".join(map(str, agent.pids)) for agent in agents),
    )
    same = sum(_is_same(agent) for agent in agents)
    yield Claim(
        "every index is byte for byte what it was",
        same == len(agents) > 0,
        f"{same} of {len(agents)} state hashes equal",
    )
    awake, asleep = _sum(agents, "awake_bytes"), _sum(agents, "asleep_bytes")
    yield Claim("asleep its memory is free", awake > 0 and asleep == 0)


def _was_replaced(agent: AgentFacts) -> bool:
    return len(set(agent.pids)) > 1 and not agent.survived_sleep


def _is_same(agent: AgentFacts) -> bool:
    digests = {
        agent.digest_before,
        agent.digest_saved,
        agent.digest_woken,
        agent.digest_after,
    }
    return len(digests) == 1 and "" not in digests


def _sum(agents: Sequence[AgentFacts], name: str) -> int:
    return sum(getattr(agent, name) for agent in agents)
