"""Whatever is wrong with a configuration, all of it is reported."""

import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from outrigger.core.config import Option, resolve
from outrigger.core.errors import Invalid
from outrigger.core.values import integer
from sidecar.config import from_file
from tests.support.planted_mistakes import MISTAKES, apart, planted

NAMES = tuple(f"option_{letter}" for letter in "abcdefgh")
OPTIONS = tuple(Option(name, integer, 0, "A number.") for name in NAMES)
SOURCES = ("flag", "variable", "key")


@given(
    choices=st.dictionaries(
        st.sampled_from(NAMES), st.tuples(st.sampled_from(SOURCES), st.booleans())
    ),
    unknown=st.sets(st.from_regex(r"x[a-z]{3,8}", fullmatch=True), max_size=3),
)
def test_every_mistake_is_reported(choices, unknown):
    """The refusal names each bad source once, and nothing that was right."""
    flags: dict[str, object] = {}
    environ: dict[str, str] = {}
    lines = [f"{key} = 1" for key in sorted(unknown)]
    expected = {f"key {key}:" for key in unknown}
    for name, (source, good) in choices.items():
        value = "7" if good else "seven"
        option = next(option for option in OPTIONS if option.name == name)
        if source == "flag":
            flags[name] = value
            shown = option.flag
        elif source == "variable":
            environ[option.variable] = value
            shown = option.variable
        else:
            lines.append(f"{name} = '{value}'")
            shown = f"key {name}"
        if not good:
            expected.add(f"{shown} 'seven':")
    toml = "\n".join(lines).encode()
    try:
        found = resolve(OPTIONS, flags, environ, toml)
    except Invalid as error:
        told = error.metadata["mistakes"].split("\n")
        assert {line[: line.index(":") + 1] for line in told} == expected
        assert len(told) == len(expected)
    else:
        assert not expected
        assert found == {name: 7 if name in choices else 0 for name in NAMES}


def complaints(toml: bytes) -> list[str]:
    """Return what is told about a sidecar's file."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(toml)
        file.flush()
        try:
            from_file(file.name, {"HOME": "/home/agent"})
        except Invalid as error:
            return error.metadata["mistakes"].split("\n")
    return []


def assert_each_is_told_once(mistakes):
    told = complaints(planted(mistakes))
    for one in mistakes:
        about = [line for line in told if line.startswith(one.told)]
        assert len(about) == 1, (one, told)
    assert len(told) == len(mistakes), told


def test_the_configuration_to_plant_in_is_right():
    """Without a mistake nothing is told."""
    assert complaints(planted([])) == []


def test_each_mistake_alone_is_told_with_its_place():
    """Every key of every table refuses what it must, in one line."""
    assert len(MISTAKES) > 500
    for one in MISTAKES:
        assert_each_is_told_once([one])


@given(mistakes=st.lists(st.sampled_from(MISTAKES), min_size=2, max_size=40))
@settings(deadline=None)
def test_planted_mistakes_are_told_one_by_one(mistakes):
    """So many mistakes that have nothing to do with one another, so many lines."""
    assert_each_is_told_once(apart(mistakes))
