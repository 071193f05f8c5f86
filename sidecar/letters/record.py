"""A letter as a row: the tables, and the checksum over every stored field.

The request is a row of its own, written once: a move of the letter then never
rewrites a large request. Its SHA-256 is in the letter's row, and that row's
checksum covers the digest, so both rows are verified on every read.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

from outrigger.core.errors import Corrupt
from sidecar.policy.letter import Attempt, Letter, LetterState

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS letters (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    letter_id TEXT NOT NULL UNIQUE,
    agent_id TEXT NOT NULL,
    upstream TEXT NOT NULL,
    method TEXT NOT NULL,
    idempotency_key TEXT NOT NULL,
    metadata TEXT NOT NULL,
    request_size INTEGER NOT NULL,
    request_digest BLOB NOT NULL,
    accept_wall REAL NOT NULL,
    ttl REAL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempt_count INTEGER NOT NULL,
    failure_count INTEGER NOT NULL,
    redrive_count INTEGER NOT NULL,
    crash_count INTEGER NOT NULL,
    next_attempt_wall REAL,
    end_wall REAL,
    expire_wall REAL,
    last_code INTEGER NOT NULL,
    last_message TEXT NOT NULL,
    attempts TEXT NOT NULL,
    checksum BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS letters_by_key
    ON letters (agent_id, idempotency_key);
CREATE INDEX IF NOT EXISTS letters_by_route
    ON letters (agent_id, state, upstream, method, next_attempt_wall);
CREATE TABLE IF NOT EXISTS letter_requests (
    seq INTEGER PRIMARY KEY,
    request BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS letter_counters (
    agent_id TEXT PRIMARY KEY,
    accepted INTEGER NOT NULL DEFAULT 0,
    delivered INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    discarded INTEGER NOT NULL DEFAULT 0,
    kept INTEGER NOT NULL DEFAULT 0,
    kept_bytes INTEGER NOT NULL DEFAULT 0,
    in_doubt INTEGER NOT NULL DEFAULT 0
);
"""

_FIXED: Final = (
    "letter_id, agent_id, upstream, method, idempotency_key, metadata, request_size,"
    " request_digest, accept_wall, ttl"
)
_MOVING: Final = (
    "state, reason, attempt_count, failure_count, redrive_count, crash_count,"
    " next_attempt_wall, end_wall, expire_wall, last_code, last_message, attempts"
)
COLUMNS: Final = f"{_FIXED}, {_MOVING}, checksum"
_FIXED_COUNT: Final = _FIXED.count(",") + 1
_COUNT: Final = COLUMNS.count(",") + 1

INSERT: Final = f"INSERT INTO letters ({COLUMNS}) VALUES ({', '.join('?' * _COUNT)})"  # noqa: S608 - our own column names
UPDATE: Final = (
    "UPDATE letters SET "  # noqa: S608 - our own column names
    + ", ".join(f"{name.strip()} = ?" for name in _MOVING.split(","))
    + ", checksum = ? WHERE seq = ?"
)

UNDECODABLE: Final = "UNDECODABLE"
"""Reason of a parked letter whose record is not what was written."""


def digest(request: bytes) -> bytes:
    """Return the SHA-256 of a request."""
    return hashlib.sha256(request).digest()


def row_of(letter: Letter) -> tuple[Any, ...]:
    """Return the values of COLUMNS."""
    fields = (
        letter.letter_id,
        letter.agent_id,
        letter.upstream,
        letter.method,
        letter.idempotency_key,
        metadata_text(letter.metadata),
        letter.request_size_bytes,
        letter.request_digest,
        letter.accept_wall_s,
        letter.ttl_s,
        letter.state.value,
        letter.reason,
        letter.attempt_count,
        letter.failure_count,
        letter.redrive_count,
        letter.crash_count,
        letter.next_attempt_wall_s,
        letter.end_wall_s,
        letter.expire_wall_s,
        letter.last_code,
        letter.last_message,
        _attempts_text(letter.attempts),
    )
    return (*fields, _checksum(fields))


def moving_of(letter: Letter) -> tuple[Any, ...]:
    """Return what a move changes: the values UPDATE wants, but for the row."""
    return row_of(letter)[_FIXED_COUNT:]


def letter_of(row: Sequence[Any], request: bytes | None) -> Letter:
    """Return the letter in a row of COLUMNS, verified.

    Raises:
        Corrupt: LETTER_UNDECODABLE when a byte of it is not what was written.
    """
    try:
        sound = _checksum(tuple(row[:-1])) == row[-1]
        letter = _decoded(row, request) if sound else None
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise _undecodable(row) from error
    if letter is None:
        raise _undecodable(row)
    if request is not None and digest(request) != letter.request_digest:
        raise _undecodable(row)
    return letter


def broken_letter(row: Sequence[Any]) -> Letter:
    """Return what can be shown of a row that is not sound: nothing to act on."""
    state = str(row[_FIXED_COUNT])
    known = state in {one.value for one in LetterState}
    return Letter(
        letter_id=str(row[0]),
        agent_id=str(row[1]),
        upstream=str(row[2]),
        method=str(row[3]),
        idempotency_key=str(row[4]),
        metadata=(),
        request=None,
        request_size_bytes=row[6] if isinstance(row[6], int) else 0,
        request_digest=b"",
        accept_wall_s=row[8] if isinstance(row[8], float) else 0.0,
        ttl_s=None,
        state=LetterState(state) if known else LetterState.PARKED,
        reason=UNDECODABLE,
    )


def _decoded(row: Sequence[Any], request: bytes | None) -> Letter:
    return Letter(
        letter_id=row[0],
        agent_id=row[1],
        upstream=row[2],
        method=row[3],
        idempotency_key=row[4],
        metadata=_metadata(row[5]),
        request=request,
        request_size_bytes=row[6],
        request_digest=row[7],
        accept_wall_s=row[8],
        ttl_s=row[9],
        state=LetterState(row[10]),
        reason=row[11],
        attempt_count=row[12],
        failure_count=row[13],
        redrive_count=row[14],
        crash_count=row[15],
        next_attempt_wall_s=row[16],
        end_wall_s=row[17],
        expire_wall_s=row[18],
        last_code=row[19],
        last_message=row[20],
        attempts=tuple(Attempt(*one) for one in json.loads(row[21])),
    )


def _undecodable(row: Sequence[Any]) -> Corrupt:
    return Corrupt(
        "LETTER_UNDECODABLE",
        f"the record of letter {row[0]!r} is not what was written: it is parked and"
        " will not be sent; other letters are not affected",
        metadata={"letter": str(row[0])},
    )


def _checksum(fields: tuple[Any, ...]) -> bytes:
    """SHA-256 over the fields in order, each with its type."""
    text = json.dumps(fields, default=_bytes_text, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).digest()


def _bytes_text(value: bytes) -> dict[str, str]:
    """JSON has no bytes; SQLite has no other type that JSON lacks."""
    return {"bytes": value.hex()}


def metadata_text(metadata: tuple[tuple[str, str | bytes], ...]) -> str:
    """Return JSON of [key, text] for text and [key, base64, 1] for bytes."""
    entries = [
        [key, value]
        if isinstance(value, str)
        else [key, base64.b64encode(value).decode("ascii"), 1]
        for key, value in metadata
    ]
    return json.dumps(entries, separators=(",", ":"))


def _metadata(text: str) -> tuple[tuple[str, str | bytes], ...]:
    return tuple(
        (key, base64.b64decode(value) if coded else value)
        for key, value, *coded in json.loads(text)
    )


def _attempts_text(attempts: tuple[Attempt, ...]) -> str:
    return json.dumps(
        [[one.end_wall_s, one.code, one.message] for one in attempts],
        separators=(",", ":"),
    )
