"""What a circuit must do, said slowly: keep everything, work everything out anew.

Written from the words of `sidecar.policy.circuit` and of the design, not from its
code: there are no tallies here that could be reset too late and no tickets that could
be mixed up, only lists that grow, and a look over all of them for every answer.
"""

import math
from dataclasses import dataclass

from sidecar.policy.classify import Verdict

MOST_DOUBLINGS_OF_A_LEASE = 3
CUT_RATIO = 0.9


@dataclass(eq=False)
class Begun:
    """A call that was let through."""

    period: int
    """How often the circuit had moved when it was; -1 if nothing is learnt of it."""
    lease_ends: float | None = None
    is_over: bool = False


@dataclass(frozen=True)
class Seen:
    """Something that was learnt in a period."""

    period: int
    when: float
    kind: str
    """good, hard, soft, slow or sign (of life) while closed; probe while half open."""
    calls: int = 0


class Reference:
    """A circuit without a shortcut."""

    def __init__(self, settings, now):
        self.settings = settings
        self.states = [("closed", now)]
        self.begun = []
        self.seen = []
        self.rests = []
        """(period, end) of every opening."""
        self.hung = []
        """Periods in which a probe got no answer."""
        self.inherited = (0, 0)
        """(period, openings) of an earlier process."""
        self.ages = {}
        """For how long it had been in trouble, by the period that told."""
        self.refused = 0

    @property
    def state(self):
        return self.states[-1][0]

    @property
    def period(self):
        return len(self.states) - 1

    @property
    def last_closed(self):
        """The newest period in which it was closed."""
        return max(n for n, (state, _) in enumerate(self.states) if state == "closed")

    @property
    def openings(self):
        """In a row, without a recovery between them."""
        since = self.last_closed
        told, count = self.inherited
        return sum(n > since for n, _ in self.rests) + (count if told > since else 0)

    @property
    def lease_s(self):
        hung = sum(period > self.last_closed for period in self.hung)
        return self.settings.lease_s * 2 ** min(hung, MOST_DOUBLINGS_OF_A_LEASE)

    @property
    def troubled_since(self):
        if self.state == "closed":
            return None
        left = self.last_closed + 1
        told = [when for period, when in self.ages.items() if period >= left]
        return min([self.states[left][1], *told])

    def leases(self, now):
        return sum(
            one.lease_ends is not None and not one.is_over and now < one.lease_ends
            for one in self.begun
        )

    def in_window(self, now):
        """Return (calls, failures, slow calls) of the newest buckets."""
        width = self.settings.window_s / self.settings.buckets
        oldest = now // width - self.settings.buckets + 1
        found = [
            one
            for one in self.seen
            if one.period == self.last_closed and one.when // width >= oldest
        ]
        kinds = [one.kind for one in found]
        failures = kinds.count("hard") + kinds.count("soft")
        return sum(one.calls for one in found), failures, kinds.count("slow")

    def row(self, kind, ended_by):
        """Return how many of a kind there were since the last that ends the row."""
        count = 0
        for one in self.seen:
            if one.period == self.last_closed:
                count = 0 if one.kind in ended_by else count + (one.kind == kind)
        return count

    @property
    def failures_in_a_row(self):
        return self.row("hard", {"good"})

    def remaining_s(self, now):
        if self.state == "isolated":
            return math.inf
        if self.state == "closed" or self.settings.shadow:
            return 0.0
        if self.state == "open" and now < self.rests[-1][1]:
            return self.rests[-1][1] - now
        is_full = self.leases(now) >= self.settings.probes_at_once
        return self.settings.probe_retry_s if is_full else 0.0

    def look(self, now):
        """Let time pass."""
        if self.state == "open" and now >= self.rests[-1][1]:
            self.states.append(("half_open", now))

    def admit(self, now):
        """Return the call let through; None if it is refused."""
        self.look(now)
        if self.state == "closed":
            return self._begin(self.period)
        room = self.leases(now) < self.settings.probes_at_once
        if self.state == "half_open" and room:
            return self._begin(self.period, now + self.lease_s)
        self.refused += 1
        is_free = self.settings.shadow and self.state != "isolated"
        return self._begin(-1) if is_free else None

    def end(self, call, verdict, now, draw, calls):
        held = not call.is_over and now < (call.lease_ends or 0.0)
        call.is_over = True
        if call.period != self.period or verdict is Verdict.IGNORED:
            return
        if self.state == "half_open":
            if verdict in {Verdict.SUCCESS, Verdict.ANSWERED}:
                self._good_probe(now)
            else:
                self._bad_probe(call, now, draw, held=held)
            return
        kinds = {Verdict.SUCCESS: "good", Verdict.ANSWERED: "sign"}
        kind = kinds.get(verdict, verdict.value)
        counted = 0 if kind == "sign" else calls
        self.seen.append(Seen(self.period, now, kind, counted))
        if kind in {"hard", "soft"} and self._failed_too_often(now):
            self._open(now, draw)

    def slow(self, call, now, draw):
        if call.period != self.period or self.state != "closed":
            return False
        self.seen.append(Seen(self.period, now, "slow", 1))
        calls, _, slow = self.in_window(now)
        is_share = slow >= self.settings.slow_ratio * calls
        in_a_row = self.row("slow", {"good", "soft", "sign"})
        if in_a_row >= self.settings.slow_in_a_row or (
            calls >= self.settings.slow_min_calls and is_share
        ):
            self._open(now, draw)
        return True

    def answered(self, call, now):
        if call.period != self.period:
            return False
        if self.state == "closed":
            self.seen.append(Seen(self.period, now, "sign"))
            return False
        call.period, call.is_over = -1, True
        self._good_probe(now)
        return True

    def release(self, call):
        call.is_over = True

    def bring_forward(self, now):
        if self.state == "open":
            self.states.append(("half_open", now))

    def isolate(self, now):
        if self.state != "isolated":
            self.states.append(("isolated", now))

    def restore(self, now):
        if self.state == "isolated":
            self.states.append(("half_open", now))

    def resume(self, state, now, age_s, openings):
        if state == "isolated":
            self.isolate(now)
        elif state != "closed" and self.state == "closed":
            self.states.append(("half_open", now))
            self.inherited = (self.period, openings)
        if state != "closed":
            self.ages[self.period] = min(
                now - age_s, self.ages.get(self.period, math.inf)
            )

    def _begin(self, period, lease_ends=None):
        self.begun.append(Begun(period, lease_ends))
        return self.begun[-1]

    def _good_probe(self, now):
        self.seen.append(Seen(self.period, now, "probe"))
        passed = sum(one.period == self.period for one in self.seen)
        if passed >= self.settings.probes_to_close:
            self.states.append(("closed", now))

    def _bad_probe(self, call, now, draw, *, held):
        if not held or now >= call.lease_ends - self.lease_s * (1 - CUT_RATIO):
            self.hung.append(self.period)
        self._open(now, draw)

    def _failed_too_often(self, now):
        calls, failures, _ = self.in_window(now)
        is_share = failures >= self.settings.failure_ratio * calls
        return self.failures_in_a_row >= self.settings.consecutive_failures or (
            calls >= self.settings.min_calls and is_share
        )

    def _open(self, now, draw):
        settings = self.settings
        rest_s = min(settings.open_s * 2**self.openings, settings.open_max_s)
        self.states.append(("open", now))
        ends = now + rest_s * (1 - settings.jitter_ratio * draw)
        self.rests.append((self.period, ends))
