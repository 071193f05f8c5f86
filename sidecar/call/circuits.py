"""The circuits of a guard, as operators, letters and restarts see them."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from outrigger.core.errors import NotFound
from outrigger.core.events import Payload
from sidecar.call.standing import GuardSettings, Standings
from sidecar.policy.active_time import ActiveTime
from sidecar.policy.circuit import Circuit, CircuitState, FailedCall, Step

Publish = Callable[[Payload], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitView:
    """A circuit at one moment."""

    circuit_id: str
    """`UPSTREAM`, `UPSTREAM/package.Service/Method`, or `UPSTREAM/*` for the methods
    beyond the bound."""
    state: str
    """closed, open, half_open or isolated."""
    reason: str
    since: float
    """Monotonic seconds when it entered the state."""
    retry_after_s: float | None
    """Remaining time of refusal; None when it has no known end, or is no refusal."""
    window_calls: int
    window_failures: int
    consecutive_failures: int
    open_count: int
    refused_count: int
    """Calls refused, or that a shadow would have refused."""
    is_shadow: bool = False
    window_slow: int = 0
    troubled_since: float | None = None
    """Monotonic seconds when it was closed last; None while it is."""
    failed_calls: tuple[FailedCall, ...] = ()
    """The newest calls that spoke against the callee, oldest first."""
    history: tuple[Step, ...] = ()
    """The newest moves, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitRecord:
    """What outlives a restart of a circuit that is not closed."""

    circuit_id: str
    state: str
    reason: str
    age_s: float = 0.0
    """For how long it has not been closed."""
    openings: int = 0
    """In a row."""


class Circuits:
    """All circuits of one guard; publishes every move after it is made."""

    def __init__(
        self,
        standings: Standings,
        settings: GuardSettings,
        publish: Publish,
        time: ActiveTime,
    ) -> None:
        self._standings = standings
        self._open_max_s = settings.circuit.open_max_s
        self._publish = publish
        self._time = time
        self._unsettled: dict[str, Circuit] = {}

    def settle(self, circuit: Circuit) -> None:
        """Publish what a circuit did, and watch it while it is not closed."""
        if circuit.state is CircuitState.CLOSED:
            self._unsettled.pop(circuit.circuit_id, None)
        else:
            self._unsettled[circuit.circuit_id] = circuit
        for move in circuit.take_moves():
            self._publish(move)

    def tick(self, now: float) -> None:
        """End rests and expire leases."""
        for circuit in tuple(self._unsettled.values()):
            circuit.tick(now)
            self.settle(circuit)

    def views(self, now: float) -> tuple[CircuitView, ...]:
        """Return all circuits, by id."""
        return tuple(
            _view(circuit, now, self._time) for circuit in self._standings.circuits()
        )

    def view(self, circuit_id: str, now: float) -> CircuitView | None:
        """Return one circuit; None if there is none."""
        circuit = self._standings.circuit(circuit_id)
        return None if circuit is None else _view(circuit, now, self._time)

    def isolate(self, circuit_id: str, reason: str, now: float) -> None:
        """Refuse every call until restored; makes the circuit if need be.

        Raises:
            NotFound: UNKNOWN_CIRCUIT.
        """
        circuit = self._named(circuit_id, now)
        circuit.isolate(reason, now)
        self.settle(circuit)

    def restore(self, circuit_id: str, now: float) -> None:
        """End an isolation by probing.

        Raises:
            NotFound: UNKNOWN_CIRCUIT.
        """
        circuit = self._named(circuit_id, now)
        circuit.restore(now)
        self.settle(circuit)

    def resume(self, records: Iterable[CircuitRecord], now: float) -> None:
        """Take over from an earlier process; circuits of lost upstreams are left."""
        for record in records:
            circuit = self._standings.made_circuit(record.circuit_id, now)
            if circuit is not None:
                circuit.resume(
                    CircuitState(record.state),
                    record.reason,
                    now,
                    age_s=record.age_s,
                    openings=record.openings,
                )
                self.settle(circuit)

    def records(self, now: float) -> tuple[CircuitRecord, ...]:
        """Return what `resume` needs: every circuit that is not closed."""
        return tuple(
            CircuitRecord(
                circuit_id=circuit.circuit_id,
                state=circuit.state.value,
                reason=circuit.reason,
                age_s=now - _or(circuit.troubled_since, now),
                openings=circuit.openings,
            )
            for circuit in self._unsettled.values()
        )

    def connection_ready(self, upstream: str, now: float) -> None:
        """Probe an upstream and its methods at once: its channel turned READY."""
        for circuit in tuple(self._unsettled.values()):
            if circuit.circuit_id.partition("/")[0] == upstream:
                circuit.bring_forward(now)
                self.settle(circuit)

    def retry_after_s(self, upstream: str, method: str, now: float) -> float | None:
        """Return for how long a call would be refused; None if it would not be.

        An isolation has no known end: ask again after the longest rest.
        """
        found = (
            self._standings.circuit(upstream),
            self._standings.circuit(upstream + method),
        )
        longest = max(
            (circuit.remaining_s(now) for circuit in found if circuit is not None),
            default=0.0,
        )
        return min(longest, self._open_max_s) if longest > 0 else None

    def _named(self, circuit_id: str, now: float) -> Circuit:
        circuit = self._standings.made_circuit(circuit_id, now)
        if circuit is None:
            raise NotFound(
                "UNKNOWN_CIRCUIT",
                f"there is no circuit {circuit_id!r}: list them, a circuit is named"
                " UPSTREAM or UPSTREAM/package.Service/Method",
                metadata={"circuit": circuit_id},
            )
        return circuit


def _view(circuit: Circuit, now: float, time: ActiveTime) -> CircuitView:
    calls, failures = circuit.counted(now)
    remaining_s = circuit.remaining_s(now)
    troubled = circuit.troubled_since
    return CircuitView(
        circuit_id=circuit.circuit_id,
        state=circuit.state.value,
        reason=circuit.reason,
        since=time.when(circuit.since),
        retry_after_s=remaining_s if 0 < remaining_s < math.inf else None,
        window_calls=calls,
        window_failures=failures,
        consecutive_failures=circuit.consecutive_failures,
        open_count=circuit.open_count,
        refused_count=circuit.refused_count,
        is_shadow=circuit.is_shadow,
        window_slow=circuit.slow_calls(now),
        troubled_since=None if troubled is None else time.when(troubled),
        failed_calls=tuple(
            replace(one, when=time.when(one.when)) for one in circuit.failed_calls
        ),
        history=tuple(
            replace(one, when=time.when(one.when)) for one in circuit.history
        ),
    )


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
