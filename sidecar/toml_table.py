"""Tables of a TOML file, read into settings; every mistake is told with its place.

A table says something about some keys; for the others another table may, and at last
the settings' own defaults. One wrong key is one mistake: what follows from it, be it
a contradiction here or the same value in a table that takes it over, is not told
again.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final, TypeVar

from outrigger.core.values import Wrong
from sidecar.policy.bounds import BadSettings, Mistake
from sidecar.toml_value import Kind, Listing, described

S = TypeVar("S")

_BARE: Final = re.compile(r"[A-Za-z0-9_-]+\Z")


@dataclass(frozen=True, slots=True)
class Given:
    """What a table says."""

    values: Mapping[str, object] = field(default_factory=dict)
    wrong: frozenset[str] = frozenset()
    """Keys of which it is only known that their mistake is told already."""

    def over(self, other: "Given") -> "Given":
        """Return this, and the other where this says nothing."""
        taken_over = other.wrong - self.values.keys()
        return Given({**other.values, **self.values}, self.wrong | taken_over)


def place_of(*keys: str) -> str:
    """Return keys as a dotted TOML key."""
    return ".".join(key if _BARE.match(key) else json.dumps(key) for key in keys)


def as_table(place: str, raw: object, mistakes: list[str]) -> Mapping[str, object]:
    """Return a table; what is none is told and counts as empty."""
    if isinstance(raw, dict):
        return raw
    mistakes.append(f"{place}: got {described(raw)}; expected a table")
    return {}


def read(
    place: str,
    raw: Mapping[str, object],
    kinds: Mapping[str, Kind | Listing],
    mistakes: list[str],
    *,
    tables: Collection[str] = (),
) -> Given:
    """Return what a table says; wrong values and unknown keys are told.

    Args:
        place: of the table, for people.
        raw: the table.
        kinds: what may stand in it.
        mistakes: one line each; more are added.
        tables: tables that may stand in it beside; somebody else reads them.
    """
    found: dict[str, object] = {}
    wrong: set[str] = set()
    for key, value in raw.items():
        if key in tables:
            continue
        if key not in kinds:
            known = [*kinds, *tables]
            mistakes.append(f"{place}.{place_of(key)}: {_unknown(key, known)}")
            wrong |= set(_near(key, known)) - raw.keys()
            continue
        try:
            found[key] = kinds[key].read(value)
        except Wrong as error:
            mistakes.extend(f"{place}.{key}: {line}" for line in error.lines)
            wrong.add(key)
    return Given(found, frozenset(wrong))


def build(
    settings: type[S],
    given: Given,
    defaults: Given,
    place: str,
    mistakes: list[str],
) -> S | None:
    """Return the settings that two tables make together; None if they cannot be.

    Args:
        settings: their class; refuses what is out of bounds by BadSettings.
        given: what the table says. Mistakes are its own if it has a part in them.
        defaults: what holds where it says nothing.
        place: of the table, for people.
        mistakes: one line each; more are added.
    """
    merged = given.over(defaults)
    arguments: dict[str, Any] = dict(merged.values)
    try:
        return settings(**arguments)
    except BadSettings as error:
        told = _own(error.mistakes, given.values.keys(), merged.wrong)
        mistakes.extend(f"{place}.{mistake}" for mistake in told)
    return None


def salvage(settings: type[S], values: Mapping[str, object]) -> S:
    """Return the settings without the values that are wrong, and tell nothing.

    For a look at the rest. The settings' defaults must be right by themselves.
    """
    arguments: dict[str, Any] = dict(values)
    try:
        return settings(**arguments)
    except BadSettings as error:
        wrong = {name for mistake in error.mistakes for name in mistake.fields}
    rest = {name: value for name, value in values.items() if name not in wrong}
    return salvage(settings, rest)


def _own(
    mistakes: Iterable[Mistake], given: Collection[str], wrong: Collection[str]
) -> list[Mistake]:
    """Return the mistakes that are this table's and follow from no other."""
    listed = list(mistakes)
    single = {one.fields[0] for one in listed if len(one.fields) == 1}
    return [
        one
        for one in listed
        if not set(one.fields).isdisjoint(given)
        and set(one.fields).isdisjoint(wrong)
        and (len(one.fields) == 1 or single.isdisjoint(one.fields))
    ]


def _near(key: str, known: Collection[str]) -> list[str]:
    return get_close_matches(key.replace("-", "_").lower(), known, n=1)


def _unknown(key: str, known: Collection[str]) -> str:
    near = _near(key, known)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    return f"is not known here; {hint}"
