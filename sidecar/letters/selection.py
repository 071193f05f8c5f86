"""Which letters somebody means: filters and pages."""

import sqlite3
import zlib
from dataclasses import dataclass
from typing import Any, Final

from outrigger.core.errors import Corrupt, Invalid
from sidecar.letters.record import COLUMNS, broken_letter, letter_of
from sidecar.policy.letter import Letter, LetterState

PAGE_MAX: Final = 1000
PAGE_DEFAULT: Final = 50
_IDS_MAX: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterFilter:
    """Empty fields do not narrow; all given ones must match."""

    states: tuple[LetterState, ...] = ()
    upstream: str = ""
    method: str = ""
    letter_ids: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Tell whether it means every letter."""
        return self == LetterFilter()


@dataclass(frozen=True, slots=True)
class LetterPage:
    """Some letters, oldest first, without requests."""

    letters: tuple[Letter, ...]
    next_page_token: str
    """Empty at the end."""


def condition(chosen: LetterFilter) -> tuple[str, list[object]]:
    """Return SQL that is true for the letters meant, and its values.

    Raises:
        Invalid: TOO_MANY_LETTER_IDS.
    """
    if len(chosen.letter_ids) > _IDS_MAX:
        raise Invalid(
            "TOO_MANY_LETTER_IDS",
            f"the filter names {len(chosen.letter_ids)} letters and may name at most"
            f" {_IDS_MAX}: ask in parts",
        )
    parts: list[str] = ["1"]
    values: list[object] = []
    several: tuple[tuple[str, list[str]], ...] = (
        ("state", [state.value for state in chosen.states]),
        ("upstream", [chosen.upstream] if chosen.upstream else []),
        ("method", [chosen.method] if chosen.method else []),
        ("letter_id", list(chosen.letter_ids)),
    )
    for name, wanted in several:
        if wanted:
            parts.append(f"{name} IN ({', '.join('?' * len(wanted))})")
            values.extend(wanted)
    return " AND ".join(parts), values


def page(
    conn: sqlite3.Connection,
    agent_id: str,
    chosen: LetterFilter,
    page_size: int,
    page_token: str,
) -> LetterPage:
    """Return one page; a record that is not sound is shown as such.

    Raises:
        Invalid: BAD_PAGE_SIZE, BAD_PAGE_TOKEN, TOO_MANY_LETTER_IDS.
    """
    size = _checked_size(page_size)
    where, values = condition(chosen)
    rows = conn.execute(
        f"SELECT seq, {COLUMNS} FROM letters"  # noqa: S608 - our own words
        f" WHERE agent_id = ? AND seq > ? AND {where} ORDER BY seq LIMIT ?",
        (agent_id, _after(page_token, chosen), *values, size + 1),
    ).fetchall()
    letters = tuple(_shown(row[1:]) for row in rows[:size])
    more = len(rows) > size
    token = f"{rows[size - 1][0]}.{_mark(chosen)}" if more else ""
    return LetterPage(letters, token)


def rows_of(
    conn: sqlite3.Connection, agent_id: str, chosen: LetterFilter
) -> list[tuple[int, str]]:
    """Return row number and id of every letter meant, oldest first."""
    where, values = condition(chosen)
    return conn.execute(
        "SELECT seq, letter_id FROM letters"  # noqa: S608 - our own words
        f" WHERE agent_id = ? AND {where} ORDER BY seq",
        (agent_id, *values),
    ).fetchall()


def _shown(row: tuple[Any, ...]) -> Letter:
    try:
        return letter_of(row, None)
    except Corrupt:
        return broken_letter(row)


def _checked_size(page_size: int) -> int:
    if not 0 <= page_size <= PAGE_MAX:
        raise Invalid(
            "BAD_PAGE_SIZE",
            f"page size {page_size} is not valid: ask for 1 to {PAGE_MAX}, or 0 for"
            f" {PAGE_DEFAULT}",
        )
    return page_size or PAGE_DEFAULT


def _mark(chosen: LetterFilter) -> str:
    return f"{zlib.crc32(repr(chosen).encode('utf-8', 'replace')):08x}"


def _after(token: str, chosen: LetterFilter) -> int:
    if not token:
        return 0
    seq, _, mark = token.partition(".")
    if not (seq.isascii() and seq.isdigit() and len(seq) < 19) or mark != _mark(chosen):  # noqa: PLR2004 - what SQLite's integers hold
        raise Invalid(
            "BAD_PAGE_TOKEN",
            f"page token {token!r} is not from an answer to this filter: begin again"
            " without one",
        )
    return int(seq)
