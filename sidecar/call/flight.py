"""One admitted call, as the guard follows it."""

import math
from typing import Final

from outrigger.core import names
from sidecar.call.descriptor import Answer, Call, Kind, Metadata, Outcome, Permit
from sidecar.call.metadata import Asked
from sidecar.call.standing import GuardSettings, MethodStanding
from sidecar.policy.classify import Repeat

_CALL: Final = Kind.CALL


class Flight(Permit):
    """The permit of a call with everything the guard must remember of it.

    It is the permit itself and not an object beside it: one object less per call.
    """

    __slots__ = (
        "answer",
        "attempts",
        "expires",
        "has_place",
        "is_delivery",
        "is_live",
        "is_over",
        "is_repeat",
        "key",
        "last",
        "metadata",
        "method",
        "method_ticket",
        "refused_by",
        "started",
        "step",
        "token",
        "upstream_ticket",
        "wants_letter",
    )

    def __init__(
        self,
        call: Call,
        method: MethodStanding,
        asked: Asked | None,
        now: float,
        settings: GuardSettings,
    ) -> None:
        self.call = call
        self.upstream = method.upstream.name
        self.state = None
        self.method = method
        self.metadata: Metadata
        """What every attempt sends."""
        self.key: str
        """Idempotency key, the caller's or else the call's id."""
        if asked is None:
            self.metadata, self.key = call.metadata, call.call_id
            self.is_repeat = False
        else:
            self.metadata, self.key = asked.passed, asked.key or call.call_id
            self.is_repeat = asked.is_repeat
        self.is_delivery = call.kind is not _CALL
        self.wants_letter = _wants_letter(call, method, asked)
        if (asked is None or asked.key is None) and (
            self.wants_letter or method.is_stamped or self.is_delivery
        ):
            stamp = (names.IDEMPOTENCY_KEY_METADATA, self.key)
            self.metadata = (*self.metadata, stamp)
        self.expires = _expires(self, now, settings)
        """When an attempt must have ended; infinite without a deadline."""
        self.attempts = 0
        """Attempts made so far."""
        self.started = now
        """When the newest attempt began."""
        self.step = 0
        """Waits of our own choice since the last push-back."""
        self.upstream_ticket = self.method_ticket = 0
        self.is_live = False
        """An attempt is on its way: its tickets are out."""
        self.is_over = False
        self.has_place = False
        """It takes a place of the concurrency limit."""
        self.refused_by: str | None = None
        self.last: Outcome | None = None
        """The failure that is to be tried again."""
        self.token: int | None = None
        """While it waits for its letter."""
        self.answer: Answer | None = None
        """What it is told when that is settled."""

    def timeout_s(self, now: float) -> float | None:
        """Return the time limit of an attempt that begins now; None means none."""
        room_s = self.expires - now
        limit_s = self.method.rule.timeout_s
        if limit_s is not None and limit_s < room_s:
            return limit_s
        return None if room_s == math.inf else room_s


def _wants_letter(call: Call, method: MethodStanding, asked: Asked | None) -> bool:
    if call.kind is not _CALL:
        return False
    if asked is None or asked.letter is None:
        return method.rule.letter != "off"
    return asked.letter == "on" or (
        asked.letter != "off" and method.rule.letter != "off"
    )


def _expires(flight: Flight, now: float, settings: GuardSettings) -> float:
    deadline = flight.call.deadline
    if deadline is None:
        return math.inf
    if not flight.wants_letter or flight.method.repeat is Repeat.UNSAFE:
        return deadline
    # Past the deadline no trailer reaches the caller, so its letter's id would be
    # lost: attempts end before. A short deadline is not eaten up by the margin.
    room_s = deadline - now
    margin_s = max(settings.margin_ratio * room_s, settings.margin_min_s)
    return deadline - min(margin_s, settings.margin_max_s, room_s / 2)
