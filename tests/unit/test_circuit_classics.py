"""Faults that circuit breakers are known for, on the circuit and through the guard."""

import pytest

from sidecar.call.descriptor import Go, Origin, Refuse
from sidecar.policy.circuit import Circuit, CircuitSettings, CircuitState
from sidecar.policy.classify import Verdict
from tests.support.guard_rig import METHOD, GuardRig

HARD, IGNORED = Verdict.HARD, Verdict.IGNORED
CLOSED, OPEN, HALF_OPEN = (
    CircuitState.CLOSED,
    CircuitState.OPEN,
    CircuitState.HALF_OPEN,
)
IDENTITY = 16
"""UNAUTHENTICATED does not count, not even for a probe."""
HOUR_S = 3600.0


def made(**settings):
    """A closed circuit at time 0 whose rests are exact."""
    return Circuit("shop", CircuitSettings(jitter_ratio=0.0, **settings), now=0.0)


def trip(circuit, now=0.0):
    """Open it by failures."""
    while circuit.state is CLOSED:
        circuit.failed(circuit.admit(now), HARD, now, 0.0)


def half_open(**settings):
    """A circuit that may be probed since time 1."""
    circuit = made(**settings)
    trip(circuit)
    circuit.tick(1.0)
    assert circuit.state is HALF_OPEN
    return circuit


def recover(circuit, now):
    """Close it by probes."""
    while circuit.state is not CLOSED:
        circuit.passed(circuit.admit(now), now)


class TestCircuit:
    """The circuit by itself."""

    def test_a_lost_probe_blocks_nobody_for_longer_than_its_lease(self):
        """Its caller vanished and the wire never says so: its place comes back."""
        circuit = half_open()
        assert [circuit.admit(1.0) is None for _ in range(4)] == [False] * 3 + [True]

        assert circuit.admit(10.9) is None
        for now in (11.0, 11.0):
            circuit.passed(circuit.admit(now), now)

        assert circuit.state is CLOSED
        assert circuit.leases == 0

    @pytest.mark.parametrize("verdict", [HARD, Verdict.SUCCESS, Verdict.ANSWERED])
    @pytest.mark.parametrize("later", ["half_open", "closed"])
    def test_a_late_result_of_an_old_period_changes_nothing(self, verdict, later):
        """Whatever it says: it was begun when the callee was another one."""
        circuit = made()
        old = [circuit.admit(0.0) for _ in range(20)]
        trip(circuit)
        circuit.tick(1.0)
        if later == "closed":
            recover(circuit, 1.0)
        before = circuit.state, circuit.since, circuit.counted(2.0)

        for ticket in old:
            circuit.failed(ticket, verdict, 2.0, 0.0)

        assert (circuit.state, circuit.since, circuit.counted(2.0)) == before
        assert circuit.consecutive_failures == (5 if later == "half_open" else 0)

    def test_a_late_sign_of_life_of_an_old_period_ends_no_row(self):
        """Four calls hang now; that an older one is answered says nothing of them."""
        circuit = made()
        old = circuit.admit(0.0)
        trip(circuit)
        recover(circuit, 1.0)
        for _ in range(4):
            circuit.slow(circuit.admit(1.0), 3.0, 0.0)

        assert not circuit.answered(old, 3.0)
        circuit.slow(circuit.admit(1.0), 3.0, 0.0)

        assert circuit.state is OPEN

    def test_a_stampede_sends_no_more_probes_than_allowed(self):
        """A thousand callers come at once, and again each time a place is free."""
        circuit = half_open()
        out = []
        for now in (1.0, 2.0, 3.0):
            out += [t for t in (circuit.admit(now) for _ in range(1000)) if t]
            assert len(out) == 3
            circuit.failed(out.pop(0), IGNORED, now, 0.0)

        assert circuit.refused_count == 997 + 999 + 999
        assert circuit.remaining_s(3.0) == 0.0

    def test_results_that_arrive_while_it_is_open_change_nothing(self):
        """Neither the rest nor what is shown of the window that opened it."""
        circuit = made()
        out = [circuit.admit(0.0) for _ in range(40)]
        trip(circuit)
        shown = circuit.counted(0.5)

        for number, ticket in enumerate(out):
            verdict = HARD if number % 2 else Verdict.SUCCESS
            circuit.failed(ticket, verdict, 0.5, 0.0)

        assert circuit.state is OPEN
        assert circuit.remaining_s(0.5) == 0.5
        assert circuit.counted(0.5) == shown
        assert circuit.openings == 1

    def test_a_flapping_callee_is_called_less_and_less(self):
        """Well for one probe, ill for the next: ten minutes cost few calls."""
        circuit = made()
        trip(circuit)
        now, sent = 0.0, 0
        while now < 600.0:
            ticket = circuit.admit(now)
            if ticket is not None:
                sent += 1
                if sent % 2:
                    circuit.passed(ticket, now)
                else:
                    circuit.failed(ticket, HARD, now, 0.0)
            now += 0.125

        assert circuit.state is not CLOSED
        assert sent <= 2 * (4 + 600 / 15 + 1)

    def test_one_lucky_probe_does_not_close_it(self):
        """The first came through by chance; the second says how it is."""
        circuit = half_open()

        circuit.passed(circuit.admit(1.0), 1.0)
        circuit.failed(circuit.admit(1.0), HARD, 1.0, 0.0)

        assert circuit.state is OPEN
        assert circuit.remaining_s(1.0) == 2.0

    def test_one_unlucky_probe_costs_one_rest_and_no_more(self):
        """Of three sent at once one fails; after the next probation rests are short."""
        circuit = half_open()
        first, second, third = (circuit.admit(1.0) for _ in range(3))

        circuit.failed(first, HARD, 1.0, 0.0)
        circuit.passed(second, 1.0)
        circuit.passed(third, 1.0)
        assert circuit.state is OPEN
        recover(circuit, 3.0)
        trip(circuit, 3.0)

        assert circuit.remaining_s(3.0) == 1.0

    def test_an_idle_gap_longer_than_the_window_leaves_nothing_behind(self):
        """Ten failures, an hour of silence, the eleventh: no ratio of old calls."""
        circuit = made(consecutive_failures=100, min_calls=11)
        for _ in range(10):
            circuit.failed(circuit.admit(0.0), HARD, 0.0, 0.0)
        circuit.failed(circuit.admit(HOUR_S), HARD, HOUR_S, 0.0)

        assert circuit.state is CLOSED
        assert circuit.counted(HOUR_S) == (1, 1)

    def test_a_gap_that_ends_on_a_multiple_of_the_window_leaves_nothing_either(self):
        """The same slots of the ring come up again, and must be found stale."""
        circuit = made(consecutive_failures=100)
        for second in range(9):
            circuit.passed(circuit.admit(float(second)), float(second))

        for gap_s in (10.0, 20.0, 1000.0):
            assert circuit.counted(8.0 + gap_s) == (0, 0)
            circuit.passed(circuit.admit(8.0 + gap_s), 8.0 + gap_s)
            assert circuit.counted(8.0 + gap_s) == (1, 0)

    def test_a_row_of_failures_is_not_ended_by_a_gap(self):
        """Four yesterday, one today and nothing good between them: still a row."""
        circuit = made()
        for _ in range(4):
            circuit.failed(circuit.admit(0.0), HARD, 0.0, 0.0)

        circuit.failed(circuit.admit(HOUR_S), HARD, HOUR_S, 0.0)

        assert circuit.state is OPEN

    def test_a_clock_that_stands_still_or_steps_back_breaks_nothing(self):
        """What comes with an older time counts as now; rests and leases wait."""
        circuit = half_open()
        for now in (5.0, 1.0, 5.0):
            circuit.tick(now)
        ticket = circuit.admit(1.0)

        circuit.passed(ticket, 0.5)
        circuit.passed(circuit.admit(0.5), 0.5)

        assert circuit.state is CLOSED
        circuit.passed(circuit.admit(20.0), 20.0)
        circuit.failed(circuit.admit(3.0), HARD, 3.0, 0.0)
        assert circuit.counted(20.0) == (2, 1)

    def test_a_probe_that_hangs_is_cut_and_the_next_may_take_longer(self):
        """Its place is not given to another before that; the rest doubles."""
        circuit = half_open(probes_at_once=1)
        ticket = circuit.admit(1.0)
        cut_at = 1.0 + circuit.probe_limit_s
        assert circuit.admit(cut_at) is None

        circuit.failed(ticket, HARD, cut_at, 0.0)

        assert circuit.reason == "a probe got no answer"
        assert circuit.remaining_s(cut_at) == 2.0
        assert circuit.probe_limit_s == 18.0

    def test_codes_that_do_not_count_neither_close_nor_open_nor_block_it(self):
        """A thousand of them while half open: the probation goes on."""
        circuit = half_open()
        for _ in range(1000):
            circuit.failed(circuit.admit(1.0), IGNORED, 1.0, 0.0)

        assert circuit.state is HALF_OPEN
        assert circuit.leases == 0
        recover(circuit, 1.0)
        assert circuit.history[-1].reason == "2 probes succeeded"

    @pytest.mark.parametrize("verdict", [Verdict.ANSWERED, Verdict.SOFT])
    def test_any_answer_ends_a_row_of_calls_without_one(self, verdict):
        """Cache misses all day and one slow call an hour are no black hole."""
        circuit = made()
        for hour in range(10):
            now = hour * HOUR_S
            circuit.failed(circuit.admit(now), verdict, now, 0.0)
            circuit.slow(circuit.admit(now), now + 2.0, 0.0)

        assert circuit.state is CLOSED

    def test_a_failure_does_not_end_a_row_of_calls_without_an_answer(self):
        """A deadline that passed is a failure too, and no answer."""
        circuit = made(consecutive_failures=100, min_calls=100)
        for _ in range(4):
            circuit.slow(circuit.admit(0.0), 2.0, 0.0)
            circuit.failed(circuit.admit(0.0), HARD, 2.0, 0.0)
        circuit.slow(circuit.admit(0.0), 2.0, 0.0)

        assert circuit.reason == "5 calls in a row got no answer in time"

    @pytest.mark.parametrize(
        ("state", "since"), [(OPEN, 0.0), (HALF_OPEN, -50.0), (CLOSED, 0.0)]
    )
    def test_a_restart_does_not_make_trouble_younger(self, state, since):
        """It opened before the record was read: of both, the older trouble holds."""
        circuit = made()
        trip(circuit)
        age_s = 100.0 if state is HALF_OPEN else 10.0

        circuit.resume(state, "before", 50.0, age_s=age_s)

        assert circuit.troubled_since == since


@pytest.fixture
def rig():
    return GuardRig()


def live(rig, seconds):
    """Let time pass as a running process does, with four ticks a second."""
    for _ in range(round(seconds * 4)):
        rig.now += 0.25
        rig.guard.tick(rig.now)


def stop(rig, seconds):
    """SIGSTOP: time passes, and nothing runs."""
    rig.now += seconds


def probing(rig, count):
    """Open the method's circuit, wait out its rest, send probes."""
    live(rig, 0.5)
    rig.trip()
    live(rig, 1.0)
    return [rig.go() for _ in range(count)]


class TestGuard:
    """The same through the guard, with an hour slept through in the middle."""

    def test_a_lost_probe_gets_its_whole_lease_whatever_was_slept_through(self, rig):
        """Its ten seconds are ten that this process was there for."""
        probing(rig, 3)
        live(rig, 5.0)
        stop(rig, HOUR_S)
        live(rig, 4.0)
        assert isinstance(rig.begin(), Refuse)

        live(rig, 1.0)
        for _ in range(2):
            rig.end(rig.go())

        assert rig.state() == "closed"

    def test_a_late_result_of_an_old_period_changes_nothing(self, rig):
        """Begun before the trip, ended after the sleep: the probation goes on."""
        old = [rig.go() for _ in range(8)]
        probing(rig, 0)
        stop(rig, HOUR_S)
        for go in old:
            rig.end(go, 13)

        assert rig.state() == "half_open"
        for _ in range(2):
            rig.end(rig.go())
        assert rig.state() == "closed"

    @pytest.mark.parametrize("slept_s", [0.0, HOUR_S])
    def test_a_stampede_sends_no_more_probes_than_allowed(self, rig, slept_s):
        """A thousand callers at half open, and a thousand more after the sleep."""
        probing(rig, 0)
        admitted = [isinstance(rig.begin(), Go) for _ in range(1000)]
        live(rig, 1.0)
        stop(rig, slept_s)
        admitted += [isinstance(rig.begin(), Go) for _ in range(1000)]

        assert sum(admitted) == 3
        assert rig.guard.counts.refused == {"circuit": 1997}
        assert rig.guard.counts.in_flight == 3

    def test_a_rest_is_not_slept_through(self, rig):
        """What arrives while it is open changes nothing; waking is no reason either."""
        out = [rig.go() for _ in range(8)]
        live(rig, 0.5)
        rig.trip()
        stop(rig, HOUR_S)
        for go in out:
            rig.end(go)

        assert rig.state() == "open"
        live(rig, 1.0)
        assert rig.state() == "half_open"

    def test_a_flapping_callee_is_called_less_and_less(self, rig):
        """Half of its probes come through, and it falls asleep in between."""
        probing(rig, 0)
        sent = 0
        for _ in range(600):
            live(rig, 0.5)
            if not sent % 7:
                stop(rig, 60.0)
            result = rig.begin()
            if isinstance(result, Go):
                sent += 1
                rig.end(result, 0 if sent % 2 else 13)

        assert rig.state() != "closed"
        assert sent <= 2 * (4 + 300 / 12 + 1)

    def test_one_lucky_probe_does_not_close_it(self, rig):
        """Also where the process was stopped between the lucky one and the other."""
        lucky, other = probing(rig, 2)
        rig.end(lucky)
        stop(rig, HOUR_S)
        rig.end(other, 13)

        assert rig.state() == "open"

    def test_an_outage_is_not_forgotten_in_a_sleep_longer_than_the_window(self, rig):
        """Four failures in a row, a sleep, the fifth; and the ratio's window stood."""
        live(rig, 0.5)
        for _ in range(4):
            rig.fail(code=13)
        stop(rig, HOUR_S)
        assert rig.guard.circuit("shop" + METHOD).window_failures == 4
        rig.fail(code=13)

        assert rig.state() == "open"

    def test_an_idle_gap_lived_through_empties_the_window(self, rig):
        """The same gap with a process that runs: the ratio begins anew."""
        live(rig, 0.5)
        for _ in range(4):
            rig.fail(code=13)
        live(rig, 11.0)

        assert rig.guard.circuit("shop" + METHOD).window_calls == 0

    def test_a_probe_that_hangs_is_cut_though_the_process_slept(self, rig):
        """A cut that comes right after the sleep blames nobody; the next one does."""
        first, second = probing(rig, 2)
        live(rig, 1.0)
        stop(rig, HOUR_S)
        rig.end(first, 4, origin=Origin.LOCAL, is_cut=True)
        assert rig.state() == "half_open"
        rig.end(second, 4, origin=Origin.LOCAL, is_cut=True)
        assert rig.state() == "half_open"
        assert rig.guard.circuit("shop").state == "closed"

        third = rig.go()
        live(rig, third.answer_s)
        rig.end(third, 4, origin=Origin.LOCAL, is_cut=True)

        assert rig.state() == "open"

    def test_codes_that_do_not_count_neither_close_nor_open_nor_block_it(self, rig):
        """A hundred UNAUTHENTICATED while half open, before and after a sleep."""
        probing(rig, 0)
        for round_ in range(100):
            if round_ == 50:
                stop(rig, HOUR_S)
            rig.end(rig.go(), IDENTITY)

        assert rig.state() == "half_open"
        for _ in range(2):
            rig.end(rig.go())
        assert rig.state() == "closed"

    def test_cache_misses_and_a_slow_call_now_and_then_are_no_black_hole(self, rig):
        """NOT_FOUND is an answer: the calls that hung were not in a row."""
        for _ in range(10):
            rig.end(rig.go(), 5)
            slow = rig.go()
            live(rig, 2.5)
            rig.guard.cancelled(slow.permit, rig.now)

        assert rig.state() == "closed"
