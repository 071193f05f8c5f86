import pytest

from outrigger.core.errors import Invalid
from sidecar.policy.budget import BudgetSettings, RetryBudget


@pytest.fixture
def budget():
    """A budget with the default settings at time 0."""
    return RetryBudget(BudgetSettings(), now=0.0)


def granted(budget, now, asked):
    """Ask that many times; return how often it was granted."""
    return sum(budget.spend(now) for _ in range(asked))


def test_a_quiet_upstream_has_ten_retries(budget):
    """Without them its very first failure could not be retried."""
    assert granted(budget, 0.0, 100) == 10


def test_first_attempts_earn_a_fifth(budget):
    """A hundred completions earn twenty retries."""
    for _ in range(100):
        budget.completed(0.0)

    assert granted(budget, 0.0, 1000) == 30


def test_a_thousand_simultaneous_failures_get_a_fifth(budget):
    """All of them fail before the first retry is sent (envoy#30205)."""
    for _ in range(1000):
        budget.completed(0.0)

    assert granted(budget, 0.0, 1000) == 210


def test_callers_that_retry_by_themselves_are_charged(budget):
    """Their retries load the callee like ours; too many leave a debt."""
    for _ in range(12):
        budget.charge(0.0)

    assert budget.left(0.0) == -2
    assert granted(budget, 0.0, 1) == 0


def test_an_hour_of_health_does_not_save_up_for_a_storm(budget):
    """What was earned is forgotten with the window."""
    for second in range(3600):
        for _ in range(10):
            budget.completed(float(second))

    assert granted(budget, 3599.0, 1000) == 30


def test_an_old_storm_does_not_starve_todays_retry(budget):
    """What was spent is forgotten with the window, too."""
    granted(budget, 0.0, 10)
    assert granted(budget, 9.9, 1) == 0

    assert granted(budget, 10.0, 100) == 10


@pytest.mark.parametrize(
    "wrong", [{"ratio": -0.1}, {"ratio": 1.1}, {"minimum": -1}, {"window_s": 0.0}]
)
def test_impossible_settings_are_refused(wrong):
    """Each bound is checked when the settings are made."""
    with pytest.raises(Invalid) as caught:
        BudgetSettings(**wrong)

    assert caught.value.reason == "BAD_BUDGET"
