"""Who sleeps: a pure plan over the fleet, with a reason for every agent.

Order of the questions: may the agent sleep at all, is it idle for long enough, and
does the disruption budget let one more go now. Wakes pass none of these: they are
planned for every pinned agent that rests, whatever the budget says.
"""

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from controller.policy.agent import (
    GOING_TO_SLEEP,
    RESTING,
    SAMPLE_STALE_S,
    Agent,
    State,
    status,
)
from controller.policy.sleep_policies.fixed import KEEP_ALIVE_S, remaining_s

SETTLE_S: Final = 10.0
"""Time a sleep command gets to show before it is asked again."""
WAKE_RETRY_S: Final = 2.0
"""Time between two wake commands of ours to one agent."""


class Decision(enum.Enum):
    """What the scheduler would do with an agent now."""

    NOTHING = "nothing"
    SLEEP = "sleep"
    WAKE = "wake"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the scheduler is set, its disruption budget included."""

    enabled: bool = False
    keep_alive_s: float = KEEP_ALIVE_S
    max_asleep_ratio: float | None = None
    """Largest share of the fleet at rest or on its way; None means all."""
    sleep_rate_per_s: float = 10.0
    """Most sleeps begun per second; must be more than 0."""
    wake_cool_down_s: float | None = None
    """Time awake before the next sleep; None means the keep-alive."""
    failed_sleep_cool_down_s: float = 180.0
    """Time after a failed sleep, unless the agent was active since it was asked."""
    halt_unknown_ratio: float = 0.3
    """No sleeps while more than this share of the fleet is unknown..."""
    halt_unknown_count: int = 3
    """...and more than this many are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What to do with one agent, and why."""

    agent_id: str
    decision: Decision
    reason: str
    """A whole sentence."""
    would_change: tuple[str, ...] = ()
    """Whole sentences: what would change the decision."""
    seen_epoch: int = 0


@dataclass(frozen=True, slots=True)
class _Obstacle:
    reason: str
    would_change: str


_Question = Callable[[Agent, Settings, float], _Obstacle | None]


def plan(
    fleet: Mapping[str, Agent], settings: Settings, now: float
) -> tuple[Action, ...]:
    """Return one action for every agent, by id.

    The same fleet, settings and time always give the same plan.
    """
    actions = {key: _judge(fleet[key], settings, now) for key in sorted(fleet)}
    wanted = [
        key for key, action in actions.items() if action.decision is Decision.SLEEP
    ]
    wanted.sort(key=lambda key: (-_idle_s(fleet[key]), key))
    allowed, obstacle = _budget(fleet, settings, now)
    for key in wanted[allowed:]:
        actions[key] = _held_back(actions[key], obstacle)
    return tuple(actions.values())


def explain(
    fleet: Mapping[str, Agent], agent_id: str, settings: Settings, now: float
) -> Action:
    """Return the plan's action for one agent that is in the fleet."""
    return next(a for a in plan(fleet, settings, now) if a.agent_id == agent_id)


def _judge(agent: Agent, settings: Settings, now: float) -> Action:
    """Return what the agent deserves, the budget aside."""
    draft = Action(
        agent_id=agent.agent_id,
        decision=Decision.NOTHING,
        reason="",
        seen_epoch=agent.report.epoch,
    )
    if _must_wake(agent, now):
        return replace(
            draft,
            decision=Decision.WAKE,
            reason=f"It is pinned awake: {agent.pin}.",
            would_change=("UnpinAgent would let it sleep.",),
        )
    found = [
        obstacle
        for ask in _QUESTIONS
        if (obstacle := ask(agent, settings, now)) is not None
    ]
    if found:
        return replace(
            draft,
            reason=found[0].reason,
            would_change=tuple(obstacle.would_change for obstacle in found),
        )
    return replace(
        draft,
        decision=Decision.SLEEP,
        reason=(
            f"It has been idle for {_idle_s(agent):.0f} s, the keep-alive is"
            f" {settings.keep_alive_s:g} s."
        ),
        would_change=("A call, a keep-awake lease or a pin would keep it awake.",),
    )


def _must_wake(agent: Agent, now: float) -> bool:
    if agent.pin is None or not agent.connected:
        return False
    asked = agent.wake_asked_at
    if asked is not None and now - asked < WAKE_RETRY_S:
        return False
    return agent.report.state in RESTING | GOING_TO_SLEEP


def _not_awake(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    del settings
    state, why = status(agent, now)
    match state:
        case State.AWAKE:
            return None
        case State.UNKNOWN:
            return _Obstacle(
                f"It is unknown: {why}.",
                "A good report from its sidecar would make it known again.",
            )
        case State.ASLEEP | State.FROZEN:
            return _Obstacle(
                f"It is {state.value} already.",
                "A call to its inbound listener, or WakeAgent, would wake it.",
            )
        case State.FAILED:
            return _Obstacle(
                f"It failed: {why or 'its sidecar gives no reason'}.",
                "WakeAgent would try to bring it back to a good state.",
            )
        case _:
            return _Obstacle(
                f"It is {state.value}, on its way to another state.",
                "The end of that move would open the question again.",
            )


def _pinned(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    del settings, now
    if agent.pin is None:
        return None
    return _Obstacle(
        f"It is pinned awake: {agent.pin}.", "UnpinAgent would let it sleep."
    )


def _disabled(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    del agent, now
    if settings.enabled:
        return None
    return _Obstacle(
        "The scheduler is off.", "EnableScheduler would let it sleep once it is idle."
    )


def _unsampled(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    del settings
    fresh = "A fresh load sample from its sidecar would say whether it is idle."
    load = agent.report.load
    if load is None or load.sample_wall_s == 0 or agent.sampled_at is None:
        return _Obstacle("Its sidecar sent no load sample.", fresh)
    age_s = now - agent.sampled_at
    if age_s > SAMPLE_STALE_S:
        return _Obstacle(f"Its load sample is {age_s:.0f} s old.", fresh)
    return None


def _busy(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    del settings, now
    load = agent.report.load
    if load is None:
        return None
    if load.keep_awake_leases:
        return _Obstacle(
            f"{load.keep_awake_leases} keep-awake leases are held.",
            "The end of every keep-awake lease would let it become idle.",
        )
    calls = load.outbound_in_flight + load.inbound_in_flight
    if calls:
        return _Obstacle(
            f"{calls} calls are in flight.",
            "The end of the calls in flight would let it become idle.",
        )
    return None


def _not_idle(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    del now
    left_s = remaining_s(_idle_s(agent), settings.keep_alive_s)
    if left_s <= 0:
        return None
    return _Obstacle(
        f"It has been idle for {_idle_s(agent):.0f} s of the"
        f" {settings.keep_alive_s:g} s of its keep-alive.",
        f"{math.ceil(left_s)} s more without activity would let it sleep.",
    )


def _cooling_down(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    wanted_s = settings.wake_cool_down_s
    wanted_s = settings.keep_alive_s if wanted_s is None else wanted_s
    awake_s = 0.0 if agent.awake_at is None else now - agent.awake_at
    if awake_s >= wanted_s:
        return None
    return _Obstacle(
        f"It has been seen awake for {awake_s:.0f} s of the {wanted_s:g} s it is"
        " left alone after a wake or a start.",
        f"{math.ceil(wanted_s - awake_s)} s more awake would let it sleep.",
    )


def _just_asked(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    del settings
    asked = agent.sleep_asked_at
    if asked is None or now - asked >= SETTLE_S:
        return None
    return _Obstacle(
        "It was asked to sleep a moment ago.",
        f"{math.ceil(SETTLE_S - (now - asked))} s would let it be asked again.",
    )


def _sleep_failed(agent: Agent, settings: Settings, now: float) -> _Obstacle | None:
    failed, asked = agent.sleep_failed_at, agent.sleep_asked_at
    if failed is None or now - failed >= settings.failed_sleep_cool_down_s:
        return None
    if asked is not None and _idle_s(agent) < now - asked:
        return None  # it gave the sleep up because it had something to do
    left_s = settings.failed_sleep_cool_down_s - (now - failed)
    return _Obstacle(
        "Its last sleep failed.",
        f"{math.ceil(left_s)} s, or activity of the agent, would let it be tried"
        " again.",
    )


_QUESTIONS: Final[tuple[_Question, ...]] = (
    _not_awake,
    _pinned,
    _disabled,
    _unsampled,
    _busy,
    _not_idle,
    _cooling_down,
    _just_asked,
    _sleep_failed,
)
"""Every one is asked, so that `explain` names all that would have to change."""


def _idle_s(agent: Agent) -> float:
    return agent.report.load.idle_s if agent.report.load else 0.0


def _budget(
    fleet: Mapping[str, Agent], settings: Settings, now: float
) -> tuple[int, _Obstacle]:
    """Return how many may go to sleep now, and what holds the others back."""
    states = [status(agent, now)[0] for agent in fleet.values()]
    unknown = states.count(State.UNKNOWN)
    if (
        unknown > settings.halt_unknown_count
        and unknown > settings.halt_unknown_ratio * len(states)
    ):
        return 0, _Obstacle(
            f"{unknown} of {len(states)} agents are unknown: no sleeps are begun.",
            "More sidecars that report would let sleeps begin again.",
        )
    return min(
        (_room(states, fleet, settings, now), _rate(fleet, settings, now)),
        key=lambda limit: limit[0],
    )


def _room(
    states: list[State], fleet: Mapping[str, Agent], settings: Settings, now: float
) -> tuple[int, _Obstacle]:
    obstacle = _Obstacle(
        "As many agents are asleep as may be.",
        "A wake of another agent would make room.",
    )
    if settings.max_asleep_ratio is None:
        return len(states), obstacle
    resting = sum(state in RESTING | GOING_TO_SLEEP for state in states)
    # Asked, not yet seen to move: they count, or one plan after another overshoots.
    asked = sum(
        status(agent, now)[0] is State.AWAKE
        and agent.sleep_asked_at is not None
        and now - agent.sleep_asked_at < SETTLE_S
        for agent in fleet.values()
    )
    most = int(settings.max_asleep_ratio * len(states))
    return max(0, most - resting - asked), obstacle


def _rate(
    fleet: Mapping[str, Agent], settings: Settings, now: float
) -> tuple[int, _Obstacle]:
    window_s = max(1.0, 1.0 / settings.sleep_rate_per_s)
    asked = sum(
        agent.sleep_asked_at is not None and now - agent.sleep_asked_at < window_s
        for agent in fleet.values()
    )
    most = int(settings.sleep_rate_per_s * window_s + 1e-9)
    return max(0, most - asked), _Obstacle(
        f"Only {settings.sleep_rate_per_s:g} agents a second may begin to sleep.",
        "Its turn will come: the longest idle go first.",
    )


def _held_back(action: Action, obstacle: _Obstacle) -> Action:
    return replace(
        action,
        decision=Decision.NOTHING,
        reason=obstacle.reason,
        would_change=(obstacle.would_change,),
    )
