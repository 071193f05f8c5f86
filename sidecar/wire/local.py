"""Outcomes the relay makes itself, marked as its own."""

import re
from typing import Final

from outrigger.core.errors import Invalid, OutriggerError, TimedOut, Transient
from outrigger.core.rpc.errors import details_metadata
from sidecar.call.answers import refusal
from sidecar.call.descriptor import Answer, Metadata, Origin, Outcome

REFUSED_BY: Final = "relay"
"""Value of the trailer `outrigger-refused-by` for what the wire refuses."""

_KEY: Final = re.compile(r"[0-9a-z_.-]+\Z")
_VALUE: Final = re.compile(r"[ -~]*\Z")


def answer(error: OutriggerError) -> Answer:
    """Return the answer an error of the relay is told with."""
    return refusal(error, REFUSED_BY, details_metadata)


def outcome(error: OutriggerError, *, committed: bool = False) -> Outcome:
    """Return an attempt's outcome that is the relay's own doing."""
    made = answer(error)
    return Outcome(made.code, made.message, Origin.LOCAL, committed, made.trailers)


def illegal(metadata: Metadata) -> str | None:
    """Return the first key that gRPC would refuse to send; None if all are fine.

    Asked before sending: the library takes a call with such metadata and then never
    ends it.
    """
    for key, value in metadata:
        if not _KEY.match(key):
            return key
        if key.endswith("-bin"):
            continue
        if not isinstance(value, str) or not _VALUE.match(value):
            return key
    return None


def illegal_request(key: str) -> Invalid:
    """Return the error for request metadata that cannot be sent on."""
    return Invalid(
        "ILLEGAL_METADATA",
        f"metadata {key!r} cannot be sent: expected keys of a-z, 0-9, dot, dash and"
        " underscore, and printable ASCII values (bytes in keys that end in -bin)",
    )


def no_channel(upstream: str) -> Transient:
    """Return the error for an upstream that has no address now."""
    return Transient(
        "NO_CHANNEL",
        f"{upstream!r} has no address now: it is asleep, or being taken away; nothing"
        " was sent",
    )


def cut(method: str, limit_s: float) -> TimedOut:
    """Return the error for a probe that hangs."""
    return TimedOut(
        "PROBE_CUT",
        f"this call to {method} was let through to find out if its callee is back, and"
        f" had no answer within {limit_s:g} s; it may or may not have happened",
    )


def channel_closed(upstream: str) -> Transient:
    """Return the error for a channel taken away under a call."""
    return Transient(
        "CHANNEL_CLOSED",
        f"the connection to {upstream!r} was taken away during the call; it may or may"
        " not have happened",
    )


def stopping() -> Transient:
    """Return the error for calls that still wait when the wire stops."""
    return Transient("STOPPING", "this sidecar is stopping; nothing was sent")
