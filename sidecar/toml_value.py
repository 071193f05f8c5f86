"""What may stand at a key of a TOML table: a value as tomllib made it, checked."""

import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Final

from outrigger.core import values
from outrigger.core.values import Wrong


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value."""

    unit: str
    """For people: what it counts, or the words it may be."""
    parse: Callable[[object], object]
    """Raises Wrong, with one line per mistake, which says what was expected."""

    def read(self, given: object) -> object:
        """Return the checked value.

        Raises:
            Wrong: with what was given and what was expected, one line per mistake.
        """
        try:
            return self.parse(given)
        except Wrong as error:
            shown = described(given)
            raise Wrong(*(f"got {shown}; {line}" for line in error.lines)) from error


@dataclass(frozen=True, slots=True)
class Listing:
    """A list of one kind of value; it becomes a tuple."""

    item: Kind
    expected: str
    """How such a list is written."""

    @property
    def unit(self) -> str:
        """See `Kind`."""
        return f"list: {self.item.unit}"

    def read(self, given: object) -> tuple[object, ...]:
        """Return the checked values.

        Raises:
            Wrong: with one line per wrong entry; they are counted from 1.
        """
        if not isinstance(given, list):
            raise Wrong(f"got {described(given)}; expected {self.expected}")
        wrong: list[str] = []
        found = []
        for number, item in enumerate(given, 1):
            try:
                found.append(self.item.read(item))
            except Wrong as error:
                wrong.extend(f"entry {number}: {line}" for line in error.lines)
        if wrong:
            raise Wrong(*wrong)
        return tuple(found)


def described(given: object) -> str:
    """Return in words what was given."""
    match given:
        case bool():
            return f"the boolean {str(given).lower()}"
        case int() | float():
            return f"the number {given}"
        case str():
            return f"the text {given!r}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"the date or time {given}"


def fields_of(settings: type) -> dict[str, type]:
    """Return the fields of a settings class that are settings themselves."""
    return {name: kind for name, kind in _hints(settings) if is_dataclass(kind)}


def kinds_of(
    settings: type, special: Mapping[str, Kind | Listing]
) -> dict[str, Kind | Listing]:
    """Return the kind of each plain field of a settings class.

    It follows from the field's type and from the unit in its name, unless it is
    special. A field that may be None is left out of the file to be None.
    """
    return {
        name: special.get(name) or _kind(name, kind)
        for name, kind in _hints(settings)
        if not is_dataclass(kind)
    }


def off(kind: Kind, meaning: object) -> Kind:
    """Return a kind that also takes "off"."""

    def parse(given: object) -> object:
        if given == "off":
            return meaning
        try:
            return kind.parse(given)
        except Wrong as error:
            raise Wrong(*(f'{line}, or "off"' for line in error.lines)) from error

    return Kind(f'{kind.unit}, or "off"', parse)


def choice(words: Sequence[str]) -> Kind:
    """Return the kind of value that is one of some words."""
    listed = " or ".join(f'"{word}"' for word in words)

    def parse(given: object) -> object:
        if given not in words:
            raise Wrong(f"expected {listed}")
        return given

    return Kind(listed, parse)


def _number(given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise Wrong("expected a number")
    if not math.isfinite(given):
        raise Wrong("expected a finite number")
    return float(given)


def _count(given: object) -> int:
    if isinstance(given, bool) or not isinstance(given, int):
        raise Wrong("expected a whole number")
    return given


def _switch(given: object) -> bool:
    if not isinstance(given, bool):
        raise Wrong("expected true or false")
    return given


def _seconds(given: object) -> float:
    if isinstance(given, str):
        return values.seconds(given)
    try:
        return _number(given)
    except Wrong:
        return values.seconds("")  # which says how a time is written


def _of_text(unit: str, parse: Callable[[str], object]) -> Kind:
    def read(given: object) -> object:
        if not isinstance(given, str):
            raise Wrong(f"expected a {unit} in quotes")
        return parse(given)

    return Kind(unit, read)


TIME: Final = Kind("time", _seconds)
COUNT: Final = Kind("whole number", _count)
NUMBER: Final = Kind("number", _number)
SWITCH: Final = Kind("true or false", _switch)
TEXT: Final = _of_text("text", values.text)
FILE: Final = _of_text("file", values.path)
TARGET: Final = _of_text("target", values.target)

_BY_TYPE: Final[Mapping[Any, Kind | Listing]] = {
    bool: SWITCH,
    int: COUNT,
    float: NUMBER,
    str: TEXT,
    Path: FILE,
    tuple[str, ...]: Listing(TEXT, 'a list such as ["one", "two"]'),
}


def _kind(name: str, kind: type) -> Kind | Listing:
    if typing.get_origin(kind) is typing.Literal:
        return choice(typing.get_args(kind))
    if kind is float and name.endswith("_s"):
        return TIME
    return _BY_TYPE[kind]


def _hints(settings: type) -> list[tuple[str, type]]:
    """Return the fields' types, None taken away where it is one of several."""
    hints = typing.get_type_hints(settings)
    return [(one.name, _without_none(hints[one.name])) for one in fields(settings)]


def _without_none(kind: type) -> type:
    options = [one for one in typing.get_args(kind) if one is not NoneType]
    if NoneType in typing.get_args(kind) and len(options) == 1:
        return typing.cast("type", options[0])
    return kind
