from dataclasses import replace

import pytest

from controller.policy.agent import State
from controller.policy.fleet import Answered, Asked, Left, Pinned, Reported
from controller.policy.schedule import Decision, Settings, explain, plan
from tests.support.fleet import LOAD, heard, idle_fleet, report

ON = Settings(enabled=True)
NOW = 400.0


def settled(*agent_ids, idle_s=10_000.0):
    """Agents awake for 400 s, heard of just now."""
    return heard(idle_fleet(*agent_ids, idle_s=idle_s), NOW)


def only(actions):
    (action,) = actions
    return action


def test_an_idle_agent_is_put_to_sleep_with_its_epoch():
    """The action carries what the sidecar checks."""
    action = only(plan(settled("otter"), ON, NOW))

    assert action.decision is Decision.SLEEP
    assert action.seen_epoch == 1
    assert action.reason == "It has been idle for 10000 s, the keep-alive is 300 s."


def test_nothing_sleeps_before_the_scheduler_is_enabled():
    """Off is the default."""
    action = only(plan(settled("otter"), Settings(), NOW))

    assert action.decision is Decision.NOTHING
    assert action.reason == "The scheduler is off."
    assert "EnableScheduler" in action.would_change[0]


BUSY = {
    "calls out": (replace(LOAD, idle_s=1e4, outbound_in_flight=1), "1 calls are"),
    "calls in": (replace(LOAD, idle_s=1e4, inbound_in_flight=2), "2 calls are"),
    "leases": (replace(LOAD, idle_s=1e4, keep_awake_leases=1), "1 keep-awake leases"),
    "not idle": (replace(LOAD, idle_s=299.0), "idle for 299 s of the 300 s"),
    "no sample": (None, "no load sample"),
}


@pytest.mark.parametrize("case", BUSY)
def test_a_busy_agent_stays_awake(case):
    """Whatever kind of activity there is."""
    load, why = BUSY[case]
    action = only(plan(heard(idle_fleet("otter"), NOW, load=load), ON, NOW))

    assert action.decision is Decision.NOTHING
    assert why in action.reason


def test_a_sample_without_a_time_is_no_sample():
    """A sidecar that does not measure cannot prove idleness."""
    fleet = settled("otter")
    said = report(load=replace(LOAD, sample_wall_s=0.0, idle_s=1e4))
    fleet.apply("otter", Reported(2, 1.0, said), NOW)

    assert "no load sample" in only(plan(fleet, ON, NOW)).reason


def test_an_old_sample_proves_nothing():
    """The sidecar still reports, but its sampler hangs."""
    fleet = settled("otter")
    same = fleet.agent("otter").report
    for number in range(2, 18):
        fleet.apply("otter", Reported(number, 1.0, same), NOW + number - 1)

    assert "load sample is 16 s old" in only(plan(fleet, ON, NOW + 16)).reason


RESTING = {
    State.ASLEEP: "It is asleep already.",
    State.FROZEN: "It is frozen already.",
    State.QUIESCING: "It is quiescing, on its way to another state.",
    State.CHECKPOINTING: "It is checkpointing, on its way to another state.",
    State.WAKING: "It is waking, on its way to another state.",
    State.FAILED: "It failed: disk gone.",
}


@pytest.mark.parametrize("state", RESTING)
def test_only_an_agent_that_is_awake_is_put_to_sleep(state):
    """Every other state has its own reason."""
    fleet = heard(idle_fleet("otter"), NOW, state=state, reason="disk gone")

    action = only(plan(fleet, ON, NOW))

    assert (action.decision, action.reason) == (Decision.NOTHING, RESTING[state])


def test_an_unknown_agent_is_left_alone():
    """Silence is not idleness."""
    action = only(plan(settled("otter"), ON, NOW + 6))

    assert action.decision is Decision.NOTHING
    assert action.reason.startswith("It is unknown: no report for 6 s")


def test_a_pinned_agent_that_is_awake_stays_awake():
    """However idle it is."""
    fleet = settled("otter")
    fleet.apply("otter", Pinned("demo"), NOW)

    action = only(plan(fleet, ON, NOW))

    assert (action.decision, action.reason) == (
        Decision.NOTHING,
        "It is pinned awake: demo.",
    )


@pytest.mark.parametrize(
    "state", [State.QUIESCING, State.CHECKPOINTING, State.FROZEN, State.ASLEEP]
)
@pytest.mark.parametrize("settings", [ON, Settings(), replace(ON, max_asleep_ratio=0)])
def test_a_pinned_agent_that_rests_is_woken_whatever_the_budget_says(state, settings):
    """Also with the scheduler off; asked again after a pause, not at every beat."""
    fleet = heard(idle_fleet("otter"), NOW, state=state)
    fleet.apply("otter", Pinned("demo"), NOW)
    assert only(plan(fleet, settings, NOW)).decision is Decision.WAKE

    fleet.apply("otter", Asked(sleep=False), NOW)

    assert only(plan(fleet, settings, NOW + 1)).decision is Decision.NOTHING
    assert only(plan(fleet, settings, NOW + 2)).decision is Decision.WAKE


def test_nobody_is_woken_whose_sidecar_is_away():
    """There is nobody to tell."""
    fleet = heard(idle_fleet("otter"), NOW, state=State.ASLEEP)
    fleet.apply("otter", Pinned("demo"), NOW)
    fleet.apply("otter", Left(), NOW)

    assert only(plan(fleet, ON, NOW)).decision is Decision.NOTHING


def test_an_agent_is_left_alone_for_a_while_after_it_woke():
    """A keep-alive long, or as long as the settings say."""
    fleet = heard(idle_fleet("otter", now=NOW - 100), NOW)

    action = only(plan(fleet, ON, NOW))

    assert "awake for 100 s of the 300 s" in action.reason
    sooner = replace(ON, wake_cool_down_s=100.0)
    assert only(plan(fleet, sooner, NOW)).decision is Decision.SLEEP


def test_a_sleep_just_asked_for_is_not_asked_for_again():
    """It gets ten seconds to show."""
    fleet = settled("otter")
    fleet.apply("otter", Asked(sleep=True), NOW)
    heard(fleet, NOW + 9)
    assert "a moment ago" in only(plan(fleet, ON, NOW + 9)).reason

    heard(fleet, NOW + 10)

    assert only(plan(fleet, ON, NOW + 10)).decision is Decision.SLEEP


def test_a_failed_sleep_is_followed_by_a_pause():
    """Three minutes, for an agent that stayed idle."""
    fleet = settled("otter")
    fleet.apply("otter", Asked(sleep=True), NOW)
    fleet.apply("otter", Answered(sleep=True, failed=True, report=None), NOW)
    heard(fleet, NOW + 179)
    assert only(plan(fleet, ON, NOW + 179)).reason == "Its last sleep failed."

    heard(fleet, NOW + 180)

    assert only(plan(fleet, ON, NOW + 180)).decision is Decision.SLEEP


def test_a_sleep_given_up_for_work_costs_no_pause():
    """Once the agent has been idle again, its keep-alive alone counts."""
    fleet = settled("otter")
    fleet.apply("otter", Asked(sleep=True), NOW)
    fleet.apply("otter", Answered(sleep=True, failed=True, report=None), NOW)
    heard(fleet, NOW + 20, load=replace(LOAD, idle_s=15.0))

    quick = replace(ON, keep_alive_s=10.0)

    assert only(plan(fleet, quick, NOW + 20)).decision is Decision.SLEEP


def decisions(actions):
    return {action.agent_id: action.decision for action in actions}


def test_the_longest_idle_go_first_when_the_rate_is_short():
    """The others are told that their turn will come."""
    fleet = settled("otter", "heron", "crane")
    said = replace(fleet.agent("heron").report, load=replace(LOAD, idle_s=20_000.0))
    fleet.apply("heron", Reported(2, 1.0, said), NOW)

    actions = plan(fleet, replace(ON, sleep_rate_per_s=1.0), NOW)

    assert decisions(actions) == {
        "crane": Decision.NOTHING,
        "heron": Decision.SLEEP,
        "otter": Decision.NOTHING,
    }
    assert actions[0].reason == "Only 1 agents a second may begin to sleep."


def test_the_rate_counts_what_was_asked_a_moment_ago():
    """A rate below one a second has a longer window."""
    fleet = settled("otter", "heron")
    fleet.apply("heron", Asked(sleep=True), NOW)
    slow = replace(ON, sleep_rate_per_s=0.2)
    heard(fleet, NOW + 4.9)
    assert decisions(plan(fleet, slow, NOW + 4.9))["otter"] is Decision.NOTHING

    heard(fleet, NOW + 5)

    assert decisions(plan(fleet, slow, NOW + 5))["otter"] is Decision.SLEEP


def test_no_more_than_a_share_of_the_fleet_rests():
    """Agents asked but not yet moving count as well."""
    fleet = settled("otter", "heron", "crane", "stork")
    half = replace(ON, max_asleep_ratio=0.5)
    sleepers = [a for a in plan(fleet, half, NOW) if a.decision is Decision.SLEEP]
    assert [action.agent_id for action in sleepers] == ["crane", "heron"]

    fleet.apply("crane", Asked(sleep=True), NOW)
    fleet.apply("heron", Reported(2, 1.0, report("heron", state=State.ASLEEP)), NOW)

    actions = {a.agent_id: a for a in plan(fleet, half, NOW)}
    assert actions["otter"].reason == "As many agents are asleep as may be."
    assert "make room" in actions["otter"].would_change[0]


def test_sleeps_halt_while_too_many_agents_are_unknown():
    """The controller may be the one that is cut off."""
    ids = [f"a-{number}" for number in range(10)]
    fleet = settled(*ids)
    for agent_id in ids[:4]:
        fleet.apply(agent_id, Left(), NOW)

    actions = plan(fleet, ON, NOW)
    assert set(decisions(actions).values()) == {Decision.NOTHING}
    assert actions[9].reason == "4 of 10 agents are unknown: no sleeps are begun."

    few = replace(ON, halt_unknown_count=4)
    assert decisions(plan(fleet, few, NOW))["a-9"] is Decision.SLEEP


def test_explain_is_the_plan_for_one_agent():
    """With everything that would have to change, not only the first."""
    fleet = settled("otter", "heron")
    fleet.apply("otter", Pinned("demo"), NOW)

    action = explain(fleet, "otter", Settings(), NOW)

    assert action in plan(fleet, Settings(), NOW)
    assert action.would_change == (
        "UnpinAgent would let it sleep.",
        "EnableScheduler would let it sleep once it is idle.",
    )


def test_every_agent_has_a_reason_and_a_way_out():
    """Sentences, each ending as one."""
    fleet = settled("otter", "heron")
    fleet.apply("heron", Left(), NOW)

    for settings in (ON, Settings()):
        for action in plan(fleet, settings, NOW):
            for sentence in (action.reason, *action.would_change):
                assert sentence.endswith(".")
            assert action.would_change
