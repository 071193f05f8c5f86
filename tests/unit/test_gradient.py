import pytest

from outrigger.core.errors import Invalid
from sidecar.policy.gradient import Gradient, GradientSettings


class Callee:
    """Ends calls against a gradient, one window of twenty after the other."""

    def __init__(self, **settings):
        self.gradient = Gradient(GradientSettings(**settings), now=0.0)
        self.now = 0.0

    @property
    def limit(self):
        return self.gradient.limit

    def window(self, rtt_s, *, use=1.0, dropped=0, calls=20):
        """End calls within one window with a share of the limit in flight."""
        in_flight = max(1, int(use * self.limit))
        rtts = rtt_s if isinstance(rtt_s, list) else [rtt_s] * calls
        changed = []
        for number, one in enumerate(rtts, start=1):
            self.now += 1.0 if number == len(rtts) else 0.0
            late = number <= dropped
            changed.append(self.gradient.sample(one, in_flight, self.now, dropped=late))
        return any(changed)

    def windows(self, count, rtt_s, **how):
        for _ in range(count):
            self.window(rtt_s, **how)

    def queue(self, count, workers=10, service_s=0.02):
        """Let calls queue for workers as soon as the limit allows more than those."""
        for _ in range(count):
            self.window(service_s * max(1.0, self.limit / workers))


@pytest.fixture
def callee():
    """A callee with the default settings that takes 20 ms, known for ten windows."""
    known = Callee()
    known.windows(10, 0.02, use=0.2)
    return known


def test_begins_at_the_initial_limit():
    """Before anything is known the limit is the configured one."""
    assert Callee(initial=7).limit == 7
    assert Callee().gradient.usual_s is None


def test_grows_while_calls_are_not_slower(callee):
    """A full limit with steady round trips is too low; it stops at the most."""
    callee.windows(10, 0.02)
    assert callee.limit > 100

    callee.windows(100, 0.02)
    assert callee.limit == 1024


def test_after_the_first_queue_it_grows_by_a_share_of_its_root(callee):
    """A fifth of the square root per window: it comes near the knee slowly."""
    callee.windows(5, 0.02)
    callee.window(0.06)
    before = callee.limit

    callee.windows(10, 0.02)

    assert before + 5 < callee.limit < before + 0.2 * 10 * (before + 20) ** 0.5 + 1


def test_finds_the_knee_of_a_callee_that_queues():
    """Ten workers of 20 ms: enough for them all and no long queue, from both sides."""
    low, high = Callee(initial=4), Callee(initial=200)
    low.windows(10, 0.02, use=0.2)
    high.windows(10, 0.02, use=0.2)

    low.queue(100)
    high.queue(100)

    assert 10 <= low.limit <= 25
    assert 10 <= high.limit <= 25


def test_an_hour_of_overload_does_not_become_the_norm(callee):
    """The queue it allows itself is not what it measures queues by an hour later."""
    callee.queue(100)
    before = callee.limit

    callee.queue(3600)

    assert callee.limit <= 2 * before


def test_an_unused_limit_never_moves(callee):
    """With less than half in use nobody was held back, however fast or slow it was."""
    before = callee.limit

    callee.windows(20, 0.001, use=0.4)
    callee.windows(20, 5.0, use=0.4)
    callee.windows(20, 0.02, use=0.4, dropped=20)

    assert callee.limit == before


def test_drops_cut_the_limit_by_a_tenth():
    """Calls that time out or are turned away tell of an overload by themselves."""
    callee = Callee(initial=100)

    assert callee.window(0.02, dropped=2)

    assert callee.limit == 90


def test_a_method_that_now_and_then_times_out_does_not_cut_the_limit():
    """One in twenty is what some methods always lose."""
    callee = Callee(initial=100)
    callee.windows(10, 0.02, dropped=1)

    assert callee.limit >= 100


def test_how_long_a_drop_took_is_not_learnt(callee):
    """A connection refused in no time does not make the callee fast."""
    before = callee.gradient.usual_s

    callee.windows(50, [1e-5] * 10 + [0.02] * 10, use=0.4, dropped=10)

    assert callee.gradient.usual_s == pytest.approx(before)


def test_a_mix_of_fast_and_very_slow_methods_is_no_queue():
    """One call of ten seconds among a hundred of 5 ms, in every other window."""
    callee = Callee(initial=50)
    for _ in range(300):
        callee.window([0.005] * 100)
        callee.window([0.005] * 99 + [10.0])

    assert callee.limit >= 50


def test_a_callee_that_became_slower_for_good_is_not_throttled_for_good(callee):
    """If a smaller limit makes nothing faster, it was no queue."""
    callee.windows(10, 0.02)
    before = callee.limit

    callee.windows(60, 0.1)

    assert callee.limit > before * 0.75
    assert callee.gradient.usual_s == pytest.approx(0.1, rel=0.1)


def test_a_passing_slowness_is_not_compared_with_a_later_one(callee):
    """Fewer calls that are slow again much later may well be a queue again."""
    callee.windows(5, 0.02)
    callee.window(0.04)
    callee.window(0.02)
    callee.windows(5, 0.02, dropped=20)

    callee.window(0.1)

    assert callee.gradient.usual_s < 0.03


def test_the_memory_of_an_overload_fades_fast():
    """A long average far above the newest round trips is taken back at once."""
    callee = Callee()
    callee.windows(10, 2.0, use=0.2)

    callee.windows(60, 0.02, use=0.2)

    assert callee.gradient.usual_s < 0.05


def test_an_idle_gap_changes_nothing(callee):
    """Neither the time without calls nor the first slow call after it is a sign."""
    callee.windows(5, 0.02)
    before = callee.limit
    callee.now += 86_400

    changed = callee.window(3.0, calls=1)

    assert not changed
    assert callee.limit == before


def test_a_window_lasts_until_it_has_enough_calls():
    """Nine calls are not judged however long they took; the tenth ends the window."""
    callee = Callee(initial=8)
    callee.window(0.02, calls=9)
    callee.now += 5
    assert callee.limit == 8

    assert callee.window(0.02, calls=1)

    assert callee.limit > 8


def test_calls_that_took_no_time_are_taken():
    """A clock may not move during a call, and what was suspended is taken off."""
    callee = Callee(initial=8)

    assert callee.window([0.0, -0.001] * 10)

    assert callee.gradient.usual_s == pytest.approx(1e-6)


def test_it_never_falls_below_the_least():
    """Some calls must get through, or nothing is ever learnt again."""
    callee = Callee(initial=20, least=6)
    for _ in range(100):
        callee.window(0.02, dropped=20)

    assert callee.limit == 6


def test_it_says_when_the_limit_moved(callee):
    """Whoever hands out places looks only then."""
    assert callee.window(0.02)
    assert not callee.window(0.02, use=0.1)


def test_it_shows_itself():
    """For a log line."""
    assert repr(Callee().gradient) == "<Gradient limit 20, usual 0.000000 s>"


WRONG = {
    "least: 0 is less than 1": {"least": 0},
    "most: 1024 is less than initial, which is 2000": {"initial": 2000},
    "smoothing": {"smoothing": 0.0},
    "tolerance": {"tolerance": float("nan")},
    "window_s": {"window_s": 0.0},
    "window_samples": {"window_samples": 0},
    "long_window": {"long_window": 0},
}


@pytest.mark.parametrize("mistake", WRONG)
def test_each_impossible_setting_is_named(mistake):
    """Each bound is checked when the settings are made."""
    with pytest.raises(Invalid, match=mistake) as caught:
        GradientSettings(**WRONG[mistake])

    assert caught.value.reason == "BAD_GRADIENT"


def test_all_impossible_settings_are_named_at_once():
    """Mending them takes one round, not seven."""
    wrong = {key: value for one in WRONG.values() for key, value in one.items()}
    with pytest.raises(Invalid) as caught:
        GradientSettings(**wrong)

    assert all(mistake in caught.value.message for mistake in WRONG)
