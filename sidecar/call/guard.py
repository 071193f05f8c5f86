"""Every decision about an outbound call, layer by layer, without waiting.

Outermost first: the agent's token where one is asked for, deadline, kill switch,
concurrency limit with its queue, retry and its budget, circuit of the upstream, circuit
of the method, faults that an operator asked for, time limit of the attempt.

Two kinds of time: deadlines are in monotonic seconds, for a caller's time goes on
whatever happens to this process; windows, rests and leases are in active ones.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from outrigger.core.errors import (
    Bug,
    OutriggerError,
    Unauthenticated,
)
from sidecar.call import answers
from sidecar.call.answers import Details, no_details
from sidecar.call.attempts import Attempts
from sidecar.call.circuits import CircuitRecord, Circuits, CircuitView, Publish
from sidecar.call.descriptor import (
    Answer,
    Await,
    Call,
    Fault,
    Finish,
    GivenUp,
    Go,
    Letter,
    Outcome,
    Permit,
    Refuse,
    Resolution,
    Retry,
    Trailers,
    Wait,
)
from sidecar.call.endings import Endings, Watch
from sidecar.call.flight import Flight
from sidecar.call.metadata import asked_of
from sidecar.call.places import Places, Resolve, full, waited_in_vain
from sidecar.call.refusals import check_token, killed, too_late
from sidecar.call.repeats import Times, may_be_repeated, may_hedge, retry_after_s
from sidecar.call.routes import Routes
from sidecar.call.standing import GuardSettings, Standings, UpstreamPolicy
from sidecar.call.tries import Hedge, Try
from sidecar.policy.active_time import ActiveTime
from sidecar.policy.circuit import Circuit, CircuitState
from sidecar.policy.classify import Code
from sidecar.policy.retry import pushback_s

__all__ = [
    "CallGuard",
    "CircuitRecord",
    "CircuitView",
    "GuardSettings",
    "UpstreamPolicy",
]

Hint = Callable[[Trailers], float | None]
"""Returns the seconds of a google.rpc.RetryInfo in the trailers, if there is one."""

_PASS: Final = Finish(None)
_AWAIT: Final = Await()
_CLOSED: Final = CircuitState.CLOSED


def no_hint(_trailers: Trailers) -> float | None:
    """Return no hint, where nobody parses any."""
    return None


def nobody(_token: int, _result: Resolution) -> None:
    """Tell nobody, where no call ever waits."""


class FaultSource(Protocol):
    """What an operator wants to go wrong."""

    def fault(self, upstream: str, method: str, now: float) -> Fault | None:
        """Return what is to go wrong with an attempt that begins now."""
        ...


class CallGuard:
    """The outbound guard of one sidecar; see `descriptor.Guard`."""

    def __init__(  # noqa: PLR0913 - its surroundings, all of them named
        self,
        routes: Routes,
        settings: GuardSettings | None = None,
        *,
        publish: Publish,
        now: float,
        details: Details = no_details,
        retry_hint: Hint = no_hint,
        resolve: Resolve = nobody,
    ) -> None:
        """Start with every circuit closed.

        Args:
            routes: where calls go.
            settings: limits; None means the defaults.
            publish: takes each CircuitMoved, after the move.
            now: monotonic seconds.
            details: makes the `grpc-status-details-bin` of refusals.
            retry_hint: reads google.rpc.RetryInfo.
            resolve: the wire's; needed where calls wait for a place.
        """
        settings = settings or GuardSettings()
        self._settings = settings
        self._time = ActiveTime()
        self._standings = Standings(routes, settings, now)
        self._circuits = Circuits(self._standings, settings, publish, self._time)
        self._attempts = Attempts(self._circuits, self._time)
        self._tokens = itertools.count(1)
        self._places = Places(self._tokens, resolve)
        self._endings = Endings(settings, details, self._places, self._tokens, now)
        self._retry_hint = retry_hint
        self._killed: str | None = None
        self._now = now
        self.faults: FaultSource | None = None
        """Asked at each attempt; None, as nearly always, costs nothing."""
        self.counts: Final = self._endings.counts
        """The agent's own calls. Each is in exactly one of ok, failed, refused and
        cancelled once it is over, and in `in_flight` until then."""
        self.deliveries: Final = self._endings.deliveries
        """The same of letters on their way."""

    # The wire's side.

    def begin(self, call: Call, now: float) -> Go | Wait | Refuse | Letter:
        """Admit a call, let it wait for a place, refuse it, or ask for its letter."""
        self._now = now
        asked = asked_of(call.metadata)
        named = None if asked is None else asked.upstream
        try:
            if self._settings.token is not None:
                check_token(self._settings.token, call, asked)
            method = self._standings.find(call.method, named, now)
        except OutriggerError as error:
            layer = "token" if isinstance(error, Unauthenticated) else "route"
            return self._endings.turned_away(call, layer, error, now)
        flight = Flight(call, method, asked, now, self._settings)
        self._endings.begun(flight, now)
        if call.deadline is not None and now >= call.deadline:
            return self._endings.refused(flight, "deadline", too_late(call), now)
        if self._killed is not None and flight.is_delivery:
            stopped = killed(self._killed)
            return self._endings.refused(flight, "kill_switch", stopped, now)
        if not self._places.enter(flight):
            wait = self._places.wait(flight, now)
            self.counts.held = self._places.held
            return wait or self._endings.refused(flight, "limit", full(flight), now)
        return self._first(flight, now)

    def attempt(self, permit: Permit, now: float) -> Go | Refuse | Letter | Await:
        """Admit a retry or a hedge; end the call where a retry may not be.

        Between the failure and now its time may have run out, a circuit may have
        opened, or an operator thrown the switch.

        Raises:
            Bug: NOT_WAITING, neither a retry nor a hedge of this call is due.
        """
        self._now = now
        flight = _flight(permit)
        if flight.is_over:
            return Refuse(Answer(Code.CANCELLED, "the caller went away"))
        if flight.is_flying:
            return self._hedged(flight, now)
        last = flight.last
        if last is None:
            raise Bug("NOT_WAITING", f"{flight.call.method} waits for no retry")
        flight.last = None
        flight.has_answered = flight.is_slow = False
        late = now >= flight.expires
        active = self._time.at(now)
        if (
            late
            or self._killed is not None
            or self._attempts.admit(flight, flight, active) is not None
        ):
            ended = self._endings.failed(flight, last, now)
            if isinstance(ended, Letter):
                return ended
            return Refuse(answers.passed_on(last, ended.trailers))
        flight.is_live = True
        return self._go(flight, flight, now)

    def due(self, permit: Permit, now: float) -> float | None:  # noqa: ARG002 - shape of Guard
        """Return when to make one more attempt beside those on their way."""
        return _flight(permit).hedge_at

    def sent(self, permit: Permit, attempt: int, now: float) -> None:
        """Take note that an attempt's answer is waited for from now on."""
        flight = _flight(permit)
        tried = flight.tried(attempt)
        if tried is not None:
            self._attempts.sent(flight, tried, self._time.at(now))

    def answered(self, permit: Permit, attempt: int, now: float) -> None:
        """Take note that a response has begun, and that no other can win."""
        self._now = now
        flight = _flight(permit)
        tried = flight.tried(attempt)
        if tried is None or tried.has_answered:
            return
        flight.hedge_at = None
        active = self._time.at(now)
        self._release_others(flight, tried, active)
        self._attempts.answered(flight, tried, active)

    def ended(
        self, permit: Permit, attempt: int, outcome: Outcome, now: float, draw: float
    ) -> Finish | Retry | Letter | Await:
        """Count an attempt's outcome and say what comes next."""
        self._now = now
        flight = _flight(permit)
        tried = flight.tried(attempt)
        if tried is None:
            return _PASS  # the caller went away first, and all was given back then
        active = self._time.at(now)
        if attempt == 0:
            _earn(flight, active)
        flight.landed(tried)
        if outcome.code != 0:
            self._attempts.failed(flight, tried, outcome, active, draw)
            return self._after_failure(flight, outcome, now, draw)
        self._attempts.succeeded(flight, tried, active, draw)
        if flight.hedges is not None or flight.is_live:
            self._release_others(flight, tried, active)
        self._endings.succeeded(flight, now)
        if flight.attempts == 1:
            return _PASS
        return Finish(None, answers.attempts_trailer(flight.attempts))

    def cancelled(self, permit: Permit, now: float) -> None:
        """Give back everything of a call whose caller went away."""
        self._now = now
        flight = _flight(permit)
        if flight.is_over:
            return
        active = self._time.at(now)
        for tried in _flying(flight):
            flight.landed(tried)
            self._attempts.vanished(flight, tried, active, draw=0.0)
        self._endings.cancelled(flight, now)
        self.counts.held = self._places.held

    def resolved(
        self, token: int, result: Resolution, now: float
    ) -> Go | Refuse | Finish | Letter:
        """Go on with a call that waited, or end one that asked for a letter.

        Unknown tokens pass.
        """
        self._now = now
        flight = self._places.taken_out(token)
        if flight is None:
            return self._endings.resolved(token, result, now)
        self.counts.held = self._places.held
        if isinstance(result, GivenUp):
            return self._endings.given_up(flight, result.answer, now)
        if flight.has_place and now < flight.expires:
            return self._first(flight, now)
        vain = waited_in_vain(flight, now - flight.began)
        return self._endings.refused(flight, "limit", vain, now)

    def tick(self, now: float, draw: float = 0.0) -> None:
        """Count what hangs, end the rests of open circuits, expire leases."""
        self._now = now
        active = self._time.tick(now)
        self._attempts.look(self._standings.methods(), active, draw)
        self._circuits.tick(active)
        self._places.tick(self._standings.upstreams(), now)

    # What operators and the rest of the sidecar ask and order.

    def kill_calls(self, on: bool, reason: str) -> None:  # noqa: FBT001 - the seam's
        """Stop retries, hedges and deliveries, or allow them again.

        The agent's own first attempts are never stopped.
        """
        self._killed = reason if on else None

    def watch(self, watch: Watch | None) -> None:
        """Tell somebody of every call that is over; None tells nobody."""
        self._endings.watch = watch

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

    def places(self, upstream: str) -> tuple[int, int]:
        """Return how many calls have a place at an upstream, and how many may.

        Raises:
            KeyError: it is not configured.
        """
        limit = self._standings.upstream(upstream).limit
        return limit.in_flight, limit.most

    def circuits(self) -> tuple[CircuitView, ...]:
        """Return all circuits by id, as of the newest `now` the guard was told."""
        return self._circuits.views(self._time.at(self._now))

    def circuit(self, circuit_id: str) -> CircuitView | None:
        """Return one circuit; None if there is none."""
        return self._circuits.view(circuit_id, self._time.at(self._now))

    def isolate(self, circuit_id: str, reason: str, now: float) -> None:
        """Refuse every call until `restore`.

        Raises:
            NotFound: UNKNOWN_CIRCUIT.
        """
        self._circuits.isolate(circuit_id, reason, self._time.at(now))

    def restore(self, circuit_id: str, now: float) -> None:
        """End an isolation by probing.

        Raises:
            NotFound: UNKNOWN_CIRCUIT.
        """
        self._circuits.restore(circuit_id, self._time.at(now))

    def restored_state(self, records: Iterable[CircuitRecord], now: float) -> None:
        """Take over circuits saved before a restart.

        Open ones come back half open, isolated ones isolated.
        """
        self._circuits.resume(records, self._time.at(now))

    def saved_state(self, now: float) -> tuple[CircuitRecord, ...]:
        """Return what `restored_state` wants to be given after a restart."""
        return self._circuits.records(self._time.at(now))

    def connection_ready(self, upstream: str, now: float) -> None:
        """Probe at once: the upstream's channel turned READY."""
        self._circuits.connection_ready(upstream, self._time.at(now))

    def circuit_retry_after_s(
        self, upstream: str, method: str, now: float
    ) -> float | None:
        """Return for how long a call would be refused, in seconds.

        None if it would be admitted, as a probe where the circuit is half open.
        """
        return self._circuits.retry_after_s(upstream, method, self._time.at(now))

    # Attempts.

    def _first(self, flight: Flight, now: float) -> Go | Refuse | Letter:
        """Make the first attempt of a call that has a place."""
        active = self._time.at(now)
        method = flight.method
        if flight.previous:
            method.upstream.budget.charge(active)
        shut = self._attempts.admit(flight, flight, active)
        if shut is not None:
            return self._shut_out(flight, shut, now)
        flight.is_live = True
        if method.rule.hedge_s is not None and not flight.is_delivery:
            flight.hedge_at = now + method.rule.hedge_s
        return self._go(flight, flight, now)

    def _go(self, flight: Flight, tried: Try, now: float) -> Go:
        method = flight.method
        number = tried.number
        go = Go(flight, number, flight.sent_metadata(number), flight.timeout_s(now))
        if method.circuit.state is not _CLOSED or (
            method.upstream.circuit.state is not _CLOSED
        ):
            go.answer_s = self._attempts.probe_limit_s(flight, tried)
        if self.faults is not None:
            go.fault = self.faults.fault(flight.upstream, flight.call.method, now)
        return go

    def _shut_out(self, flight: Flight, shut: Circuit, now: float) -> Refuse | Letter:
        refusal = answers.circuit_error(shut, self._time.at(now))
        return self._endings.refused(flight, "circuit", refusal, now)

    def _hedged(self, flight: Flight, now: float) -> Go | Await:
        """Make one more attempt beside those on their way, if that may be."""
        if flight.hedge_at is None or now < flight.hedge_at:
            raise Bug("NOT_WAITING", f"{flight.call.method} waits for no hedge")
        flight.hedge_at = None
        method = flight.method
        active = self._time.at(now)
        if self._killed is not None or not may_hedge(flight, now, active):
            return _AWAIT
        hedge = Hedge()
        self._attempts.admit(flight, hedge, active)  # both are closed: it is admitted
        if flight.hedges is None:
            flight.hedges = {}
        flight.hedges[hedge.number] = hedge
        self.counts.hedges += 1
        if flight.attempts < method.rule.max_attempts:
            flight.hedge_at = now + (method.rule.hedge_s or 0.0)
        return self._go(flight, hedge, now)

    def _release_others(
        self, flight: Flight, winner: Try | None, active: float
    ) -> None:
        for tried in _flying(flight):
            if tried is not winner:
                if tried.number == 0:
                    _earn(flight, active)
                flight.landed(tried)
                self._attempts.released(flight, tried)

    # Retries.

    def _after_failure(
        self, flight: Flight, outcome: Outcome, now: float, draw: float
    ) -> Finish | Retry | Letter | Await:
        if flight.is_flying:
            return self._beside_others(flight, outcome, now)
        flight.hedge_at = None
        times = Times(now, self._time.at(now), self._retry_hint(outcome.trailers), draw)
        delay_s = retry_after_s(flight, outcome, times, killed=self._killed is not None)
        if delay_s is None:
            return self._endings.failed(flight, outcome, now)
        flight.last = outcome
        self.counts.retries += 1
        return Retry(delay_s)

    def _beside_others(
        self, flight: Flight, outcome: Outcome, now: float
    ) -> Finish | Letter | Await:
        """Wait for the attempts still out, unless this failure settles the call.

        As gRFC A6 has it, a failure that may be tried again makes the next hedge due
        at once, or when the callee says.
        """
        if not may_be_repeated(flight, outcome):
            self._release_others(flight, None, self._time.at(now))
            flight.hedge_at = None
            return self._endings.failed(flight, outcome, now)
        asked_s = pushback_s(outcome.trailers)
        if asked_s is not None and asked_s < 0:
            flight.hedge_at = None
        elif flight.hedge_at is not None:
            flight.hedge_at = now + (asked_s or 0.0)
        return _AWAIT


def _flight(permit: Permit) -> Flight:
    if not isinstance(permit, Flight):
        raise Bug("FOREIGN_PERMIT", "this permit was made by another guard")
    return permit


def _earn(flight: Flight, active: float) -> None:
    """Let a call's first attempt earn its share of a retry, however it ended."""
    if not (flight.previous or flight.is_delivery):
        flight.method.upstream.budget.completed(active)


def _flying(flight: Flight) -> list[Try]:
    found: list[Try] = list((flight.hedges or {}).values())
    return [flight, *found] if flight.is_live else found
