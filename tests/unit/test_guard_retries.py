import pytest

from outrigger.core.errors import Bug, Transient
from sidecar.call.answers import no_details, refusal
from sidecar.call.descriptor import (
    Answer,
    Finish,
    Kind,
    Origin,
    Permit,
    Refuse,
    Retry,
)
from sidecar.call.guard import GuardSettings
from sidecar.policy.budget import BudgetSettings
from sidecar.policy.circuit import CircuitSettings
from tests.support.guard_rig import (
    METHOD,
    NOT_FOUND,
    UNAVAILABLE,
    GuardRig,
    trailers_of,
)

TRANSPORT, LOCAL = Origin.TRANSPORT, Origin.LOCAL
PUSHBACK = "grpc-retry-pushback-ms"
CIRCUIT = "shop" + METHOD


@pytest.fixture
def rig():
    """A guard with the default settings and no rules."""
    return GuardRig()


def test_unavailable_is_tried_again_and_the_caller_hears_how_often(rig):
    """Two failures, then success: three attempts, said in a trailer."""
    go = rig.go()
    for number in (1, 2):
        go = rig.retry(go)
        assert go.attempt == number

    assert rig.end(go) == Finish(None, (("outrigger-attempts", "3"),))
    assert (rig.guard.counts.ok, rig.guard.counts.retries) == (1, 2)


def test_the_last_failure_is_passed_on_as_it_is(rig):
    """After three attempts the upstream's own status goes to the caller."""
    go = rig.retry(rig.retry(rig.go()))

    finish = rig.end(go, UNAVAILABLE)

    assert finish == Finish(None, (("outrigger-attempts", "3"),))
    assert rig.guard.counts.failed == 1
    assert rig.guard.counts.in_flight == 0


def test_a_failure_without_retry_gets_no_trailer_of_ours(rig):
    """A definite answer is the upstream's alone."""
    assert rig.fail(code=NOT_FOUND) == Finish(None, ())


@pytest.mark.parametrize(
    ("rule", "code", "is_retried"),
    [
        ({}, UNAVAILABLE, True),
        ({}, 13, False),
        ({"idempotent": True}, 13, True),
        ({"unsafe": True}, UNAVAILABLE, False),
        ({"max_attempts": 1}, UNAVAILABLE, False),
    ],
)
def test_what_is_retried_is_the_rules_word(rule, code, is_retried):
    """Default, idempotent, unsafe, and at most so many attempts."""
    rig = GuardRig({"match": METHOD} | rule)

    assert isinstance(rig.fail(code=code), Retry) is is_retried


@pytest.mark.parametrize("origin", list(Origin))
def test_unsafe_is_never_sent_again_wherever_the_failure_came_from(origin):
    """Not even after a failed connection, and not with the callee's push-back."""
    rig = GuardRig({"match": METHOD, "unsafe": True})

    result = rig.fail(origin=origin, trailers=((PUSHBACK, "0"),))

    assert isinstance(result, Finish)


def test_a_committed_call_is_never_tried_again(rig):
    """Its caller has already seen a part of the response."""
    assert rig.fail(committed=True) == Finish(None, ())


def test_push_back_is_obeyed_and_starts_the_backoff_over(rig):
    """Exactly so long; then our own waits begin at the first one."""
    go = rig.go()
    retry = rig.end(go, UNAVAILABLE, trailers=((PUSHBACK, "250"),))
    assert retry == Retry(0.25)
    go = rig.guard.attempt(go.permit, rig.now)

    assert rig.end(go, UNAVAILABLE, draw=0.5) == Retry(0.025)


def test_our_own_waits_double(rig):
    """0.05 s, then 0.1 s, drawn."""
    go = rig.go()
    assert rig.end(go, UNAVAILABLE, draw=0.5) == Retry(0.025)
    go = rig.guard.attempt(go.permit, rig.now)

    assert rig.end(go, UNAVAILABLE, draw=0.5) == Retry(0.05)


def test_a_callee_that_wants_no_retry_gets_none(rig):
    """A negative push-back."""
    assert isinstance(rig.fail(trailers=((PUSHBACK, "-1"),)), Finish)


def test_retry_info_is_obeyed_where_it_can_be_read():
    """The hook reads the seconds; the drawn part comes on top."""
    rig = GuardRig(retry_hint=lambda trailers: 2.0 if trailers else None)

    assert rig.fail(trailers=(("x", "y"),), draw=0.0) == Retry(2.0)
    assert rig.fail(draw=0.0) == Retry(0.0)


def test_nothing_is_sent_after_the_deadline(rig):
    """A retry that cannot begin, or cannot finish, is not made."""
    go = rig.go(timeout_s=1.0)
    rig.now += 0.99
    assert isinstance(rig.end(go, UNAVAILABLE, draw=0.9), Finish)

    for _ in range(8):
        go = rig.go()
        rig.now += 1.0
        rig.end(go)
    go = rig.go(timeout_s=1.5)
    rig.now += 0.6
    assert isinstance(rig.end(go, UNAVAILABLE, draw=0.0), Finish)


def test_a_retry_that_wakes_too_late_ends_with_the_failure_it_had(rig):
    """The wire slept too long: the upstream's status and trailers are answered."""
    go = rig.go(timeout_s=1.0)
    rig.end(go, UNAVAILABLE, trailers=(("x", "y"),))
    rig.now += 1.0

    refuse = rig.guard.attempt(go.permit, rig.now)

    assert refuse == Refuse(Answer(UNAVAILABLE, "as it said", (("x", "y"),)))
    assert rig.guard.counts.failed == 1
    assert rig.guard.counts.in_flight == 0


def test_a_circuit_that_opened_meanwhile_ends_the_call_with_its_own_failure(rig):
    """The retry was scheduled before the circuit opened."""
    go = rig.retry(rig.go())
    assert isinstance(rig.end(go, UNAVAILABLE), Retry)
    rig.guard.isolate(CIRCUIT, "broken", rig.now)

    refuse = rig.guard.attempt(go.permit, rig.now)

    assert refuse.answer.code == UNAVAILABLE
    assert trailers_of(refuse.answer) == {"outrigger-attempts": "2"}


def test_no_retry_is_scheduled_into_an_open_circuit(rig):
    """The fifth failure opens it: waiting 50 ms for a refusal helps nobody."""
    results = [rig.fail(draw=0.0) for _ in range(5)]

    assert [isinstance(result, Retry) for result in results] == [*[True] * 4, False]


def test_the_budget_bounds_all_retries_of_an_upstream():
    """One token, so one retry, whichever call needs it."""
    rig = GuardRig(settings=GuardSettings(budget=BudgetSettings(ratio=0.0, minimum=1)))

    assert isinstance(rig.fail(), Retry)
    assert isinstance(rig.fail(), Finish)


def test_a_thousand_simultaneous_failures_stay_in_the_budget():
    """All fail before the first retry is sent; a fifth and ten are granted."""
    never = CircuitSettings(consecutive_failures=10_000, min_calls=10_000)
    rig = GuardRig(settings=GuardSettings(circuit=never))
    goes = [rig.go() for _ in range(1000)]

    results = [rig.end(go, UNAVAILABLE) for go in goes]

    assert sum(isinstance(result, Retry) for result in results) == 210


def test_callers_that_retry_by_themselves_spend_the_budget():
    """Their first attempt is not stopped, but ours are fewer."""
    rig = GuardRig(settings=GuardSettings(budget=BudgetSettings(ratio=0.0, minimum=2)))
    for attempts in ("1", "2"):
        rig.go(metadata=(("grpc-previous-rpc-attempts", attempts),))

    assert isinstance(rig.fail(), Finish)


def test_only_first_attempts_earn_budget():
    """Neither a caller's retries nor deliveries do."""
    rig = GuardRig(settings=GuardSettings(budget=BudgetSettings(ratio=1.0, minimum=0)))
    rig.end(rig.go(kind=Kind.DELIVERY))
    repeat = rig.go(metadata=(("grpc-previous-rpc-attempts", "1"),))
    rig.end(repeat)
    assert isinstance(rig.fail(), Finish)

    rig.end(rig.go())

    assert isinstance(rig.fail(), Retry)


def test_an_attempt_nobody_waits_for_is_a_defect(rig):
    """A wire that asks twice would send a call twice."""
    go = rig.go()
    with pytest.raises(Bug) as caught:
        rig.guard.attempt(go.permit, rig.now)
    assert caught.value.reason == "NOT_WAITING"

    again = rig.retry(go)
    with pytest.raises(Bug):
        rig.guard.attempt(again.permit, rig.now)


def test_a_call_that_waits_for_its_letter_is_not_sent_again():
    """Whichever way it came to be parked."""
    rig = GuardRig({"match": METHOD, "letter": "on", "max_attempts": 2})
    by_outcome = rig.retry(rig.go())
    rig.end(by_outcome, UNAVAILABLE)
    by_switch = rig.go()
    rig.end(by_switch, UNAVAILABLE)
    rig.guard.kill_calls(True, "incident 7")
    rig.guard.attempt(by_switch.permit, rig.now)
    rig.guard.kill_calls(False, "")

    for go in (by_outcome, by_switch):
        with pytest.raises(Bug) as caught:
            rig.guard.attempt(go.permit, rig.now)
        assert caught.value.reason == "NOT_WAITING"


def test_a_first_attempt_may_say_that_it_is_one():
    """`grpc-previous-rpc-attempts: 0` is no retry and earns its share."""
    rig = GuardRig(settings=GuardSettings(budget=BudgetSettings(ratio=1.0, minimum=0)))
    rig.end(rig.go(metadata=(("grpc-previous-rpc-attempts", "0"),)))

    assert isinstance(rig.fail(), Retry)


def test_a_foreign_permit_is_a_defect(rig):
    """Permits are the guard's own objects."""
    with pytest.raises(Bug) as caught:
        rig.guard.cancelled(Permit(rig.call(), "shop"), rig.now)

    assert caught.value.reason == "FOREIGN_PERMIT"


def test_a_caller_that_goes_away_during_the_wait_ends_the_call(rig):
    """Nothing is sent for it, and late words about it change nothing."""
    go = rig.go()
    rig.end(go, UNAVAILABLE)
    rig.guard.cancelled(go.permit, rig.now)
    rig.guard.cancelled(go.permit, rig.now)

    refuse = rig.guard.attempt(go.permit, rig.now)

    assert isinstance(refuse, Refuse)
    assert refuse.answer.code == 1
    counts = rig.guard.counts
    assert (counts.cancelled, counts.failed, counts.in_flight) == (1, 0, 0)


def test_an_outcome_after_the_caller_went_away_counts_nowhere(rig):
    """Its tickets and its place were given back already."""
    goes = [rig.go() for _ in range(5)]
    for go in goes:
        rig.guard.cancelled(go.permit, rig.now)
        assert rig.end(go, 13) == Finish(None)

    assert rig.state() == "closed"
    assert rig.guard.counts.in_flight == 0


def test_the_rules_timeout_bounds_an_attempt():
    """The shorter of the rule's and the caller's."""
    rig = GuardRig({"match": METHOD, "timeout_s": 2.0})

    assert rig.go().timeout_s == 2.0
    assert rig.go(timeout_s=1.0).timeout_s == 1.0
    assert rig.go(timeout_s=9.0).timeout_s == 2.0
    assert rig.go("/acme.Orders/Cancel").timeout_s is None


BUSY = 8


def test_a_busy_callee_is_asked_again_at_its_own_pace():
    """RESOURCE_EXHAUSTED: the first wait is up to a second, not a twentieth of one."""
    rig = GuardRig({"match": METHOD, "idempotent": True})

    busy, away = rig.fail(code=BUSY, draw=0.5), rig.fail(code=UNAVAILABLE, draw=0.5)

    assert (busy.after_s, away.after_s) == (0.5, 0.025)


def test_a_busy_callee_costs_half_a_token():
    """Its answers are cheap, and such retries come far apart."""
    budget = BudgetSettings(ratio=0.0, minimum=1)
    granted = {}
    for code in (BUSY, UNAVAILABLE):
        rig = GuardRig(
            {"match": METHOD, "idempotent": True},
            settings=GuardSettings(budget=budget),
        )
        ends = [rig.fail(code=code) for _ in range(4)]
        granted[code] = sum(isinstance(end, Retry) for end in ends)

    assert granted == {BUSY: 2, UNAVAILABLE: 1}


def test_a_rule_may_name_the_statuses_to_retry_on():
    """Those and no others, whatever the method is declared to be."""
    rig = GuardRig({"match": METHOD, "retry_on": ("ABORTED", "INTERNAL")})

    assert isinstance(rig.fail(code=10), Retry)
    assert isinstance(rig.fail(code=13), Retry)
    assert isinstance(rig.fail(code=UNAVAILABLE), Finish)


@pytest.mark.parametrize(
    ("rule", "waits"),
    [
        ({"backoff_s": 2.0, "backoff_max_s": 3.0}, [1.0, 1.5]),
        ({"backoff_s": 4.0}, [2.0, 2.0]),
        ({"backoff_max_s": 0.01}, [0.005, 0.005]),
    ],
)
def test_a_rule_may_say_how_long_to_wait(rule, waits):
    """One bound alone moves the other where they would contradict each other."""
    rig = GuardRig({"match": METHOD, **rule})
    go, seen = rig.go(), []
    for _ in waits:
        retry = rig.end(go, UNAVAILABLE, draw=0.5)
        seen.append(retry.after_s)
        rig.now += retry.after_s
        go = rig.guard.attempt(go.permit, rig.now)

    assert seen == pytest.approx(waits)


def test_a_push_back_of_ours_is_never_nought():
    """A grpcio caller with a retry policy of its own stalls on 0."""
    error = Transient("SOON", "at once", retry_after_s=0.0)

    answer = refusal(error, "circuit", no_details)

    assert dict(answer.trailers)[PUSHBACK] == "1"
