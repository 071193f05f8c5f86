"""Calls that get no answer: found by ticks, by their ends, and never wrongly."""

import math

import pytest

from sidecar.call.descriptor import Origin
from sidecar.call.guard import GuardSettings
from sidecar.policy.circuit import CircuitSettings
from tests.support.guard_rig import DEADLINE_EXCEEDED, METHOD, UNAVAILABLE, GuardRig

UNKNOWN = Origin.UNKNOWN
OTHER = "/acme.Orders/List"


@pytest.fixture
def rig():
    """A guard with the default settings and no rules."""
    return GuardRig()


def live(rig, seconds, step=0.25):
    """Let time pass as a wire does, with a tick each quarter of a second."""
    end = rig.now + seconds
    while rig.now < end:
        rig.now = min(rig.now + step, end)
        rig.guard.tick(rig.now, 0.0)


def test_a_black_hole_opens_both_circuits_long_before_any_deadline(rig):
    """Callers with a minute to wait; five calls hang, and nothing was heard."""
    for _ in range(5):
        rig.go(timeout_s=60.0)

    live(rig, 2.5)

    assert rig.state() == "open"
    assert rig.state("shop") == "open"
    view = rig.guard.circuit("shop" + METHOD)
    assert view.reason == "5 calls in a row got no answer in time"
    assert view.window_slow == 5
    assert {(one.code, one.call_id) for one in view.failed_calls} == {
        (-1, f"call-{number}") for number in range(1, 6)
    }


def test_one_slow_method_does_not_shut_out_the_others(rig):
    """As long as anything of the upstream answers, the upstream is there."""
    rig.end(rig.go(OTHER))
    for _ in range(20):
        rig.go()

    live(rig, 2.5)

    assert rig.state() == "open"
    assert rig.state("shop") == "closed"
    rig.go(OTHER)


def test_a_method_that_is_known_to_take_long_is_given_longer(rig):
    """Three times what it usually takes; ten seconds are nothing to a model."""
    for _ in range(3):
        go = rig.go()
        live(rig, 1.9)
        rig.end(go)
    for _ in range(10):
        rig.go()

    live(rig, 5.5)
    assert rig.state() == "closed"
    live(rig, 0.5)

    assert rig.state() == "open"


def test_what_ends_slowly_between_two_ticks_is_slow_too(rig):
    """Its end finds it; it counts once."""
    gos = [rig.go() for _ in range(5)]
    rig.now += 2.0
    for go in gos[:4]:
        rig.end(go)
    assert rig.guard.circuit("shop" + METHOD).window_slow == 1  # then 2 s are usual
    assert rig.guard.circuit("shop" + METHOD).window_calls == 4


def test_an_answered_stream_is_never_slow(rig):
    """Time to the headers counts, not time to the end."""
    for _ in range(10):
        go = rig.go()
        rig.guard.answered(go.permit, go.attempt, rig.now)

    live(rig, 30.0)

    assert rig.state() == "closed"
    assert rig.state("shop") == "closed"


def test_a_slow_call_that_fails_is_one_call_and_one_failure(rig):
    """It was counted when it was found."""
    go = rig.go(timeout_s=3.0)
    live(rig, 3.0)
    rig.end(go, DEADLINE_EXCEEDED, origin=UNKNOWN)

    view = rig.guard.circuit("shop" + METHOD)
    assert (view.window_calls, view.window_slow, view.window_failures) == (1, 1, 1)


def test_a_rule_says_when_a_method_is_slow():
    """Its word is taken as it is, whatever the method usually takes."""
    rig = GuardRig({"match": METHOD, "slow_s": 0.5}, {"match": "*", "slow_s": math.inf})
    for _ in range(5):
        rig.go()
        rig.go(OTHER)

    live(rig, 0.75)

    assert rig.state() == "open"
    assert rig.state("shop" + OTHER) == "closed"
    live(rig, 60.0)
    assert rig.state("shop" + OTHER) == "closed"


def test_methods_beyond_the_bound_are_watched_too():
    """Names made up by the thousand do not hide a black hole."""
    rig = GuardRig(settings=GuardSettings(methods_max=1))
    rig.go("/acme.Orders/First")
    for number in range(5):
        rig.go(f"/acme.Orders/Number{number}")

    live(rig, 2.5)

    assert rig.state("shop/*") == "open"


def test_time_slept_through_opens_nothing_and_forgets_nothing(rig):
    """SIGSTOP for an hour: calls did not hang, and an outage is not forgotten."""
    for _ in range(4):
        rig.fail(code=13)
    gos = [rig.go(timeout_s=7200.0) for _ in range(10)]
    live(rig, 1.0)

    rig.now += 3600.0
    rig.guard.tick(rig.now, 0.0)

    assert rig.state() == "closed"
    assert rig.guard.circuit("shop" + METHOD).window_failures == 4
    for go in gos:
        rig.end(go)
    assert rig.state() == "closed"


def test_time_slept_through_expires_no_lease(rig):
    """A probe had no chance to answer while nothing ran."""
    rig.trip()
    live(rig, 1.0)
    go = rig.go()
    live(rig, 1.0)
    rig.now += 3600.0
    rig.guard.tick(rig.now, 0.0)
    assert rig.state() == "half_open"

    rig.end(go)
    rig.end(rig.go())

    assert rig.state() == "closed"


def test_what_failed_while_we_slept_says_nothing_about_the_callee(rig):
    """Deadlines passed and connections broke because of us."""
    live(rig, 0.5)
    gos = [rig.go(timeout_s=60.0) for _ in range(20)]
    rig.now += 3600.0
    for number, go in enumerate(gos):
        code = UNAVAILABLE if number % 2 else DEADLINE_EXCEEDED
        origin = Origin.TRANSPORT if number % 2 else UNKNOWN
        rig.end(go, code, origin=origin)

    assert rig.state() == "closed"
    assert rig.state("shop") == "closed"
    assert rig.guard.circuit("shop" + METHOD).window_failures == 0


def test_what_the_callee_itself_said_while_we_slept_counts(rig):
    """An answer of the callee is an answer, however late it is read."""
    live(rig, 0.5)
    gos = [rig.go() for _ in range(5)]
    rig.now += 3600.0
    for go in gos:
        rig.end(go, 13)

    assert rig.state() == "open"


def test_a_probe_is_told_how_long_it_may_be_without_an_answer(rig):
    """Nine seconds; an ordinary call is not told anything."""
    assert rig.go().answer_s is None
    rig.trip()
    rig.now += 1.0

    assert rig.go().answer_s == 9.0


def test_a_probe_that_was_cut_fails_at_both_circuits(rig):
    """The upstream leaves half open too: nobody answered."""
    rig.trip(origin=Origin.TRANSPORT)
    rig.now += 1.0
    go = rig.go(timeout_s=60.0)
    rig.now += 9.0

    rig.end(go, DEADLINE_EXCEEDED, origin=Origin.LOCAL, is_cut=True)

    assert rig.state("shop") == "open"
    assert rig.guard.circuit("shop").reason == "a probe got no answer"


def test_a_hasty_caller_fails_no_probe(rig):
    """Its deadline was shorter than the method's median."""
    for _ in range(8):
        go = rig.go()
        rig.now += 0.5
        rig.end(go)
    rig.trip()
    rig.now += 1.0
    go = rig.go(timeout_s=0.1)
    rig.now += 0.1

    rig.end(go, DEADLINE_EXCEEDED, origin=UNKNOWN)

    assert rig.state() == "half_open"


def test_a_shadow_refuses_nothing():
    """Every call goes through an open circuit, and the refusals are counted."""
    rig = GuardRig({"match": METHOD, "shadow": True})
    rig.trip()
    assert rig.state() == "open"

    for _ in range(3):
        rig.end(rig.go())

    view = rig.guard.circuit("shop" + METHOD)
    assert view.is_shadow
    assert view.refused_count == 3
    assert rig.guard.counts.ok == 3


def test_retries_pass_a_shadow_as_well():
    """It would be no shadow if it stopped them."""
    rig = GuardRig({"match": METHOD, "shadow": True})
    rig.trip()

    again = rig.retry(rig.go())

    assert again.attempt == 1


def test_an_upstream_may_have_a_policy_of_its_own():
    """The others keep the one for all."""
    own = GuardSettings(circuit=CircuitSettings(consecutive_failures=1))
    rig = GuardRig(settings=GuardSettings(upstreams={"bank": own}))
    rig.fail(code=13)
    go = rig.go(metadata=(("outrigger-upstream", "bank"),))
    rig.end(go, 13)

    assert rig.state() == "closed"
    assert rig.state("bank" + METHOD) == "open"


def test_a_watcher_sees_every_end(rig):
    """One record per call: answered, refused, lost, gone."""
    seen = []
    rig.guard.watch(seen.append)
    go = rig.go(timeout_s=5.0)
    rig.now += 0.25
    rig.end(go)
    rig.fail(code=5)
    rig.guard.cancelled(rig.go().permit, rig.now)
    rig.refused(metadata=(("outrigger-upstream", "nobody"),))
    rig.guard.isolate("shop", "by hand", rig.now)
    rig.refused()
    rig.guard.watch(None)
    rig.refused()

    assert [(one.code, one.refused_by, one.attempts) for one in seen] == [
        (0, "", 1),
        (5, "", 1),
        (1, "", 1),
        (5, "route", 0),
        (14, "circuit", 0),
    ]
    assert seen[0].elapsed_s == 0.25
    assert (seen[0].upstream, seen[0].call.method) == ("shop", METHOD)


def test_a_learned_threshold_finds_what_is_slow_for_this_method():
    """Answers in ten milliseconds for minutes; then half a second is too long."""
    learning = CircuitSettings(learn=True)
    rig = GuardRig(settings=GuardSettings(circuit=learning))
    for _ in range(1500):
        go = rig.go()
        rig.now += 0.01
        rig.end(go)
        live(rig, 0.1)
    for _ in range(5):
        rig.go()

    live(rig, 0.5)

    assert rig.state() == "open"


def test_a_busy_sidecar_does_not_blame_the_callee(rig):
    """Its ticks come late, so do all answers; only what is slow beyond that counts."""
    live(rig, 1.0)
    for _ in range(10):
        rig.go()

    live(rig, 4.2, step=0.6)
    assert rig.state() == "closed"
    live(rig, 4.0)

    assert rig.guard.circuit("shop" + METHOD).open_count == 1


def test_a_caller_that_is_still_sending_makes_nobody_slow(rig):
    """An upload may take minutes; its callee is not late before it is complete."""
    calls = [rig.guard.begin(rig.call(), rig.now) for _ in range(10)]
    live(rig, 60.0)
    assert rig.state() == "closed"

    for go in calls[:5]:
        rig.guard.sent(go.permit, go.attempt, rig.now)
    live(rig, 2.5)

    assert rig.state() == "open"


def test_an_answer_to_an_unfinished_request_says_nothing_about_what_is_usual(rig):
    """A conversation's first word comes when it comes."""
    for _ in range(10):
        go = rig.guard.begin(rig.call(), rig.now)
        live(rig, 30.0)
        rig.guard.answered(go.permit, go.attempt, rig.now)
        rig.end(go)
    for _ in range(5):
        rig.go()

    live(rig, 2.5)

    assert rig.state() == "open"
