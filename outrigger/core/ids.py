"""Identifiers: how they look, and how a bad one is refused."""

import re
import uuid

from outrigger.core.errors import Invalid

_AGENT_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")
_METHOD = re.compile(r"/[A-Za-z_][\w.]*/[A-Za-z_]\w*\Z")
_UPSTREAM = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


def check_agent_id(value: str) -> str:
    """Return `value` if it names an agent; it becomes part of paths and keys.

    Raises:
        Invalid: BAD_AGENT_ID.
    """
    if not _AGENT_ID.match(value) or ".." in value:
        raise Invalid(
            "BAD_AGENT_ID",
            f"agent id {value!r} is not valid: use 1 to 63 characters of a-z, 0-9,"
            " dot, dash and underscore, beginning with a letter or digit, without"
            " two dots in a row",
        )
    return value


def check_upstream_name(value: str) -> str:
    """Return `value` if it names an upstream.

    Raises:
        Invalid: BAD_UPSTREAM_NAME.
    """
    if not _UPSTREAM.match(value):
        raise Invalid(
            "BAD_UPSTREAM_NAME",
            f"upstream name {value!r} is not valid: use 1 to 63 characters of a-z,"
            " 0-9, dot, dash and underscore",
        )
    return value


def check_method(value: str) -> str:
    """Return `value` if it is a full gRPC method name.

    Raises:
        Invalid: BAD_METHOD.
    """
    if not _METHOD.match(value):
        raise Invalid(
            "BAD_METHOD",
            f"method {value!r} is not valid: write it as /package.Service/Method",
        )
    return value


def letter_id(wall_s: float, noise: bytes) -> str:
    """Return a UUIDv7 (RFC 9562): it sorts by the millisecond it was made in.

    Args:
        wall_s: seconds since 1970.
        noise: ten random bytes.
    """
    milliseconds = int(wall_s * 1000) & ((1 << 48) - 1)
    random_bits = int.from_bytes(noise[:10], "big")
    value = milliseconds << 80
    value |= 0x7 << 76
    value |= ((random_bits >> 62) & 0xFFF) << 64
    value |= 0b10 << 62
    value |= random_bits & ((1 << 62) - 1)
    return str(uuid.UUID(int=value))
