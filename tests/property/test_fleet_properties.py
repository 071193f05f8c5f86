import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from controller.policy.agent import (
    STALE_S,
    Load,
    Report,
    State,
    Transition,
    flaw,
    status,
)
from controller.policy.fleet import (
    TRANSITIONS_KEPT,
    Answered,
    Asked,
    Fleet,
    Greeted,
    Left,
    Pinned,
    Reported,
    Told,
    begin,
    step,
)
from tests.support.fleet import report

numbers = st.integers(-(2**63), 2**63 - 1)
ratios = st.floats(allow_nan=True, allow_infinity=True)
loads = st.builds(
    Load,
    sample_wall_s=ratios,
    cpu_ratio=ratios,
    rss_bytes=numbers,
    pss_bytes=numbers,
    outbound_in_flight=numbers,
    inbound_in_flight=numbers,
    keep_awake_leases=numbers,
    idle_s=ratios,
)
wild_reports = st.builds(
    Report,
    agent_id=st.sampled_from(["otter", "heron", ""]),
    state=st.sampled_from(State),
    since_wall_s=ratios,
    epoch=numbers,
    load=st.none() | loads,
    state_digest=st.sampled_from([b"", b"x", b"y" * 32]),
    last_wake_s=ratios,
)
tame_reports = st.builds(
    report, state=st.sampled_from([s for s in State if s is not State.UNKNOWN])
)
reports = wild_reports | tame_reports
transitions = st.none() | st.builds(
    Transition,
    wall_s=st.just(0.0),
    before=st.sampled_from(["awake", "quiescing"]),
    after=st.sampled_from(["awake", "failed", "asleep"]),
    input=st.just(""),
    reason=st.text(max_size=2),
    epoch=st.just(1),
)
inputs = st.one_of(
    st.builds(Reported, st.integers(0, 5), ratios, reports),
    st.builds(Left),
    st.builds(Told, st.integers(0, 40), transitions),
    st.builds(Asked, st.booleans()),
    st.builds(Answered, st.booleans(), st.booleans(), st.none() | reports),
    st.builds(Pinned, st.none() | st.text(max_size=3)),
)


def run(given_inputs):
    agent, now = begin(Greeted(report()), None, 0.0), 0.0
    for number, one in enumerate(given_inputs):
        now = float(number)
        agent = step(agent, one, now)
    return agent, now


@given(st.lists(inputs, max_size=30))
def test_nothing_impossible_is_ever_vouched_for(given_inputs):
    """Whatever comes in, a known agent's report can be true and is fresh."""
    agent, now = run(given_inputs)

    if status(agent, now)[0] is not State.UNKNOWN:
        assert flaw(agent.report) == ""
        assert agent.agent_id == "otter"
        assert now - agent.heard_at <= STALE_S
        assert agent.connected


@given(st.lists(inputs, max_size=30))
def test_an_agent_stays_bounded(given_inputs):
    """However much is told of it."""
    agent, _ = run(given_inputs)

    assert len(agent.transitions) <= TRANSITIONS_KEPT


@given(st.lists(inputs, max_size=20), st.lists(inputs, max_size=5))
def test_the_same_inputs_give_the_same_agent(before, after):
    """The reducer holds nothing back of its own."""
    first, _ = run([*before, *after])
    second, _ = run([*before, *after])

    assert repr(first) == repr(second)


@given(st.lists(inputs, max_size=20), st.integers(0, 100))
def test_the_next_good_report_always_heals(given_inputs, sequence):
    """Two reports in order make a connected agent known again."""
    agent, now = run(given_inputs)
    agent = begin(Greeted(report(epoch=2**62)), agent, now)
    agent = step(agent, Reported(sequence, 1.0, report(epoch=2**62)), now)

    agent = step(agent, Reported(sequence + 1, 1.0, report(epoch=2**62)), now)

    assert status(agent, now)[0] is State.AWAKE


@given(st.lists(st.tuples(st.sampled_from("abc"), inputs), max_size=30))
def test_agents_do_not_touch_each_other(told):
    """An agent in a fleet is what it would be alone."""
    fleet = Fleet()
    alone = {}
    for agent_id in "abc":
        fleet.introduce(Greeted(report(agent_id)), 0.0)
        alone[agent_id] = begin(Greeted(report(agent_id)), None, 0.0)

    for agent_id, one in told:
        fleet.apply(agent_id, one, 1.0)
        alone[agent_id] = step(alone[agent_id], one, 1.0)

    assert repr(dict(fleet)) == repr(alone)


@given(ratios, ratios)
def test_no_load_with_a_strange_number_is_believed(cpu_ratio, idle_s):
    """A number that is not finite or is below 0 is a flaw."""
    said = report(load=replace(report().load, cpu_ratio=cpu_ratio, idle_s=idle_s))

    strange = any(not math.isfinite(n) or n < 0 for n in (cpu_ratio, idle_s))

    assert not strange or flaw(said)
