"""Limits of the checkpoint store, and the refusals that go with them."""

from dataclasses import dataclass, field
from typing import Final

from outrigger.core.blocks import DIGEST_BYTES
from outrigger.core.errors import Invalid, Overloaded
from sidecar.policy.retention import Retention

SCHEMA_CHARS: Final = 128
"""Longest name of a state's form."""

_GIB: Final = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much one agent may keep, and how it is looked after."""

    quota_bytes: int = 4 * _GIB
    """Bytes on disk per agent, garbage included."""
    max_state_bytes: int = 4 * _GIB
    """Raw bytes of one state: equal blocks take no disk, so no quota bounds them."""
    retention: Retention = field(default_factory=Retention)
    """What is removed after every save."""
    reverify_s: float = 3600.0
    """A block reused after a longer time than this is read back again first."""
    workers: int = 2
    """Threads that hash, compress, read and write."""


def check_state_size(count: int, limits: Limits) -> None:
    """Refuse a state that is too large.

    Raises:
        Invalid: NEGATIVE_SIZE.
        Overloaded: STATE_TOO_LARGE.
    """
    if count < 0:
        raise Invalid("NEGATIVE_SIZE", f"a state cannot have {count} bytes")
    if count > limits.max_state_bytes:
        raise Overloaded(
            "STATE_TOO_LARGE",
            f"a state has at most {limits.max_state_bytes} bytes here, not {count}:"
            " save less, or raise the limit; nothing was kept",
        )


def check_digest(name: bytes) -> None:
    """Refuse what cannot be a digest.

    Raises:
        Invalid: BAD_DIGEST.
    """
    if len(name) != DIGEST_BYTES:
        raise Invalid(
            "BAD_DIGEST",
            f"a digest of {len(name)} bytes came: SHA-256 has {DIGEST_BYTES}; send the"
            " raw bytes of it, not hex",
        )


def check_epoch(epoch: int) -> None:
    """Refuse what cannot be an epoch.

    Raises:
        Invalid: BAD_EPOCH.
    """
    if not 0 <= epoch < 1 << 63:
        raise Invalid(
            "BAD_EPOCH", f"epoch {epoch} cannot be: epochs begin at 1, 0 means now"
        )


def check_schema(schema: str) -> None:
    """Refuse a name of a state's form that is too long.

    Raises:
        Invalid: BAD_SCHEMA.
    """
    if len(schema) > SCHEMA_CHARS:
        raise Invalid(
            "BAD_SCHEMA",
            f"a schema's name has at most {SCHEMA_CHARS} characters, not {len(schema)}",
        )
