"""Idle time from what an agent does."""

import pytest

from sidecar.policy.activity import Activity, ActivityLimits, Evidence

LIMITS = ActivityLimits(cpu_busy_ratio=0.1, stream_idle_s=30.0)


@pytest.fixture
def activity():
    """An agent first seen at 100."""
    return Activity(LIMITS, 100.0)


def test_idle_time_grows_while_nothing_happens(activity):
    """With no evidence an agent is idle since it was first seen."""
    assert activity.idle_s(Evidence(), 100.0) == 0
    assert activity.idle_s(Evidence(), 160.0) == 60


@pytest.mark.parametrize(
    "busy",
    [
        Evidence(calls_in_flight=1),
        Evidence(leases=1),
        Evidence(cpu_ratio=0.1),
        Evidence(cpu_ratio=3.0),
    ],
)
def test_whatever_goes_on_now_makes_it_busy_now(activity, busy):
    """A call in flight, a lease or CPU is activity until it ends."""
    assert activity.idle_s(busy, 160.0) == 0
    assert activity.idle_s(Evidence(), 165.0) == 5


@pytest.mark.parametrize("idle", [Evidence(cpu_ratio=0.09), Evidence(cpu_ratio=None)])
def test_a_little_cpu_or_no_sample_is_no_activity(activity, idle):
    """An idle process uses some CPU, and an unknown share proves nothing."""
    assert activity.idle_s(idle, 160.0) == 60


def test_a_call_between_two_looks_is_not_missed(activity):
    """A call that came and went counts from its end, not from the look."""
    assert activity.idle_s(Evidence(last_call=150.0), 160.0) == 10


def test_evidence_from_the_future_or_the_past_never_breaks_the_count(activity):
    """Idle time is never negative, and old evidence undoes nothing."""
    assert activity.idle_s(Evidence(last_call=999.0), 160.0) == 0
    assert activity.idle_s(Evidence(last_call=90.0), 170.0) == 10
    assert activity.idle_s(Evidence(), 165.0) == 5
    assert activity.idle_s(Evidence(), 150.0) == 0


def test_an_open_stream_counts_for_a_while_after_its_last_message(activity):
    """A silent subscription keeps an agent busy for stream_idle_s and no longer."""
    quiet = Evidence(stream_messages=(110.0, 120.0))

    assert activity.idle_s(quiet, 149.0) == 0
    assert activity.idle_s(quiet, 150.0) == 0
    assert activity.idle_s(quiet, 160.0) == 10
