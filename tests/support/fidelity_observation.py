"""What a call looked like from both of its ends, in a form that can be compared.

Everything is compared: messages, order, metadata, status. The only things left out
are named in this file, with the reason.
"""

import hashlib
import re
from dataclasses import dataclass, field

LEFT_OUT = {
    "user-agent": "names the gRPC library of the last hop, and no peer may set it",
}
"""Metadata that is left out of every observation."""

_SLACK_S = 3.0
_SLACK_RATIO = 0.02
"""gRPC writes a timeout with few digits and rounds up, at every hop."""


@dataclass
class About:
    """A time that two runs never share to the millisecond; seconds."""

    seconds: float

    def __eq__(self, other):
        if not isinstance(other, About):
            return NotImplemented
        slack_s = _SLACK_S + _SLACK_RATIO * self.seconds
        return abs(self.seconds - other.seconds) <= slack_s

    __hash__ = None


@dataclass
class Observation:
    """One run of one case."""

    caller: list = field(default_factory=list)
    """What the caller saw, in order: a list of events for each call it made."""
    upstream: list = field(default_factory=list)
    """What the upstream saw of each call that reached it, by arrival."""
    facts: dict = field(default_factory=dict)
    """What else the case found out."""


def pairs(metadata):
    """Return metadata as comparable pairs, in order, without what is left out."""
    return tuple((key, value) for key, value in metadata or () if key not in LEFT_OUT)


def words(details):
    """Return a status message without what the library now and then puts around it.

    Of two direct calls that end alike, one may say `Stream removed (Socket closed)`
    and the other `Socket closed`: it depends on which of its parts heard it first.
    """
    found = re.fullmatch(r"Stream removed \((.*)\)", details, re.DOTALL)
    return found[1] if found else details


def size(message):
    """Return a message, or of a large one its length and what tells it from others."""
    if message is None or len(message) <= 256:
        return message
    return len(message), hashlib.sha256(message).hexdigest()
