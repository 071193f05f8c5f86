"""The window against a list of everything that ever came."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.window import Window

STEPS = st.lists(
    st.tuples(
        st.one_of(st.floats(0, 3), st.floats(0, 60), st.sampled_from([0.0, 1.0, 10.0])),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    max_size=60,
)


@given(
    start=st.floats(0, 1e6),
    steps=STEPS,
    shape=st.sampled_from([(10.0, 10), (1.0, 4), (5.0, 1), (0.5, 8)]),
)
def test_the_window_holds_exactly_what_came_in_its_buckets(start, steps, shape):
    """At every moment, whatever the gaps, both tallies equal the recount."""
    window_s, buckets = shape
    width = window_s / buckets
    window = Window(now=start, window_s=window_s, buckets=buckets)
    seen = []
    now = start
    for gap_s, total, marked in steps:
        now += gap_s
        window.add(now, total, marked)
        seen.append((now // width, total, marked))

        kept = [item for item in seen if item[0] > now // width - buckets]

        assert window.read(now) == (
            sum(total for _, total, _ in kept),
            sum(marked for _, _, marked in kept),
        )


@given(steps=STEPS)
def test_tallies_never_go_below_nothing(steps):
    """Also when read between two additions and far in the future."""
    window = Window(now=0.0)
    now = 0.0
    for gap_s, total, marked in steps:
        now += gap_s
        window.add(now, total, marked)
        assert min(window.read(now + 5)) >= 0
        now += 5

    assert window.read(now + 100) == (0, 0)
