import pytest

from outrigger.core.errors import NotFound
from sidecar.call.descriptor import (
    Origin,
)
from sidecar.call.guard import CircuitRecord, GuardSettings
from tests.support.guard_rig import (
    DEADLINE_EXCEEDED,
    METHOD,
    NOT_FOUND,
    UNAVAILABLE,
    GuardRig,
)

TRANSPORT, LOCAL = Origin.TRANSPORT, Origin.LOCAL
UNAUTHENTICATED = 16
PUSHBACK = "grpc-retry-pushback-ms"
CIRCUIT = "shop" + METHOD


@pytest.fixture
def rig():
    """A guard with the default settings and no rules."""
    return GuardRig()


def test_application_statuses_count_at_the_method_and_not_at_the_upstream(rig):
    """Another method of the same upstream is still called."""
    rig.trip()

    assert rig.state() == "open"
    assert rig.state("shop") == "closed"
    rig.go("/acme.Orders/Cancel")


def test_failed_connections_count_at_the_upstream_and_not_at_the_method(rig):
    """Every method of the upstream is refused, and none of them is blamed."""
    rig.trip(origin=TRANSPORT)

    assert rig.state("shop") == "open"
    assert rig.state() == "closed"
    rig.refused("/acme.Orders/Cancel")
    rig.go(metadata=(("outrigger-upstream", "bank"),))


def test_open_to_half_open_is_published(rig):
    """A classic fault: the move happens on a call, and nobody hears of it."""
    rig.trip()
    rig.now += 1
    rig.go()

    assert rig.moves == [(CIRCUIT, "closed", "open"), (CIRCUIT, "open", "half_open")]


def test_a_tick_publishes_half_open_without_any_call(rig):
    """The agent may be silent and its letters waiting for this."""
    rig.trip(origin=TRANSPORT)
    rig.now += 1

    rig.guard.tick(rig.now)

    assert rig.moves[-1] == ("shop", "open", "half_open")


def test_a_whole_outage_is_published_move_by_move(rig):
    """Closed, open, half open, open, half open, closed."""
    rig.trip()
    rig.now += 1
    rig.fail(code=13, draw=0.0)
    rig.now += 2
    for _ in range(2):
        rig.end(rig.go())

    assert [after for _, _, after in rig.moves] == [
        "open",
        "half_open",
        "open",
        "half_open",
        "closed",
    ]
    assert rig.guard.saved_state(rig.now) == ()


def test_a_probe_whose_caller_vanished_does_not_leave_it_half_open_for_ever(rig):
    """A classic fault: cancelled probes give their leases back."""
    rig.trip()
    rig.now += 1
    probes = [rig.go() for _ in range(3)]
    rig.refused()

    for probe in probes:
        rig.guard.cancelled(probe.permit, rig.now)

    for _ in range(2):
        rig.end(rig.go())
    assert rig.state() == "closed"


def test_a_vanished_caller_gives_the_upstreams_probe_back_too(rig):
    """Each admitted call holds a lease of every half-open circuit on its way."""
    rig.trip(origin=TRANSPORT)
    rig.now += 1
    probes = [rig.go() for _ in range(3)]
    assert rig.moves[-1] == ("shop", "open", "half_open")

    for probe in probes:
        rig.guard.cancelled(probe.permit, rig.now)

    for _ in range(2):
        rig.end(rig.go())
    assert rig.state("shop") == "closed"


def test_a_probe_nobody_ever_reports_expires(rig):
    """Even when the caller's end never reaches the guard."""
    rig.trip()
    rig.now += 1
    for _ in range(3):
        rig.go()
    rig.now += 10
    rig.guard.tick(rig.now)

    for _ in range(2):
        rig.end(rig.go())

    assert rig.state() == "closed"


def test_a_status_that_does_not_count_gives_the_probe_back(rig):
    """UNAUTHENTICATED neither closes nor opens a half-open circuit."""
    rig.trip()
    rig.now += 1
    for _ in range(5):
        rig.fail(code=UNAUTHENTICATED)

    assert rig.state() == "half_open"


def test_definite_answers_close_a_half_open_circuit(rig):
    """A callee that says NOT_FOUND is there; waiting for an OK may take for ever."""
    rig.trip()
    rig.now += 1
    for _ in range(2):
        rig.fail(code=NOT_FOUND)

    assert rig.state() == "closed"


def test_a_method_that_refuses_gives_the_upstreams_probe_back(rig):
    """Both circuits are half open; the method's places are out, the others' not."""
    rig.trip()
    rig.trip("/acme.Orders/Cancel", origin=TRANSPORT)
    rig.now += 1
    rig.guard.isolate(CIRCUIT, "broken", rig.now)

    for _ in range(10):
        rig.refused()

    for _ in range(3):
        rig.go("/acme.Orders/Cancel")


def test_a_black_hole_opens_the_circuit_even_if_its_callers_vanish(rig):
    """At the deadline a wire may hear of the caller's going before the timeout."""
    goes = [rig.go(timeout_s=1.0) for _ in range(5)]
    rig.now += 0.995
    for go in goes:
        rig.guard.cancelled(go.permit, rig.now)

    assert rig.state() == "open"


def test_callers_that_vanish_early_blame_nobody(rig):
    """A cancelled call says nothing about the callee."""
    goes = [rig.go(timeout_s=1.0) for _ in range(50)]
    rig.now += 0.5
    for go in goes:
        rig.guard.cancelled(go.permit, rig.now)

    assert rig.state() == "closed"
    assert rig.guard.counts.cancelled == 50


def test_deadlines_shorter_than_the_median_blame_nobody(rig):
    """A method that takes a second does not break because of hasty callers."""
    for _ in range(8):
        go = rig.go()
        rig.now += 1.0
        rig.end(go)
    for _ in range(20):
        go = rig.go(timeout_s=0.5)
        rig.now += 0.5
        rig.end(go, DEADLINE_EXCEEDED, origin=LOCAL)
    assert rig.state() == "closed"

    for _ in range(5):
        go = rig.go(timeout_s=3.0)
        rig.now += 3.0
        rig.end(go, DEADLINE_EXCEEDED, origin=LOCAL)

    assert rig.state() == "open"


def test_a_ready_connection_brings_the_upstream_and_its_methods_forward(rig):
    """The other upstream is left alone."""
    rig.trip()
    rig.trip("/acme.Orders/Cancel", origin=TRANSPORT)
    for _ in range(5):
        go = rig.go(metadata=(("outrigger-upstream", "bank"),))
        rig.end(go, UNAVAILABLE, origin=TRANSPORT, trailers=((PUSHBACK, "-1"),))
    assert rig.state("bank") == "open"

    rig.guard.connection_ready("shop", rig.now)
    rig.guard.connection_ready("nobody", rig.now)

    assert rig.state("shop") == "half_open"
    assert rig.state() == "half_open"
    assert rig.state("bank") == "open"


def test_operators_isolate_and_restore(rig):
    """Also a method nobody has called yet; restoring probes."""
    rig.guard.isolate(CIRCUIT, "broken", rig.now)
    rig.refused()
    assert rig.guard.circuit(CIRCUIT).reason == "broken"

    rig.guard.restore(CIRCUIT, rig.now)

    rig.go()
    assert rig.moves == [
        (CIRCUIT, "closed", "isolated"),
        (CIRCUIT, "isolated", "half_open"),
    ]


@pytest.mark.parametrize("circuit_id", ["nobody", "nobody/a.B/C", ""])
def test_a_circuit_of_no_upstream_cannot_be_isolated(rig, circuit_id):
    """Nor restored, nor shown."""
    with pytest.raises(NotFound) as caught:
        rig.guard.isolate(circuit_id, "why", rig.now)
    assert caught.value.reason == "UNKNOWN_CIRCUIT"

    with pytest.raises(NotFound):
        rig.guard.restore(circuit_id, rig.now)
    assert rig.guard.circuit(circuit_id) is None


def test_a_view_says_what_an_operator_needs(rig):
    """State, since when, why, for how long, and the numbers."""
    rig.end(rig.go())
    rig.now += 1
    rig.trip()
    rig.now += 0.5
    rig.refused()

    view = rig.guard.circuit(CIRCUIT)

    assert (view.state, view.reason) == ("open", "5 failures in a row")
    assert (view.since, view.retry_after_s) == (1001.0, 0.5)
    assert (view.window_calls, view.window_failures) == (6, 5)
    assert (view.consecutive_failures, view.open_count, view.refused_count) == (5, 1, 1)
    rig.guard.isolate("shop", "why", rig.now)
    assert rig.guard.circuit("shop").retry_after_s is None


def test_a_view_is_as_of_the_newest_tick(rig):
    """Who only looks reads a clock that is at most one tick old."""
    rig.trip()
    rig.now += 0.5
    rig.guard.tick(rig.now)

    assert rig.guard.circuit(CIRCUIT).retry_after_s == 0.5


def test_upstreams_whose_names_begin_alike_are_not_confused():
    """`shop` being ready says nothing about `shopping`."""
    rig = GuardRig(upstreams=("shop", "shopping"))
    rig.guard.restored_state(
        [CircuitRecord(circuit_id="shop/*", state="open", reason="")], rig.now
    )
    for _ in range(5):
        go = rig.go(metadata=(("outrigger-upstream", "shopping"),))
        rig.end(go, 13, origin=TRANSPORT)

    rig.guard.connection_ready("shop", rig.now)

    assert rig.state("shopping") == "open"
    assert rig.state("shop/*") == "half_open"


def test_circuits_outlive_a_restart(rig):
    """Open comes back half open, isolated isolated, lost upstreams not at all."""
    rig.trip()
    rig.guard.isolate("bank", "maintenance", rig.now)
    saved = rig.guard.saved_state(rig.now)
    lost = CircuitRecord(circuit_id="gone/a.B/C", state="open", reason="")

    again = GuardRig()
    again.guard.restored_state([*saved, lost], again.now)

    assert again.state() == "half_open"
    assert again.state("bank") == "isolated"
    assert again.state("shop") == "closed"
    assert again.guard.circuit("gone/a.B/C") is None
    assert again.guard.saved_state(again.now) == (
        CircuitRecord(
            circuit_id=CIRCUIT,
            state="half_open",
            reason="was open before a restart",
            openings=1,
        ),
        CircuitRecord(circuit_id="bank", state="isolated", reason="maintenance"),
    )


def test_deliveries_learn_when_to_come_back(rig):
    """None where they would be admitted, the longest wait of both circuits else."""
    ask = rig.guard.circuit_retry_after_s
    assert ask("shop", METHOD, rig.now) is None
    assert ask("nobody", METHOD, rig.now) is None

    rig.trip()
    assert ask("shop", METHOD, rig.now + 0.25) == 0.75
    assert ask("shop", "/acme.Orders/Cancel", rig.now) is None
    assert ask("shop", METHOD, rig.now + 1) is None

    rig.guard.isolate("shop", "why", rig.now)
    assert ask("shop", METHOD, rig.now) == 15.0


def test_methods_beyond_the_bound_share_a_circuit():
    """An agent that makes up method names does not fill the memory."""
    rig = GuardRig(settings=GuardSettings(methods_max=2))
    for number in range(50):
        rig.end(rig.go(f"/acme.Orders/M{number}"))

    assert [view.circuit_id for view in rig.guard.circuits()] == [
        "bank",
        "shop",
        "shop/*",
        "shop/acme.Orders/M0",
        "shop/acme.Orders/M1",
    ]
    for number in range(10, 15):
        rig.fail(f"/acme.Orders/M{number}", 13)
    assert rig.state("shop/*") == "open"
    rig.refused("/acme.Orders/M49")
    rig.go("/acme.Orders/M0")
    assert rig.guard.circuit("shop/acme.Orders/M49") is None
    assert len(rig.guard._standings._unnamed) == 2
