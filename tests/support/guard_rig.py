"""A guard without a wire: a test is its wire, its clock and its chance."""

from sidecar.call.descriptor import (
    Call,
    Go,
    Kind,
    Letter,
    Origin,
    Outcome,
    Refuse,
    Retry,
)
from sidecar.call.guard import CallGuard, GuardSettings
from sidecar.call.routes import MethodRule, Routes, Upstream

METHOD = "/acme.Orders/Place"
UNAVAILABLE, DEADLINE_EXCEEDED, NOT_FOUND = 14, 4, 5


class GuardRig:
    """One guard with upstreams `shop` and `bank`; `shop` is the default."""

    def __init__(self, *rules, settings=None, upstreams=("shop", "bank"), **hooks):
        self.now = 1000.0
        self.events = []
        self.guard = CallGuard(
            Routes(
                [Upstream(name, "127.0.0.1:1") for name in upstreams],
                [MethodRule(**rule) for rule in rules],
                {"acme": "shop"},
            ),
            settings or GuardSettings(),
            publish=self.events.append,
            now=self.now,
            **hooks,
        )
        self._calls = 0

    @property
    def moves(self):
        """Published moves as (circuit, before, after)."""
        return [(event.circuit, event.before, event.after) for event in self.events]

    def call(
        self,
        method=METHOD,
        *,
        metadata=(),
        timeout_s=None,
        kind=Kind.CALL,
        call_id=None,
    ):
        """Make a call; `timeout_s` from now is its deadline."""
        self._calls += 1
        return Call(
            call_id or f"call-{self._calls}",
            method,
            tuple(metadata),
            None if timeout_s is None else self.now + timeout_s,
            kind,
        )

    def begin(self, method=METHOD, **given):
        """Begin a call now, whose request is one message."""
        verdict = self.guard.begin(self.call(method, **given), self.now)
        if isinstance(verdict, Go):
            self.guard.sent(verdict.permit, verdict.attempt, self.now)
        return verdict

    def go(self, method=METHOD, **given):
        """Begin a call that must be admitted."""
        go = self.begin(method, **given)
        assert isinstance(go, Go), go
        return go

    def refused(self, method=METHOD, **given):
        """Begin a call that must be refused; return the answer."""
        refuse = self.begin(method, **given)
        assert isinstance(refuse, Refuse), refuse
        return refuse.answer

    def letter(self, method=METHOD, **given):
        """Begin a call that must become a letter at once."""
        letter = self.begin(method, **given)
        assert isinstance(letter, Letter), letter
        return letter

    def end(
        self,
        go,
        code=0,
        *,
        origin=Origin.UPSTREAM,
        committed=False,
        trailers=(),
        draw=0.5,
        message="as it said",
        is_cut=False,
    ):
        """End an attempt now."""
        outcome = Outcome(
            code, message, origin, committed or code == 0, trailers, is_cut
        )
        return self.guard.ended(go.permit, go.attempt, outcome, self.now, draw)

    def retry(self, go, code=UNAVAILABLE, **given):
        """Fail an attempt that must be retried; wait and return the next one."""
        retry = self.end(go, code, **given)
        assert isinstance(retry, Retry), retry
        self.now += retry.after_s
        again = self.guard.attempt(go.permit, self.now)
        assert isinstance(again, Go), again
        self.guard.sent(again.permit, again.attempt, self.now)
        return again

    def fail(self, method=METHOD, code=UNAVAILABLE, **given):
        """Make one call that fails at its first attempt; return what comes next."""
        return self.end(self.go(method), code, **given)

    def trip(self, method=METHOD, *, origin=Origin.UPSTREAM):
        """Open the circuit of a method, or of its upstream if nobody is reached."""
        for _ in range(5):
            self.fail(method, 13, origin=origin, draw=0.0)

    def state(self, circuit_id="shop" + METHOD):
        """Where a circuit stands."""
        return self.guard.circuit(circuit_id).state


def trailers_of(answer):
    """The trailers of an answer as a dict; none may be there twice."""
    found = dict(answer.trailers)
    assert len(found) == len(answer.trailers), answer.trailers
    return found
