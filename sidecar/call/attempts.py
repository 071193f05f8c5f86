"""Attempts, as the circuits hear of them: admitted, counted once, given back.

Times here are active seconds (see `policy.active_time`): a circuit learns nothing
while this process is stopped, and what was under way meanwhile says nothing.

The races, and who wins:

- An attempt that is found slow and then ends: it was counted when it was found, so its
  end adds a failure or none.
- Two attempts of one call: the first to have an answer passed on, or to end in a way
  that settles the call. The other is given back; that it lost says nothing.
"""

from collections.abc import Iterable
from typing import Final, cast

from sidecar.call.circuits import Circuits
from sidecar.call.descriptor import Origin, Outcome
from sidecar.call.flight import Flight
from sidecar.call.standing import MethodStanding
from sidecar.call.tries import Try
from sidecar.policy import classify
from sidecar.policy.active_time import ActiveTime
from sidecar.policy.circuit import Circuit, CircuitState, FailedCall
from sidecar.policy.classify import Code, Verdict

_CLOSED: Final = CircuitState.CLOSED
_STILL_OUT: Final = -1
_DROPPED: Final = frozenset(
    {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}
)
"""Statuses that tell an adaptive limit that there was too much to do."""
_NO_ROOM_S: Final = 0.01
"""A caller that goes away this close to its deadline has run out of time."""


class Attempts:
    """What the attempts of one guard do to its circuits."""

    def __init__(self, circuits: Circuits, time: ActiveTime) -> None:
        self._circuits = circuits
        self._time = time

    def admit(self, flight: Flight, tried: Try, now: float) -> Circuit | None:
        """Begin an attempt if both circuits let it; return the one that does not."""
        standing = flight.method
        upstream = standing.upstream.circuit
        upstream_ticket = upstream.admit(now)
        if upstream.moves:
            self._circuits.settle(upstream)
        if upstream_ticket is None:
            return upstream
        method = standing.circuit
        method_ticket = method.admit(now)
        if method.moves:
            self._circuits.settle(method)
        if method_ticket is None:
            upstream.released(upstream_ticket)
            return method
        tried.upstream_ticket = upstream_ticket
        tried.method_ticket = method_ticket
        tried.started = now
        tried.stops = self._time.stops
        tried.number = flight.attempts
        tried.sent = None
        flight.attempts += 1
        return None

    def sent(self, flight: Flight, tried: Try, now: float) -> None:
        """Take note that an answer is waited for: it may become slow.

        Not before: an upload may take minutes, and who is silent in a conversation
        may be waiting for its turn.
        """
        tried.sent = now
        if not tried.has_answered:
            flight.method.flying[tried] = flight

    def succeeded(self, flight: Flight, tried: Try, now: float, draw: float) -> None:
        """Count a success at both circuits."""
        standing = flight.method
        standing.flying.pop(tried, None)
        if not tried.has_answered:
            if tried.sent is not None and now - tried.sent >= standing.slow_floor_s:
                self._look(flight, tried, now, draw)
            self._timed(standing, tried, now)
        calls = 0 if tried.is_slow else 1
        circuit = standing.upstream.circuit
        circuit.passed(tried.upstream_ticket, now, calls)
        if circuit.moves:
            self._circuits.settle(circuit)
        circuit = standing.circuit
        circuit.passed(tried.method_ticket, now, calls)
        if circuit.moves:
            self._circuits.settle(circuit)

    def failed(
        self, flight: Flight, tried: Try, outcome: Outcome, now: float, draw: float
    ) -> None:
        """Count a failure at both circuits, as far as it says anything."""
        standing = flight.method
        standing.flying.pop(tried, None)
        if outcome.code in _DROPPED and outcome.origin is not Origin.LOCAL:
            standing.upstream.timed(now - tried.started, now, dropped=True)
        about_upstream, about_method = self._verdicts(flight, tried, outcome)
        for circuit, ticket, verdict in (
            (standing.upstream.circuit, tried.upstream_ticket, about_upstream),
            (standing.circuit, tried.method_ticket, about_method),
        ):
            if verdict in {Verdict.HARD, Verdict.SOFT}:
                _note(circuit, flight, tried, outcome, now)
            circuit.failed(ticket, verdict, now, draw, 0 if tried.is_slow else 1)
            if circuit.moves:
                self._circuits.settle(circuit)

    def vanished(self, flight: Flight, tried: Try, now: float, draw: float) -> None:
        """Take back an attempt whose caller went away.

        At its deadline a caller does not just vanish: it got no answer in time.
        """
        deadline = flight.call.deadline
        if deadline is not None and self._time.when(now) >= deadline - _NO_ROOM_S:
            outcome = Outcome(Code.DEADLINE_EXCEEDED, "", Origin.LOCAL, committed=False)
            self.failed(flight, tried, outcome, now, draw)
        else:
            self.released(flight, tried)

    def released(self, flight: Flight, tried: Try) -> None:
        """Take back an attempt of which nothing is to be learnt."""
        standing = flight.method
        standing.flying.pop(tried, None)
        standing.upstream.circuit.released(tried.upstream_ticket)
        standing.circuit.released(tried.method_ticket)

    def answered(self, flight: Flight, tried: Try, now: float) -> None:
        """Take note that a response has begun: it is not slow any more."""
        standing = flight.method
        tried.has_answered = True
        standing.flying.pop(tried, None)
        self._timed(standing, tried, now)
        if standing.upstream.circuit.answered(tried.upstream_ticket, now):
            tried.upstream_ticket = 0
            self._circuits.settle(standing.upstream.circuit)
        if standing.circuit.answered(tried.method_ticket, now):
            tried.method_ticket = 0
            self._circuits.settle(standing.circuit)

    def probe_limit_s(self, flight: Flight, tried: Try) -> float | None:
        """Return how long a probe may be without an answer; None for no probe."""
        standing = flight.method
        limits = [
            circuit.probe_limit_s
            for circuit, ticket in (
                (standing.upstream.circuit, tried.upstream_ticket),
                (standing.circuit, tried.method_ticket),
            )
            if ticket and circuit.state is not _CLOSED
        ]
        return min(limits, default=None)

    def look(
        self, standings: Iterable[MethodStanding], now: float, draw: float
    ) -> None:
        """Count every attempt that is slow by now."""
        own_s = self._time.own_delay_s
        for standing in standings:
            newest = now - standing.slow_floor_s - own_s
            late = []
            for tried, flight in standing.flying.items():
                if (tried.sent or now) > newest:
                    break
                late.append((tried, flight))
            for tried, flight in late:
                self._look(cast("Flight", flight), tried, now, draw)

    def _timed(self, standing: MethodStanding, tried: Try, now: float) -> None:
        """Learn how long an answer took; not from one that we slept through.

        Nor from one that came while its caller was still sending.
        """
        if tried.sent is not None and tried.stops == self._time.stops:
            elapsed_s = now - tried.sent
            standing.median.add(elapsed_s)
            if standing.circuit.baseline is not None:
                standing.circuit.baseline.latency(elapsed_s)
            if standing.upstream.gradient is not None:
                standing.upstream.timed(elapsed_s, now)

    def _look(self, flight: Flight, tried: Try, now: float, draw: float) -> None:
        standing = flight.method
        elapsed_s = now - (tried.sent or now) - self._time.own_delay_s
        if tried.is_slow or elapsed_s < standing.slow_after_s():
            return
        tried.is_slow = True
        standing.flying.pop(tried, None)
        for circuit, ticket in (
            (standing.upstream.circuit, tried.upstream_ticket),
            (standing.circuit, tried.method_ticket),
        ):
            if circuit.slow(ticket, now, draw):
                outcome = Outcome(_STILL_OUT, "", Origin.UNKNOWN, committed=False)
                _note(circuit, flight, tried, outcome, now)
            if circuit.moves:
                self._circuits.settle(circuit)

    def _verdicts(
        self, flight: Flight, tried: Try, outcome: Outcome
    ) -> tuple[Verdict, Verdict]:
        """Return what an outcome says about the upstream and about the method."""
        if tried.stops != self._time.stops and outcome.origin is not Origin.UPSTREAM:
            # We were stopped meanwhile: who knows what would have come of it.
            return Verdict.IGNORED, Verdict.IGNORED
        patience_s = flight.expires - self._time.when(tried.started)
        about_method = classify.of_method(
            outcome.code,
            outcome.origin,
            patience_s=patience_s,
            median_s=flight.method.median.value_s(),
        )
        about_upstream = classify.of_upstream(outcome.code, outcome.origin)
        if outcome.is_cut and about_method is Verdict.HARD:
            about_upstream = Verdict.HARD
        return about_upstream, about_method


def _note(
    circuit: Circuit, flight: Flight, tried: Try, outcome: Outcome, now: float
) -> None:
    circuit.failed_calls.append(
        FailedCall(
            call_id=flight.call.call_id,
            when=now,
            method=flight.call.method,
            code=outcome.code,
            origin=outcome.origin.value,
            elapsed_s=now - tried.started,
        )
    )
