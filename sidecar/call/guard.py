"""Every decision about an outbound call, layer by layer, without waiting.

Outermost first: deadline, kill switch, concurrency limit, retry and its budget,
circuit of the upstream, circuit of the method, time limit of the attempt.

Two things are not decided here yet: hedging (`due` always says never) and a circuit
that opens because calls are slow rather than failing.
"""

from collections.abc import Callable, Iterable
from typing import Final

from outrigger.core.errors import Bug, OutriggerError, TimedOut, Transient
from sidecar.call import answers
from sidecar.call.answers import Details, no_details
from sidecar.call.circuits import CircuitRecord, Circuits, CircuitView, Publish
from sidecar.call.descriptor import (
    Answer,
    Call,
    Finish,
    Go,
    Letter,
    Origin,
    Outcome,
    Permit,
    Refuse,
    Resolution,
    Retry,
    Trailers,
)
from sidecar.call.endings import Endings
from sidecar.call.flight import Flight
from sidecar.call.metadata import asked_of
from sidecar.call.routes import Routes
from sidecar.call.standing import GuardSettings, Standings
from sidecar.policy import classify
from sidecar.policy.circuit import Circuit
from sidecar.policy.classify import Code
from sidecar.policy.retry import Failure, next_delay_s, pushback_s

__all__ = ["CallGuard", "CircuitRecord", "CircuitView", "GuardSettings"]

Hint = Callable[[Trailers], float | None]
"""Returns the seconds of a google.rpc.RetryInfo in the trailers, if there is one."""

_PASS: Final = Finish(None)
_NO_ROOM_S: Final = 0.01
"""A caller that goes away this close to its deadline has run out of time."""


def no_hint(_trailers: Trailers) -> float | None:
    """Return no hint, where nobody parses any."""
    return None


class CallGuard:
    """The outbound guard of one sidecar; see `descriptor.Guard`."""

    def __init__(
        self,
        routes: Routes,
        settings: GuardSettings | None = None,
        *,
        publish: Publish,
        now: float,
        details: Details = no_details,
        retry_hint: Hint = no_hint,
    ) -> None:
        """Start with every circuit closed.

        Args:
            routes: where calls go.
            settings: limits; None means the defaults.
            publish: takes each CircuitMoved, after the move.
            now: monotonic seconds.
            details: makes the `grpc-status-details-bin` of refusals.
            retry_hint: reads google.rpc.RetryInfo.
        """
        settings = settings or GuardSettings()
        self._settings = settings
        self._standings = Standings(routes, settings, now)
        self._circuits = Circuits(self._standings, settings, publish)
        self._endings = Endings(settings, details, now)
        self._retry_hint = retry_hint
        self._killed: str | None = None
        self._now = now
        self.counts: Final = self._endings.counts
        """The agent's own calls. Each is in exactly one of ok, failed, refused and
        cancelled once it is over, and in `in_flight` until then."""
        self.deliveries: Final = self._endings.deliveries
        """The same of letters on their way."""

    def begin(self, call: Call, now: float) -> Go | Refuse | Letter:
        """Admit a call, refuse it, or ask for its letter."""
        self._now = now
        asked = asked_of(call.metadata)
        named = None if asked is None else asked.upstream
        try:
            method = self._standings.find(call.method, named, now)
        except OutriggerError as error:
            return self._endings.unroutable(call, error)
        flight = Flight(call, method, asked, now, self._settings)
        self._endings.begun(flight, now)
        if call.deadline is not None and now >= call.deadline:
            return self._endings.refused(flight, "deadline", _too_late(call), now)
        if self._killed is not None and flight.is_delivery:
            stopped = _killed(self._killed)
            return self._endings.refused(flight, "kill_switch", stopped, now)
        limit = method.upstream.limit
        if not limit.enter():
            return self._endings.refused(flight, "limit", limit.refusal(), now)
        flight.has_place = True
        if flight.is_repeat:
            method.upstream.budget.charge(now)
        shut = self._admit(flight, now)
        if shut is not None:
            refusal = answers.circuit_error(shut, now)
            return self._endings.refused(flight, "circuit", refusal, now)
        return Go(flight, 0, flight.metadata, flight.timeout_s(now))

    def attempt(self, permit: Permit, now: float) -> Go | Refuse | Letter:
        """Admit a retry, or end the call with the failure it had.

        Between the failure and now its time may have run out, a circuit may have
        opened, or an operator thrown the switch.

        Raises:
            Bug: NOT_WAITING, no retry was scheduled for this call.
        """
        self._now = now
        flight = _flight(permit)
        if flight.is_over:
            return Refuse(Answer(Code.CANCELLED, "the caller went away"))
        last = flight.last
        if flight.is_live or last is None:
            raise Bug("NOT_WAITING", f"{flight.call.method} waits for no retry")
        flight.last = None
        late = now >= flight.expires
        if late or self._killed is not None or self._admit(flight, now) is not None:
            ended = self._endings.failed(flight, last, now)
            if isinstance(ended, Letter):
                return ended
            return Refuse(answers.passed_on(last, ended.trailers))
        number = flight.attempts - 1
        return Go(flight, number, flight.metadata, flight.timeout_s(now))

    def due(self, permit: Permit, now: float) -> float | None:  # noqa: ARG002 - shape of Guard
        """Return None: nothing is hedged yet."""
        return None

    def ended(
        self, permit: Permit, attempt: int, outcome: Outcome, now: float, draw: float
    ) -> Finish | Retry | Letter:
        """Count an attempt's outcome and say what comes next."""
        self._now = now
        flight = _flight(permit)
        if not flight.is_live or attempt != flight.attempts - 1:
            return _PASS  # the caller went away first, and all was given back then
        flight.is_live = False
        method = flight.method
        if attempt == 0 and not (flight.is_repeat or flight.is_delivery):
            method.upstream.budget.completed(now)
        if outcome.code != 0:
            self._count_failure(flight, outcome, now, draw)
            return self._after_failure(flight, outcome, now, draw)
        circuit = method.upstream.circuit
        circuit.passed(flight.upstream_ticket, now)
        if circuit.moves:
            self._circuits.settle(circuit)
        circuit = method.circuit
        circuit.passed(flight.method_ticket, now)
        if circuit.moves:
            self._circuits.settle(circuit)
        method.median.add(now - flight.started)
        self._endings.succeeded(flight, now)
        if attempt == 0:
            return _PASS
        return Finish(None, answers.attempts_trailer(flight.attempts))

    def cancelled(self, permit: Permit, now: float) -> None:
        """Give back everything of a call whose caller went away."""
        self._now = now
        flight = _flight(permit)
        if flight.is_over:
            return
        if flight.is_live:
            flight.is_live = False
            self._count_vanished(flight, now)
        self._endings.cancelled(flight, now)

    def resolved(self, token: int, result: Resolution, now: float) -> Finish:
        """End a call whose letter was taken or refused; unknown tokens pass."""
        self._now = now
        return self._endings.resolved(token, result, now)

    def tick(self, now: float) -> None:
        """End the rests of open circuits and expire the leases of probes."""
        self._now = now
        self._circuits.tick(now)

    def kill_calls(self, on: bool, reason: str) -> None:  # noqa: FBT001 - the seam's
        """Stop retries and deliveries, or allow them again.

        The agent's own first attempts are never stopped.
        """
        self._killed = reason if on else None

    @property
    def calls_killed(self) -> str | None:
        """Why retries and deliveries are stopped; None if they are not."""
        return self._killed

    @property
    def last_activity(self) -> float:
        """When a call of the agent last began or ended, monotonic seconds.

        Deliveries are not the agent's doing and do not count.
        """
        return self._endings.last_activity

    def circuits(self) -> tuple[CircuitView, ...]:
        """Return all circuits by id, as of the newest `now` the guard was told."""
        return self._circuits.views(self._now)

    def circuit(self, circuit_id: str) -> CircuitView | None:
        """Return one circuit; None if there is none."""
        return self._circuits.view(circuit_id, self._now)

    def isolate(self, circuit_id: str, reason: str, now: float) -> None:
        """Refuse every call until `restore`.

        Raises:
            NotFound: UNKNOWN_CIRCUIT.
        """
        self._circuits.isolate(circuit_id, reason, now)

    def restore(self, circuit_id: str, now: float) -> None:
        """End an isolation by probing.

        Raises:
            NotFound: UNKNOWN_CIRCUIT.
        """
        self._circuits.restore(circuit_id, now)

    def restored_state(self, records: Iterable[CircuitRecord], now: float) -> None:
        """Take over circuits saved before a restart.

        Open ones come back half open, isolated ones isolated.
        """
        self._circuits.resume(records, now)

    def saved_state(self) -> tuple[CircuitRecord, ...]:
        """Return what `restored_state` wants to be given after a restart."""
        return self._circuits.records()

    def connection_ready(self, upstream: str, now: float) -> None:
        """Probe at once: the upstream's channel turned READY."""
        self._circuits.connection_ready(upstream, now)

    def circuit_retry_after_s(
        self, upstream: str, method: str, now: float
    ) -> float | None:
        """Return for how long a call would be refused, in seconds.

        None if it would be admitted, as a probe where the circuit is half open.
        """
        return self._circuits.retry_after_s(upstream, method, now)

    def _admit(self, flight: Flight, now: float) -> Circuit | None:
        """Begin an attempt if both circuits let it; return the one that does not."""
        upstream = flight.method.upstream.circuit
        upstream_ticket = upstream.admit(now)
        if upstream.moves:
            self._circuits.settle(upstream)
        if upstream_ticket is None:
            return upstream
        method = flight.method.circuit
        method_ticket = method.admit(now)
        if method.moves:
            self._circuits.settle(method)
        if method_ticket is None:
            upstream.released(upstream_ticket)
            return method
        flight.upstream_ticket = upstream_ticket
        flight.method_ticket = method_ticket
        flight.started = now
        flight.attempts += 1
        flight.is_live = True
        return None

    def _count_failure(
        self, flight: Flight, outcome: Outcome, now: float, draw: float
    ) -> None:
        """Tell both circuits."""
        method = flight.method
        verdict = classify.of_method(
            outcome.code,
            outcome.origin,
            patience_s=flight.expires - flight.started,
            median_s=method.median.value_s(),
        )
        about_upstream = classify.of_upstream(outcome.code, outcome.origin)
        for circuit, ticket, what in (
            (method.upstream.circuit, flight.upstream_ticket, about_upstream),
            (method.circuit, flight.method_ticket, verdict),
        ):
            circuit.failed(ticket, what, now, draw)
            if circuit.moves:
                self._circuits.settle(circuit)

    def _count_vanished(self, flight: Flight, now: float) -> None:
        """Give tickets back; at its deadline a caller does not just vanish."""
        deadline = flight.call.deadline
        if deadline is not None and now >= deadline - _NO_ROOM_S:
            outcome = Outcome(Code.DEADLINE_EXCEEDED, "", Origin.LOCAL, committed=False)
            self._count_failure(flight, outcome, now, draw=0.0)
            return
        flight.method.upstream.circuit.released(flight.upstream_ticket)
        flight.method.circuit.released(flight.method_ticket)

    def _after_failure(
        self, flight: Flight, outcome: Outcome, now: float, draw: float
    ) -> Finish | Retry | Letter:
        delay_s = self._delay_s(flight, outcome, now, draw)
        if delay_s is None:
            return self._endings.failed(flight, outcome, now)
        flight.last = outcome
        self.counts.retries += 1
        return Retry(delay_s)

    def _delay_s(
        self, flight: Flight, outcome: Outcome, now: float, draw: float
    ) -> float | None:
        """Return when to retry; None means not at all. Charges the budget last."""
        method = flight.method
        pushback = pushback_s(outcome.trailers)
        if not self._may_retry(flight, outcome, has_pushback=pushback is not None):
            return None
        failure = Failure(
            step=flight.step,
            pushback_s=pushback,
            hint_s=self._retry_hint(outcome.trailers) or 0.0,
            room_s=flight.expires - now,
            typical_s=method.median.value_s() or 0.0,
        )
        delay_s = next_delay_s(self._settings.retry, failure, draw)
        if delay_s is None or _is_shut(flight, now + delay_s):
            return None
        if not method.upstream.budget.spend(now):
            return None
        flight.step = 0 if pushback is not None else flight.step + 1
        return delay_s

    def _may_retry(
        self, flight: Flight, outcome: Outcome, *, has_pushback: bool
    ) -> bool:
        method = flight.method
        return (
            not outcome.committed
            and not flight.is_delivery
            and self._killed is None
            and flight.attempts < method.rule.max_attempts
            and classify.is_retryable(
                outcome.code, outcome.origin, method.repeat, has_pushback=has_pushback
            )
        )


def _flight(permit: Permit) -> Flight:
    if not isinstance(permit, Flight):
        raise Bug("FOREIGN_PERMIT", "this permit was made by another guard")
    return permit


def _is_shut(flight: Flight, when: float) -> bool:
    """Return whether a circuit will still refuse then."""
    method = flight.method
    return (
        method.upstream.circuit.remaining_s(when) > 0
        or method.circuit.remaining_s(when) > 0
    )


def _too_late(call: Call) -> TimedOut:
    return TimedOut(
        "DEADLINE_PASSED",
        f"the deadline of this call to {call.method} had passed when it came; nothing"
        " was sent: give it more time",
    )


def _killed(reason: str) -> Transient:
    return Transient(
        answers.CALLS_KILLED,
        f"an operator stopped retries and deliveries ({reason}); nothing was sent:"
        " wait until the switch is released",
    )
