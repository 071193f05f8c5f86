import math

import pytest

from outrigger.core.errors import Invalid
from sidecar.policy.circuit import Circuit, CircuitSettings, CircuitState
from sidecar.policy.classify import Verdict

HARD, SOFT, IGNORED = Verdict.HARD, Verdict.SOFT, Verdict.IGNORED
CLOSED, OPEN = CircuitState.CLOSED, CircuitState.OPEN
HALF_OPEN, ISOLATED = CircuitState.HALF_OPEN, CircuitState.ISOLATED


@pytest.fixture
def circuit():
    """A closed circuit at time 0 that opens for exactly as long as it says."""
    return Circuit("shop", CircuitSettings(jitter_ratio=0.0), now=0.0)


def fail(circuit, now, verdict=HARD, draw=0.0):
    """Make one call that fails at once."""
    ticket = circuit.admit(now)
    assert ticket is not None
    circuit.failed(ticket, verdict, now, draw)


def succeed(circuit, now):
    """Make one call that succeeds at once."""
    ticket = circuit.admit(now)
    assert ticket is not None
    circuit.passed(ticket, now)


def trip(circuit, now=0.0):
    """Open it."""
    for _ in range(5):
        fail(circuit, now)
    assert circuit.state is OPEN


def moves(circuit):
    """Take its moves as pairs of states."""
    return [(move.before, move.after) for move in circuit.take_moves()]


def test_five_hard_failures_in_a_row_open_it(circuit):
    """Four do not; the fifth does, and says why."""
    for _ in range(4):
        fail(circuit, 0.0)
    assert circuit.state is CLOSED

    fail(circuit, 0.0)

    assert circuit.state is OPEN
    (move,) = circuit.take_moves()
    assert (move.circuit, move.before, move.after) == ("shop", "closed", "open")
    assert move.reason == "5 failures in a row"
    assert circuit.open_count == 1


def test_a_success_ends_the_row(circuit):
    """Failures in a row are in a row."""
    for _ in range(3):
        for _ in range(4):
            fail(circuit, 0.0)
        for _ in range(20):
            succeed(circuit, 0.0)

    assert circuit.state is CLOSED
    assert circuit.consecutive_failures == 0


def test_half_of_at_least_ten_calls_failing_opens_it(circuit):
    """Alternating failures never make a row, but they make a ratio."""
    for _ in range(4):
        succeed(circuit, 0.0)
        fail(circuit, 0.0)
    succeed(circuit, 0.0)
    assert circuit.state is CLOSED

    fail(circuit, 0.0)

    assert circuit.state is OPEN
    assert circuit.reason == "5 of 10 calls failed within 10 s"


def test_failures_that_left_the_window_do_not_count_in_the_ratio(circuit):
    """The ratio is about the last ten seconds."""
    for _ in range(4):
        succeed(circuit, 0.0)
        fail(circuit, 0.0)
    for _ in range(9):
        succeed(circuit, 10.0)

    fail(circuit, 10.0)

    assert circuit.state is CLOSED
    assert circuit.counted(10.0) == (10, 1)


def test_soft_failures_count_in_the_ratio_but_make_no_row(circuit):
    """A callee that is alive but busy is left alone until half its calls fail."""
    for _ in range(9):
        fail(circuit, 0.0, SOFT)
    assert circuit.state is CLOSED
    assert circuit.consecutive_failures == 0

    fail(circuit, 0.0, SOFT)

    assert circuit.state is OPEN


def test_what_does_not_count_does_not_count(circuit):
    """A hundred definite answers say nothing about the callee's health."""
    for _ in range(100):
        fail(circuit, 0.0, IGNORED)

    assert circuit.state is CLOSED
    assert circuit.counted(0.0) == (0, 0)


def test_an_open_circuit_refuses_and_says_for_how_long(circuit):
    """The remaining time is exact, and every refusal is counted."""
    trip(circuit)

    assert circuit.admit(0.25) is None
    assert circuit.admit(0.5) is None
    assert circuit.remaining_s(0.25) == 0.75
    assert circuit.refused_count == 2


def test_the_move_from_open_to_half_open_is_published(circuit):
    """A classic fault: the state changes on the next call and nobody is told."""
    trip(circuit)
    circuit.take_moves()

    assert circuit.admit(1.0) is not None

    assert circuit.state is HALF_OPEN
    assert moves(circuit) == [("open", "half_open")]


def test_a_tick_ends_the_rest_without_any_call(circuit):
    """Operators and letters hear of half_open even when the agent is silent."""
    trip(circuit)
    circuit.take_moves()
    circuit.tick(0.99)
    assert moves(circuit) == []

    circuit.tick(1.0)

    assert moves(circuit) == [("open", "half_open")]


def test_two_probes_that_succeed_close_it(circuit):
    """One is not enough; two are, and the outage is forgotten."""
    trip(circuit)
    succeed(circuit, 1.0)
    assert circuit.state is HALF_OPEN

    succeed(circuit, 1.1)

    assert circuit.state is CLOSED
    assert circuit.counted(1.1) == (0, 0)
    assert circuit.consecutive_failures == 0
    for _ in range(4):
        fail(circuit, 1.2)
    assert circuit.state is CLOSED


@pytest.mark.parametrize("verdict", [HARD, SOFT])
def test_one_probe_that_fails_opens_it_again_for_longer(circuit, verdict):
    """Also RESOURCE_EXHAUSTED fails a probe: a busy callee is not recovered."""
    trip(circuit)

    fail(circuit, 1.0, verdict)

    assert circuit.state is OPEN
    assert circuit.reason == "a probe failed"
    assert circuit.remaining_s(1.0) == 2.0


def test_rests_double_up_to_the_longest_and_start_over_after_a_recovery(circuit):
    """1, 2, 4, 8, then 15 for ever; a recovery begins at 1 again."""
    trip(circuit)
    now, rests = 0.0, []
    for _ in range(7):
        rest = circuit.remaining_s(now)
        rests.append(rest)
        now += rest
        fail(circuit, now)
    assert rests == [1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]

    now += 15.0
    succeed(circuit, now)
    succeed(circuit, now)
    trip(circuit, now)

    assert circuit.remaining_s(now) == 1.0


def test_the_drawn_number_shortens_the_rest():
    """Sidecars that saw the same outage do not probe in step."""
    rests = []
    for draw in (0.0, 0.5, 0.999):
        circuit = Circuit("shop", CircuitSettings(), now=0.0)
        for _ in range(5):
            fail(circuit, 0.0, draw=draw)
        rests.append(circuit.remaining_s(0.0))

    assert rests == pytest.approx([1.0, 0.9, 0.8002])


def test_probes_are_capped_in_flight(circuit):
    """A thousand callers at once send three probes."""
    trip(circuit)

    tickets = [circuit.admit(1.0) for _ in range(1000)]

    assert sum(ticket is not None for ticket in tickets) == 3
    assert circuit.remaining_s(1.0) == 0.1


@pytest.mark.parametrize("way_out", ["released", "ignored"])
def test_a_lease_is_given_back_when_nothing_was_learnt(circuit, way_out):
    """A probe that was cancelled, or whose status does not count, frees its place."""
    trip(circuit)
    tickets = [circuit.admit(1.0) for _ in range(3)]
    assert circuit.admit(1.0) is None

    if way_out == "released":
        circuit.released(tickets[0])
    else:
        circuit.failed(tickets[0], IGNORED, 1.0, 0.0)

    assert circuit.state is HALF_OPEN
    assert circuit.leases == 2
    assert circuit.remaining_s(1.0) == 0.0
    assert circuit.admit(1.0) is not None


def test_a_probe_whose_caller_vanished_does_not_leave_it_half_open_for_ever(circuit):
    """A classic fault: every place is taken by callers who will never report."""
    trip(circuit)
    for _ in range(3):
        circuit.admit(1.0)
    assert circuit.admit(10.9) is None
    assert circuit.remaining_s(11.0) == 0.0

    succeed(circuit, 11.0)
    succeed(circuit, 11.0)

    assert circuit.state is CLOSED


def test_a_probe_that_succeeded_frees_its_place(circuit):
    """The next one may go while the others are still out."""
    trip(circuit)
    tickets = [circuit.admit(1.0) for _ in range(3)]

    circuit.passed(tickets[0], 1.0)

    assert circuit.leases == 2
    assert circuit.admit(1.0) is not None


def test_successes_of_an_earlier_probation_do_not_count(circuit):
    """Each probation begins at nothing."""
    trip(circuit)
    succeed(circuit, 1.0)
    fail(circuit, 1.0)
    succeed(circuit, 3.0)

    assert circuit.state is HALF_OPEN


def test_probes_still_out_keep_their_places_in_the_next_probation(circuit):
    """Never more than three on their way, whichever probation they belong to."""
    trip(circuit)
    tickets = [circuit.admit(1.0) for _ in range(3)]
    circuit.failed(tickets[0], HARD, 1.0, 0.0)

    assert circuit.remaining_s(3.0) == 0.0
    assert circuit.admit(3.0) is not None
    assert circuit.admit(3.0) is None

    circuit.released(tickets[1])
    assert circuit.admit(3.0) is not None


def test_a_closed_circuit_does_not_mind_probes_still_out(circuit):
    """Late results closed it while every place was taken by others."""
    trip(circuit)
    late = [circuit.admit(1.0) for _ in range(2)]
    others = [circuit.admit(11.0) for _ in range(3)]
    for ticket in late:
        circuit.passed(ticket, 11.0)

    assert circuit.state is CLOSED
    assert circuit.remaining_s(11.0) == 0.0
    circuit.passed(others[0], 11.0)
    circuit.failed(others[1], HARD, 11.0, 0.0)
    assert circuit.counted(11.0) == (0, 0)


def test_a_tick_expires_leases_too(circuit):
    """The places are free again although nobody called."""
    trip(circuit)
    for _ in range(3):
        circuit.admit(1.0)

    circuit.tick(10.999)
    assert circuit.leases == 3
    circuit.tick(11.0)

    assert circuit.leases == 0


def test_a_callee_slower_than_the_lease_can_still_be_found_healthy(circuit):
    """The place is given on after ten seconds, but the result still counts."""
    trip(circuit)
    tickets = [circuit.admit(1.0), circuit.admit(1.0)]
    circuit.tick(20.0)

    for ticket in tickets:
        circuit.passed(ticket, 20.0)

    assert circuit.state is CLOSED


def test_results_from_before_the_trip_are_ignored(circuit):
    """A slow call begun while closed says nothing about the recovery."""
    slow = [circuit.admit(0.0) for _ in range(4)]
    trip(circuit)
    circuit.tick(1.0)

    circuit.failed(slow[0], HARD, 1.0, 0.0)
    circuit.passed(slow[1], 1.0)
    circuit.passed(slow[2], 1.0)

    assert circuit.state is HALF_OPEN
    succeed(circuit, 1.1)
    succeed(circuit, 1.1)
    circuit.failed(slow[3], HARD, 1.2, 0.0)
    assert circuit.counted(1.2) == (0, 0)


def test_a_probe_of_an_earlier_probation_is_ignored(circuit):
    """Its generation is over, whatever it found."""
    trip(circuit)
    late = circuit.admit(1.0)
    fail(circuit, 1.0)
    circuit.tick(3.0)
    assert circuit.state is HALF_OPEN

    circuit.failed(late, HARD, 3.0, 0.0)
    circuit.passed(late, 3.0)

    assert circuit.state is HALF_OPEN
    succeed(circuit, 3.0)
    assert circuit.state is HALF_OPEN


def test_a_verdict_of_success_is_a_success_by_whichever_door(circuit):
    """`failed` with SUCCESS is what an answer is for the upstream's circuit."""
    trip(circuit)
    for _ in range(2):
        fail(circuit, 1.0, Verdict.SUCCESS)

    assert circuit.state is CLOSED


def test_a_ready_connection_brings_the_probes_forward(circuit):
    """Recovery need not wait for the rest to end."""
    trip(circuit)
    circuit.take_moves()

    circuit.bring_forward(0.2)

    (move,) = circuit.take_moves()
    assert (move.before, move.after) == ("open", "half_open")
    assert move.reason == "the connection is ready"
    assert circuit.admit(0.2) is not None


def test_a_ready_connection_changes_nothing_else(circuit):
    """A closed circuit stays closed and an isolated one isolated."""
    circuit.bring_forward(0.0)
    assert circuit.state is CLOSED
    circuit.isolate("maintenance", 0.0)
    circuit.take_moves()

    circuit.bring_forward(1.0)

    assert circuit.state is ISOLATED
    assert moves(circuit) == []


def test_isolation_ends_by_order_and_never_by_time(circuit):
    """A day later it still refuses; after the order it probes, not trusts."""
    circuit.isolate("maintenance", 0.0)
    circuit.isolate("again", 1.0)
    circuit.tick(86_400.0)
    assert circuit.admit(86_400.0) is None
    assert circuit.remaining_s(86_400.0) == math.inf
    assert circuit.reason == "maintenance"

    circuit.restore(86_401.0)
    circuit.restore(86_402.0)

    assert moves(circuit) == [("closed", "isolated"), ("isolated", "half_open")]


def test_restoring_what_is_not_isolated_does_nothing(circuit):
    """It is no way around an open circuit."""
    trip(circuit)

    circuit.restore(0.5)

    assert circuit.state is OPEN


def test_results_of_calls_begun_before_an_isolation_are_ignored(circuit):
    """The operator wins over the numbers."""
    tickets = [circuit.admit(0.0) for _ in range(10)]
    circuit.isolate("maintenance", 0.0)

    for ticket in tickets:
        circuit.failed(ticket, HARD, 0.1, 0.0)

    assert circuit.state is ISOLATED


@pytest.mark.parametrize(
    ("before", "after"),
    [(CLOSED, CLOSED), (OPEN, HALF_OPEN), (HALF_OPEN, HALF_OPEN), (ISOLATED, ISOLATED)],
)
def test_a_restart_trusts_nothing_it_did_not_see(circuit, before, after):
    """What was open begins half open; an operator's isolation stays."""
    circuit.resume(before, "whatever it was", 0.0)

    assert circuit.state is after


def test_a_restart_does_not_touch_a_circuit_that_moved_meanwhile(circuit):
    """What this process saw itself is newer than the record."""
    trip(circuit)

    circuit.resume(OPEN, "old news", 0.5)

    assert circuit.state is OPEN


def test_it_shows_itself_by_name_and_state(circuit):
    """A log line with a circuit in it is readable."""
    assert repr(circuit) == "<Circuit shop closed>"


@pytest.mark.parametrize(
    "wrong",
    [
        {"consecutive_failures": 0},
        {"min_calls": 0},
        {"probes_at_once": 0},
        {"probes_to_close": 0},
        {"open_s": 0.0},
        {"lease_s": -1.0},
        {"probe_retry_s": 0.0},
        {"open_max_s": 0.5},
        {"failure_ratio": 0.0},
        {"failure_ratio": 1.1},
        {"jitter_ratio": 1.0},
    ],
)
def test_impossible_settings_are_refused(wrong):
    """Each bound is checked when the settings are made."""
    with pytest.raises(Invalid) as caught:
        CircuitSettings(**wrong)

    assert caught.value.reason == "BAD_CIRCUIT"
