"""The form of exported letters: JSON lines that prove themselves.

A header, a line per letter, a trailer. Each letter's line carries the SHA-256 of the
letter's JSON with sorted keys and no blanks; the trailer carries the count and the
SHA-256 over those digests in order. So a changed byte, a lost line and a cut file
are all told apart, and named by their line.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from outrigger.cli.new_file import open_for_reading
from outrigger.core.errors import Corrupt, Invalid
from outrigger.v1.letter_pb2 import Letter

_FORMAT: Final = "outrigger-letters"
_VERSION: Final = 1
_LINE_BYTES: Final = 64 * 1024 * 1024
"""Longest line read: far above any letter, far below any memory."""


class LetterWriter:
    """Makes the lines of one export."""

    def __init__(self) -> None:
        self.count = 0
        self._all = hashlib.sha256()

    def header(self) -> str:
        """Return the first line."""
        return _line({"kind": "header", "format": _FORMAT, "version": _VERSION})

    def letter(self, letter: Letter) -> str:
        """Return the line of a letter."""
        body = MessageToDict(letter, preserving_proto_field_name=True)
        found = _digest(body)
        self.note(found)
        return _line({"kind": "letter", "sha256": found, "letter": body})

    def note(self, digest: str) -> None:
        """Count a letter whose line has this digest."""
        self._all.update(digest.encode())
        self.count += 1

    def trailer(self) -> str:
        """Return the last line."""
        digest = self._all.hexdigest()
        return _line({"kind": "trailer", "count": self.count, "sha256": digest})


def letters_in(path: Path) -> Iterator[Letter]:
    """Yield the letters of an export, each verified; the trailer is checked last.

    Raises:
        Invalid: CANNOT_READ, NOT_AN_EXPORT.
        Corrupt: DAMAGED_EXPORT, naming the line.
    """
    with open_for_reading(path) as file:
        _check_header(path, file)
        seen = LetterWriter()
        number = 1
        while True:
            number += 1
            record = _record(path, number, file)
            if record.get("kind") == "trailer":
                _check_trailer(path, number, record, seen)
                if file.read(1):
                    raise _damaged(path, number + 1, "there is more after the trailer")
                return
            yield _letter(path, number, record, seen)


def _check_header(path: Path, file: BinaryIO) -> None:
    try:
        found = json.loads(file.readline(_LINE_BYTES))
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise Invalid(
            "NOT_AN_EXPORT",
            f"{path} is not an export of letters: expected a file made by 'outrigger"
            " letters export'",
        )
    if found != json.loads(LetterWriter().header()):
        raise Invalid(
            "NOT_AN_EXPORT",
            f"{path} is an export of version {found.get('version')!r}, this command"
            f" reads {_VERSION}: use the version of outrigger that wrote it",
        )


def _record(path: Path, number: int, file: BinaryIO) -> dict[str, Any]:
    raw = file.readline(_LINE_BYTES)
    if not raw:
        raise _damaged(path, number, "the file ends here, without its trailer")
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise _damaged(path, number, "it is not JSON") from error
    if not isinstance(found, dict):
        raise _damaged(path, number, "it is not a JSON object")
    return found


def _letter(
    path: Path, number: int, record: dict[str, Any], seen: LetterWriter
) -> Letter:
    body = record.get("letter")
    if record.get("kind") != "letter" or not isinstance(body, dict):
        raise _damaged(path, number, "it is neither a letter nor the trailer")
    digest = _digest(body)
    if digest != record.get("sha256"):
        raise _damaged(path, number, "its SHA-256 does not match")
    try:
        letter = ParseDict(body, Letter())
    except ParseError as error:
        raise _damaged(path, number, f"it is not a letter ({error})") from error
    known = letter.request_digest
    if known and hashlib.sha256(letter.request).digest() != known:
        raise _damaged(path, number, "its request does not match request_digest")
    seen.note(digest)
    return letter


def _check_trailer(
    path: Path, number: int, record: dict[str, Any], seen: LetterWriter
) -> None:
    if record != json.loads(seen.trailer()):
        raise _damaged(
            path,
            number,
            f"the trailer speaks of {record.get('count')} letters, {seen.count} are"
            " here; lines are missing, added or out of order",
        )


def _digest(body: dict[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _damaged(path: Path, number: int, what: str) -> Corrupt:
    return Corrupt(
        "DAMAGED_EXPORT",
        f"{path} line {number} is damaged: {what}; export the letters again",
    )
