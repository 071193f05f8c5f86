"""The learnt limit under any calls at all."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.gradient import Gradient, GradientSettings

CALLS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.01, 0.3, 1.0, 5000.0]),
        st.one_of(st.floats(-0.001, 1e6), st.sampled_from([0.0, 0.01, 0.02])),
        st.integers(0, 2000),
        st.booleans(),
    ),
    max_size=200,
)
SETTINGS = st.builds(
    GradientSettings,
    initial=st.integers(5, 50),
    least=st.integers(1, 5),
    most=st.integers(50, 1000),
    smoothing=st.sampled_from([0.01, 0.2, 1.0]),
    window_samples=st.integers(1, 5),
    long_window=st.sampled_from([1, 10, 600]),
)


@given(settings=SETTINGS, calls=CALLS)
def test_the_limit_keeps_its_bounds_and_says_when_it_moves(settings, calls):
    """Whatever ends however: least <= limit <= most, True exactly if it changed."""
    gradient = Gradient(settings, now=0.0)
    now = 0.0
    for gap_s, rtt_s, in_flight, dropped in calls:
        now += gap_s
        before = gradient.limit

        moved = gradient.sample(rtt_s, in_flight, now, dropped=dropped)

        assert settings.least <= gradient.limit <= settings.most
        assert moved is (gradient.limit != before)


@given(
    windows=st.lists(st.sampled_from([0.010, 0.012, 0.0149]), max_size=200),
    use=st.floats(0.5, 1.0),
)
def test_round_trips_within_the_tolerance_never_shrink_it(windows, use):
    """Less than half as much again as the least of them is no queue."""
    gradient = Gradient(GradientSettings(window_samples=3), now=0.0)
    now, limit = 0.0, gradient.limit
    for rtt_s in windows:
        now += 1.0
        for _ in range(3):
            gradient.sample(rtt_s, round(use * gradient.limit + 0.5), now)

        assert gradient.limit >= limit
        limit = gradient.limit
