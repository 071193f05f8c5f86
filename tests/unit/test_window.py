import pytest

from outrigger.core.errors import Invalid
from sidecar.policy.window import Window


def test_counts_both_tallies_exactly():
    """Nothing is smoothed: what was added is what is read."""
    window = Window(now=100.0)
    window.add(100.1, 3, 1)
    window.add(104.9, 2, 2)

    assert window.read(105.0) == (5, 3)
    assert (window.total, window.marked) == (5, 3)


def test_a_bucket_falls_out_as_a_whole_after_the_window():
    """What came in second 100 counts until second 110 begins, and not after."""
    window = Window(now=100.0)
    window.add(100.9, 1, 1)
    window.add(101.0, 1, 0)

    assert window.read(109.999) == (2, 1)
    assert window.read(110.0) == (1, 0)
    assert window.read(111.0) == (0, 0)


@pytest.mark.parametrize("gap_s", [10.0, 11.0, 19.0, 20.0, 25.5, 86_400.0])
def test_an_idle_gap_longer_than_the_window_leaves_nothing(gap_s):
    """However long the pause, no bucket of before is counted as if it were new."""
    window = Window(now=0.0)
    for second in range(10):
        window.add(second + 0.5, 7, 3)

    assert window.read(9.5 + gap_s) == (0, 0)


def test_an_idle_gap_inside_the_window_drops_only_what_is_old():
    """Four idle seconds drop the four oldest buckets."""
    window = Window(now=0.0)
    for second in range(10):
        window.add(second + 0.5, 1, 1)

    assert window.read(13.5) == (6, 6)


def test_a_clock_that_runs_backwards_counts_in_the_newest_bucket():
    """Late news is not lost and not put into a bucket of the past."""
    window = Window(now=50.0)
    window.add(55.0, 1, 0)
    window.add(52.0, 1, 1)

    assert window.read(64.9) == (2, 1)
    assert window.read(65.0) == (0, 0)


def test_clear_forgets_everything():
    """After a recovery the failures of the outage no longer count."""
    window = Window(now=0.0)
    window.add(1.0, 9, 9)
    window.clear()

    assert window.read(1.0) == (0, 0)
    window.add(1.5, 1, 0)
    assert window.read(2.0) == (1, 0)


@pytest.mark.parametrize(("window_s", "buckets"), [(0.0, 10), (-1.0, 10), (10.0, 0)])
def test_an_impossible_window_is_refused(window_s, buckets):
    """A window without time or buckets is named as such."""
    with pytest.raises(Invalid, match="not possible") as caught:
        Window(now=0.0, window_s=window_s, buckets=buckets)

    assert caught.value.reason == "BAD_WINDOW"
