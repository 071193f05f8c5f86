"""The fleet: each thing heard or done turns one agent into its next value.

`step` is pure. `Fleet` only keeps the values; the controller's loop owns it.

Races, and who wins: two sidecars that claim one agent are told apart by their
incarnation (see `controller.registry`); an event sent again after a reconnect is
known by its sequence; the answer to a command may be older than a report that
overtook it, so it never lowers the epoch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from controller.policy.agent import (
    GOING_TO_SLEEP,
    STALE_S,
    Agent,
    Report,
    State,
    Transition,
    flaw,
)
from outrigger.core.errors import NotFound, Overloaded

TRANSITIONS_KEPT: Final = 20
"""Newest transitions kept per agent."""
MOST_AGENTS: Final = 10_000

_SLEEP_GIVEN_UP: Final = frozenset({State.AWAKE.value, State.FAILED.value})
_FALLING_ASLEEP: Final = frozenset(state.value for state in GOING_TO_SLEEP)


@dataclass(frozen=True, slots=True)
class Greeted:
    """A sidecar opened its stream."""

    report: Report


@dataclass(frozen=True, slots=True)
class Reported:
    """A sidecar reported."""

    sequence: int
    elapsed_s: float
    report: Report


@dataclass(frozen=True, slots=True)
class Left:
    """A sidecar's stream ended."""


@dataclass(frozen=True, slots=True)
class Told:
    """A sidecar told of an event."""

    event_sequence: int
    transition: Transition | None
    """If that is what the event is about."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A command is about to be sent."""

    sleep: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """A sidecar answered a command."""

    sleep: bool
    failed: bool
    """It could not be done; a command that came too late has not failed."""
    report: Report | None


@dataclass(frozen=True, slots=True)
class Pinned:
    """An operator pinned the agent, or ended the pin with None."""

    reason: str | None


@dataclass(frozen=True, slots=True)
class Remembered:
    """The store knew the agent before this controller started."""

    report: Report
    pin: str | None
    transitions: tuple[Transition, ...]


Known = Reported | Left | Told | Asked | Answered | Pinned
Input = Greeted | Remembered | Known


def begin(given: Greeted | Remembered, agent: Agent | None, now: float) -> Agent:
    """Return an agent that a sidecar or the store introduced."""
    if isinstance(given, Remembered):
        return Agent(
            report=given.report,
            heard_at=now,
            pin=given.pin,
            transitions=given.transitions[:TRANSITIONS_KEPT],
        )
    if agent is None:
        agent = Agent(report=given.report, heard_at=now)
    elif agent.report.sidecar_instance != given.report.sidecar_instance:
        # A new incarnation numbers its events anew, and its idle clock began anew.
        agent = replace(agent, event_sequence=0, awake_at=None, sampled_at=None)
    agent = replace(agent, connected=True, sequence=0, doubt="")
    return _believe(agent, given.report, now)


def step(agent: Agent, given: Known, now: float) -> Agent:  # noqa: PLR0911 - one arm per input
    """Return the agent after one input; total over every input."""
    match given:
        case Reported():
            return _reported(agent, given, now)
        case Left():
            return replace(agent, connected=False)
        case Told():
            return _told(agent, given, now)
        case Asked(sleep=True):
            return replace(agent, sleep_asked_at=now)
        case Asked():
            return replace(agent, wake_asked_at=now)
        case Answered():
            return _answered(agent, given, now)
        case Pinned(reason=reason):
            return replace(agent, pin=reason)


def _reported(agent: Agent, given: Reported, now: float) -> Agent:
    """Believe a report only if it is the very next one and can be true."""
    expected = agent.sequence + 1
    doubt = _sequence_doubt(given.sequence, expected) or _report_doubt(agent, given)
    agent = replace(agent, sequence=given.sequence)
    if doubt:
        return replace(agent, doubt=doubt)
    return _believe(replace(agent, doubt=""), given.report, now)


def _sequence_doubt(sequence: int, expected: int) -> str:
    if sequence > expected:
        return f"report {expected} is missing: {sequence} came instead"
    if sequence < expected:
        return f"report {sequence} came again where {expected} was due"
    return ""


def _report_doubt(agent: Agent, given: Reported) -> str:
    report = given.report
    if report.agent_id != agent.agent_id:
        return f"its sidecar reports on another agent, {report.agent_id!r}"
    if not 0 <= given.elapsed_s <= STALE_S:
        return f"its sidecar stood still for {given.elapsed_s:.1f} s"
    if report.epoch < agent.report.epoch:
        return f"its epoch went back from {agent.report.epoch} to {report.epoch}"
    return flaw(report)


def _believe(agent: Agent, report: Report, now: float) -> Agent:
    doubt = flaw(report)
    if doubt:
        # Keep the claim for display; the doubt keeps anything from acting on it.
        return replace(agent, report=report, doubt=doubt, awake_at=None)
    awake = report.state is State.AWAKE
    keeps_awake = awake and agent.awake_at is not None
    return replace(
        agent,
        report=report,
        heard_at=now,
        awake_at=agent.awake_at if keeps_awake else now if awake else None,
        sampled_at=_sampled_at(agent, report, now),
    )


def _sampled_at(agent: Agent, report: Report, now: float) -> float | None:
    if report.load is None:
        return None
    before = agent.report.load
    unchanged = before is not None and before.sample_wall_s == report.load.sample_wall_s
    return agent.sampled_at if unchanged and agent.sampled_at is not None else now


def _told(agent: Agent, given: Told, now: float) -> Agent:
    if given.event_sequence <= agent.event_sequence:
        return agent
    agent = replace(agent, event_sequence=given.event_sequence)
    moved = given.transition
    if moved is None:
        return agent
    gave_up = moved.before in _FALLING_ASLEEP and moved.after in _SLEEP_GIVEN_UP
    return replace(
        agent,
        sleep_failed_at=now if gave_up else agent.sleep_failed_at,
        transitions=(moved, *agent.transitions)[:TRANSITIONS_KEPT],
    )


def _answered(agent: Agent, given: Answered, now: float) -> Agent:
    if given.sleep and given.failed:
        agent = replace(agent, sleep_failed_at=now)
    report = given.report
    if report is None or agent.doubt or flaw(report):
        return agent
    if report.agent_id != agent.agent_id or report.epoch < agent.report.epoch:
        return agent
    return _believe(agent, report, now)


class Fleet(Mapping[str, Agent]):
    """Every agent known, by id."""

    def __init__(self) -> None:
        self._agents: dict[str, Agent] = {}

    def __getitem__(self, agent_id: str) -> Agent:
        return self._agents[agent_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._agents)

    def __len__(self) -> int:
        return len(self._agents)

    def agent(self, agent_id: str) -> Agent:
        """Return one agent.

        Raises:
            NotFound: UNKNOWN_AGENT.
        """
        found = self._agents.get(agent_id)
        if found is None:
            raise NotFound(
                "UNKNOWN_AGENT",
                f"no sidecar ever reported an agent {agent_id!r} here: list the"
                " agents and name one of them",
            )
        return found

    def introduce(self, given: Greeted | Remembered, now: float) -> Agent:
        """Take in an agent that said hello or that the store knew.

        Raises:
            Overloaded: TOO_MANY_AGENTS.
        """
        agent_id = given.report.agent_id
        if agent_id not in self._agents and len(self._agents) >= MOST_AGENTS:
            raise Overloaded(
                "TOO_MANY_AGENTS",
                f"this controller knows {MOST_AGENTS} agents and takes no more: run"
                " another one for the rest",
            )
        self._agents[agent_id] = begin(given, self._agents.get(agent_id), now)
        return self._agents[agent_id]

    def apply(self, agent_id: str, given: Known, now: float) -> Agent:
        """Turn one agent into its next value.

        Raises:
            NotFound: UNKNOWN_AGENT.
        """
        self._agents[agent_id] = step(self.agent(agent_id), given, now)
        return self._agents[agent_id]
