"""The guard on random walks of a clumsy wire."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.call.descriptor import (
    Finish,
    Go,
    Kind,
    Letter,
    LetterRefused,
    LetterTaken,
    Origin,
    Refuse,
    Retry,
)
from sidecar.call.guard import GuardSettings
from sidecar.policy.budget import BudgetSettings
from sidecar.policy.circuit import CircuitSettings
from tests.support.guard_rig import GuardRig

PLAIN, SAFE = "/acme.Orders/Read", "/acme.Orders/Put"
UNSAFE, KEPT = "/acme.Orders/Pay", "/acme.Orders/Keep"
RULES = (
    {"match": SAFE, "idempotent": True, "max_attempts": 5},
    {"match": UNSAFE, "unsafe": True},
    {"match": KEPT, "letter": "on", "timeout_s": 1.0},
)
METHODS = st.sampled_from([PLAIN, SAFE, UNSAFE, KEPT])
METADATA = st.sampled_from(
    [
        (),
        (),
        (("outrigger-upstream", "bank"),),
        (("outrigger-upstream", "nobody"),),
        (("outrigger-letter", "on"),),
        (("grpc-previous-rpc-attempts", "1"),),
    ]
)
TRAILERS = st.sampled_from(
    [(), (), (("grpc-retry-pushback-ms", "200"),), (("grpc-retry-pushback-ms", "-1"),)]
)
INDEX = st.integers(0, 50)
STEP = st.one_of(
    st.tuples(
        st.just("begin"),
        METHODS,
        METADATA,
        st.sampled_from([None, -1.0, 0.02, 0.5, 3.0]),
        st.sampled_from([Kind.CALL, Kind.CALL, Kind.DELIVERY]),
    ),
    st.tuples(
        st.just("end"),
        INDEX,
        st.sampled_from([0, 0, 0, 4, 5, 8, 13, 14, 14, 14]),
        st.sampled_from([*Origin]),
        TRAILERS,
        st.floats(0, 1, exclude_max=True),
    ),
    st.tuples(st.just("wake"), INDEX),
    st.tuples(st.just("resolve"), INDEX, st.booleans()),
    st.tuples(st.just("cancel"), INDEX),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 1.0, 15.0])),
    st.tuples(st.just("kill"), st.booleans()),
    st.tuples(st.just("ready")),
)
WALK = st.lists(STEP, max_size=150)


class ClumsyWire:
    """Does what the guard says, in any order, and checks what it is told."""

    def __init__(self):
        self.rig = GuardRig(*RULES, settings=GuardSettings(concurrency=8, parked_max=3))
        self.guard = self.rig.guard
        self.live, self.waiting, self.parked = [], [], []
        self.sent = {}
        self.killed = False
        self.over = 0

    def take(self, result, call):
        """Follow one instruction."""
        if isinstance(result, Go):
            self.sent_now(result)
            self.live.append(result)
        elif isinstance(result, Retry):
            assert not self.killed
            assert result.after_s >= 0
            self.waiting.append((call, self.rig.now + result.after_s))
        elif isinstance(result, Letter):
            assert call.call.kind is Kind.CALL
            assert call.call.method != UNSAFE
            self.parked.append(result)
        else:
            assert isinstance(result, Finish | Refuse)
            self.over += 1

    def sent_now(self, go):
        """Check an attempt that goes out now."""
        call = go.permit.call
        number = self.sent.get(call.call_id, 0)
        self.sent[call.call_id] = number + 1
        assert go.attempt == number
        assert number == 0 or call.method != UNSAFE
        assert number == 0 or call.kind is Kind.CALL
        assert number < {SAFE: 5, UNSAFE: 1}.get(call.method, 3)
        deadline = math.inf if call.deadline is None else call.deadline
        assert self.rig.now < deadline
        assert go.timeout_s is None or go.timeout_s > 0
        assert deadline == math.inf or self.rig.now + go.timeout_s <= deadline + 1e-9
        assert not any(key.startswith("outrigger-") for key, _ in go.metadata)

    def begin(self, method, metadata, timeout_s, kind):
        call = self.rig.call(method, metadata=metadata, timeout_s=timeout_s, kind=kind)
        result = self.guard.begin(call, self.rig.now)
        self.take(result, getattr(result, "permit", None))

    def end(self, index, code, origin, trailers, draw):
        if self.live:
            go = self.live.pop(index % len(self.live))
            result = self.rig.end(go, code, origin=origin, trailers=trailers, draw=draw)
            self.take(result, go.permit)

    def wake(self, index):
        if self.waiting:
            permit, when = self.waiting.pop(index % len(self.waiting))
            self.rig.now = max(self.rig.now, when)
            self.take(self.guard.attempt(permit, self.rig.now), permit)

    def resolve(self, index, is_taken):
        if self.parked:
            letter = self.parked.pop(index % len(self.parked))
            word = LetterTaken("L") if is_taken else LetterRefused("FULL")
            result = self.guard.resolved(letter.token, word, self.rig.now)
            assert result.answer.code == letter.code
            self.take(result, letter.permit)

    def cancel(self, index):
        held = [self.live, self.waiting, self.parked]
        count = sum(map(len, held))
        if count:
            index %= count
            for each in held:
                if index < len(each):
                    gone = each.pop(index)
                    permit = gone[0] if isinstance(gone, tuple) else gone.permit
                    self.guard.cancelled(permit, self.rig.now)
                    self.over += 1
                    return
                index -= len(each)

    def wait(self, seconds):
        self.rig.now += seconds
        self.guard.tick(self.rig.now)

    def kill(self, on):
        self.killed = on
        self.guard.kill_calls(on, "drill")

    def ready(self):
        self.guard.connection_ready("shop", self.rig.now)

    def check(self):
        """Every call begun is in exactly one place."""
        over = open_calls = 0
        for counts in (self.guard.counts, self.guard.deliveries):
            ended = counts.ok + counts.failed + counts.cancelled
            ended += sum(counts.refused.values())
            assert counts.begun == ended + counts.in_flight
            over += ended
            open_calls += counts.in_flight
        assert over == self.over
        assert open_calls == len(self.live) + len(self.waiting) + len(self.parked)


@given(walk=WALK)
@settings(max_examples=200, deadline=None)
def test_no_walk_breaks_a_promise(walk):
    """Unsafe never re-sent, nothing after the deadline, every call counted once."""
    wire = ClumsyWire()
    for name, *args in walk:
        getattr(wire, name)(*args)
        wire.check()


@given(walk=WALK)
@settings(max_examples=100, deadline=None)
def test_after_any_walk_everything_is_given_back(walk):
    """Once all callers are gone, a healthy callee is found healthy again."""
    wire = ClumsyWire()
    for name, *args in walk:
        getattr(wire, name)(*args)
    while wire.live or wire.waiting or wire.parked:
        wire.cancel(0)
    wire.check()
    wire.wait(15.0)

    for method in (PLAIN, SAFE, UNSAFE, KEPT):
        for _ in range(2):
            wire.rig.end(wire.rig.go(method))

    assert wire.guard.counts.in_flight == 0
    assert wire.guard.deliveries.in_flight == 0
    for circuit_id in ("shop", *("shop" + m for m in (PLAIN, SAFE, UNSAFE, KEPT))):
        assert wire.rig.state(circuit_id) == "closed"


@given(
    walk=st.lists(
        st.tuples(st.booleans(), INDEX, st.sampled_from([0, 14, 14, 14])), max_size=80
    )
)
@settings(deadline=None)
def test_retries_stay_within_the_budget(walk):
    """While time stands still: one, and a fifth of the first attempts completed."""
    never = CircuitSettings(consecutive_failures=10_000, min_calls=10_000)
    budget = BudgetSettings(minimum=1)
    rig = GuardRig(settings=GuardSettings(circuit=never, budget=budget))
    live = []
    completed = 0
    for is_begin, index, code in walk:
        if is_begin or not live:
            live.append(rig.go())
            continue
        go = live.pop(index % len(live))
        completed += go.attempt == 0
        if isinstance(rig.end(go, code), Retry):
            live.append(rig.guard.attempt(go.permit, rig.now))

        assert rig.guard.counts.retries <= 1 + 0.2 * completed
