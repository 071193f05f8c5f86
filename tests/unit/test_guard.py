import pytest

from outrigger.core.errors import Transient
from sidecar.call.answers import refusal
from sidecar.call.descriptor import (
    Answer,
    Finish,
    Go,
    Kind,
    Origin,
    Refuse,
    Retry,
)
from sidecar.call.guard import CallGuard, GuardSettings
from sidecar.call.routes import Routes, Upstream
from tests.support.guard_rig import (
    DEADLINE_EXCEEDED,
    METHOD,
    NOT_FOUND,
    UNAVAILABLE,
    GuardRig,
    trailers_of,
)

TRANSPORT, LOCAL = Origin.TRANSPORT, Origin.LOCAL
PUSHBACK = "grpc-retry-pushback-ms"


@pytest.fixture
def rig():
    """A guard with the default settings and no rules."""
    return GuardRig()


def details(error):
    """Stand in for the details of the kernel."""
    return (("grpc-status-details-bin", error.reason.encode()),)


def test_a_healthy_call_passes_untouched(rig):
    """Its own metadata goes on, no trailer comes back, the count is right."""
    metadata = (("traceparent", "1"), ("x-bin", b"\0"), ("traceparent", "2"))
    go = rig.go(metadata=metadata, timeout_s=5.0)

    assert (go.attempt, go.metadata, go.timeout_s) == (0, metadata, 5.0)
    assert go.permit.upstream == "shop"
    finish = rig.end(go)

    assert finish == Finish(None, ())
    counts = rig.guard.counts
    assert (counts.begun, counts.ok, counts.in_flight) == (1, 1, 0)
    assert rig.guard.due(go.permit, rig.now) is None


def test_what_is_meant_for_us_is_not_passed_upstream(rig):
    """`outrigger-*` ends here, the rest goes on."""
    go = rig.go(
        metadata=(
            ("outrigger-upstream", "bank"),
            ("outrigger-token", "secret"),
            ("a", "1"),
            ("outriggers", "2"),
        )
    )

    assert go.permit.upstream == "bank"
    assert go.metadata == (("a", "1"), ("outriggers", "2"))


@pytest.mark.parametrize(
    ("given", "sent"),
    [(None, [None, "1"]), ("0", [None, "1"]), ("2", ["2", "3"]), ("many", ["1", "2"])],
)
def test_the_callee_is_told_how_often_it_was_tried(rig, given, sent):
    """As gRFC A6 has it: the caller's own attempts and ours together."""
    key = "grpc-previous-rpc-attempts"
    go = rig.go(metadata=() if given is None else ((key, given),))
    again = rig.retry(go)

    assert [dict(one.metadata).get(key) for one in (go, again)] == sent


def test_of_several_upstreams_named_the_last_counts(rig):
    """A letter may have named one itself; whoever delivers it appends the right one."""
    first, last = ("outrigger-upstream", "nobody"), ("outrigger-upstream", "bank")

    assert rig.go(metadata=(first, last)).permit.upstream == "bank"


def test_the_named_upstream_is_remembered_apart_from_the_routed_one(rig):
    """The same method at another upstream has a circuit of its own."""
    named = {"metadata": (("outrigger-upstream", "bank"),)}
    for _ in range(2):
        rig.end(rig.go())
        rig.end(rig.go(**named))

    assert [view.circuit_id for view in rig.guard.circuits()] == [
        "bank",
        f"bank{METHOD}",
        "shop",
        f"shop{METHOD}",
    ]


def test_activity_is_the_agents_own(rig):
    """Its calls count at their beginning and end; deliveries never do."""
    begun = rig.guard.last_activity
    counts, deliveries = rig.guard.counts, rig.guard.deliveries
    rig.now += 5
    go = rig.go()
    assert rig.guard.last_activity == begun + 5
    rig.now += 7
    rig.end(go)
    assert rig.guard.last_activity == begun + 12

    rig.now += 9
    delivery = rig.go(kind=Kind.DELIVERY)
    assert (counts.in_flight, deliveries.in_flight) == (0, 1)
    rig.end(delivery)

    assert (counts.begun, counts.ok, counts.in_flight) == (1, 1, 0)
    assert (deliveries.begun, deliveries.ok, deliveries.in_flight) == (1, 1, 0)
    assert rig.guard.last_activity == begun + 12


def test_an_unknown_upstream_is_refused_with_its_reason():
    """Marked as ours, counted, and with the names that would do."""
    rig = GuardRig(details=details)

    answer = rig.refused(metadata=(("outrigger-upstream", "shopp"),))

    assert answer.code == NOT_FOUND
    assert "one of bank, shop" in answer.message
    assert trailers_of(answer) == {
        "grpc-status-details-bin": b"UNKNOWN_UPSTREAM",
        "outrigger-refused-by": "route",
    }
    assert rig.guard.counts.refused == {"route": 1}


def test_a_call_that_comes_too_late_is_not_sent(rig):
    """Nothing after the deadline."""
    answer = rig.refused(timeout_s=0.0)

    assert answer.code == DEADLINE_EXCEEDED
    assert trailers_of(answer) == {"outrigger-refused-by": "deadline"}
    assert rig.guard.counts.refused == {"deadline": 1}
    assert rig.guard.counts.in_flight == 0


def test_the_limit_refuses_with_a_push_back_and_frees_its_places():
    """Two at once, the third is told when to come back; refusals take no place."""
    rig = GuardRig(settings=GuardSettings(concurrency=2))
    first, second = rig.go(), rig.go()

    answer = rig.refused()

    assert answer.code == 8
    assert trailers_of(answer) == {PUSHBACK: "100", "outrigger-refused-by": "limit"}
    rig.end(first)
    rig.guard.cancelled(second.permit, rig.now)
    rig.go()
    rig.go()
    rig.refused()
    assert rig.guard.counts.refused == {"limit": 2}


def test_the_relays_own_passing_troubles_do_not_forbid_a_retry():
    """Only what an operator must end says -1."""
    answer = refusal(Transient("STOPPING", "stopping"), "relay", details)

    assert PUSHBACK not in trailers_of(answer)


def test_the_limit_is_per_upstream():
    """A full shop does not close the bank."""
    rig = GuardRig(settings=GuardSettings(concurrency=1))
    rig.go()

    rig.refused()

    rig.go(metadata=(("outrigger-upstream", "bank"),))


def test_an_open_circuit_refuses_with_the_remaining_time():
    """Status, push-back, who refused, and the machine-readable reason."""
    rig = GuardRig(details=details)
    rig.trip()
    rig.now += 0.2504

    answer = rig.refused()

    assert answer.code == UNAVAILABLE
    assert "is open (5 failures in a row)" in answer.message
    assert trailers_of(answer) == {
        "grpc-status-details-bin": b"CIRCUIT_OPEN",
        "outrigger-refused-by": "circuit",
        PUSHBACK: "750",  # rounded up, or the caller comes back too early
    }
    assert rig.guard.counts.refused == {"circuit": 1}


def test_a_half_open_circuit_with_its_probes_out_refuses(rig):
    """The fourth caller comes back in a moment."""
    rig.trip()
    rig.now += 1
    for _ in range(3):
        rig.go()

    answer = rig.refused()

    assert "is half_open" in answer.message
    assert trailers_of(answer)[PUSHBACK] == "100"


def test_an_isolated_circuit_refuses_without_an_end(rig):
    """Left to itself the caller would come back for ever: -1 means do not."""
    rig.guard.isolate("shop", "maintenance", rig.now)

    answer = rig.refused()

    assert answer.code == UNAVAILABLE
    assert "an operator isolated shop (maintenance)" in answer.message
    assert trailers_of(answer)[PUSHBACK] == "-1"


def test_the_kill_switch_stops_our_initiative_and_not_the_agents(rig):
    """First attempts pass, retries do not."""
    rig.guard.kill_calls(True, "incident 7")

    assert isinstance(rig.fail(), Finish)
    assert rig.guard.calls_killed == "incident 7"

    rig.guard.kill_calls(False, "")
    assert isinstance(rig.fail(), Retry)
    assert rig.guard.calls_killed is None


def test_the_kill_switch_stops_a_retry_already_scheduled(rig):
    """It ends with the failure it had."""
    go = rig.go()
    rig.end(go, UNAVAILABLE)
    rig.guard.kill_calls(True, "incident 7")

    refuse = rig.guard.attempt(go.permit, rig.now)

    assert refuse == Refuse(Answer(UNAVAILABLE, "as it said", ()))


def test_a_refusal_by_the_kill_switch_would_make_no_letter(rig):
    """Even of a call that wants one: an operator said stop."""
    go = rig.go(metadata=(("outrigger-letter", "on"),))

    result = rig.guard._endings.refused(
        go.permit, "kill_switch", Transient("CALLS_KILLED", "stopped"), rig.now
    )

    assert isinstance(result, Refuse)


def test_the_kill_switch_stops_deliveries_and_makes_no_letters(rig):
    """The letter stays where it is."""
    rig.guard.kill_calls(True, "incident 7")

    answer = rig.refused(kind=Kind.DELIVERY, metadata=(("outrigger-letter", "on"),))

    assert answer.code == UNAVAILABLE
    assert "incident 7" in answer.message
    assert rig.guard.deliveries.refused == {"kill_switch": 1}
    assert trailers_of(answer) == {
        "outrigger-refused-by": "kill_switch",
        PUSHBACK: "-1",
    }
    assert rig.guard.deliveries.in_flight == 0


def test_a_delivery_is_one_attempt_and_never_a_letter_again(rig):
    """Its own schedule is the journal's business."""
    go = rig.go(kind=Kind.DELIVERY, metadata=(("outrigger-letter", "on"),))

    assert rig.end(go, UNAVAILABLE) == Finish(None, ())


def test_a_delivery_goes_through_limit_and_circuits():
    """So that each circuit has one owner: it trips them, and is refused by them."""
    rig = GuardRig(settings=GuardSettings(concurrency=1))
    for _ in range(5):
        go = rig.go(kind=Kind.DELIVERY)
        assert rig.refused(kind=Kind.DELIVERY).code == 8
        rig.end(go, 13)

    answer = rig.refused(kind=Kind.DELIVERY)

    assert trailers_of(answer)["outrigger-refused-by"] == "circuit"
    assert rig.state() == "open"


def test_a_delivery_carries_one_idempotency_key(rig):
    """Stored with the letter and added by its sender, it is sent once."""
    key = ("idempotency-key", "k-1")

    go = rig.go(kind=Kind.DELIVERY, metadata=(key, ("a", "1"), key))
    assert go.metadata == (key, ("a", "1"))

    go = rig.go(kind=Kind.DELIVERY, metadata=(("a", "1"),), call_id="c-9")
    assert go.metadata == (("a", "1"), ("idempotency-key", "c-9"))


@pytest.mark.parametrize("rule", [{"idempotent": True}, {"letter": "on"}])
def test_the_key_is_stamped_from_the_first_attempt_on(rule):
    """The same key on every attempt, so that the callee can tell a repetition."""
    rig = GuardRig({"match": METHOD} | rule)
    go = rig.go(metadata=(("a", "1"),), call_id="c-1")
    again = rig.retry(go)

    assert go.metadata == (("a", "1"), ("idempotency-key", "c-1"))
    assert again.metadata[:2] == go.metadata


def test_who_asks_for_a_letter_gets_a_key():
    """Also where the method's rule says nothing; also where it is declined."""
    key = ("idempotency-key", "c-1")
    plain, kept = GuardRig(), GuardRig({"match": METHOD, "letter": "on"})

    asked = plain.go(metadata=(("outrigger-letter", "ON"),), call_id="c-1")
    declined = kept.go(metadata=(("outrigger-letter", "off"),), call_id="c-1")

    assert asked.metadata == (key,)
    assert declined.metadata == (key,)


def test_of_several_keys_the_first_is_the_letters():
    """All of them are passed on, as they came."""
    rig = GuardRig({"match": METHOD, "letter": "on", "max_attempts": 1})
    metadata = (("idempotency-key", "one"), ("idempotency-key", "two"))
    go = rig.go(metadata=metadata)

    assert go.metadata == metadata
    assert rig.end(go, UNAVAILABLE).idempotency_key == "one"


def test_the_callers_own_key_is_kept():
    """No second one beside it."""
    rig = GuardRig({"match": METHOD, "idempotent": True})
    metadata = (("idempotency-key", "mine"), ("a", "1"))

    assert rig.go(metadata=metadata).metadata == metadata


def test_a_plain_method_gets_no_key(rig):
    """Unchanged means unchanged."""
    assert rig.go(metadata=(("a", "1"),)).metadata == (("a", "1"),)


def test_a_guard_needs_nothing_but_routes():
    """Settings, details and hints have defaults."""
    events = []
    guard = CallGuard(Routes([Upstream("only")]), publish=events.append, now=0.0)

    go = guard.begin(GuardRig().call(), 0.0)

    assert isinstance(go, Go)
    assert guard.circuits()[0].circuit_id == "only"


TOKEN = GuardSettings(token="letmein")


@pytest.mark.parametrize("given", [(), (("outrigger-token", "guess"),)])
def test_a_call_without_the_agents_token_is_turned_away(given):
    """Where one is asked for; what is missing is said, what it is is not."""
    rig = GuardRig(settings=TOKEN)

    answer = rig.refused(metadata=given)

    assert answer.code == 16
    assert "letmein" not in answer.message
    assert dict(answer.trailers)["outrigger-refused-by"] == "token"
    assert rig.guard.counts.refused == {"token": 1}


def test_the_agents_token_opens_the_relay_and_goes_no_further():
    """It is for the sidecar; no upstream ever sees it."""
    rig = GuardRig(settings=TOKEN)

    go = rig.go(metadata=(("outrigger-token", "letmein"), ("x-kept", "1")))

    assert go.metadata == (("x-kept", "1"),)


def test_letters_on_their_way_need_no_token():
    """They are the sidecar's own; a stored letter has no token."""
    rig = GuardRig(settings=TOKEN)

    assert rig.go(kind=Kind.DELIVERY)
