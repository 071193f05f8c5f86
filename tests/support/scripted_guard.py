"""A guard that does what a test says and writes down what it is told."""

import itertools

from sidecar.call.descriptor import Finish, Go, Permit

OWN = "outrigger-"


def passed_on(call):
    """Return the metadata that goes upstream."""
    return tuple(pair for pair in call.metadata if not pair[0].startswith(OWN))


class ScriptedGuard:
    """Lets every call pass, unless `on_begin`, `on_ended` or the like say else.

    Each hook is a function that returns a verdict, or None for the usual one.
    """

    def __init__(self, upstream="up"):
        self.upstream = upstream
        self.on_begin = self.on_attempt = self.on_ended = self.on_resolved = None
        self.calls, self.outcomes, self.cancels, self.results = [], [], [], []
        self.attempted, self.sents, self.answers = [], [], []
        self.ticks = self.finished = 0
        self.tokens = itertools.count(1)
        self.open = {}
        """Permits of calls that have not ended."""
        self.faults = []
        """Whatever no wire may do."""

    def begin(self, call, now):
        self.calls.append(call)
        verdict = self.on_begin and self.on_begin(call)
        return self._admitted(verdict or self.go(Permit(call, self.upstream), now))

    def attempt(self, permit, now):
        self.attempted.append(permit)
        verdict = self.on_attempt and self.on_attempt(permit)
        return self._admitted(verdict or self.go(permit, now))

    def due(self, permit, now):
        return None

    def sent(self, permit, attempt, now):
        self.sents.append(attempt)

    def answered(self, permit, attempt, now):
        if permit.state != attempt:
            self.faults.append(("answered", attempt))
        self.answers.append(attempt)

    def ended(self, permit, attempt, outcome, now, draw):
        if id(permit) not in self.open or permit.state != attempt:
            self.faults.append(("ended", attempt, outcome))
        permit.state = None
        self.outcomes.append(outcome)
        verdict = self.on_ended and self.on_ended(outcome)
        return self._ended(permit, verdict or Finish(None))

    def cancelled(self, permit, now):
        if self.open.pop(id(permit), None) is None:
            self.faults.append(("cancelled", permit))
        self.cancels.append(permit)

    def resolved(self, token, result, now):
        self.results.append(result)
        verdict = self.on_resolved(token, result)
        if isinstance(verdict, Go):
            return self._admitted(verdict)
        for key, (_, of) in tuple(self.open.items()):
            if of == token:
                del self.open[key]
        return verdict

    def tick(self, now, draw):
        self.ticks += 1

    def go(self, permit, now, **changes):
        """Return the usual verdict for an attempt."""
        deadline = permit.call.deadline
        usual = {
            "permit": permit,
            "attempt": len([p for p in self.attempted if p is permit]),
            "metadata": passed_on(permit.call),
            "timeout_s": None if deadline is None else deadline - now,
        }
        return Go(**(usual | changes))

    def _admitted(self, verdict):
        permit = getattr(verdict, "permit", None)
        if permit is not None:
            self.open[id(permit)] = (permit, getattr(verdict, "token", None))
            if isinstance(verdict, Go):
                permit.state = verdict.attempt
        return verdict

    def _ended(self, permit, verdict):
        if isinstance(verdict, Finish):
            self.open.pop(id(permit), None)
            self.finished += 1
        else:
            self._admitted(verdict)
            token = getattr(verdict, "token", None)
            self.open[id(permit)] = (permit, token)
        return verdict
