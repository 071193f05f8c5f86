"""The retry budget against a list of everything that ever happened."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.budget import BudgetSettings, RetryBudget

STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.3, 1.0, 7.0, 20.0]),
        st.sampled_from(["completed", "charge", "spend", "spend"]),
        st.integers(1, 40),
    ),
    max_size=60,
)
SETTINGS = st.builds(
    BudgetSettings,
    ratio=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    minimum=st.integers(0, 10),
)


@given(settings=SETTINGS, steps=STEPS)
def test_the_budget_is_never_exceeded(settings, steps):
    """A retry is granted exactly while the recount of the window allows it."""
    budget = RetryBudget(settings, now=0.0)
    earned, spent = [], []
    now = 0.0
    for gap_s, what, times in steps:
        now += gap_s
        for _ in range(times):
            oldest = now // 1.0 - 10
            first = sum(when > oldest for when in earned)
            used = sum(when > oldest for when in spent)
            fits = settings.minimum + settings.ratio * first - used >= 1
            if what == "completed":
                budget.completed(now)
                earned.append(now // 1.0)
            elif what == "charge":
                budget.charge(now)
                spent.append(now // 1.0)
            else:
                assert budget.spend(now) is fits
                spent += [now // 1.0] if fits else []


@given(failures=st.integers(0, 3000), spread_s=st.floats(0, 9))
def test_simultaneous_failures_never_exceed_a_fifth_and_ten(failures, spread_s):
    """However they are ordered: all fail, then all ask."""
    budget = RetryBudget(BudgetSettings(), now=0.0)
    for number in range(failures):
        budget.completed(spread_s * number / failures)

    granted = sum(budget.spend(spread_s) for _ in range(failures))

    assert granted == min(failures, int(10 + 0.2 * failures))
