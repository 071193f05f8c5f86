"""Bounds of settings: what is out of them, field by field.

Settings check themselves when they are made and name every mistake at once. A mistake
keeps the fields it is about, so that whoever read them from a file can say where it
is, and can leave out what follows from another mistake.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from outrigger.core.errors import Invalid


class Mistake(NamedTuple):
    """What is wrong with one field, or with several of them together."""

    fields: tuple[str, ...]
    """The one to mend first."""
    text: str
    """What it is and what it should be, without the field's name."""

    def __str__(self) -> str:
        return f"{self.fields[0]}: {self.text}"


class BadSettings(Invalid):
    """Settings contradict their bounds or one another; mend what is listed."""

    def __init__(self, reason: str, lead: str, mistakes: Iterable[Mistake]) -> None:
        """Take the UPPER_SNAKE reason, what was checked, and its mistakes."""
        self.mistakes = tuple(mistakes)
        super().__init__(reason, f"{lead}: {'; '.join(map(str, self.mistakes))}")


def refuse(reason: str, lead: str, mistakes: Iterable[Mistake]) -> None:
    """Raise if there is any mistake.

    Raises:
        BadSettings: with all of them.
    """
    found = tuple(mistakes)
    if found:
        raise BadSettings(reason, lead, found)


def above(settings: object, low: float, *names: str) -> Iterator[Mistake]:
    """Yield the fields that are not more than `low`; not a number never is."""
    for name, value in _of(settings, names):
        if not value > low:
            yield Mistake((name,), f"{value:g} is not more than {low:g}")


def below(settings: object, high: float, *names: str) -> Iterator[Mistake]:
    """Yield the fields that are not less than `high`."""
    for name, value in _of(settings, names):
        if not value < high:
            yield Mistake((name,), f"{value:g} is not less than {high:g}")


def at_least(settings: object, low: float, *names: str) -> Iterator[Mistake]:
    """Yield the fields that are less than `low`."""
    for name, value in _of(settings, names):
        if not value >= low:
            yield Mistake((name,), f"{value:g} is less than {low:g}")


def at_most(settings: object, high: float, *names: str) -> Iterator[Mistake]:
    """Yield the fields that are more than `high`."""
    for name, value in _of(settings, names):
        if not value <= high:
            yield Mistake((name,), f"{value:g} is more than {high:g}")


def ordered(settings: object, lower: str, upper: str) -> Iterator[Mistake]:
    """Yield a mistake if `upper` is less than `lower`; None is in any order."""
    values = dict(_of(settings, (lower, upper)))
    if len(values) > 1 and values[upper] < values[lower]:
        yield Mistake(
            (upper, lower),
            f"{values[upper]:g} is less than {lower}, which is {values[lower]:g}",
        )


def _of(settings: object, names: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Yield the fields that are set."""
    for name in names:
        value = getattr(settings, name)
        if value is not None:
            yield name, value
