"""How calls end: counted once, refused, passed on, or made a letter.

Who may end a call at the same moment, and who wins: its outcome, its caller going
away, and its letter. Whoever is told to the guard first; `is_over` and the table of
parked calls make every later word about the call a no-op, so that a place and a
count are given back exactly once.
"""

import itertools
from collections.abc import Callable

from outrigger.core.errors import OutriggerError
from sidecar.call import answers
from sidecar.call.answers import Details
from sidecar.call.descriptor import (
    Answer,
    Call,
    CallCounts,
    Finish,
    GivenUp,
    Kind,
    Letter,
    LetterRefused,
    LetterTaken,
    Outcome,
    Refuse,
    Resolution,
    SeenCall,
)
from sidecar.call.flight import Flight
from sidecar.call.metadata import without_credentials
from sidecar.call.places import Places
from sidecar.call.standing import GuardSettings
from sidecar.policy import classify
from sidecar.policy.classify import Code, Repeat

Watch = Callable[[SeenCall], object]


class Endings:
    """Ends calls and keeps count; the guard decides which end it is."""

    def __init__(
        self,
        settings: GuardSettings,
        details: Details,
        places: Places,
        tokens: "itertools.count[int]",
        now: float,
    ) -> None:
        self._parked_max = settings.parked_max
        self._details = details
        self._places = places
        self._parked: dict[int, Flight] = {}
        self._tokens = tokens
        self.watch: Watch | None = None
        """Told of every call that is over, while anybody wants to know."""
        self.counts = CallCounts()
        self.deliveries = CallCounts()
        self.last_activity = now

    def begun(self, flight: Flight, now: float) -> None:
        """Count a call that is on its way."""
        if flight.is_delivery:
            counts = self.deliveries
        else:
            counts = self.counts
            self.last_activity = now
        counts.begun += 1
        counts.in_flight += 1

    def succeeded(self, flight: Flight, now: float) -> None:
        """End a call well."""
        self._over(flight, Code.OK, now).ok += 1

    def cancelled(self, flight: Flight, now: float) -> None:
        """End a call whose caller went away."""
        if flight.token is not None:
            self._parked.pop(flight.token, None)
        self._over(flight, Code.CANCELLED, now).cancelled += 1

    def turned_away(
        self, call: Call, layer: str, error: OutriggerError, now: float
    ) -> Refuse:
        """Refuse a call before anything is known of where it goes."""
        counts = self.counts if call.kind is Kind.CALL else self.deliveries
        counts.begun += 1
        _count_refusal(counts, layer)
        answer = answers.refusal(error, layer, self._details)
        if self.watch is not None:
            self.watch(SeenCall(call, "", now, 0.0, 0, answer.code, layer))
        return Refuse(answer)

    def refused(
        self, flight: Flight, layer: str, error: OutriggerError, now: float
    ) -> Refuse | Letter:
        """End a call of which nothing was sent, or ask for its letter."""
        flight.refused_by = layer
        answer = answers.refusal(error, layer, self._details)
        if classify.may_be_letter(layer):
            why_not = self._why_no_letter(flight, now)
            if why_not is None:
                return self._park(flight, answer, now)
            if why_not:
                answer = answers.without_letter(answer, why_not)
        self._unsuccessful(flight, answer.code, now)
        return Refuse(answer)

    def failed(self, flight: Flight, outcome: Outcome, now: float) -> Finish | Letter:
        """End a call with the failure it had, or ask for its letter."""
        trailers = answers.attempts_trailer(flight.attempts)
        if classify.is_outage(outcome.code, outcome.origin):
            why_not = self._why_no_letter(flight, now, committed=outcome.committed)
            if why_not is None:
                answer = answers.passed_on(outcome, trailers)
                return self._park(flight, answer, now)
            if why_not:
                trailers += answers.no_letter_trailer(why_not)
        self._unsuccessful(flight, outcome.code, now)
        return Finish(None, trailers)

    def given_up(self, flight: Flight, answer: Answer, now: float) -> Refuse:
        """End a call that waited, with the answer of whoever ends the wait."""
        flight.refused_by = "limit"
        self._unsuccessful(flight, answer.code, now)
        return Refuse(answer)

    def resolved(self, token: int, result: Resolution, now: float) -> Finish:
        """End a call whose letter was taken or refused; an unknown token passes."""
        flight = self._parked.pop(token, None)
        if flight is None or flight.answer is None:
            return Finish(None)
        answer = flight.answer
        if isinstance(result, LetterTaken):
            self.counts.letters += 1
            flight.letter_id = result.letter_id
            answer = answers.with_letter(answer, result.letter_id, flight.attempts)
        elif isinstance(result, LetterRefused):
            answer = answers.without_letter(answer, result.reason)
        elif isinstance(result, GivenUp):
            answer = result.answer
        self._unsuccessful(flight, answer.code, now)
        return Finish(answer)

    def _why_no_letter(
        self, flight: Flight, now: float, *, committed: bool = False
    ) -> str | None:
        """Return None to take one, else why not; empty if none was wanted."""
        if not flight.wants_letter:
            return ""
        if committed:
            return "COMMITTED"
        if flight.method.repeat is Repeat.UNSAFE:
            return "UNSAFE_METHOD"
        deadline = flight.call.deadline
        late = deadline is not None and now >= deadline
        if late and flight.method.rule.letter != "always":
            return "DEADLINE_PASSED"
        if len(self._parked) >= self._parked_max:
            return "TOO_MANY_WAITING"
        return None

    def _park(self, flight: Flight, answer: Answer, now: float) -> Letter:
        """Ask for a letter; the call's place at the upstream is free meanwhile."""
        self._places.leave(flight, now)
        token = flight.token = next(self._tokens)
        self._parked[token] = flight
        flight.answer = answer
        return Letter(
            flight,
            token,
            flight.upstream,
            flight.key,
            without_credentials(flight.metadata),
            answer.code,
            answer.message,
        )

    def _unsuccessful(self, flight: Flight, code: int, now: float) -> None:
        counts = self._over(flight, code, now)
        if flight.refused_by is None:
            counts.failed += 1
        else:
            _count_refusal(counts, flight.refused_by)

    def _over(self, flight: Flight, code: int, now: float) -> CallCounts:
        """Forget a call; return where its end is to be counted."""
        flight.is_over = True
        self._places.leave(flight, now)
        if self.watch is not None:
            self.watch(_seen(flight, code, now))
        if flight.is_delivery:
            counts = self.deliveries
        else:
            counts = self.counts
            self.last_activity = now
        counts.in_flight -= 1
        return counts


def _count_refusal(counts: CallCounts, layer: str) -> None:
    counts.refused[layer] = counts.refused.get(layer, 0) + 1


def _seen(flight: Flight, code: int, now: float) -> SeenCall:
    return SeenCall(
        call=flight.call,
        upstream=flight.upstream,
        began=flight.began,
        elapsed_s=now - flight.began,
        attempts=flight.attempts,
        code=code,
        refused_by=flight.refused_by or "",
        letter_id=flight.letter_id,
    )
