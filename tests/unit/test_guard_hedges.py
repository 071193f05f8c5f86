"""Hedging: attempts beside one another, one winner, everything given back."""

import pytest

from outrigger.core.errors import Bug
from sidecar.call.descriptor import Await, Finish, Go, Kind, Letter, Origin, Retry
from sidecar.call.guard import GuardSettings
from sidecar.policy.budget import BudgetSettings
from tests.support.guard_rig import METHOD, NOT_FOUND, UNAVAILABLE, GuardRig

PUSHBACK = "grpc-retry-pushback-ms"
RULE = {"match": METHOD, "idempotent": True, "hedge_s": 0.1}


@pytest.fixture
def rig():
    """A guard that hedges after a tenth of a second."""
    return GuardRig(RULE)


def hedge(rig, go):
    """Wait until a hedge is due; return it."""
    rig.now = rig.guard.due(go.permit, rig.now)
    again = rig.guard.attempt(go.permit, rig.now)
    assert isinstance(again, Go), again
    return again


def in_flight(rig):
    """Places taken at the upstream, as the guard sees them."""
    return rig.guard.counts.in_flight


def test_a_hedge_is_due_when_the_rule_says(rig):
    """A tenth of a second after the first, and again after the second."""
    go = rig.go()
    assert rig.guard.due(go.permit, rig.now) == rig.now + 0.1

    second = hedge(rig, go)
    assert (second.attempt, second.permit) == (1, go.permit)
    third = hedge(rig, go)

    assert third.attempt == 2
    assert rig.guard.due(go.permit, rig.now) is None
    assert rig.guard.counts.hedges == 2


def test_without_a_rule_nothing_is_hedged():
    """Sending twice is for methods that say they can take it."""
    rig = GuardRig({"match": METHOD, "idempotent": True})
    go = rig.go()

    assert rig.guard.due(go.permit, rig.now) is None


def test_a_letter_on_its_way_is_not_hedged(rig):
    """Deliveries are one attempt each."""
    go = rig.go(kind=Kind.DELIVERY)

    assert rig.guard.due(go.permit, rig.now) is None


def test_asking_for_a_hedge_that_is_not_due_is_a_defect(rig):
    """The wire waits until then."""
    go = rig.go()

    with pytest.raises(Bug, match="waits for no hedge"):
        rig.guard.attempt(go.permit, rig.now)


@pytest.mark.parametrize("winner", [0, 1])
def test_the_first_success_ends_the_call(rig, winner):
    """The other is given back: one call, one success, nothing in flight."""
    gos = [rig.go()]
    gos.append(hedge(rig, gos[0]))

    verdict = rig.end(gos[winner])

    assert verdict == Finish(None, (("outrigger-attempts", "2"),))
    assert (rig.guard.counts.ok, in_flight(rig)) == (1, 0)
    assert rig.end(gos[1 - winner], UNAVAILABLE) == Finish(None)
    assert rig.guard.circuit("shop" + METHOD).window_failures == 0


def test_an_answer_that_has_begun_ends_the_race(rig):
    """From then on nobody else can win, and no more hedges are due."""
    go = rig.go()
    second = hedge(rig, go)

    rig.guard.answered(go.permit, second.attempt, rig.now)

    assert rig.guard.due(go.permit, rig.now) is None
    assert rig.end(go, UNAVAILABLE) == Finish(None)
    assert rig.guard.counts.ok == 0
    rig.end(second)
    assert (rig.guard.counts.ok, in_flight(rig)) == (1, 0)


def test_a_failure_that_may_be_tried_again_makes_the_next_hedge_due(rig):
    """As gRFC A6 says; the other attempt goes on."""
    go = rig.go()
    second = hedge(rig, go)

    assert rig.end(second, UNAVAILABLE) == Await()

    assert rig.guard.due(go.permit, rig.now) == rig.now
    third = hedge(rig, go)
    assert third.attempt == 2
    rig.end(third)
    assert (rig.guard.counts.ok, in_flight(rig)) == (1, 0)


def test_the_last_attempt_to_fail_decides(rig):
    """With no attempt left and none out, its status is the caller's."""
    go = rig.go()
    second = hedge(rig, go)
    third = hedge(rig, go)
    assert rig.end(go, UNAVAILABLE) == Await()
    assert rig.end(second, UNAVAILABLE) == Await()

    verdict = rig.end(third, UNAVAILABLE)

    assert verdict == Finish(None, (("outrigger-attempts", "3"),))
    assert (rig.guard.counts.failed, in_flight(rig)) == (1, 0)


def test_when_none_is_out_any_more_it_is_retried(rig):
    """Hedging and retrying share the attempts of the rule."""
    go = rig.go()
    second = hedge(rig, go)
    rig.end(second, UNAVAILABLE)

    retry = rig.end(go, UNAVAILABLE)

    assert isinstance(retry, Retry)
    rig.now += retry.after_s
    again = rig.guard.attempt(go.permit, rig.now)
    assert again.attempt == 2
    rig.end(again)
    assert (rig.guard.counts.ok, in_flight(rig)) == (1, 0)


def test_a_definite_answer_settles_the_call(rig):
    """NOT_FOUND would be the same from the other one."""
    go = rig.go()
    second = hedge(rig, go)

    verdict = rig.end(second, NOT_FOUND)

    assert isinstance(verdict, Finish)
    assert rig.guard.due(go.permit, rig.now) is None
    assert (rig.guard.counts.failed, in_flight(rig)) == (1, 0)
    assert rig.end(go) == Finish(None)
    assert rig.guard.counts.ok == 0


def test_a_callee_that_wants_no_retry_gets_no_hedge(rig):
    """A push-back of -1 stops the hedging; one of 250 ms delays it."""
    go = rig.go()
    second = hedge(rig, go)
    rig.end(second, UNAVAILABLE, trailers=((PUSHBACK, "250"),))
    assert rig.guard.due(go.permit, rig.now) == rig.now + 0.25

    third = hedge(rig, go)
    rig.end(third, UNAVAILABLE, trailers=((PUSHBACK, "-1"),))

    assert rig.guard.due(go.permit, rig.now) is None


def test_hedges_are_charged_to_the_budget():
    """A slow callee is not sent twice the load."""
    budget = BudgetSettings(ratio=0.0, minimum=1)
    rig = GuardRig(RULE, settings=GuardSettings(budget=budget))
    first, second = rig.go(), rig.go()
    hedge(rig, first)

    rig.now = rig.guard.due(second.permit, rig.now)
    assert rig.guard.attempt(second.permit, rig.now) == Await()
    assert rig.guard.due(second.permit, rig.now) is None


@pytest.mark.parametrize("stopped_by", ["kill switch", "circuit", "deadline"])
def test_no_hedge_where_one_would_only_add_to_the_load(rig, stopped_by):
    """The attempt that is out goes on by itself."""
    go = rig.go(timeout_s=10.0)
    due = rig.guard.due(go.permit, rig.now)
    if stopped_by == "kill switch":
        rig.guard.kill_calls(True, "by hand")
    elif stopped_by == "circuit":
        rig.trip()
    else:
        due = rig.now + 11.0
    rig.now = due

    assert rig.guard.attempt(go.permit, rig.now) == Await()
    rig.end(go)
    assert rig.guard.counts.ok == 1


def test_a_caller_that_goes_away_takes_all_attempts_with_it(rig):
    """Everything is given back once."""
    go = rig.go()
    hedge(rig, go)

    rig.guard.cancelled(go.permit, rig.now)

    assert (rig.guard.counts.cancelled, in_flight(rig)) == (1, 0)
    assert rig.end(go) == Finish(None)


def test_attempts_that_all_fail_become_one_letter():
    """Whoever failed last asks for it."""
    rig = GuardRig({**RULE, "letter": "on", "max_attempts": 2})
    go = rig.go()
    second = hedge(rig, go)
    assert rig.end(go, UNAVAILABLE) == Await()

    assert isinstance(rig.end(second, UNAVAILABLE), Letter)
    assert in_flight(rig) == 1  # until the letter is on disk


def test_both_attempts_count_when_both_fail(rig):
    """Two failures are two signs of a sick callee."""
    go = rig.go()
    second = hedge(rig, go)
    rig.end(go, UNAVAILABLE)
    rig.end(second, UNAVAILABLE, origin=Origin.UPSTREAM)

    assert rig.guard.circuit("shop" + METHOD).window_failures == 2


def test_a_call_that_a_hedge_won_earns_its_share_of_a_retry():
    """Its first attempt was cancelled and never ended, but it was a first attempt."""
    budget = BudgetSettings(ratio=1.0, minimum=0)
    rig = GuardRig(RULE, settings=GuardSettings(budget=budget))
    rig.end(rig.go())  # earns the hedge that follows
    go = rig.go()
    rig.end(hedge(rig, go))

    assert isinstance(rig.fail(code=UNAVAILABLE), Retry)
    assert isinstance(rig.fail(code=UNAVAILABLE), Retry)
