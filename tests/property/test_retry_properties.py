"""Delays, for any failure and any drawn number."""

import math

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.retry import (
    DO_NOT_RETRY,
    Failure,
    RetrySettings,
    next_delay_s,
    pushback_s,
)

DRAW = st.floats(0, 1, exclude_max=True)
SECONDS = st.floats(0, 100)
SETTINGS = st.builds(
    lambda base, more, most: RetrySettings(
        base_s=base, cap_s=base + more, pushback_max_s=most
    ),
    st.floats(0.001, 1),
    SECONDS,
    SECONDS,
)
FAILURES = st.builds(
    Failure,
    step=st.integers(0, 2000),
    pushback_s=st.one_of(st.none(), st.just(DO_NOT_RETRY), SECONDS),
    hint_s=st.one_of(st.just(0.0), SECONDS),
    room_s=st.one_of(st.just(math.inf), st.floats(-1, 100)),
    typical_s=st.one_of(st.just(0.0), st.floats(0, 10)),
)


@given(settings=SETTINGS, failure=FAILURES, draw=DRAW)
def test_every_delay_is_within_its_bounds(settings, failure, draw):
    """Push-back exact; else the hint and at most the capped, doubled bound on top."""
    delay = next_delay_s(settings, failure, draw)
    if delay is None:
        return

    if failure.pushback_s is not None:
        assert delay == failure.pushback_s <= settings.pushback_max_s
        return
    bound = min(settings.cap_s, settings.base_s * 2.0 ** min(failure.step, 60))
    assert failure.hint_s <= delay <= failure.hint_s + bound


@given(settings=SETTINGS, failure=FAILURES, draw=DRAW)
def test_no_attempt_begins_that_cannot_finish(settings, failure, draw):
    """Wait and usual duration end before the caller's time does."""
    delay = next_delay_s(settings, failure, draw)

    assert delay is None or delay + failure.typical_s < failure.room_s


@given(settings=SETTINGS, failure=FAILURES, draw=DRAW)
def test_a_no_is_a_no(settings, failure, draw):
    """Whatever else is known."""
    failure.pushback_s = DO_NOT_RETRY

    assert next_delay_s(settings, failure, draw) is None


@given(value=st.one_of(st.text(max_size=12), st.binary(max_size=12)))
def test_any_push_back_is_a_delay_or_a_no(value):
    """Nothing a callee sends is an error of ours, and nothing is a huge delay."""
    found = pushback_s((("grpc-retry-pushback-ms", value),))

    assert found == DO_NOT_RETRY or 0 <= found < 1_000_000


@given(milliseconds=st.integers(0, 999_999_999))
def test_whole_milliseconds_are_read_exactly(milliseconds):
    """Up to eleven days; who asks for more gets no retry."""
    found = pushback_s((("grpc-retry-pushback-ms", str(milliseconds)),))

    assert found == milliseconds / 1000
