"""Ejection against a recount of everything that was decided."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.outlier import Outliers, OutlierSettings

ADDRESSES = tuple("abcde")
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.0, 0.1, 2.0, 9.0, 80.0]),
        st.sampled_from(ADDRESSES),
        st.sampled_from(["answered", "failed", "failed", "failed"]),
        st.integers(0, 1),  # how many ejections old the news is
        st.floats(0, 0.999),
    ),
    max_size=120,
)
SETTINGS = st.builds(
    OutlierSettings,
    failures=st.integers(0, 4),
    base_s=st.sampled_from([1.0, 5.0]),
    max_s=st.sampled_from([5.0, 60.0]),
    jitter_ratio=st.sampled_from([0.0, 0.5]),
    max_ratio=st.sampled_from([0.0, 0.4, 0.5, 1.0]),
)


@given(settings=SETTINGS, steps=STEPS, count=st.integers(1, 5))
def test_ejections_stay_within_their_bounds(settings, steps, count):
    """Never too many, never the last, never too long, never in a total outage."""
    addresses = ADDRESSES[:count]
    outliers = Outliers(settings)
    outliers.keep(addresses)
    most = min(int(count * settings.max_ratio), count - 1)
    now, answered, row = 0.0, dict.fromkeys(ADDRESSES, -1.0), dict.fromkeys(ADDRESSES)
    for gap_s, address, what, age, draw in steps:
        now += gap_s
        record = outliers.record(address)
        generation = record.generation - age if record else 0
        if what == "answered":
            outliers.answered(address, generation, now)
            answered[address], row[address] = now, None
            continue
        row[address] = now if row[address] is None else row[address]
        ejected = outliers.failed(address, generation, now, draw)
        out = [one for one in addresses if outliers.is_ejected(one, now)]
        assert len(out) <= most
        if ejected is None:
            continue
        assert settings.failures > 0
        assert address in out
        assert 0 < ejected.until - now <= settings.max_s
        others = [answered[one] for one in addresses if one != address]
        assert max(others) >= row[address] or ejected.times > 1
