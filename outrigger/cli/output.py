"""Results: tables for people, JSON for programs.

On a terminal tables are drawn by rich; piped they are plain aligned text. JSON has
the field names of the proto and every field always, so that keys are stable; as in
all proto JSON, 64-bit integers are strings and bytes are base64.
"""

import json
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from outrigger.cli.terminal import Terminal

FORMS: Final = ("table", "json", "jsonl")
ENDLESS_FORMS: Final = ("table", "jsonl")
"""Of what has no end: a JSON array would never be whole."""
_GAP: Final = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table, or a line of a single thing."""

    title: str
    show: Callable[[Any], str]
    """Message to cell."""
    right: bool = False
    """Aligned right, for numbers."""


def as_dict(thing: object) -> dict[str, Any]:
    """Return a message or a dataclass with every field, under its own names."""
    if not isinstance(thing, Message):
        return asdict(cast("Any", thing))
    return MessageToDict(
        thing,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


class Printer:
    """Prints results in the form asked for."""

    def __init__(self, terminal: Terminal, form: str) -> None:
        self._terminal = terminal
        self._form = form

    @property
    def for_people(self) -> bool:
        """Say whether tables are printed."""
        return self._form == "table"

    async def rows(
        self, messages: AsyncIterable[object], columns: Sequence[Column]
    ) -> int:
        """Print many things and return how many; JSON lines go out at once."""
        if self._form == "jsonl":
            return await self._json_lines(messages)
        found = [message async for message in messages]
        if self._form == "json":
            self._write(json.dumps([as_dict(each) for each in found], indent=2))
        else:
            self.table(columns, found)
        return len(found)

    def one(self, message: Message, lines: Sequence[Column]) -> None:
        """Print one thing, a line per column."""
        if not self.for_people:
            indent = 2 if self._form == "json" else None
            self._write(json.dumps(as_dict(message), indent=indent))
            return
        titles = Column("", lambda line: str(line[0]))
        values = Column("", lambda line: str(line[1]))
        self.table((titles, values), [(c.title, c.show(message)) for c in lines])

    def table(self, columns: Sequence[Column], things: Iterable[object]) -> None:
        """Print a table; columns without titles get no header."""
        cells = [[column.show(thing) for column in columns] for thing in things]
        if self._terminal.interactive:
            _draw(self._terminal, columns, cells)
        else:
            self._write("\n".join(aligned(columns, cells)))

    def event(self, message: Message, line: str) -> None:
        """Print one of an endless row of things, at once."""
        self._write(line if self.for_people else json.dumps(as_dict(message)))

    def say(self, line: str) -> None:
        """Tell a person something; programs get nothing."""
        if self.for_people:
            self._write(line)

    async def _json_lines(self, messages: AsyncIterable[object]) -> int:
        printed = 0
        async for message in messages:
            self._write(json.dumps(as_dict(message)))
            printed += 1
        return printed

    def _write(self, text: str) -> None:
        self._terminal.stdout.write(text + "\n")
        self._terminal.stdout.flush()


def aligned(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> list[str]:
    """Return a table as lines of plain text, without blanks at their ends."""
    titles = [column.title for column in columns]
    rows = [titles, *cells] if any(titles) else list(cells)
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(titles))]
    return [
        _GAP.join(
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in rows
    ]


def _draw(
    terminal: Terminal, columns: Sequence[Column], cells: Sequence[Sequence[str]]
) -> None:
    # Here and not above: rich costs 60 ms, which a pipe need not wait for.
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only where a person looks
    from rich.console import Console  # noqa: PLC0415 - only where a person looks
    from rich.table import Table  # noqa: PLC0415 - only where a person looks
    from rich.text import Text  # noqa: PLC0415 - only where a person looks

    header = any(column.title for column in columns)
    table = Table(box=SIMPLE_HEAD if header else None, show_header=header)
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.right else "left", overflow="fold"
        )
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))  # Text: no markup is obeyed
    Console(file=terminal.stdout).print(table)
