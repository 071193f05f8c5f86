import pytest

from outrigger.core.errors import Invalid
from sidecar.call.descriptor import Origin
from sidecar.policy.outlier import Outliers, OutlierSettings, has_failed

SETTINGS = OutlierSettings(failures=3, base_s=5.0, max_s=12.0, jitter_ratio=0.2)


class Rig:
    """Addresses that answer and fail as a test says, each in its own generation."""

    def __init__(self, addresses="ab", settings=SETTINGS):
        self.outliers = Outliers(settings)
        self.outliers.keep(addresses)
        self.now = 100.0

    def answers(self, address, generation=None):
        return self.outliers.answered(address, self._of(address, generation), self.now)

    def fails(self, address, times=1, generation=None, draw=0.0):
        for _ in range(times):
            found = self.outliers.failed(
                address, self._of(address, generation), self.now, draw
            )
        return found

    def is_out(self, address):
        return self.outliers.is_ejected(address, self.now)

    def _of(self, address, generation):
        record = self.outliers.record(address)
        return record.generation if generation is None and record else generation


@pytest.fixture
def rig():
    """Two addresses, of which b answers."""
    made = Rig()
    made.fails("a")
    made.answers("b")
    return made


@pytest.mark.parametrize(
    "wrong",
    [
        {"failures": -1},
        {"base_s": 0.0},
        {"base_s": 61.0},
        {"jitter_ratio": 1.0},
        {"jitter_ratio": -0.1},
        {"max_ratio": 1.1},
        {"max_ratio": -0.1},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong):
    """Bounds that contradict one another are told at once."""
    with pytest.raises(Invalid, match="are not possible: ") as caught:
        OutlierSettings(**wrong)
    assert caught.value.reason == "BAD_OUTLIER"


def test_a_row_of_failures_ejects(rig):
    """The last failure of the row ejects, for the base time, and says why."""
    assert rig.fails("a") is None
    assert not rig.is_out("a")
    ejected = rig.fails("a")
    assert (ejected.address, ejected.until, ejected.times) == ("a", 105.0, 1)
    assert ejected.why == "3 failures in a row while others answered"
    assert rig.is_out("a")
    rig.now = 105.0
    assert not rig.is_out("a")


def test_an_answer_ends_the_row(rig):
    """Failures are counted in a row, not in all."""
    rig.fails("a")
    assert rig.answers("a") is None
    rig.now += 1
    assert rig.fails("a", 2) is None
    assert rig.fails("a", 1) is None  # b has not answered since this row began
    rig.answers("b")
    assert rig.fails("a") is not None


def test_what_fails_everywhere_is_no_outlier():
    """In an outage nothing is ejected, so that all are there when it is over."""
    rig = Rig("abcd")
    for address in "abcd" * 10:
        assert rig.fails(address) is None
    rig.answers("d")
    assert rig.fails("a") is not None


def test_an_answer_before_the_row_does_not_count():
    """Another address that answered once may be down as well by now."""
    rig = Rig()
    rig.answers("b")
    rig.now += 1
    assert rig.fails("a", 10) is None


def test_an_ejected_address_does_not_vouch_for_others():
    """Answers during an ejection prove nothing about anybody."""
    rig = Rig("abcd")
    rig.fails("a")
    rig.answers("b")
    assert rig.fails("a", 2) is not None
    rig.now += 1
    rig.fails("b")
    rig.answers("a")
    assert rig.fails("b", 5) is None


def test_a_failure_on_trial_ejects_again_and_for_longer(rig):
    """After its return one failure is enough, up to the longest ejection."""
    rig.fails("a", 2)
    lengths = []
    for _ in range(3):
        rig.now = rig.outliers.record("a").until
        rig.answers("b")
        again = rig.fails("a")
        assert again.why == "it failed again when it was tried again"
        lengths.append(again.until - rig.now)
    assert lengths == [10.0, 12.0, 12.0]


def test_a_trial_in_an_outage_is_no_ejection(rig):
    """If nobody answered since it was ejected, its return is as good as any."""
    rig.now += 1
    assert rig.fails("a", 2) is not None
    rig.now += 6
    assert rig.fails("a", 5) is None
    rig.answers("b")
    assert rig.fails("a") is not None


def test_an_answer_on_trial_clears(rig):
    """Who answers again is told of once, and has a whole row of failures again."""
    rig.fails("a", 2)
    rig.now += 6
    cleared = rig.answers("a")
    assert (cleared.address, cleared.after_s) == ("a", 6.0)
    assert rig.answers("a") is None
    rig.fails("a")
    rig.answers("b")
    assert rig.fails("a") is None
    assert rig.fails("a").times == 2


def test_ejections_are_forgotten_after_holding_out(rig):
    """An address that was well for the longest ejection starts at the base time."""
    rig.fails("a", 2)
    rig.now = 105.0
    rig.answers("a")
    rig.now = 105.0 + SETTINGS.max_s + 1
    rig.fails("a")
    rig.answers("b")
    ejected = rig.fails("a", 2)
    assert (ejected.times, ejected.until - rig.now) == (1, 5.0)


def test_old_news_is_ignored(rig):
    """Attempts that began before an ejection neither clear nor eject after it."""
    rig.fails("a", 2)
    rig.now += 6
    rig.answers("b")
    assert rig.fails("a", 5, generation=0) is None
    assert rig.answers("a", generation=0) is None
    assert rig.fails("a") is not None


def test_what_happens_during_an_ejection_is_ignored(rig):
    """Calls that went there for want of another neither shorten nor lengthen it."""
    until = rig.fails("a", 2).until
    rig.now += 1
    assert rig.answers("a") is None
    assert rig.fails("a", 10) is None
    assert rig.outliers.record("a").until == until


@pytest.mark.parametrize(
    ("count", "ratio", "out"),
    [(1, 1.0, 0), (2, 0.5, 1), (3, 0.5, 1), (4, 0.5, 2), (5, 1.0, 4), (4, 0.0, 0)],
)
def test_only_so_many_are_ejected(count, ratio, out):
    """The share counts the one to be ejected, and the last one always stays."""
    addresses = [str(number) for number in range(count)]
    rig = Rig(addresses, OutlierSettings(failures=1, max_ratio=ratio))
    for address in addresses:
        for other in addresses:
            rig.answers(other)
        rig.fails(address)
    assert sum(rig.is_out(address) for address in addresses) == out


def test_room_comes_back_with_an_address():
    """Where too many were out, the next failure ejects once there is room."""
    rig = Rig("ab")
    for address in "ab":
        rig.fails(address)
    rig.answers("b")
    assert rig.fails("a", 2) is not None
    assert rig.fails("b", 5) is None
    rig.now += 6
    rig.answers("a")
    assert rig.fails("b", 1).address == "b"


def test_chance_shortens_an_ejection(rig):
    """The jitter leaves out a share of the time, never adds any."""
    assert rig.fails("a", 2, draw=0.5).until == pytest.approx(100 + 5 * 0.9)


def test_no_failures_allowed_means_never():
    """With 0 failures nothing is ejected."""
    rig = Rig("ab", OutlierSettings(failures=0))
    rig.fails("a")
    rig.answers("b")
    assert rig.fails("a", 100) is None


def test_addresses_come_and_go(rig):
    """Who stays keeps its record, who goes is forgotten, strangers are ignored."""
    rig.fails("a", 2)
    rig.outliers.keep("ac")
    assert rig.is_out("a")
    assert rig.outliers.record("b") is None
    assert rig.fails("b", generation=0) is None
    assert rig.answers("b", generation=0) is None
    assert not rig.is_out("b")
    rig.outliers.keep("c")
    rig.outliers.keep("ac")
    assert not rig.is_out("a")


UP, LOST, US, WHO = Origin.UPSTREAM, Origin.TRANSPORT, Origin.LOCAL, Origin.UNKNOWN


@pytest.mark.parametrize(
    ("code", "origin", "failed"),
    [
        (0, UP, False),
        (5, UP, False),
        (13, UP, False),
        (8, UP, False),
        (14, UP, True),
        (4, UP, True),
        (14, LOST, True),
        (4, LOST, True),
        (13, LOST, True),
        (14, WHO, True),
        (4, WHO, True),
        (13, WHO, None),
        (1, WHO, None),
        (14, US, None),
        (4, US, None),
    ],
)
def test_what_counts_against_an_address(code, origin, failed):
    """No connection and a gateway's statuses do, any other answer clears it."""
    assert has_failed(code, origin) is failed
