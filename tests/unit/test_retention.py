import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrigger.core.errors import Invalid
from sidecar.policy.retention import MIN_GOOD, Held, Retention, removable

NOW = 1000.0


def held(generation, *, good=True, age_s=0.0, size=1):
    return Held(generation=generation, wall_s=NOW - age_s, stored_bytes=size, good=good)


def test_the_oldest_beyond_keep_go():
    """Five good ones and keep 3: the two oldest go, oldest first."""
    found = [held(generation) for generation in (3, 1, 5, 2, 4)]

    assert removable(found, Retention(keep=3), NOW) == (1, 2)


def test_bad_ones_do_not_count_as_kept():
    """Two good ones stay although a bad one lies between; the bad one goes."""
    found = [held(1), held(2), held(3, good=False), held(4)]

    assert removable(found, Retention(keep=2), NOW) == (1, 3)


def test_a_bad_newest_keeps_its_number():
    """The newest stays, bad as it is, so that its number is never given again."""
    found = [held(1), held(2), held(3), held(4, good=False)]

    assert removable(found, Retention(keep=2), NOW) == (1,)


def test_nothing_goes_while_fewer_than_two_are_good():
    """With one good generation left even the bad ones stay."""
    found = [held(1, good=False), held(2), held(3, good=False)]

    assert removable(found, Retention(keep=2, max_age_s=0, max_bytes=0), NOW) == ()


def test_age_takes_only_what_may_go():
    """Older than the limit goes, but never the two newest good."""
    found = [held(n, age_s=100 - n) for n in range(1, 5)]

    assert removable(found, Retention(max_age_s=97), NOW) == (1, 2)
    assert removable(found, Retention(max_age_s=1), NOW) == (1, 2)


def test_bytes_are_counted_from_the_newest():
    """What no longer fits beside the newer ones goes."""
    found = [held(n, size=10) for n in range(1, 6)]

    assert removable(found, Retention(max_bytes=35), NOW) == (1, 2)
    assert removable(found, Retention(max_bytes=0), NOW) == (1, 2, 3)


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_keeping_fewer_than_two_is_refused(keep):
    """One rotten generation must never be the last one."""
    with pytest.raises(Invalid, match="at least 2"):
        Retention(keep=keep)


@given(
    st.lists(
        st.builds(
            Held,
            generation=st.integers(1, 40),
            wall_s=st.floats(0, 2000),
            stored_bytes=st.integers(0, 100),
            good=st.booleans(),
        ),
        unique_by=lambda one: one.generation,
    ),
    st.builds(
        Retention,
        keep=st.integers(2, 9),
        max_age_s=st.none() | st.floats(0, 2000),
        max_bytes=st.none() | st.integers(0, 500),
    ),
)
def test_two_newest_good_and_the_newest_always_stay(found, retention):
    """Whatever the limits say; and removing twice removes nothing more."""
    gone = removable(found, retention, NOW)
    left = [one for one in found if one.generation not in gone]

    def newest(these):
        return sorted(these, key=lambda one: -one.generation)

    good = newest(one for one in found if one.good)
    assert set(good[:MIN_GOOD]) <= set(left)
    assert newest(found)[:1] == newest(left)[:1]
    assert len([one for one in left if one.good]) <= max(retention.keep, len(good[:2]))
    assert list(gone) == sorted(gone)
    assert removable(left, retention, NOW) == ()
