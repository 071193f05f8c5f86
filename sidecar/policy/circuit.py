"""Decide whether a callee may be called, and when to find out again.

```
            enough failures                 rest over, or the connection is ready
  closed ------------------------> open ------------------------> half_open
    ^                               ^        a probe failed          |  |
    |                               +--------------------------------+  |
    +-------------------------------------------------------------------+
                          enough probes succeeded
  any --isolate--> isolated --restore--> half_open
```

Nothing here waits, reads a clock or draws a number. A move is kept in `moves` until
the owner takes and publishes it, after the circuit is consistent again.

Who may want the same thing at once, and who wins:

- A result of a call admitted before the circuit moved: it carries an older ticket
  than the present period and is ignored. Else a slow failure from before the trip
  would fail a recovery it says nothing about.
- A probe whose caller vanished: its lease is released, or else expires; either way
  its place is free again. A result that comes after its lease expired still counts,
  or a callee slower than the lease could never be found healthy.
- A probe that failed and those still out when it did: they keep their places in the
  next probation, or there would be more on their way than the cap says.
- An operator and the numbers: the operator. `isolated` ends by order, never by time.
"""

import enum
import math
from dataclasses import dataclass
from typing import Final

from outrigger.core.errors import Invalid
from outrigger.core.events import CircuitMoved
from sidecar.policy.classify import Verdict
from sidecar.policy.window import Window

_MAX_DOUBLINGS: Final = 30


class CircuitState(enum.Enum):
    """Where a circuit stands."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    ISOLATED = "isolated"


_CLOSED: Final = CircuitState.CLOSED
_OPEN: Final = CircuitState.OPEN
_HALF_OPEN: Final = CircuitState.HALF_OPEN
_ISOLATED: Final = CircuitState.ISOLATED


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitSettings:
    """When to open and how to close again."""

    consecutive_failures: int = 5
    """Hard failures in a row that open it."""
    failure_ratio: float = 0.5
    """Share of failures in the window that opens it."""
    min_calls: int = 10
    """Calls in the window below which the share says nothing."""
    window_s: float = 10.0
    buckets: int = 10
    open_s: float = 1.0
    """First rest; doubles each time in a row until `open_max_s`."""
    open_max_s: float = 15.0
    jitter_ratio: float = 0.2
    """A rest is shortened by up to this share, so that sidecars do not probe in
    step. It is never lengthened: recovery is promised within a time."""
    probes_at_once: int = 3
    """Leases out at one time while half open."""
    probes_to_close: int = 2
    lease_s: float = 10.0
    """After this a probe's place is given to another."""
    probe_retry_s: float = 0.1
    """When to come back to a half-open circuit that has no place."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            Invalid: BAD_CIRCUIT.
        """
        counts = (
            self.consecutive_failures,
            self.min_calls,
            self.probes_at_once,
            self.probes_to_close,
        )
        times = (self.open_s, self.lease_s, self.probe_retry_s)
        if (
            min(counts) < 1
            or not min(times) > 0
            or self.open_max_s < self.open_s
            or not 0 < self.failure_ratio <= 1
            or not 0 <= self.jitter_ratio < 1
        ):
            raise Invalid(
                "BAD_CIRCUIT",
                f"the circuit settings {self} are not possible: counts must be 1 or"
                " more, times more than 0, open_max_s no less than open_s,"
                " failure_ratio in (0, 1], jitter_ratio in [0, 1)",
            )


class Circuit:
    """One circuit, owned by one thread and so without a lock.

    A *ticket* is leave for one call. Tickets rise for ever; those of the present
    period are no lower than its first, so an older one is told by a comparison.
    """

    __slots__ = (
        "_consecutive",
        "_first_ticket",
        "_leases",
        "_newest_ticket",
        "_openings",
        "_rest_ends",
        "_settings",
        "_successes",
        "_window",
        "circuit_id",
        "moves",
        "open_count",
        "reason",
        "refused_count",
        "since",
        "state",
    )

    def __init__(
        self, circuit_id: str, settings: CircuitSettings, *, now: float
    ) -> None:
        self._settings = settings
        self._window = Window(
            now=now, window_s=settings.window_s, buckets=settings.buckets
        )
        self._consecutive = self._successes = self._openings = 0
        self._first_ticket = self._newest_ticket = 1
        self._leases: dict[int, float] = {}
        self._rest_ends = now
        self.circuit_id = circuit_id
        self.state = _CLOSED
        self.reason = ""
        self.since = now
        self.moves: list[CircuitMoved] = []
        self.open_count = 0
        self.refused_count = 0

    def __repr__(self) -> str:
        return f"<Circuit {self.circuit_id} {self.state.value}>"

    @property
    def consecutive_failures(self) -> int:
        """Hard failures in a row."""
        return self._consecutive

    @property
    def leases(self) -> int:
        """Probes out whose places are taken."""
        return len(self._leases)

    def admit(self, now: float) -> int | None:
        """Return a ticket; None means refused, and `remaining_s` says for how long.

        Hand the ticket to exactly one of `passed`, `failed` and `released`.
        """
        if self.state is _CLOSED:
            return self._first_ticket
        self.tick(now)
        if (
            self.state is _HALF_OPEN
            and len(self._leases) < self._settings.probes_at_once
        ):
            self._newest_ticket += 1
            self._leases[self._newest_ticket] = now + self._settings.lease_s
            return self._newest_ticket
        self.refused_count += 1
        return None

    def passed(self, ticket: int, now: float) -> None:
        """Take a success."""
        if ticket < self._first_ticket:
            return
        if self.state is _CLOSED:
            self._consecutive = 0
            self._window.add(now, 1, 0)
            return
        self._leases.pop(ticket, None)
        self._successes += 1
        if self._successes >= self._settings.probes_to_close:
            self._openings = 0
            self._enter(_CLOSED, f"{self._successes} probes succeeded", now)

    def failed(self, ticket: int, verdict: Verdict, now: float, draw: float) -> None:
        """Take any outcome but a success; what does not count gives its place back.

        Args:
            ticket: from `admit`.
            verdict: what the outcome says.
            now: monotonic seconds.
            draw: a number in [0, 1), for the rest if this opens the circuit.
        """
        if verdict is Verdict.SUCCESS:
            self.passed(ticket, now)
            return
        self.released(ticket)
        if ticket < self._first_ticket or verdict is Verdict.IGNORED:
            return
        if self.state is _HALF_OPEN:
            self._open("a probe failed", now, draw)
            return
        self._window.add(now, 1, 1)
        if verdict is Verdict.HARD:
            self._consecutive += 1
        why = self._tripped()
        if why:
            self._open(why, now, draw)

    def released(self, ticket: int) -> None:
        """Take a ticket back of which nothing was learnt."""
        self._leases.pop(ticket, None)

    def tick(self, now: float) -> None:
        """Let time pass: a rest ends, leases expire."""
        if self.state is _OPEN and now >= self._rest_ends:
            self._enter(_HALF_OPEN, "the rest is over", now)
        if self._leases:
            expired = [ticket for ticket, ends in self._leases.items() if now >= ends]
            for ticket in expired:
                del self._leases[ticket]

    def remaining_s(self, now: float) -> float:
        """Return for how long a call would be refused from `now` on.

        0 means it would be admitted; infinite, until an operator says otherwise.
        """
        if self.state is _CLOSED:
            return 0.0
        if self.state is _ISOLATED:
            return math.inf
        if self.state is _OPEN and now < self._rest_ends:
            return self._rest_ends - now
        taken = sum(now < ends for ends in self._leases.values())
        full = taken >= self._settings.probes_at_once
        return self._settings.probe_retry_s if full else 0.0

    def counted(self, now: float) -> tuple[int, int]:
        """Return calls and failures in the window."""
        return self._window.read(now)

    def bring_forward(self, now: float) -> None:
        """Probe at once instead of after the rest: the channel turned READY."""
        if self.state is _OPEN:
            self._enter(_HALF_OPEN, "the connection is ready", now)

    def isolate(self, reason: str, now: float) -> None:
        """Refuse every call until `restore`; isolating twice is the same as once."""
        if self.state is not _ISOLATED:
            self._enter(_ISOLATED, reason, now)

    def restore(self, now: float) -> None:
        """End an isolation by probing, not by trusting; else do nothing."""
        if self.state is _ISOLATED:
            self._enter(_HALF_OPEN, "restored by an operator", now)

    def resume(self, state: CircuitState, reason: str, now: float) -> None:
        """Begin where an earlier process stopped.

        Whether the callee has recovered meanwhile is not known, so what was open
        begins half open. An isolation is an order and stays one.
        """
        if state is _ISOLATED:
            self.isolate(reason, now)
        elif state is not _CLOSED and self.state is _CLOSED:
            self._enter(_HALF_OPEN, f"was {state.value} before a restart", now)

    def take_moves(self) -> tuple[CircuitMoved, ...]:
        """Hand over what happened since the last call, oldest first."""
        taken, self.moves = tuple(self.moves), []
        return taken

    def _tripped(self) -> str:
        """Return why the circuit must open now; empty if it need not."""
        settings = self._settings
        if self._consecutive >= settings.consecutive_failures:
            return f"{self._consecutive} failures in a row"
        calls, failures = self._window.total, self._window.marked
        if calls >= settings.min_calls and failures >= settings.failure_ratio * calls:
            return f"{failures} of {calls} calls failed within {settings.window_s:g} s"
        return ""

    def _open(self, reason: str, now: float, draw: float) -> None:
        settings = self._settings
        doubled = settings.open_s * 2.0 ** min(self._openings, _MAX_DOUBLINGS)
        rest_s = min(doubled, settings.open_max_s) * (1 - settings.jitter_ratio * draw)
        self._openings += 1
        self.open_count += 1
        self._rest_ends = now + rest_s
        self._enter(_OPEN, reason, now)

    def _enter(self, after: CircuitState, reason: str, now: float) -> None:
        self.moves.append(
            CircuitMoved(
                circuit=self.circuit_id,
                before=self.state.value,
                after=after.value,
                reason=reason,
            )
        )
        self.state = after
        self.reason = reason
        self.since = now
        self._newest_ticket += 1
        self._first_ticket = self._newest_ticket
        self._successes = 0
        if after is _CLOSED:
            # Not before: what opened it is still worth showing while it is open.
            self._consecutive = 0
            self._window.clear()
