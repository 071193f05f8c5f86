import math
import random

import pytest

from outrigger.core.errors import Invalid
from sidecar.policy.baseline import Baseline, BaselineSettings, improbable


class Method:
    """A method observed once a second; failures come as evenly as they can."""

    def __init__(self, **settings):
        self.baseline = Baseline(BaselineSettings(**settings), now=0.0)
        self.now = 0.0
        self._owed = 0.0

    def seconds(self, count, calls=10, share=0.0, duration_s=None):
        for _ in range(count):
            self.now += 1
            self._owed += share * calls
            failures = int(self._owed)
            self._owed -= failures
            self.baseline.observe(calls, failures, self.now)
            if duration_s is not None:
                self.baseline.latency(duration_s)

    def trips(self, count):
        for _ in range(count):
            self.baseline.discard(self.now)

    def threshold(self, calls=100):
        return self.baseline.failure_threshold(calls)


@pytest.fixture
def healthy():
    """A method that failed once in a hundred calls for an hour, at 10 a second."""
    method = Method()
    method.seconds(3600, share=0.01, duration_s=0.1)
    return method


@pytest.fixture
def shaky():
    """One that fails two calls in five."""
    method = Method()
    method.seconds(3600, share=0.4)
    return method


def test_nothing_is_known_at_first():
    """Then the fixed thresholds decide."""
    method = Method()
    method.seconds(60)

    assert method.threshold() is None
    assert method.baseline.slow_s() is None
    assert method.baseline.rate is None


def test_a_minute_of_history_and_a_minute_of_caution_are_enough():
    """So long as the minute had two hundred calls."""
    method, rare = Method(), Method()
    method.seconds(125)
    rare.seconds(125, calls=1)

    assert method.threshold() is not None
    assert rare.threshold() is None
    rare.seconds(200, calls=1)
    assert rare.threshold() is not None


def test_many_calls_in_a_short_time_are_no_history():
    """What happened within one minute may be anything."""
    method = Method()
    method.seconds(85, calls=1000)

    assert method.threshold() is None


def test_the_threshold_is_what_history_makes_improbable(healthy):
    """One in a hundred: eleven of a hundred are no accident, nor five in a row."""
    assert healthy.baseline.rate == pytest.approx(0.012, abs=0.002)
    assert healthy.threshold(100) == 11
    assert healthy.threshold(10) == 5
    assert healthy.threshold(5) == 5


def test_a_method_that_fails_often_is_given_more(shaky):
    """Two in five: not even ten of ten prove anything, sixteen of sixteen do."""
    assert 60 <= shaky.threshold(100) <= 75
    assert shaky.threshold(10) == 11
    assert shaky.threshold(17) <= 17


def test_it_never_opens_below_a_tenth_or_five():
    """Of a thousand calls seventeen failures are improbable and still too few."""
    method = Method()
    method.seconds(3600)

    assert method.threshold(1000) == 100
    assert method.threshold(4) == 5
    assert method.threshold(0) == 5


def test_a_method_that_never_fails_is_believed_to_fail_now_and_then():
    """Else the second failure in a year would be an outage."""
    method = Method()
    method.seconds(36_000, calls=100)

    assert method.baseline.rate == 0.005


def test_the_first_failures_of_an_outage_are_not_learnt(healthy):
    """The circuit opens; what came in the half minute before it is dropped."""
    before = healthy.baseline.rate
    healthy.seconds(30, share=1.0)
    healthy.trips(1)
    healthy.seconds(120, share=0.01)

    assert healthy.baseline.rate == pytest.approx(before, rel=0.05)
    assert healthy.threshold(100) == 11


def test_what_came_before_the_held_minute_is_kept(healthy):
    """Opening costs the last minute and not the hour."""
    healthy.trips(1)

    assert healthy.threshold(100) == 11


def test_what_is_believed_doubles_in_an_hour_at_most(healthy):
    """Ten minutes of nine in a hundred, below the threshold, change little."""
    before = healthy.baseline.rate
    healthy.seconds(600, share=0.09)

    assert healthy.baseline.rate <= before * 2 ** (1 / 6)

    healthy.seconds(3000, share=0.09)
    assert healthy.baseline.rate <= before * 2


def test_what_is_believed_may_fall_at_once(shaky):
    """A method that was mended is judged by what it does now."""
    shaky.seconds(3 * 3600)

    assert shaky.baseline.rate < 0.02


def test_a_pause_neither_ages_history_nor_is_some(healthy):
    """A night without calls, or without power, and all is as it was."""
    before = healthy.threshold(100)
    healthy.now += 86_400
    healthy.seconds(3, calls=0)

    assert healthy.threshold(100) == before

    empty = Method()
    empty.seconds(30)
    empty.now += 86_400
    empty.seconds(1)
    assert empty.threshold() is None


def test_a_rare_method_keeps_its_history():
    """One call in ten seconds: two thousand of them take many half-lives."""
    method = Method()
    for _ in range(2000):
        method.seconds(1, calls=1)
        method.seconds(9, calls=0)

    assert method.baseline.rate == pytest.approx(0.005, abs=0.001)


def test_clustered_failures_count_as_fewer():
    """A burst like those of each minute opens no circuit; the rate is the same."""
    even, bursty = Method(), Method()
    for _ in range(60):
        even.seconds(60, calls=100, share=0.1)
        bursty.seconds(50, calls=100, share=0.072)
        bursty.seconds(10, calls=100, share=0.24)

    assert bursty.baseline.rate == pytest.approx(even.baseline.rate, rel=0.05)
    assert even.threshold(1000) < 200
    assert bursty.threshold(1000) > 240


def test_one_brownout_does_not_pass_for_clusters(healthy):
    """Five minutes with every other call failing leave it watchful."""
    healthy.seconds(300, share=0.5)
    healthy.seconds(120, share=0.01)

    assert healthy.threshold(100) <= 16


def test_openings_in_a_row_stand_it_down(healthy):
    """What was learnt does not fit: for a while only what fits no method opens."""
    healthy.trips(2)
    assert healthy.threshold(100) == 11

    healthy.trips(1)
    healthy.seconds(890, share=0.15)
    assert healthy.threshold(100) == 76
    assert healthy.threshold(20) == 20

    healthy.seconds(60, share=0.15)
    assert healthy.threshold(100) < 50


def test_openings_far_between_do_not_stand_it_down(healthy):
    """Each was an outage of its own, with health in between."""
    for _ in range(10):
        healthy.trips(1)
        healthy.seconds(180, share=0.01)

    assert healthy.threshold(100) == 11


def test_a_method_that_opens_fixed_thresholds_is_learnt_all_the_same():
    """Nothing would ever be believed if every opening dropped it."""
    method = Method()
    for _ in range(3):
        method.seconds(2, share=0.45)
        method.trips(1)
    assert method.threshold(100) == 76

    method.seconds(180, share=0.45)

    assert method.baseline.rate == pytest.approx(0.48, abs=0.02)
    assert method.threshold(100) < 76


def test_no_rate_above_a_half_is_believed():
    """A dead callee that was learnt as normal would stay dead to us."""
    method = Method()
    method.seconds(3600, share=0.9)

    assert method.baseline.rate == 0.5
    assert method.threshold(40) <= 40


def test_slow_is_three_times_what_few_calls_exceed(healthy):
    """100 ms each: a call of a good 300 ms is slow, within a bucket of 19 %."""
    assert 0.3 <= healthy.baseline.slow_s() <= 0.3 * 2**0.25


def test_the_99th_percentile_is_what_counts():
    """Two in a hundred that take a second are the method's own; one in 200 is not."""
    method, rare = Method(), Method()
    for second in range(1000):
        method.seconds(1, duration_s=1.0 if second % 50 == 0 else 0.05)
        rare.seconds(1, duration_s=1.0 if second % 200 == 0 else 0.05)

    assert 3.0 <= method.baseline.slow_s() <= 3.0 * 2**0.25
    assert 0.15 <= rare.baseline.slow_s() <= 0.15 * 2**0.25


def test_a_very_fast_method_is_not_slow_soon():
    """A pause of the garbage collector is no sign; a tenth of a second may be."""
    method = Method()
    method.seconds(300, duration_s=0.0)

    assert method.baseline.slow_s() == 0.1


def test_a_duration_beyond_the_scale_is_taken():
    """Fourteen minutes and more are all alike."""
    method = Method()
    method.seconds(300, duration_s=1e6)

    assert method.baseline.slow_s() == pytest.approx(3 * 1e-4 * 2**23)


def test_durations_of_an_outage_are_dropped_and_grow_slowly(healthy):
    """As with the failures."""
    before = healthy.baseline.slow_s()
    healthy.seconds(30, duration_s=50.0)
    healthy.trips(1)
    healthy.seconds(200, duration_s=0.1)
    assert healthy.baseline.slow_s() == pytest.approx(before, rel=0.01)

    healthy.seconds(3600, duration_s=50.0)
    assert healthy.baseline.slow_s() <= before * 2.2


def test_few_durations_are_no_percentile():
    """A hundredth of less than a hundred is nobody."""
    method = Method()
    method.seconds(99, duration_s=0.1)
    method.seconds(200)

    assert method.baseline.slow_s() is None


def test_real_chance_opens_nothing():
    """A day's worth of windows of independent failures never reaches the threshold."""
    draw = random.Random(7)
    method = Method()
    method.seconds(3600, share=0.2)
    most = method.threshold(100)

    assert all(sum(draw.random() < 0.2 for _ in range(100)) < most for _ in range(8640))


def test_it_shows_itself():
    """For a log line."""
    assert repr(Method().baseline) == "<Baseline fails None, p99 None s>"


def test_improbable_says_when_nothing_is():
    """One failure of one proves nothing; certainty asks for nothing."""
    assert improbable(1, 0.5, -math.log(1e-6)) == 2
    assert improbable(0, 0.5, -math.log(1e-6)) == 1


WRONG = {
    "alpha must be": {"alpha": 0.0},
    "floor_ratio <= ceiling_ratio": {"floor_ratio": 0.6},
    "least_ratio must be": {"least_ratio": 0.0},
    "least_failures and min_calls": {"min_calls": 0},
    "times must be": {"hold_s": 0.0},
    "growth_per_hour and slow_factor": {"growth_per_hour": 0.5},
}


@pytest.mark.parametrize("mistake", WRONG)
def test_each_impossible_setting_is_named(mistake):
    """Each bound is checked when the settings are made."""
    with pytest.raises(Invalid, match=mistake) as caught:
        BaselineSettings(**WRONG[mistake])

    assert caught.value.reason == "BAD_BASELINE"


def test_all_impossible_settings_are_named_at_once():
    """Mending them takes one round, not six."""
    wrong = {key: value for one in WRONG.values() for key, value in one.items()}
    with pytest.raises(Invalid) as caught:
        BaselineSettings(**wrong)

    assert all(mistake in caught.value.message for mistake in WRONG)
