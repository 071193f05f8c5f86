"""Values of a TOML file: what is taken, and what the others are told."""

import datetime as dt
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from outrigger.core.values import Wrong
from sidecar.toml_value import (
    COUNT,
    FILE,
    NUMBER,
    SWITCH,
    TARGET,
    TEXT,
    TIME,
    Listing,
    choice,
    described,
    fields_of,
    kinds_of,
    off,
)


@dataclass
class Inner:
    """Settings within settings."""

    depth: int = 1


@dataclass
class Sample:
    """A field of each type."""

    wait_s: float = 1.0
    share_ratio: float = 0.5
    most: int = 1
    shadow: bool = False
    name: str | None = None
    file: Path | None = None
    words: tuple[str, ...] | None = None
    mode: Literal["slow", "fast"] = "slow"
    special: str = ""
    inner: Inner = field(default_factory=Inner)
    other: Inner | None = None


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (TIME, 2, 2.0),
        (TIME, 0.00001, 0.00001),
        (TIME, "300ms", 0.3),
        (TIME, "2m", 120.0),
        (COUNT, 7, 7),
        (NUMBER, 7, 7.0),
        (SWITCH, True, True),
        (TEXT, "word", "word"),
        (FILE, "/etc/ca.pem", Path("/etc/ca.pem")),
        (TARGET, "unix:/run/x", "unix:/run/x"),
        (choice(("a", "b")), "b", "b"),
        (off(TIME, math.inf), "off", math.inf),
        (off(TIME, None), "off", None),
        (off(TIME, None), "1s", 1.0),
        (Listing(TEXT, "a list"), ["a", "b"], ("a", "b")),
        (Listing(TEXT, "a list"), [], ()),
    ],
)
def test_a_right_value_is_taken(kind, given, expected):
    """Times as numbers or with a unit; the rest as TOML writes it."""
    found = kind.read(given)

    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (TIME, True, "got the boolean true; expected a time such as"),
        (TIME, math.nan, "got the number nan; expected a time such as"),
        (TIME, math.inf, "got the number inf; expected a time such as"),
        (TIME, "off", "got the text 'off'; expected a time such as"),
        (off(TIME, None), "of", ', 1h or 1d, or "off"'),
        (COUNT, 1.0, "got the number 1.0; expected a whole number"),
        (COUNT, False, "got the boolean false; expected a whole number"),
        (COUNT, "1", "got the text '1'; expected a whole number"),
        (NUMBER, True, "expected a number"),
        (NUMBER, "1", "expected a number"),
        (NUMBER, math.nan, "expected a finite number"),
        (SWITCH, 1, "got the number 1; expected true or false"),
        (TEXT, {}, "got a table; expected a text in quotes"),
        (TEXT, " ", "expected text that is not empty"),
        (FILE, 1, "expected a file in quotes"),
        (TARGET, [], "got a list; expected a target in quotes"),
        (TARGET, "h:0", "nobody answers on port 0"),
        (choice(("a", "b")), "c", 'got the text \'c\'; expected "a" or "b"'),
        (choice(("a", "b")), [], 'got a list; expected "a" or "b"'),
        (Listing(TEXT, "a list such as"), "a", "got the text 'a'; expected a list"),
    ],
)
def test_a_wrong_value_is_told_what_was_given_and_expected(kind, given, said):
    """In one line, without the key: whoever reads the table knows it."""
    with pytest.raises(Wrong) as caught:
        kind.read(given)

    (line,) = caught.value.lines
    assert said in line
    assert line.startswith(f"got {described(given)}; expected ")


def test_each_wrong_entry_of_a_list_is_told():
    """They are counted from 1."""
    with pytest.raises(Wrong) as caught:
        Listing(COUNT, "a list").read([1, "x", 2, None])

    assert [line.partition(":")[0] for line in caught.value.lines] == [
        "entry 2",
        "entry 4",
    ]


def test_dates_are_called_dates():
    """TOML knows them; nothing here takes one."""
    day = dt.date(2030, 1, 2)

    assert described(day) == "the date or time 2030-01-02"


def test_kinds_follow_from_the_fields_of_a_class():
    """By type, by the unit in the name, or by what is said of a special one."""
    special = choice(("only",))

    kinds = kinds_of(Sample, {"special": special, "not_there": TEXT})

    assert {name: kind.unit for name, kind in kinds.items()} == {
        "wait_s": "time",
        "share_ratio": "number",
        "most": "whole number",
        "shadow": "true or false",
        "name": "text",
        "file": "file",
        "words": "list: text",
        "mode": '"slow" or "fast"',
        "special": '"only"',
    }
    assert kinds["special"] is special


def test_fields_that_are_settings_themselves_are_tables():
    """Also those that may be None."""
    assert fields_of(Sample) == {"inner": Inner, "other": Inner}
