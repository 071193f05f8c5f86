"""Slow calls, shadows, probes that hang, and what a circuit remembers."""

import pytest

from sidecar.policy.baseline import Baseline, BaselineSettings
from sidecar.policy.circuit import Circuit, CircuitSettings, CircuitState
from sidecar.policy.classify import Verdict

HARD = Verdict.HARD
CLOSED, OPEN, HALF_OPEN = (
    CircuitState.CLOSED,
    CircuitState.OPEN,
    CircuitState.HALF_OPEN,
)


def made(**settings):
    """A closed circuit at time 0 whose rests are exact."""
    return Circuit("shop", CircuitSettings(jitter_ratio=0.0, **settings), now=0.0)


def trip(circuit, now=0.0):
    """Open it by failures."""
    for _ in range(5):
        circuit.failed(circuit.admit(now), HARD, now, 0.0)
    assert circuit.state is OPEN


def test_five_calls_in_a_row_without_an_answer_open_it():
    """A black hole gives no failures for as long as its callers are patient."""
    circuit = made()
    for _ in range(1000):
        circuit.passed(circuit.admit(0.0), 0.0)
    for _ in range(4):
        assert circuit.slow(circuit.admit(0.0), 2.0, 0.0)
    assert circuit.state is CLOSED

    circuit.slow(circuit.admit(0.0), 2.0, 0.0)

    assert circuit.state is OPEN
    assert circuit.reason == "5 calls in a row got no answer in time"


@pytest.mark.parametrize("sign_of_life", ["passed", "answered"])
def test_any_answer_ends_the_row(sign_of_life):
    """A tail of slow calls among others is what every callee has."""
    circuit = made()
    for _ in range(5):
        for _ in range(4):
            circuit.slow(circuit.admit(0.0), 2.0, 0.0)
        for _ in range(10):
            getattr(circuit, sign_of_life)(circuit.admit(2.0), 2.0)
            circuit.passed(circuit.admit(2.0), 2.0)

    assert circuit.state is CLOSED


def test_mostly_slow_calls_open_it_even_if_some_are_not():
    """Eight of ten, whoever else counts rows."""
    circuit = made(slow_in_a_row=100)
    for slow in (3, 4):
        circuit.passed(circuit.admit(2.0), 2.0)
        for _ in range(slow):
            circuit.slow(circuit.admit(0.0), 2.0, 0.0)
    assert circuit.slow_calls(2.0) == 7
    assert circuit.state is CLOSED

    circuit.slow(circuit.admit(0.0), 2.0, 0.0)

    assert circuit.state is OPEN
    assert circuit.reason == "8 of 10 calls were slow within 10 s"


def test_a_slow_call_counts_as_one_call():
    """Its end adds a failure or a success, never a second call."""
    circuit = made()
    one, two = circuit.admit(0.0), circuit.admit(0.0)
    circuit.slow(one, 2.0, 0.0)
    circuit.slow(two, 2.0, 0.0)

    circuit.passed(one, 3.0, 0)
    assert circuit.counted(3.0) == (2, 0)
    circuit.failed(two, HARD, 3.0, 0.0, 0)

    assert circuit.counted(3.0) == (2, 1)
    assert circuit.consecutive_failures == 1


def test_slow_calls_leave_the_window():
    """Ten seconds later they are forgotten."""
    circuit = made(slow_in_a_row=100)
    for _ in range(4):
        circuit.slow(circuit.admit(0.0), 2.0, 0.0)

    circuit.slow(circuit.admit(13.0), 13.0, 0.0)

    assert circuit.state is CLOSED
    assert circuit.slow_calls(13.0) == 1


def test_a_probe_is_not_counted_as_slow():
    """It has its lease; a callee that answers slowly after an outage is back."""
    circuit = made()
    trip(circuit)
    ticket = circuit.admit(1.0)

    assert not circuit.slow(ticket, 4.0, 0.0)
    assert circuit.state is HALF_OPEN


def test_a_call_of_an_earlier_period_is_not_counted_as_slow():
    """It says nothing about the callee of today."""
    circuit = made()
    old = circuit.admit(0.0)
    trip(circuit)
    circuit.passed(circuit.admit(1.0), 1.0)
    circuit.passed(circuit.admit(1.0), 1.0)
    assert circuit.state is CLOSED

    assert not circuit.slow(old, 2.0, 0.0)


def test_a_stream_that_begins_to_answer_is_a_probe_that_succeeded():
    """It may go on for hours; its end is not waited for."""
    circuit = made()
    trip(circuit)
    assert circuit.answered(circuit.admit(1.0), 1.0)
    assert circuit.leases == 0
    assert circuit.answered(circuit.admit(1.0), 1.0)

    assert circuit.state is CLOSED


def test_a_stream_that_begins_to_answer_while_closed_keeps_its_ticket():
    """That it breaks later still counts."""
    circuit = made()
    ticket = circuit.admit(0.0)

    assert not circuit.answered(ticket, 1.0)
    circuit.failed(ticket, HARD, 2.0, 0.0)

    assert circuit.counted(2.0) == (1, 1)


def test_leases_double_while_probes_hang_and_start_over_after_a_recovery():
    """A callee slower than the first lease is found healthy by a later one."""
    circuit, limits, now = made(), [], 0.0
    trip(circuit)
    for _ in range(5):
        now += circuit.remaining_s(now)
        ticket = circuit.admit(now)
        limits.append(circuit.probe_limit_s)
        now += circuit.probe_limit_s
        circuit.failed(ticket, HARD, now, 0.0)
        assert circuit.reason == "a probe got no answer"
    assert limits == [9.0, 18.0, 36.0, 72.0, 72.0]

    now += circuit.remaining_s(now)
    circuit.passed(circuit.admit(now), now)
    circuit.passed(circuit.admit(now), now)

    assert circuit.state is CLOSED
    assert circuit.probe_limit_s == 9.0


def test_a_probe_that_fails_at_once_leaves_the_lease_as_it_was():
    """Only hanging says that the lease may be too short."""
    circuit = made()
    trip(circuit)
    circuit.failed(circuit.admit(1.0), HARD, 1.1, 0.0)

    assert circuit.reason == "a probe failed"
    assert circuit.probe_limit_s == 9.0


def test_a_late_success_gives_its_place_back():
    """A probe of the probation before keeps its place until it ends, not longer."""
    circuit = made()
    trip(circuit)
    tickets = [circuit.admit(1.0) for _ in range(3)]
    circuit.failed(tickets[0], HARD, 1.0, 0.0)
    circuit.passed(tickets[1], 2.0)

    assert circuit.leases == 1


def test_a_shadow_tells_and_lets_pass():
    """It moves as if it were real, and refuses nobody."""
    circuit = made(shadow=True)
    trip(circuit)
    assert circuit.is_shadow

    ticket = circuit.admit(0.5)

    assert ticket == 0
    assert circuit.refused_count == 1
    assert circuit.remaining_s(0.5) == 0.0
    circuit.failed(ticket, HARD, 0.5, 0.0)
    circuit.passed(circuit.admit(0.6), 0.6)
    assert circuit.state is OPEN
    assert [move.after for move in circuit.take_moves()] == ["open"]


def test_an_isolated_shadow_refuses():
    """An operator's order is no experiment."""
    circuit = made(shadow=True)
    circuit.isolate("by hand", 0.0)

    assert circuit.admit(0.0) is None
    assert circuit.remaining_s(0.0) > 1e9


def test_it_remembers_its_moves_and_since_when_it_is_in_trouble():
    """The newest eight, oldest first; trouble ends when it closes."""
    circuit = made()
    trip(circuit, 3.0)
    circuit.admit(4.0)
    assert circuit.troubled_since == 3.0

    assert [(step.when, step.before, step.after) for step in circuit.history] == [
        (3.0, "closed", "open"),
        (4.0, "open", "half_open"),
    ]
    for _ in range(2):
        circuit.passed(circuit.admit(5.0), 5.0)
    assert circuit.troubled_since is None
    for number in range(10):
        circuit.isolate("again", 6.0 + number)
        circuit.restore(6.5 + number)
    assert len(circuit.history) == 8


def test_a_restart_keeps_its_age_and_the_length_of_its_rests():
    """What had been away for an hour is not taken for a fresh fault."""
    circuit = made()
    circuit.resume(OPEN, "", 100.0, age_s=3600.0, openings=3)
    assert circuit.troubled_since == 100.0 - 3600.0

    circuit.failed(circuit.admit(100.0), HARD, 100.0, 0.0)

    assert circuit.remaining_s(100.0) == 8.0


class Usual(Baseline):
    """Knows one number."""

    def __init__(self, threshold):
        super().__init__(BaselineSettings(), now=0.0)
        self.threshold = threshold

    def failure_threshold(self, calls):
        return self.threshold


@pytest.mark.parametrize(("threshold", "failures"), [(None, 5), (8, 8), (3, 3)])
def test_what_is_usual_replaces_the_fixed_numbers_once_it_is_known(threshold, failures):
    """More where failing is usual, less where it is not."""
    circuit = made()
    circuit.baseline = Usual(threshold)
    for _ in range(10):
        circuit.passed(circuit.admit(0.0), 0.0)
    for number in range(1, failures + 1):
        assert circuit.state is CLOSED, number
        circuit.failed(circuit.admit(0.0), HARD, 0.0, 0.0)

    assert circuit.state is OPEN
    assert circuit.reason.endswith("usual") is (threshold is not None)


def test_a_circuit_that_learns_opens_on_less_than_half():
    """Three minutes without a failure; then every fourth call fails, no row of five."""
    circuit = made()
    circuit.baseline = Baseline(BaselineSettings(), now=0.0)
    for number in range(1800):
        circuit.passed(circuit.admit(number / 10), number / 10)
    opened_after = None
    for number in range(1800, 1900):
        now = number / 10
        if number % 4:
            circuit.passed(circuit.admit(now), now)
        else:
            circuit.failed(circuit.admit(now), HARD, now, 0.0)
        if circuit.state is OPEN:
            opened_after = number - 1800
            break

    assert opened_after is not None
    assert "more than is usual" in circuit.reason


def test_an_outage_is_not_learnt_as_usual():
    """What is not believed yet is dropped when the circuit opens."""
    circuit = made()
    seen = []

    class Watched(Baseline):
        def discard(self, now):
            seen.append(now)
            super().discard(now)

    circuit.baseline = Watched(BaselineSettings(), now=0.0)
    trip(circuit, 3.0)
    circuit.failed(circuit.admit(4.0), HARD, 4.0, 0.0)

    assert seen == [3.0]
