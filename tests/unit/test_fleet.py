import math
from dataclasses import replace

import pytest

from controller.policy import fleet as fleet_module
from controller.policy.agent import Addresses, State, Transition, status
from controller.policy.fleet import (
    TRANSITIONS_KEPT,
    Answered,
    Asked,
    Fleet,
    Greeted,
    Left,
    Pinned,
    Remembered,
    Reported,
    Told,
    begin,
    step,
)
from outrigger.core.errors import NotFound, Overloaded
from tests.support.fleet import LOAD, report


def greeted(now=100.0, **changes):
    return begin(Greeted(report(**changes)), None, now)


def moved(number, before="awake", after="quiescing"):
    return Told(
        number,
        Transition(
            wall_s=1.0,
            before=before,
            after=after,
            input="x",
            reason=f"r{number}",
            epoch=1,
        ),
    )


def test_a_hello_makes_an_agent_known():
    """Its state is the sidecar's word, with its reason."""
    agent = greeted(reason="started")

    assert status(agent, 101.0) == (State.AWAKE, "started")


def test_the_next_report_is_believed():
    """Sequence numbers start at 1 and rise by one."""
    agent = step(greeted(), Reported(1, 1.0, report(state=State.ASLEEP)), 101.0)

    assert status(agent, 101.0)[0] is State.ASLEEP
    assert agent.heard_at == 101.0


@pytest.mark.parametrize(
    ("sequence", "why"), [(3, "report 2 is missing"), (1, "came again"), (0, "again")]
)
def test_a_gap_or_a_repeat_makes_the_agent_unknown_until_the_next_good_report(
    sequence, why
):
    """What it said is not taken, and one report in order heals it."""
    agent = step(greeted(), Reported(1, 1.0, report()), 101.0)

    doubted = step(agent, Reported(sequence, 1.0, report(state=State.ASLEEP)), 102.0)

    state, reason = status(doubted, 102.0)
    assert state is State.UNKNOWN
    assert why in reason
    assert doubted.report.state is State.AWAKE
    healed = step(doubted, Reported(sequence + 1, 1.0, report()), 103.0)
    assert status(healed, 103.0)[0] is State.AWAKE


def test_silence_makes_an_agent_unknown():
    """Five seconds are borne, more are not; a report ends it."""
    agent = greeted(now=100.0)

    assert status(agent, 105.0)[0] is State.AWAKE
    state, reason = status(agent, 105.1)
    assert (state, "no report for 5 s" in reason) == (State.UNKNOWN, True)
    agent = step(agent, Reported(1, 5.0, report()), 106.0)
    assert status(agent, 106.0)[0] is State.AWAKE


def test_a_sidecar_that_left_makes_its_agent_unknown():
    """What it was is still told, but not vouched for."""
    agent = step(greeted(state=State.ASLEEP), Left(), 101.0)

    assert status(agent, 101.0) == (
        State.UNKNOWN,
        "its sidecar is not connected; when last heard of it was asleep",
    )


IMPOSSIBLE = {
    "no state": {"state": State.UNKNOWN},
    "a negative epoch": {"epoch": -1},
    "a negative generation": {"generation": -1},
    "a negative count of sleeps": {"sleep_count": -1},
    "a wake that took NaN": {"last_wake_s": math.nan},
    "a time before 1970": {"since_wall_s": -1.0},
    "a short digest": {"state_digest": b"x"},
    "a long digest": {"woken_digest": b"x" * 33},
    "NaN CPU": {"load": replace(LOAD, cpu_ratio=math.nan)},
    "endless CPU": {"load": replace(LOAD, cpu_ratio=math.inf)},
    "negative CPU": {"load": replace(LOAD, cpu_ratio=-0.1)},
    "negative memory": {"load": replace(LOAD, pss_bytes=-1)},
    "absurd memory": {"load": replace(LOAD, rss_bytes=1 << 60)},
    "negative leases": {"load": replace(LOAD, keep_awake_leases=-1)},
    "negative idle": {"load": replace(LOAD, idle_s=-1.0)},
    "NaN idle": {"load": replace(LOAD, idle_s=math.nan)},
    "absurd idle": {"load": replace(LOAD, idle_s=1e12)},
    "an absurd sample time": {"load": replace(LOAD, sample_wall_s=1e18)},
    "another agent": {"agent_id": "heron"},
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_an_impossible_report_makes_the_agent_unknown(case):
    """It is never taken for an idle agent, and the next good one heals it."""
    agent = step(greeted(), Reported(1, 1.0, report(**IMPOSSIBLE[case])), 101.0)

    assert status(agent, 101.0)[0] is State.UNKNOWN
    healed = step(agent, Reported(2, 1.0, report()), 102.0)
    assert status(healed, 102.0)[0] is State.AWAKE


def test_an_impossible_hello_is_doubted():
    """The first word is checked like every other."""
    agent = greeted(load=replace(LOAD, idle_s=math.nan))

    assert status(agent, 100.0)[0] is State.UNKNOWN


@pytest.mark.parametrize("elapsed_s", [-1.0, 5.1, math.nan])
def test_a_sidecar_that_stood_still_is_doubted(elapsed_s):
    """Its idle clock ran on while it relayed nothing."""
    agent = step(greeted(), Reported(1, elapsed_s, report(idle_s=900.0)), 101.0)

    assert "stood still" in status(agent, 101.0)[1]


def test_an_epoch_never_goes_back():
    """Neither in a report nor in a late answer."""
    agent = greeted(epoch=7)

    doubted = step(agent, Reported(1, 1.0, report(epoch=6)), 101.0)
    answered = step(
        agent, Answered(sleep=True, failed=False, report=report(epoch=6)), 1
    )

    assert "went back from 7 to 6" in status(doubted, 101.0)[1]
    assert answered.report.epoch == 7


def test_an_answer_brings_the_newest_state():
    """The agent as its sidecar answered is what is shown next."""
    answer = Answered(
        sleep=True, failed=False, report=report(state=State.QUIESCING, epoch=2)
    )
    agent = step(greeted(), answer, 101.0)

    assert (agent.report.state, agent.report.epoch) == (State.QUIESCING, 2)


def test_an_answer_that_cannot_be_true_is_left_out():
    """Nothing is learned from another agent's or a flawed answer."""
    agent = greeted()
    for said in (report("heron"), report(epoch=-1), None):
        assert step(agent, Answered(False, False, said), 101.0) == agent


def test_a_failed_sleep_is_remembered_with_its_time():
    """Whether the command failed or the agent came back awake."""
    asked = step(greeted(), Asked(sleep=True), 101.0)
    refused = step(asked, Answered(sleep=True, failed=True, report=None), 102.0)
    gave_up = step(asked, moved(1, "checkpointing", "awake"), 103.0)

    assert refused.sleep_failed_at == 102.0
    assert gave_up.sleep_failed_at == 103.0
    assert (
        step(asked, moved(1, "quiescing", "checkpointing"), 1).sleep_failed_at is None
    )


def test_a_wake_that_was_asked_is_remembered():
    """Its time is its own, not the sleep's."""
    agent = step(greeted(), Asked(sleep=False), 104.0)

    assert (agent.wake_asked_at, agent.sleep_asked_at) == (104.0, None)


def test_an_event_sent_again_counts_once():
    """A reconnect may repeat events; their sequence tells."""
    agent = step(step(greeted(), moved(5), 101.0), moved(5), 102.0)

    assert [t.reason for t in agent.transitions] == ["r5"]


def test_another_incarnation_numbers_its_events_anew():
    """Its first event is not taken for an old one."""
    agent = step(greeted(), moved(5), 101.0)
    agent = begin(Greeted(report(sidecar_instance="i-2")), agent, 102.0)

    agent = step(agent, moved(1), 103.0)

    assert [t.reason for t in agent.transitions] == ["r1", "r5"]


def test_other_events_only_move_the_sequence():
    """Only transitions are kept."""
    agent = step(greeted(), Told(4, None), 101.0)

    assert (agent.event_sequence, agent.transitions) == (4, ())


def test_transitions_are_bounded_and_newest_first():
    """The newest stay."""
    agent = greeted()
    for number in range(1, TRANSITIONS_KEPT + 5):
        agent = step(agent, moved(number), 101.0)

    assert len(agent.transitions) == TRANSITIONS_KEPT
    assert agent.transitions[0].reason == f"r{TRANSITIONS_KEPT + 4}"


def test_time_awake_counts_without_a_break():
    """It survives a reconnect, and begins anew after sleep and with a new sidecar."""
    agent = step(greeted(now=100.0), Reported(1, 1.0, report()), 101.0)
    assert agent.awake_at == 100.0

    again = begin(Greeted(report()), step(agent, Left(), 102.0), 103.0)
    assert again.awake_at == 100.0

    other = begin(Greeted(report(sidecar_instance="i-2")), agent, 104.0)
    assert other.awake_at == 104.0

    asleep = step(agent, Reported(2, 1.0, report(state=State.ASLEEP)), 105.0)
    assert asleep.awake_at is None
    woken = step(asleep, Reported(3, 1.0, report()), 106.0)
    assert woken.awake_at == 106.0


def test_a_load_sample_that_does_not_change_grows_old():
    """The time of its last change is kept."""
    agent = step(greeted(now=100.0), Reported(1, 1.0, report()), 101.0)
    assert agent.sampled_at == 100.0

    fresh = report(load=replace(LOAD, sample_wall_s=1.7e9 + 1))
    assert step(agent, Reported(2, 1.0, fresh), 102.0).sampled_at == 102.0
    assert step(agent, Reported(2, 1.0, report(load=None)), 102.0).sampled_at is None


def test_a_pin_is_kept_and_ended():
    """With its reason."""
    agent = step(greeted(), Pinned("demo"), 101.0)

    assert agent.pin == "demo"
    assert step(agent, Pinned(None), 102.0).pin is None


def test_a_remembered_agent_is_unknown_and_keeps_its_pin():
    """The store's word is old; a hello makes it known again."""
    fleet = Fleet()
    fleet.introduce(Remembered(report(), "demo", ()), 100.0)
    assert status(fleet.agent("otter"), 100.0)[0] is State.UNKNOWN

    fleet.introduce(Greeted(report(addresses=Addresses(api="unix:/x"))), 101.0)

    agent = fleet.agent("otter")
    assert status(agent, 101.0)[0] is State.AWAKE
    assert agent.pin == "demo"


def test_an_agent_nobody_reported_is_not_there():
    """Reading or changing it is refused by name."""
    fleet = Fleet()
    with pytest.raises(NotFound, match="otter"):
        fleet.agent("otter")
    with pytest.raises(NotFound):
        fleet.apply("otter", Left(), 0.0)


def test_the_fleet_is_bounded(monkeypatch):
    """One more agent is refused; those that are known still come back."""
    monkeypatch.setattr(fleet_module, "MOST_AGENTS", 1)
    fleet = Fleet()
    fleet.introduce(Greeted(report("otter")), 0.0)
    fleet.introduce(Greeted(report("otter")), 1.0)

    with pytest.raises(Overloaded) as caught:
        fleet.introduce(Greeted(report("heron")), 1.0)
    assert caught.value.reason == "TOO_MANY_AGENTS"
    assert list(fleet) == ["otter"]
