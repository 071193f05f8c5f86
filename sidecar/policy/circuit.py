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
- A probe that hangs: its caller may wait for a minute. Whoever carries it cuts it
  at `probe_limit_s`, a little before its lease ends, and hands it in as failed; so
  there are never more on their way than the cap says. Each cut doubles the leases
  of the next probation, or a callee slower than the lease would stay shut out.
- A call that is slow and has not ended: it is counted when it is found to be slow,
  once, and its end then adds a failure or none, but no second call.
- An operator and the numbers: the operator. `isolated` ends by order, never by time.
"""

import enum
import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from outrigger.core.events import CircuitMoved
from sidecar.policy.baseline import Baseline
from sidecar.policy.circuit_settings import CircuitSettings
from sidecar.policy.classify import Verdict
from sidecar.policy.window import Window

__all__ = ["Circuit", "CircuitSettings", "CircuitState", "FailedCall", "Step"]

_MAX_DOUBLINGS: Final = 30
_MAX_STRETCH: Final = 3
"""Doublings of a lease: a callee that takes 80 s to answer a probe is found healthy."""
_CUT_RATIO: Final = 0.9
_KEPT: Final = 8


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
class FailedCall:
    """A call that spoke against a callee, for whoever asks why."""

    call_id: str
    when: float
    """Monotonic seconds."""
    method: str
    code: int
    """gRPC status number; -1 for a call that is slow and has not ended."""
    origin: str
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A move and when it was made."""

    when: float
    before: str
    after: str
    reason: str


class Circuit:
    """One circuit, owned by one thread and so without a lock.

    A *ticket* is leave for one call. Tickets rise for ever; those of the present
    period are no lower than its first, so an older one is told by a comparison.
    """

    __slots__ = (
        "_consecutive",
        "_first_ticket",
        "_hanging",
        "_leases",
        "_newest_draw",
        "_newest_ticket",
        "_openings",
        "_rest_ends",
        "_settings",
        "_slow",
        "_stretch",
        "_successes",
        "_window",
        "baseline",
        "circuit_id",
        "failed_calls",
        "history",
        "moves",
        "open_count",
        "reason",
        "refused_count",
        "since",
        "state",
        "troubled_since",
    )

    def __init__(
        self, circuit_id: str, settings: CircuitSettings, *, now: float
    ) -> None:
        self._settings = settings
        self._window = Window(
            now=now, window_s=settings.window_s, buckets=settings.buckets
        )
        self._slow = Window(
            now=now, window_s=settings.window_s, buckets=settings.buckets
        )
        self._consecutive = self._hanging = self._stretch = 0
        self._successes = self._openings = 0
        self._newest_draw = 0.0
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
        self.troubled_since: float | None = None
        """When it was closed last; None while it is."""
        self.failed_calls: deque[FailedCall] = deque(maxlen=_KEPT)
        """The newest calls that spoke against the callee, oldest first."""
        self.history: deque[Step] = deque(maxlen=_KEPT)
        """The newest moves, oldest first; `moves` are those not taken yet."""
        self.baseline: Baseline | None = None
        """Replaces the fixed ratio where it knows better."""

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

    @property
    def openings(self) -> int:
        """Openings in a row, without a recovery between them."""
        return self._openings

    @property
    def is_shadow(self) -> bool:
        """Say whether it only tells what it would refuse."""
        return self._settings.shadow

    @property
    def probe_limit_s(self) -> float:
        """How long a probe may be without an answer before it is cut."""
        return self._lease_s * _CUT_RATIO

    @property
    def _lease_s(self) -> float:
        return self._settings.lease_s * float(1 << self._stretch)

    def admit(self, now: float) -> int | None:
        """Return a ticket; None means refused, and `remaining_s` says for how long.

        Hand the ticket to exactly one of `passed`, `failed` and `released`. A shadow
        gives ticket 0 instead of refusing: nothing is learnt from such a call,
        because it would not have been made.
        """
        if self.state is _CLOSED:
            return self._first_ticket
        self.tick(now)
        if (
            self.state is _HALF_OPEN
            and len(self._leases) < self._settings.probes_at_once
        ):
            self._newest_ticket += 1
            self._leases[self._newest_ticket] = now + self._lease_s
            return self._newest_ticket
        self.refused_count += 1
        return 0 if self._settings.shadow and self.state is not _ISOLATED else None

    def passed(self, ticket: int, now: float, calls: int = 1) -> None:
        """Take a success; `calls` is 0 if the call was counted as slow before."""
        if ticket < self._first_ticket:
            # It may be a probe of the probation before, which keeps a place.
            self._leases.pop(ticket, None)
            return
        if self.state is _CLOSED:
            self._consecutive = self._hanging = 0
            self._window.add(now, calls, 0)
            if self.baseline is not None:
                self.baseline.observe(calls, 0, now)
            return
        self._leases.pop(ticket, None)
        self._successes += 1
        if self._successes >= self._settings.probes_to_close:
            self._openings = 0
            self._enter(_CLOSED, f"{self._successes} probes succeeded", now)

    def failed(
        self, ticket: int, verdict: Verdict, now: float, draw: float, calls: int = 1
    ) -> None:
        """Take any outcome but a success; what does not count gives its place back.

        Args:
            ticket: from `admit`.
            verdict: what the outcome says.
            now: monotonic seconds.
            draw: a number in [0, 1), for the rest if this opens the circuit.
            calls: 0 if the call was counted as slow before.
        """
        self._newest_draw = draw
        is_answer = verdict is Verdict.ANSWERED and self.state is _HALF_OPEN
        if verdict is Verdict.SUCCESS or is_answer:
            self.passed(ticket, now, calls)
            return
        lease_ends = self._leases.pop(ticket, None)
        if ticket < self._first_ticket or verdict is Verdict.IGNORED:
            return
        if self.state is _HALF_OPEN:
            self._failed_probe(lease_ends, now, draw)
            return
        if verdict is not Verdict.HARD:
            self._hanging = 0  # whatever it says, it is an answer
        if verdict is not Verdict.ANSWERED:
            self._count_failure(verdict, now, draw, calls)

    def released(self, ticket: int) -> None:
        """Take a ticket back of which nothing was learnt."""
        self._leases.pop(ticket, None)

    def slow(self, ticket: int, now: float, draw: float) -> bool:
        """Count a call as slow; return whether it did, and so counted the call.

        Hand the ticket in later as always, then with `calls` of 0. A probe is not
        counted: it has its lease.
        """
        if ticket < self._first_ticket or self.state is not _CLOSED:
            return False
        self._newest_draw = draw
        self._hanging += 1
        self._window.add(now, 1, 0)
        self._slow.add(now, 0, 1)
        why = self._tripped_slowly(now)
        if why:
            self._open(why, now, draw)
        return True

    def answered(self, ticket: int, now: float) -> bool:
        """Take note that a stream has begun to answer.

        Return whether that was all its ticket was good for: a probe has succeeded
        with it, for a stream may go on for hours and its end says little.
        """
        if ticket < self._first_ticket:
            return False
        self._hanging = 0
        if self.state is not _HALF_OPEN:
            return False
        self.passed(ticket, now)
        return True

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
        if self._settings.shadow:
            return 0.0
        if self.state is _OPEN and now < self._rest_ends:
            return self._rest_ends - now
        taken = sum(now < ends for ends in self._leases.values())
        full = taken >= self._settings.probes_at_once
        return self._settings.probe_retry_s if full else 0.0

    def counted(self, now: float) -> tuple[int, int]:
        """Return calls and failures in the window."""
        return self._window.read(now)

    def slow_calls(self, now: float) -> int:
        """Return the slow calls in the window."""
        return self._slow.read(now)[1]

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

    def resume(
        self,
        state: CircuitState,
        reason: str,
        now: float,
        *,
        age_s: float = 0.0,
        openings: int = 0,
    ) -> None:
        """Begin where an earlier process stopped.

        Whether the callee has recovered meanwhile is not known, so what was open
        begins half open. An isolation is an order and stays one.

        Args:
            state: where it stood.
            reason: why.
            now: monotonic seconds.
            age_s: for how long it had not been closed.
            openings: in a row; the next rest is as long as it would have been.
        """
        if state is _ISOLATED:
            self.isolate(reason, now)
        elif state is not _CLOSED and self.state is _CLOSED:
            self._openings = openings
            self._enter(_HALF_OPEN, f"was {state.value} before a restart", now)
        if state is not _CLOSED and self.troubled_since is not None:
            self.troubled_since = min(self.troubled_since, now - age_s)

    def take_moves(self) -> tuple[CircuitMoved, ...]:
        """Hand over what happened since the last call, oldest first."""
        taken, self.moves = tuple(self.moves), []
        return taken

    def _count_failure(
        self, verdict: Verdict, now: float, draw: float, calls: int
    ) -> None:
        self._window.add(now, calls, 1)
        if self.baseline is not None:
            self.baseline.observe(calls, 1, now)
        if verdict is Verdict.HARD:
            self._consecutive += 1
        why = self._tripped()
        if why:
            self._open(why, now, draw)

    def _tripped(self) -> str:
        """Return why the circuit must open now; empty if it need not."""
        settings = self._settings
        row, calls, failures = (
            self._consecutive,
            self._window.total,
            self._window.marked,
        )
        in_a_row = self._usual(row)
        usual = "" if in_a_row is None else ", more than is usual"
        if row >= (settings.consecutive_failures if in_a_row is None else in_a_row):
            return f"{row} failures in a row{usual}"
        among = self._usual(calls)
        if among is None and calls < settings.min_calls:
            return ""
        if failures < (settings.failure_ratio * calls if among is None else among):
            return ""
        within = f"within {settings.window_s:g} s"
        return f"{failures} of {calls} calls failed {within}{usual}"

    def _usual(self, calls: int) -> int | None:
        """Return how many failures among so many calls are unusual, if it is known."""
        if self.baseline is None:
            return None
        return self.baseline.failure_threshold(calls)

    def _tripped_slowly(self, now: float) -> str:
        """Return why slow calls must open the circuit now; empty if they need not.

        The row is there for black holes: after a healthy minute the share alone
        would take most of the window to find one.
        """
        settings, slow = self._settings, self.slow_calls(now)
        if self._hanging >= settings.slow_in_a_row:
            return f"{self._hanging} calls in a row got no answer in time"
        calls = self._window.read(now)[0]
        if calls < settings.slow_min_calls or slow < settings.slow_ratio * calls:
            return ""
        return f"{slow} of {calls} calls were slow within {settings.window_s:g} s"

    def _failed_probe(self, lease_ends: float | None, now: float, draw: float) -> None:
        hung = lease_ends is None or now >= lease_ends - self._lease_s * (
            1 - _CUT_RATIO
        )
        if hung:
            self._stretch = min(self._stretch + 1, _MAX_STRETCH)
        self._open("a probe got no answer" if hung else "a probe failed", now, draw)

    def _open(self, reason: str, now: float, draw: float) -> None:
        settings = self._settings
        doubled = settings.open_s * 2.0 ** min(self._openings, _MAX_DOUBLINGS)
        rest_s = min(doubled, settings.open_max_s) * (1 - settings.jitter_ratio * draw)
        self._openings += 1
        self.open_count += 1
        self._rest_ends = now + rest_s
        if self.baseline is not None and self.state is _CLOSED:
            self.baseline.discard(now)
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
        before = self.state
        self.history.append(
            Step(when=now, before=before.value, after=after.value, reason=reason)
        )
        if before is _CLOSED:
            self.troubled_since = now
        self.state = after
        self.reason = reason
        self.since = now
        self._newest_ticket += 1
        self._first_ticket = self._newest_ticket
        self._successes = 0
        if after is _CLOSED:
            # Not before: what opened it is still worth showing while it is open.
            self._consecutive = self._hanging = self._stretch = 0
            self._window.clear()
            self._slow.clear()
            self.troubled_since = None
