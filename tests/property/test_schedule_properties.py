from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controller.policy.agent import GOING_TO_SLEEP, RESTING, Agent, Load, State, status
from controller.policy.schedule import WAKE_RETRY_S, Decision, Settings, explain, plan
from tests.support.fleet import report

NOW = 1000.0

IDLE = Load(sample_wall_s=1.7e9, idle_s=5e3)
SLEEPY = Agent(
    report=report(load=IDLE),
    heard_at=NOW,
    connected=True,
    awake_at=0.0,
    sampled_at=NOW,
)
times = st.none() | st.floats(0.0, NOW)


def said(**changes):
    """A change of what the sidecar says."""
    return lambda agent: replace(agent, report=replace(agent.report, **changes))


def seen(**changes):
    """A change of what the controller knows."""
    return lambda agent: replace(agent, **changes)


# Agents that would sleep but for a thing or two: every obstacle then stands alone
# often enough to be missed if it were not asked for.
obstacles = st.one_of(
    st.builds(lambda state: said(state=state), st.sampled_from(State)),
    st.just(said(load=None)),
    st.builds(
        lambda name: said(load=replace(IDLE, **{name: 1})),
        st.sampled_from(
            ["outbound_in_flight", "inbound_in_flight", "keep_awake_leases"]
        ),
    ),
    st.builds(
        lambda idle_s: said(load=replace(IDLE, idle_s=idle_s)), st.floats(0, 2e4)
    ),
    st.just(said(load=replace(IDLE, sample_wall_s=0.0))),
    st.builds(lambda at: seen(heard_at=at), st.floats(0.0, NOW)),
    st.just(seen(connected=False)),
    st.just(seen(doubt="report 2 is missing")),
    st.builds(lambda at: seen(awake_at=at), times),
    st.builds(lambda at: seen(sampled_at=at), times),
    st.builds(lambda at: seen(sleep_asked_at=at), times),
    st.builds(lambda at: seen(wake_asked_at=at), times),
    st.builds(lambda at: seen(sleep_failed_at=at), times),
    st.just(seen(pin="demo")),
)


def spoilt(changes):
    agent = SLEEPY
    for change in changes:
        agent = change(agent)
    return agent


agents = st.lists(obstacles, max_size=3).map(spoilt)
settings = st.builds(
    Settings,
    enabled=st.sampled_from([True, True, True, False]),
    keep_alive_s=st.sampled_from([1.0, 300.0]) | st.floats(1.0, 1e4),
    max_asleep_ratio=st.none() | st.floats(0.0, 1.0),
    sleep_rate_per_s=st.floats(0.1, 100.0),
    wake_cool_down_s=st.none() | st.floats(0.0, 1e3),
)


def fleet_of(listed):
    return {
        f"a-{number:02}": replace(
            agent, report=replace(agent.report, agent_id=f"a-{number:02}")
        )
        for number, agent in enumerate(listed)
    }


fleets = st.lists(agents, max_size=12).map(fleet_of)


@given(fleets, settings)
def test_only_agents_known_idle_and_unpinned_are_put_to_sleep(fleet, set_to):
    """Never an unknown, failed, pinned, leased or busy one, nor with it off."""
    for action in plan(fleet, set_to, NOW):
        if action.decision is not Decision.SLEEP:
            continue
        agent = fleet[action.agent_id]
        load = agent.report.load
        assert set_to.enabled
        assert status(agent, NOW)[0] is State.AWAKE
        assert agent.pin is None
        assert load is not None
        assert load.idle_s >= set_to.keep_alive_s
        busy = (load.outbound_in_flight, load.inbound_in_flight)
        assert (*busy, load.keep_awake_leases) == (0, 0, 0)


@given(fleets, settings)
def test_a_wake_always_gets_through(fleet, set_to):
    """Every pinned agent at rest that can be told is woken, whatever is set."""
    due = {
        key
        for key, agent in fleet.items()
        if agent.pin is not None
        and agent.connected
        and agent.report.state in RESTING | GOING_TO_SLEEP
        and (agent.wake_asked_at is None or NOW - agent.wake_asked_at >= WAKE_RETRY_S)
    }

    planned = plan(fleet, set_to, NOW)

    assert {a.agent_id for a in planned if a.decision is Decision.WAKE} == due


@given(fleets, settings, st.randoms(use_true_random=False))
def test_a_plan_depends_on_nothing_but_what_it_is_given(fleet, set_to, shuffler):
    """Not on the order in which agents came."""
    keys = list(fleet)
    shuffler.shuffle(keys)

    assert plan({key: fleet[key] for key in keys}, set_to, NOW) == plan(
        fleet, set_to, NOW
    )


@given(fleets, settings)
def test_every_agent_gets_one_action_with_a_reason(fleet, set_to):
    """And `explain` tells the same."""
    planned = plan(fleet, set_to, NOW)

    assert [action.agent_id for action in planned] == sorted(fleet)
    for action in planned:
        assert action.reason
        assert action.would_change
        assert explain(fleet, action.agent_id, set_to, NOW) == action


@given(fleets, settings)
def test_the_budget_is_never_overdrawn(fleet, set_to):
    """Neither the rate nor the share of agents at rest."""
    sleeps = sum(a.decision is Decision.SLEEP for a in plan(fleet, set_to, NOW))

    window_s = max(1.0, 1.0 / set_to.sleep_rate_per_s)
    assert sleeps <= set_to.sleep_rate_per_s * window_s + 1e-6
    if set_to.max_asleep_ratio is not None and sleeps:
        resting = sum(
            status(agent, NOW)[0] in RESTING | GOING_TO_SLEEP
            for agent in fleet.values()
        )
        assert resting + sleeps <= set_to.max_asleep_ratio * len(fleet)
