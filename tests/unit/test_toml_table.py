"""Tables of a TOML file: every mistake once, with its place."""

from dataclasses import dataclass

from sidecar.policy.bounds import above, ordered, refuse
from sidecar.toml_table import Given, as_table, build, place_of, read
from sidecar.toml_value import COUNT, TIME

A_TIME = "got the text 'x'; expected a time such as 1.5, 300ms, 5s, 2m, 1h or 1d"
KINDS = {"low": COUNT, "high": COUNT, "wait_s": TIME}


@dataclass(frozen=True)
class Pair:
    """Two numbers in order."""

    low: int = 1
    high: int = 5
    wait_s: float = 1.0

    def __post_init__(self):
        refuse("BAD_PAIR", "no pair", self._mistakes())

    def _mistakes(self):
        yield from above(self, 0, "low", "high", "wait_s")
        yield from ordered(self, "low", "high")


def made(own, defaults=None):
    """Return the settings of a table over another, and what was told of each."""
    told_before: list[str] = []
    told: list[str] = []
    usual = read("t", defaults or {}, KINDS, told_before)
    build(Pair, usual, Given(), "t", told_before)
    given = read("x.t", own, KINDS, told)
    return build(Pair, given, usual, "x.t", told), told_before, told


def test_what_a_table_does_not_say_another_one_does():
    """And at last the defaults of the settings."""
    assert made({"low": 2}, {"low": 3, "high": 9}) == (Pair(2, 9), [], [])


def test_places_are_written_as_toml_writes_keys():
    """A name with dots or spaces is quoted, so that nobody reads it as two."""
    assert place_of("upstreams", "shop-1", "circuit") == "upstreams.shop-1.circuit"
    assert place_of("upstreams", "a.b") == 'upstreams."a.b"'
    assert place_of("a\nb") == '"a\\nb"'


def test_what_is_no_table_is_told_and_counts_as_empty():
    """One line, whatever it is."""
    told: list[str] = []

    assert as_table("t", {"a": 1}, told) == {"a": 1}
    assert as_table("t", [1], told) == {}
    assert told == ["t: got a list; expected a table"]


def test_an_unknown_key_is_told_the_nearest_known_one():
    """Or all that are known, if none is near; nested tables are known too."""
    told: list[str] = []
    raw = {"Hihg": 1, "wait-s": 1, "zzz": 1, "neer": {}, "near": {}}

    read("t", raw, KINDS, told, tables=("near",))

    assert told == [
        "t.Hihg: is not known here; did you mean high?",
        "t.wait-s: is not known here; did you mean wait_s?",
        "t.zzz: is not known here; known are low, high, wait_s, near",
        "t.neer: is not known here; did you mean near?",
    ]


def test_bounds_are_told_beside_wrong_types():
    """One run of the program is enough to mend them all."""
    assert made({"low": 0, "high": -1, "wait_s": "x"})[2] == [
        f"x.t.wait_s: {A_TIME}",
        "x.t.low: 0 is not more than 0",
        "x.t.high: -1 is not more than 0",
    ]


def test_a_contradiction_is_told_where_a_table_takes_part_in_it():
    """Here the default of one key contradicts what is given for the other."""
    assert made({"low": 7})[2] == ["x.t.high: 5 is less than low, which is 7"]
    assert made({"low": 7}, {"high": 8})[2] == []
    assert made({"low": 9}, {"high": 8})[2] == [
        "x.t.high: 8 is less than low, which is 9"
    ]


def test_what_is_taken_over_is_told_where_it_stands():
    """Not again in each table that takes it over."""
    _, before, told = made({"wait_s": 2}, {"low": 7})

    assert before == ["t.high: 5 is less than low, which is 7"]
    assert told == []


def test_nothing_is_told_that_follows_from_a_wrong_value():
    """The key that could not be read would have been in order, for all we know."""
    assert len(made({"low": 7, "high": "many"})[2]) == 1
    _, before, told = made({"low": 7}, {"high": "many"})
    assert (len(before), told) == (1, [])


def test_nothing_is_told_that_follows_from_a_misspelt_key():
    """What was meant is known well enough."""
    assert made({"low": 7, "hihg": 9})[2] == [
        "x.t.hihg: is not known here; did you mean high?"
    ]


def test_a_misspelt_key_beside_the_right_one_hides_nothing():
    """Then it is not what was meant."""
    assert made({"high": 0, "hihg": 9})[2] == [
        "x.t.hihg: is not known here; did you mean high?",
        "x.t.high: 0 is not more than 0",
    ]


def test_nothing_is_told_that_follows_from_a_bound():
    """A number out of its bounds is also out of order, which helps nobody."""
    assert made({"high": 0})[2] == ["x.t.high: 0 is not more than 0"]


def test_a_right_key_takes_away_a_wrong_default():
    """It is the wrong table's mistake alone, and the right one is judged as it is."""
    _, before, told = made({"high": 3, "low": 4}, {"high": "many"})

    assert len(before) == 1
    assert told == ["x.t.high: 3 is less than low, which is 4"]
