"""The circuit on random walks, against a small model that keeps everything."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.policy.circuit import Circuit, CircuitSettings
from sidecar.policy.classify import Verdict

SETTINGS = CircuitSettings(
    consecutive_failures=3, min_calls=6, lease_s=4.0, open_s=1.0, open_max_s=4.0
)
LEGAL = {
    ("closed", "open"),
    ("open", "half_open"),
    ("half_open", "open"),
    ("half_open", "closed"),
    ("isolated", "half_open"),
    ("closed", "isolated"),
    ("open", "isolated"),
    ("half_open", "isolated"),
}
DRAW = st.floats(0, 1, exclude_max=True)
STEP = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.5, 1.0, 4.0, 30.0])),
    st.tuples(st.just("call"), st.sampled_from([*Verdict]), DRAW),
    st.tuples(st.just("begin")),
    st.tuples(st.just("begin")),
    st.tuples(st.just("end"), st.integers(0, 30), st.sampled_from([*Verdict]), DRAW),
    st.tuples(st.just("vanish"), st.integers(0, 30)),
    st.tuples(st.just("tick")),
    st.tuples(st.just("ready")),
    st.sampled_from([("isolate",), ("restore",)]),
)
WALK = st.lists(STEP, max_size=120)


@dataclass(eq=False)
class Begun:
    """A call on its way."""

    period: int
    lease_ends: float | None
    ticket: int = 0


@dataclass
class Model:
    """What a circuit should do, said slowly."""

    now: float = 0.0
    state: str = "closed"
    period: int = 0
    row: int = 0
    openings: int = 0
    passed: int = 0
    stretch: int = 0
    rest_ends: float = 0.0
    results: list = field(default_factory=list)
    leases: list = field(default_factory=list)

    def enter(self, state):
        self.state, self.period = state, self.period + 1
        self.passed = 0
        if state == "closed":
            self.row, self.results, self.stretch = 0, [], 0

    def open(self, draw):
        rest = min(SETTINGS.open_s * 2**self.openings, SETTINGS.open_max_s)
        self.rest_ends = self.now + rest * (1 - SETTINGS.jitter_ratio * draw)
        self.openings += 1
        self.enter("open")

    def pass_time(self):
        if self.state == "open" and self.now >= self.rest_ends:
            self.enter("half_open")
        self.leases = [one for one in self.leases if one.lease_ends > self.now]

    def begin(self):
        if self.state == "closed":
            return Begun(self.period, None)
        self.pass_time()
        if self.state != "half_open" or len(self.leases) >= SETTINGS.probes_at_once:
            return None
        lease_s = SETTINGS.lease_s * 2**self.stretch
        self.leases.append(Begun(self.period, self.now + lease_s))
        return self.leases[-1]

    def end(self, begun, verdict, draw):
        held = begun in self.leases
        self.leases = [one for one in self.leases if one is not begun]
        if begun.period != self.period or verdict is Verdict.IGNORED:
            return
        if self.state == "half_open":
            self.end_probe(begun, verdict, draw, held=held)
            return
        if verdict is Verdict.ANSWERED:
            return
        bad = verdict is not Verdict.SUCCESS
        self.results.append((self.now // 1.0, bad))
        if verdict is not Verdict.SOFT:
            self.row = self.row + 1 if bad else 0
        newest = [one for when, one in self.results if when > self.now // 1.0 - 10]
        too_many = len(newest) >= SETTINGS.min_calls and sum(newest) * 2 >= len(newest)
        if bad and (self.row >= SETTINGS.consecutive_failures or too_many):
            self.open(draw)

    def end_probe(self, begun, verdict, draw, *, held):
        if verdict not in {Verdict.SUCCESS, Verdict.ANSWERED}:
            lease_s = SETTINGS.lease_s * 2**self.stretch
            if not held or self.now >= begun.lease_ends - lease_s * (1 - 0.9):
                self.stretch = min(self.stretch + 1, 3)
            self.open(draw)
            return
        self.passed += 1
        if self.passed >= SETTINGS.probes_to_close:
            self.openings = 0
            self.enter("closed")


class Pair:
    """Circuit and model, doing the same."""

    def __init__(self, *, is_open=False):
        self.model = Model()
        self.circuit = Circuit("shop", SETTINGS, now=0.0)
        self.begun = []
        for _ in range(SETTINGS.consecutive_failures if is_open else 0):
            self.call(Verdict.HARD, 0.0)

    def step(self, name, *args):
        getattr(self, name)(*args)
        assert self.circuit.state.value == self.model.state
        if name == "tick":
            assert self.circuit.leases == len(self.model.leases)
        assert self.circuit.leases <= SETTINGS.probes_at_once

    def wait(self, seconds):
        self.model.now += seconds

    def begin(self):
        expected = self.model.begin()
        ticket = self.circuit.admit(self.model.now)
        assert (ticket is None) is (expected is None)
        if expected is not None:
            expected.ticket = ticket
            self.begun.append(expected)

    def call(self, verdict, draw):
        before = len(self.begun)
        self.begin()
        if len(self.begun) > before:
            self.end(before, verdict, draw)

    def end(self, index, verdict, draw):
        if not self.begun:
            return
        begun = self.begun.pop(index % len(self.begun))
        self.model.end(begun, verdict, draw)
        if verdict is Verdict.SUCCESS:
            self.circuit.passed(begun.ticket, self.model.now)
        else:
            self.circuit.failed(begun.ticket, verdict, self.model.now, draw)

    def vanish(self, index):
        if self.begun:
            begun = self.begun.pop(index % len(self.begun))
            self.model.leases = [one for one in self.model.leases if one is not begun]
            self.circuit.released(begun.ticket)

    def tick(self):
        self.model.pass_time()
        self.circuit.tick(self.model.now)

    def ready(self):
        if self.model.state == "open":
            self.model.enter("half_open")
        self.circuit.bring_forward(self.model.now)

    def isolate(self):
        if self.model.state != "isolated":
            self.model.enter("isolated")
        self.circuit.isolate("why", self.model.now)

    def restore(self):
        if self.model.state == "isolated":
            self.model.enter("half_open")
        self.circuit.restore(self.model.now)


@given(walk=WALK, is_open=st.booleans())
@settings(max_examples=400)
def test_it_does_what_the_model_does(walk, is_open):
    """State, admissions and leases agree after every step of any walk."""
    pair = Pair(is_open=is_open)
    for step in walk:
        pair.step(*step)


@given(walk=WALK)
def test_moves_are_legal_and_form_a_chain(walk):
    """Each published move begins where the one before ended, and the last is now."""
    pair = Pair()
    for step in walk:
        pair.step(*step)
    moves = pair.circuit.take_moves()

    at = "closed"
    for move in moves:
        assert (move.before, move.after) in LEGAL
        assert move.before == at
        assert move.reason
        at = move.after
    assert at == pair.circuit.state.value
    assert pair.circuit.take_moves() == ()


@given(walk=WALK)
def test_no_lease_is_ever_stuck(walk):
    """Whoever vanished: once the rest and the leases are over, it can close."""
    pair = Pair()
    for step in walk:
        pair.step(*step)
    pair.restore()
    pair.wait(SETTINGS.open_max_s + SETTINGS.lease_s * 2**3)

    for _ in range(SETTINGS.probes_to_close):
        pair.step("call", Verdict.SUCCESS, 0.0)

    assert pair.circuit.state.value == "closed"


@given(walk=WALK, draw=DRAW)
def test_a_rest_is_within_its_bounds(walk, draw):
    """Never more than the longest rest, never less than the jitter leaves of it."""
    pair = Pair()
    for step in walk:
        pair.step(*step)
        before = pair.circuit.open_count
        pair.step("call", Verdict.HARD, draw)
        if pair.circuit.open_count > before:
            rest_s = pair.circuit.remaining_s(pair.model.now)
            assert SETTINGS.open_s * 0.8 - 1e-9 <= rest_s <= SETTINGS.open_max_s


@given(walk=WALK)
def test_remaining_says_what_admit_will_do(walk):
    """Nothing remains exactly where a call is admitted."""
    pair = Pair()
    for step in walk:
        pair.step(*step)
        remaining = pair.circuit.remaining_s(pair.model.now)
        before = len(pair.begun)
        pair.step("begin")
        assert (remaining == 0) is (len(pair.begun) > before)
        if len(pair.begun) > before:
            pair.step("vanish", before)
