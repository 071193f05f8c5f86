"""How values look in a table."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.cli.terminal import one_line

NONE = "-"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_STEP = 1024
_MINUTE_S = 60
_HOUR_S = 3600
_DAY_S = 86400
_DIGEST_CHARS = 12


def words(text: str) -> str:
    """Return text for one cell."""
    return one_line(text) or NONE


def word(name_of: Callable[[Any], str], number: int) -> str:
    """Return an enum value in our words: STATE_HALF_OPEN is half_open."""
    try:
        return name_of(number).partition("_")[2].lower()
    except ValueError:
        return f"unknown({number})"


def count(number: int) -> str:
    """Return a number, with zero as a dash."""
    return str(number) if number else NONE


def moment(holder: Message, field: str) -> str:
    """Return a timestamp field in UTC, or a dash when it is unset."""
    if not holder.HasField(field):
        return NONE
    stamp: Timestamp = getattr(holder, field)
    try:
        when = datetime.fromtimestamp(stamp.seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"unreadable({stamp.seconds})"
    return f"{when:%Y-%m-%d %H:%M:%S}Z"


def span(holder: Message, field: str) -> str:
    """Return a duration field, or a dash when it is unset."""
    if not holder.HasField(field):
        return NONE
    length: Duration = getattr(holder, field)
    return elapsed(length.seconds + length.nanos / 1e9)


def milliseconds(length: Duration) -> str:
    """Return a duration of one call."""
    return f"{length.ToMicroseconds() / 1000:.1f}ms"


def elapsed(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < _MINUTE_S:
        return f"{seconds:.1f}s"
    if seconds < _HOUR_S:
        return f"{int(seconds // _MINUTE_S)}m{int(seconds % _MINUTE_S):02d}s"
    if seconds < _DAY_S:
        hours, rest = divmod(int(seconds), _HOUR_S)
        return f"{hours}h{rest // _MINUTE_S:02d}m"
    return f"{seconds / _DAY_S:.1f}d"


def size(number_bytes: int) -> str:
    """Return a number of bytes in the largest unit that keeps it above one."""
    value = float(number_bytes)
    for unit in _UNITS[:-1]:
        if value < _STEP:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= _STEP
    return f"{value:.1f} {_UNITS[-1]}"


def digest(raw: bytes) -> str:
    """Return the beginning of a digest in hex."""
    return raw.hex()[:_DIGEST_CHARS] or NONE
