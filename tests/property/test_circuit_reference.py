"""The circuit beside its reference on 100,000 random steps, the same at every run.

A failure names its seed, its settings and the shortest trace that was found to fail.
`play(Circuit, SETTINGS[...], TRACE)` goes through that trace again.
"""

import math
import random
from collections import Counter, deque
from fractions import Fraction

import pytest

from sidecar.policy.circuit import Circuit, CircuitSettings, CircuitState
from sidecar.policy.classify import Verdict
from tests.support.circuit_reference import Reference

TRACES, STEPS = 500, 200
BLOCKS = 10
SMALL = {
    "consecutive_failures": 3,
    "min_calls": 6,
    "window_s": 8.0,
    "buckets": 8,
    "slow_in_a_row": 4,
    "slow_min_calls": 6,
    "open_s": 1.0,
    "open_max_s": 8.0,
    "jitter_ratio": 0.25,
    "probes_at_once": 2,
    "lease_s": 4.0,
    "probe_retry_s": 0.125,
}
SETTINGS = (
    CircuitSettings(**SMALL),
    CircuitSettings(**SMALL | {"consecutive_failures": 100, "slow_in_a_row": 100}),
    CircuitSettings(**SMALL | {"probes_at_once": 1, "probes_to_close": 1}),
    CircuitSettings(**SMALL | {"probes_at_once": 3, "probes_to_close": 4}),
    CircuitSettings(**SMALL | {"shadow": True}),
)
MOODS = {
    "well": [Verdict.SUCCESS] * 8 + [Verdict.ANSWERED, Verdict.HARD],
    "so-so": [Verdict.SUCCESS, Verdict.SOFT, Verdict.HARD, Verdict.IGNORED],
    "ill": [Verdict.HARD] * 8 + [Verdict.SOFT, Verdict.ANSWERED],
    "elsewhere": [Verdict.ANSWERED, Verdict.IGNORED],
}
"""How a callee is doing for a while: each outcome as often as it is there."""
WAITS_S = (0.0625, 0.25, 0.5, 1.0, 4.0, 30.0)
"""Sixteenths, so that no sum of them is ever rounded: both sides see equal times."""
STEP_NAMES = (
    *("call", "begin", "end", "slow", "answer", "leave", "wait", "tick"),
    *("order", "cut"),
)


def traced(rng):
    """Draw a trace: steps as (name, numbers...), in stretches of one mood."""
    trace = []
    while len(trace) < STEPS:
        verdicts = MOODS[rng.choice(sorted(MOODS))]
        call, slow, wait, cut = (rng.choice((1, 8)) for _ in range(4))
        weights = [call, 8, rng.choice([1, 8]), slow, 2, 2, wait, 3, 1, cut]
        for _ in range(rng.randrange(10, 40)):
            (name,) = rng.choices(STEP_NAMES, weights)
            trace.append(step_of(name, rng, verdicts))
    return trace[:STEPS]


def step_of(name, rng, verdicts):
    """Draw what a step needs."""
    index, draw = rng.randrange(64), rng.randrange(8) / 8
    if name == "wait":
        return ("wait", rng.choices(WAITS_S, [8, 8, 6, 6, 3, 1])[0])
    if name == "order":
        orders = ["ready"] * 3 + ["isolate", "restore", "restore"]
        states = ["open", "half_open", "isolated", "closed"]
        resume = ("resume", rng.choice(states), rng.choice(WAITS_S), rng.randrange(4))
        return rng.choice([(order,) for order in orders] + [resume])
    return {
        "call": ("call", rng.choice(verdicts), draw),
        "end": ("end", index, rng.choice(verdicts), draw),
        "slow": ("slow", index, draw),
        "answer": ("answer", index),
        "leave": ("leave", index),
        "cut": ("cut", index, draw),
    }.get(name, (name,))


class Pair:
    """A circuit and its reference, told the same."""

    def __init__(self, circuit_class, settings):
        self.now = 0.0
        self.settings = settings
        self.circuit = circuit_class("shop", settings, now=0.0)
        self.reference = Reference(settings, 0.0)
        self.under_way = []
        """[ticket, call of the reference, calls it will count as]."""
        self.chain = ["closed"]

    def step(self, name, *numbers):
        """Make a step on both sides and compare all that can be seen."""
        getattr(self, name)(*numbers)
        self.compare()

    def compare(self):
        circuit, reference, now = self.circuit, self.reference, self.now
        for move in circuit.take_moves():
            assert move.before == self.chain[-1]
            assert move.reason
            self.chain.append(move.after)
        seen = {
            "moves": self.chain,
            "state": circuit.state.value,
            "since": circuit.since,
            "troubled since": circuit.troubled_since,
            "remaining": circuit.remaining_s(now),
            "window": (*circuit.counted(now), circuit.slow_calls(now)),
            "row": circuit.consecutive_failures,
            "openings": (circuit.openings, circuit.open_count),
            "refused": circuit.refused_count,
            "probe limit": Fraction(circuit.probe_limit_s).limit_denominator(1000),
        }
        limit_s = reference.lease_s * 0.9
        assert seen == {
            "moves": [state for state, _ in reference.states],
            "state": reference.state,
            "since": reference.states[-1][1],
            "troubled since": reference.troubled_since,
            "remaining": reference.remaining_s(now),
            "window": reference.in_window(now),
            "row": reference.failures_in_a_row,
            "openings": (reference.openings, len(reference.rests)),
            "refused": reference.refused,
            "probe limit": Fraction(limit_s).limit_denominator(1000),
        }
        assert circuit.leases <= self.settings.probes_at_once

    def wait(self, seconds):
        self.now += seconds

    def begin(self):
        ticket = self.circuit.admit(self.now)
        call = self.reference.admit(self.now)
        assert (ticket is None) is (call is None)
        if call is not None:
            assert (ticket == 0) is (call.period == -1)
            self.under_way.append([ticket, call, 1])
        return call is not None

    def call(self, verdict, draw):
        if self.begin():
            self.end(len(self.under_way) - 1, verdict, draw)

    def end(self, index, verdict, draw):
        if not self.under_way:
            return
        ticket, call, calls = self.under_way.pop(index % len(self.under_way))
        self.reference.end(call, verdict, self.now, draw, calls)
        if verdict is Verdict.SUCCESS and draw < 0.5:
            self.circuit.passed(ticket, self.now, calls)
        else:
            self.circuit.failed(ticket, verdict, self.now, draw, calls)

    def cut(self, index, draw):
        """Wait until a probe must have an answer; it has none."""
        probes = [n for n, one in enumerate(self.under_way) if one[1].lease_ends]
        if probes:
            number = probes[index % len(probes)]
            cut_at = self.under_way[number][1].lease_ends - self.reference.lease_s * 0.1
            self.now = max(self.now, math.ceil(cut_at * 16) / 16)
            self.end(number, Verdict.HARD, draw)

    def slow(self, index, draw):
        fresh = [one for one in self.under_way if one[2]]
        if fresh:
            one = fresh[index % len(fresh)]
            counted = self.circuit.slow(one[0], self.now, draw)
            assert counted is self.reference.slow(one[1], self.now, draw)
            one[2] = 0 if counted else 1

    def answer(self, index):
        if self.under_way:
            one = self.under_way[index % len(self.under_way)]
            is_done = self.circuit.answered(one[0], self.now)
            assert is_done is self.reference.answered(one[1], self.now)
            one[0] = 0 if is_done else one[0]

    def leave(self, index):
        if self.under_way:
            ticket, call, _ = self.under_way.pop(index % len(self.under_way))
            self.circuit.released(ticket)
            self.reference.release(call)

    def tick(self):
        self.circuit.tick(self.now)
        self.reference.look(self.now)
        assert self.circuit.leases == self.reference.leases(self.now)

    def ready(self):
        self.circuit.bring_forward(self.now)
        self.reference.bring_forward(self.now)

    def isolate(self):
        self.circuit.isolate("an order", self.now)
        self.reference.isolate(self.now)

    def restore(self):
        self.circuit.restore(self.now)
        self.reference.restore(self.now)

    def resume(self, state, age_s, openings):
        self.circuit.resume(
            CircuitState(state), "before", self.now, age_s=age_s, openings=openings
        )
        self.reference.resume(state, self.now, age_s, openings)


def play(circuit_class, settings, trace):
    """Go through a trace; return the pair as it stands then."""
    pair = Pair(circuit_class, settings)
    for step in trace:
        pair.step(*step)
    return pair


def fails(circuit_class, settings, trace):
    """Say whether a trace tells the two apart."""
    try:
        play(circuit_class, settings, trace)
    except AssertionError:
        return True
    return False


def shrunk(circuit_class, settings, trace):
    """Drop steps from a failing trace, many at first, as long as it still fails."""
    size = len(trace) // 2
    while size:
        start = 0
        while start < len(trace):
            shorter = trace[:start] + trace[start + size :]
            if fails(circuit_class, settings, shorter):
                trace = shorter
            else:
                start += size
        size //= 2
    return trace


def compared(seed, circuit_class=Circuit):
    """Go through the trace of a seed; fail with the shortest that fails."""
    settings = SETTINGS[seed % len(SETTINGS)]
    trace = traced(random.Random(seed))
    try:
        return play(circuit_class, settings, trace)
    except AssertionError as error:
        short = shrunk(circuit_class, settings, trace)
        steps = "\n".join(f"  {step}" for step in short)
        raise AssertionError(
            f"seed {seed}, SETTINGS[{seed % len(SETTINGS)}]: circuit and reference"
            f" differ after\n{steps}\n{error}"
        ) from None


@pytest.mark.parametrize("block", range(BLOCKS))
def test_circuit_and_reference_never_differ(block):
    """A tenth of 100,000 steps each: every answer of the two is the same."""
    for number in range(TRACES // BLOCKS):
        compared(block * TRACES // BLOCKS + number)


def test_the_traces_go_everywhere():
    """Every legal move, for every reason, and openings eight in a row."""
    seen, openings = Counter(), 0
    for seed in range(TRACES // 5):
        trace = traced(random.Random(seed))
        pair = Pair(Circuit, SETTINGS[seed % len(SETTINGS)])
        for step in trace:
            before = pair.circuit.since, pair.circuit.state
            pair.step(*step)
            after = pair.circuit.since, pair.circuit.state
            if before != after:
                reason = "".join(c for c in pair.circuit.reason if not c.isdigit())
                seen[before[1].value, after[1].value, reason.strip()] += 1
            openings = max(openings, pair.circuit.openings)
    assert {
        ("closed", "open", "failures in a row"),
        ("closed", "open", "of  calls failed within  s"),
        ("closed", "open", "calls in a row got no answer in time"),
        ("closed", "open", "of  calls were slow within  s"),
        ("open", "half_open", "the rest is over"),
        ("open", "half_open", "the connection is ready"),
        ("half_open", "open", "a probe failed"),
        ("half_open", "open", "a probe got no answer"),
        ("half_open", "closed", "probes succeeded"),
        ("half_open", "isolated", "an order"),
        ("closed", "isolated", "before"),
        ("isolated", "half_open", "restored by an operator"),
        ("closed", "half_open", "was half_open before a restart"),
    } <= set(seen), seen
    assert openings >= 5


class Forgetful(Circuit):
    """Does not give the place of a caller that went away to another."""

    __slots__ = ()

    def released(self, ticket):
        pass


def test_a_difference_is_reported_with_its_seed_and_a_short_trace():
    """Whoever reads it can play those few steps again."""
    with pytest.raises(AssertionError, match=r"seed \d+, SETTINGS") as caught:
        deque((compared(seed, Forgetful) for seed in range(TRACES)), maxlen=0)

    steps = [line for line in str(caught.value).splitlines() if line[:3] == "  ("]
    assert any("leave" in step for step in steps)
    assert len(steps) <= 20
