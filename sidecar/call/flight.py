"""One admitted call, as the guard follows it."""

import math
from typing import Final

from outrigger.core import names
from sidecar.call.descriptor import Answer, Call, Kind, Metadata, Outcome, Permit
from sidecar.call.metadata import Asked
from sidecar.call.standing import GuardSettings, MethodStanding
from sidecar.call.tries import Hedge, Try
from sidecar.policy.classify import Repeat

_CALL: Final = Kind.CALL


class Flight(Permit):
    """The permit of a call with everything the guard must remember of it.

    It is the permit itself and not an object beside it: one object less per call. For
    the same reason it is its own first attempt, and each retry: a `Try`.
    """

    __slots__ = (
        "answer",
        "attempts",
        "began",
        "expires",
        "has_answered",
        "has_place",
        "hedge_at",
        "hedges",
        "is_delivery",
        "is_live",
        "is_over",
        "is_slow",
        "key",
        "last",
        "letter_id",
        "metadata",
        "method",
        "method_ticket",
        "number",
        "previous",
        "refused_by",
        "sent",
        "started",
        "step",
        "stops",
        "token",
        "upstream_ticket",
        "wants_letter",
    )

    def __init__(  # noqa: PLR0915 - a list of what is remembered, all plain
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
        self.previous: int
        """Attempts that the caller's own library made before."""
        if asked is None:
            self.metadata, self.key = call.metadata, call.call_id
            self.previous = 0
        else:
            self.metadata, self.key = asked.passed, asked.key or call.call_id
            self.previous = asked.previous
        self.is_delivery = call.kind is not _CALL
        self.wants_letter = _wants_letter(call, method, asked)
        if (asked is None or asked.key is None) and (
            self.wants_letter or method.is_stamped or self.is_delivery
        ):
            stamp = (names.IDEMPOTENCY_KEY_METADATA, self.key)
            self.metadata = (*self.metadata, stamp)
        self.expires = _expires(self, now, settings)
        """When an attempt must have ended; infinite without a deadline."""
        self.began = now
        """When the call came. Like `expires` in monotonic seconds: a caller's time
        goes on while this process is stopped."""
        self.attempts = 0
        """Attempts made so far."""
        self.number = -1
        self.started = now
        self.sent: float | None = None
        self.stops = 0
        self.has_answered = self.is_slow = False
        self.hedges: dict[int, Hedge] | None = None
        """Attempts beside this one that are on their way; never empty."""
        self.hedge_at: float | None = None
        """When to make the next one, monotonic seconds; None means never."""
        self.step = 0
        """Waits of our own choice since the last push-back."""
        self.upstream_ticket = self.method_ticket = 0
        self.is_live = False
        """Its own attempt is on its way: the tickets are out."""
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
        self.letter_id = ""

    def tried(self, attempt: int) -> Try | None:
        """Return an attempt that is on its way; None if it is not."""
        if self.is_live and attempt == self.number:
            return self
        return None if self.hedges is None else self.hedges.get(attempt)

    def landed(self, tried: Try) -> None:
        """Take note that an attempt is over."""
        if tried is self:
            self.is_live = False
        elif self.hedges is not None:
            del self.hedges[tried.number]
            if not self.hedges:
                self.hedges = None

    @property
    def is_flying(self) -> bool:
        """Say whether any attempt is on its way."""
        return self.is_live or self.hedges is not None

    def sent_metadata(self, number: int) -> Metadata:
        """Return what an attempt sends: as gRFC A6 has it, how many came before it."""
        before = self.previous + number
        if not before:
            return self.metadata
        return (*self.metadata, (names.PREVIOUS_ATTEMPTS_METADATA, str(before)))

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
