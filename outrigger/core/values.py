"""Values as a person writes them: text in, a checked value out.

Each parser takes text and returns the value or raises Wrong, whose line says what
was expected.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from outrigger.core.ids import check_upstream_name

N = TypeVar("N", int, float)


class Wrong(ValueError):
    """A value is not what was expected; `lines` has one mistake each."""

    def __init__(self, *lines: str) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines


_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)\Z")
_SECONDS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)\Z")
_BYTES: Final = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_BOOLEANS: Final = {
    "true": True, "yes": True, "on": True, "1": True,
    "false": False, "no": False, "off": False, "0": False,
}  # fmt: skip
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[\w.-]+)\Z")
_PATH_TARGETS: Final = ("unix:", "unix-abstract:")
_NAME_TARGETS: Final = ("dns:", "ipv4:", "ipv6:", "vsock:")
_MAX_PORT: Final = (1 << 16) - 1


def text(value: str) -> str:
    """Return text that is not empty."""
    if not value.strip():
        raise Wrong("expected text that is not empty")
    return value


def seconds(value: str) -> float:
    """Return seconds from `1.5`, `300ms`, `5s`, `2m`, `1h` or `1d`."""
    match = _DURATION.match(value.strip())
    if match is None:
        raise Wrong("expected a time such as 1.5, 300ms, 5s, 2m, 1h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


def size_bytes(value: str) -> int:
    """Return bytes from `4096`, `64KiB`, `1.5GiB` or `10MB` (powers of 1000)."""
    match = _SIZE.match(value.strip())
    unit = _BYTES.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise Wrong("expected a size such as 4096, 256KiB, 64MiB or 2GiB")
    return int(float(match[1]) * unit) if "." in match[1] else int(match[1]) * unit


def integer(value: str) -> int:
    """Return a whole number."""
    try:
        return int(value, 10)
    except ValueError:
        raise Wrong("expected a whole number") from None


def number(value: str) -> float:
    """Return a finite number."""
    try:
        found = float(value)
    except ValueError:
        raise Wrong("expected a number") from None
    if not math.isfinite(found):
        raise Wrong("expected a finite number")
    return found


def boolean(value: str) -> bool:
    """Return True or False from true/false, yes/no, on/off, 1/0."""
    found = _BOOLEANS.get(value.strip().lower())
    if found is None:
        raise Wrong("expected true or false")
    return found


def path(value: str) -> Path:
    """Return a path, with a leading `~` expanded."""
    if not value or "\0" in value:
        raise Wrong("expected a path")
    try:
        return Path(value).expanduser()
    except RuntimeError:
        raise Wrong("expected a path whose ~ names a user of this machine") from None


def address(value: str) -> str:
    """Return `HOST:PORT` or `unix:PATH`, to listen on or to call."""
    if value.startswith("unix:"):
        if value == "unix:" or "\0" in value:
            raise Wrong("expected a path after unix:")
        return value
    host, _, port = value.rpartition(":")
    if not (_HOST.match(host) and port.isascii() and port.isdigit()):
        raise Wrong("expected HOST:PORT, [IPV6]:PORT or unix:PATH")
    if int(port) > _MAX_PORT:
        raise Wrong(f"expected a port from 0 to {_MAX_PORT}")
    return value


def target(value: str) -> str:
    """Return a gRPC target: `HOST:PORT`, `dns:///...`, `ipv4:...`, `unix:...`."""
    if re.search(r"[\s\0]", value):
        raise Wrong("expected a target without white space")
    for scheme in (*_PATH_TARGETS, *_NAME_TARGETS):
        if value.startswith(scheme):
            if not value.removeprefix(scheme).strip("/"):
                raise Wrong(f"expected a name after {scheme}")
            return value
    if "://" in value:
        raise Wrong("expected HOST:PORT, dns:///NAME:PORT or unix:PATH, not a URL")
    if address(value).endswith(":0"):
        raise Wrong("expected a port from 1 to 65535: nobody answers on port 0")
    return value


def named_target(value: str) -> tuple[str, str]:
    """Return (name, target) from `NAME=TARGET`."""
    name, equals, where = value.partition("=")
    if not equals:
        raise Wrong("expected NAME=TARGET, for example tools=127.0.0.1:9000")
    return check_upstream_name(name), target(where)


def redis_url(value: str) -> str:
    """Return a Redis URL: redis://, rediss:// or unix://, with a numbered database."""
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in ("redis", "rediss", "unix") or not rest:
        raise Wrong("expected redis://HOST:PORT/0, rediss://... or unix://PATH")
    database = rest.partition("?")[0].partition("/")[2]
    if scheme != "unix" and database and not database.isdecimal():
        raise Wrong("expected a number after the last slash: the database, mostly 0")
    return value


def choice(*words: str) -> Callable[[str], str]:
    """Return a parser that takes one of `words`."""

    def parse(value: str) -> str:
        if value not in words:
            raise Wrong(f"expected {' or '.join(words)}")
        return value

    return parse


def between(
    parse: Callable[[str], N], low: N, high: N | None = None
) -> Callable[[str], N]:
    """Return `parse` bounded: `low` and `high` are both still allowed."""

    def bounded(value: str) -> N:
        found = parse(value)
        if found < low or (high is not None and found > high):
            upto = "" if high is None else f" and at most {high}"
            raise Wrong(f"expected at least {low}{upto}")
        return found

    return bounded
