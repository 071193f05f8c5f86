import math

import pytest

from outrigger.core.errors import Invalid
from sidecar.policy.retry import (
    DO_NOT_RETRY,
    Failure,
    RetrySettings,
    next_delay_s,
    pushback_s,
)

SETTINGS = RetrySettings()
KEY = "grpc-retry-pushback-ms"


def delay(draw=0.5, settings=SETTINGS, **known):
    """Compute the delay after a failure with nothing special about it."""
    failure = Failure(**({"step": 0, "room_s": math.inf} | known))
    return next_delay_s(settings, failure, draw)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("250", 0.25),
        ("0", 0.0),
        ("007", 0.007),
        ("-1", DO_NOT_RETRY),
        ("abc", DO_NOT_RETRY),
        ("", DO_NOT_RETRY),
        ("1.5", DO_NOT_RETRY),
        ("+5", DO_NOT_RETRY),
        (" 5", DO_NOT_RETRY),
        ("5\n", DO_NOT_RETRY),
        ("\u0665", DO_NOT_RETRY),
        ("9999999999", DO_NOT_RETRY),
        (b"250", DO_NOT_RETRY),
    ],
)
def test_a_push_back_is_a_delay_or_a_no(value, expected):
    """Whole milliseconds are a delay; everything else means do not retry (A6)."""
    assert pushback_s(((KEY, value),)) == expected


def test_no_push_back_is_not_a_push_back_of_zero():
    """Without it we choose the delay."""
    assert pushback_s((("other", "1"),)) is None


def test_two_push_backs_mean_do_not_retry():
    """Whoever sends two values wants nothing we could know."""
    assert pushback_s(((KEY, "1"), (KEY, "2"))) == DO_NOT_RETRY


def test_the_delay_is_anything_below_a_bound_that_doubles():
    """Full jitter: from nothing to the bound; the bound is capped."""
    assert delay(draw=0.0) == 0.0
    bounds = [delay(draw=1.0, step=step) for step in range(7)]

    assert bounds == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0])
    assert delay(draw=1.0, step=10_000) == 1.0


def test_a_push_back_is_exact():
    """The callee's word wins over our backoff, without jitter."""
    assert delay(draw=0.9, pushback_s=0.25, step=4) == 0.25
    assert delay(draw=0.9, pushback_s=0.0) == 0.0


def test_a_push_back_may_say_no():
    """Negative, or longer than we are ready to hold a call."""
    assert delay(pushback_s=DO_NOT_RETRY) is None
    assert delay(pushback_s=30.0) == 30.0
    assert delay(pushback_s=30.1) is None


def test_retry_info_is_waited_for_at_least():
    """Our own wait comes on top, so that its readers do not return together."""
    assert delay(draw=0.5, hint_s=2.0) == pytest.approx(2.025)
    assert delay(draw=0.5, hint_s=31.0) is None
    assert delay(draw=0.0, hint_s=-3.0) == 0.0


def test_no_attempt_that_cannot_finish():
    """The wait and what the method usually takes must fit in what is left."""
    assert delay(draw=1.0, room_s=0.0501) == 0.05
    assert delay(draw=1.0, room_s=0.05) is None
    assert delay(draw=0.0, typical_s=1.0, room_s=1.1) == 0.0
    assert delay(draw=0.0, typical_s=1.0, room_s=1.0) is None
    assert delay(draw=0.0, room_s=0.0) is None
    assert delay(pushback_s=1.0, room_s=0.9) is None


@pytest.mark.parametrize(
    "wrong", [{"base_s": 0.0}, {"base_s": 2.0, "cap_s": 1.0}, {"pushback_max_s": -1.0}]
)
def test_impossible_settings_are_refused(wrong):
    """Each bound is checked when the settings are made."""
    with pytest.raises(Invalid) as caught:
        RetrySettings(**wrong)

    assert caught.value.reason == "BAD_RETRY"
