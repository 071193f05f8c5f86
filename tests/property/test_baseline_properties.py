"""What is called improbable against the exact binomial, and outages of anything."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy.baseline import Baseline, BaselineSettings, improbable, upper_bound

ALPHA = 1e-6
COST = -math.log(ALPHA)


def tail(calls, rate, least):
    """Return the probability of at least so many failures, summed exactly."""
    one = Fraction(rate)
    return float(
        sum(
            math.comb(calls, count) * one**count * (1 - one) ** (calls - count)
            for count in range(least, calls + 1)
        )
    )


@given(calls=st.integers(0, 80), rate=st.floats(0.005, 0.5))
def test_the_bound_is_safe_and_hardly_more_than_exact(calls, rate):
    """The tail from it on is below alpha; three failures fewer are no more so."""
    found = improbable(calls, rate, COST)

    assert tail(calls, rate, found) <= ALPHA
    assert 0 < found <= calls + 1
    if found > 3:
        assert tail(calls, rate, found - 3) > ALPHA


@given(calls=st.integers(1, 100_000), rate=st.floats(0.005, 0.5))
def test_it_is_the_least_number_the_bound_allows(calls, rate):
    """Found by halving, checked against its neighbour."""
    found = improbable(calls, rate, COST)
    if found > calls or found - 1 <= calls * rate:
        return
    below = (found - 1) / calls
    entropy = below * math.log(below / rate) + (1 - below) * math.log(
        (1 - below) / (1 - rate)
    )

    assert calls * entropy < COST


@given(calls=st.integers(1, 10_000), data=st.data())
def test_the_upper_bound_is_above_what_was_seen(calls, data):
    """And never more than all."""
    failures = data.draw(st.integers(0, calls))

    assert failures / calls - 1e-9 <= upper_bound(failures, calls) <= 1 + 1e-9


HISTORY = st.lists(
    st.tuples(
        st.integers(1, 300),
        st.integers(0, 200),
        st.floats(0, 1),
        st.sampled_from(["observe", "observe", "observe", "discard"]),
    ),
    min_size=5,
    max_size=60,
)


@given(history=HISTORY)
def test_a_dead_callee_opens_whatever_was_learnt(history):
    """Forty failures in a row are enough, and a threshold never asks for too few."""
    baseline = Baseline(BaselineSettings(), now=0.0)
    now = 0.0
    for seconds, calls, share, what in history:
        for _ in range(seconds):
            now += 1
            baseline.observe(calls, int(calls * share), now)
        if what == "discard":
            baseline.discard(now)

        for row in (5, 20, 40, 1000):
            most = baseline.failure_threshold(row)
            if most is not None:
                assert most >= max(5, row / 10)
                assert row < 40 or most <= row


@pytest.mark.parametrize("calls", [1, 10, 100, 1000])
@given(history=HISTORY)
@settings(max_examples=20)
def test_more_calls_never_ask_for_fewer_failures(calls, history):
    """The threshold rises with the window, or an old success could open a circuit."""
    baseline = Baseline(BaselineSettings(), now=0.0)
    now = 0.0
    for seconds, seen, share, _ in history:
        for _ in range(seconds):
            now += 1
            baseline.observe(seen, int(seen * share), now)
    one, two = (baseline.failure_threshold(count) for count in (calls, calls + 1))

    assert one is None or two is None or min(one, calls + 1) <= two
