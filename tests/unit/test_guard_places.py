"""Calls that wait for a place at their upstream, and limits that learn."""

import pytest

from outrigger.core.errors import Invalid
from sidecar.call.descriptor import (
    Answer,
    GivenUp,
    Go,
    Kind,
    Letter,
    Refuse,
    Resumed,
    Wait,
)
from sidecar.call.guard import GuardSettings
from sidecar.policy.gradient import GradientSettings
from tests.support.guard_rig import METHOD, UNAVAILABLE, GuardRig, trailers_of


class Rig(GuardRig):
    """A guard with one place and a queue, and the wire's side of waiting."""

    def __init__(self, *rules, **settings):
        self.told = []
        usual = {"concurrency": 1, "queue": 2, "queue_max_s": 1.0}
        super().__init__(
            *rules,
            settings=GuardSettings(**(usual | settings)),
            resolve=lambda token, result: self.told.append((token, result)),
        )

    def wait(self, agent="", **given):
        """Begin a call that must wait."""
        call = self.call(**given)
        call.agent = agent
        wait = self.guard.begin(call, self.now)
        assert isinstance(wait, Wait), wait
        return wait

    def resume(self):
        """Tell the guard what the wire was told; return the verdicts."""
        told, self.told = self.told, []
        return [self.guard.resolved(token, what, self.now) for token, what in told]


@pytest.fixture
def rig():
    """One place, two may wait for it."""
    return Rig()


def reason(refuse):
    """What the caller is told."""
    assert isinstance(refuse, Refuse), refuse
    return refuse.answer.message


def test_a_call_waits_for_a_place_and_gets_it(rig):
    """It goes on as if it had just come, when the one before it has ended."""
    go = rig.go()
    rig.wait()
    assert rig.guard.counts.held == 1

    rig.end(go)

    (next_go,) = rig.resume()
    assert isinstance(next_go, Go)
    assert (rig.guard.counts.held, rig.guard.counts.in_flight) == (0, 1)
    rig.end(next_go)
    assert (rig.guard.counts.ok, rig.guard.counts.in_flight) == (2, 0)


def test_they_are_served_in_their_order(rig):
    """First come, first served; and nobody who comes later steps in between."""
    go = rig.go()
    first, second = rig.wait(), rig.wait()
    rig.end(go)
    (served,) = rig.resume()
    assert served.permit is first.permit

    rig.wait()
    rig.end(served)
    (served,) = rig.resume()

    assert served.permit is second.permit


def test_a_full_queue_refuses_and_says_when_to_come_back(rig):
    """A third one is one too many."""
    rig.go()
    rig.wait(), rig.wait()

    answer = rig.refused()

    assert answer.code == 8
    found = trailers_of(answer)
    assert found["outrigger-refused-by"] == "limit"
    assert int(found["grpc-retry-pushback-ms"]) > 0


def test_one_agent_does_not_fill_the_queue_for_all(rig):
    """The newest call of the greediest agent makes room for another's first."""
    rig.go()
    rig.wait("greedy"), rig.wait("greedy")

    rig.wait("modest")

    (refuse,) = rig.resume()
    assert "waited" in reason(refuse)
    assert rig.guard.counts.held == 2


def test_places_go_round_the_agents():
    """One each, whoever has more waiting."""
    rig = Rig(queue=10)
    go, order = rig.go(), []
    for agent in ("a", "a", "a", "b"):
        rig.wait(agent)
    for _ in range(4):
        rig.end(go)
        (go,) = rig.resume()
        order.append(go.permit.call.agent)

    assert order == ["a", "b", "a", "a"]


def test_a_wait_that_is_too_long_ends(rig):
    """After a second, at the next tick; and its place in the queue is free."""
    rig.go()
    rig.wait()
    rig.now += 1.0
    rig.guard.tick(rig.now)

    (refuse,) = rig.resume()

    assert "waited 1.000 s for one of 1 places" in reason(refuse)
    assert rig.guard.counts.refused == {"limit": 1}
    assert rig.guard.counts.held == 0


def test_who_waited_too_long_keeps_nobody_from_a_free_place(rig):
    """Between two ticks a place comes free that nobody can use any more."""
    first = rig.go()
    late = rig.wait()
    rig.now += 1.1
    rig.end(first)

    assert [token for token, _ in rig.told] == [late.token]
    assert isinstance(rig.begin(), Go)
    assert "waited" in reason(rig.resume()[0])


def test_a_wait_ends_before_the_callers_deadline(rig):
    """Refusing in time is better than a call that runs into its deadline."""
    rig.go()
    rig.wait(timeout_s=0.3)
    rig.now += 0.3
    rig.guard.tick(rig.now)

    assert "waited" in reason(rig.resume()[0])


def test_a_call_that_cannot_be_served_in_time_does_not_wait(rig):
    """The method takes a second and one is before it: half a second is too little."""
    for _ in range(8):
        go = rig.go()
        rig.now += 1.0
        rig.end(go)
    rig.go()

    answer = rig.refused(timeout_s=0.5)

    assert "in flight, which is the limit" in answer.message


def test_a_place_that_comes_too_late_is_not_used(rig):
    """It was handed on, but meanwhile the caller's time was up."""
    go = rig.go()
    rig.wait(timeout_s=0.5)
    rig.end(go)
    rig.now += 0.5

    (refuse,) = rig.resume()

    assert isinstance(refuse, Refuse)
    assert rig.guard.counts.in_flight == 0
    assert rig.go()


@pytest.mark.parametrize("was_handed_on", [True, False])
def test_a_caller_that_goes_away_leaves_the_queue(rig, was_handed_on):
    """Also when its place was given to it already; then the next one gets it."""
    go = rig.go()
    gone, other = rig.wait(), rig.wait()
    if was_handed_on:
        rig.end(go)
    rig.guard.cancelled(gone.permit, rig.now)
    if not was_handed_on:
        rig.end(go)

    verdicts = [one for one in rig.resume() if isinstance(one, Go)]

    assert [one.permit for one in verdicts] == [other.permit]
    assert (rig.guard.counts.cancelled, rig.guard.counts.held) == (1, 0)


def test_a_wire_that_stops_ends_every_wait(rig):
    """With its own answer."""
    rig.go()
    wait = rig.wait()

    refuse = rig.guard.resolved(wait.token, GivenUp(Answer(14, "stopping")), rig.now)

    assert refuse == Refuse(Answer(14, "stopping"))
    assert rig.guard.counts.held == 0


def test_a_letter_on_its_way_does_not_wait(rig):
    """Live traffic goes first: a delivery comes again by itself."""
    go = rig.go()
    rig.refused(kind=Kind.DELIVERY)
    rig.wait()
    rig.end(go)
    assert len(rig.told) == 1

    rig.refused(kind=Kind.DELIVERY)


def test_who_waited_in_vain_may_become_a_letter():
    """A limit is an outage like any other."""
    rig = Rig({"match": METHOD, "letter": "on"})
    rig.go()
    rig.wait()
    rig.now += 1.0
    rig.guard.tick(rig.now)

    assert isinstance(rig.resume()[0], Letter)


def test_a_circuit_that_opens_meanwhile_refuses_who_waited(rig):
    """The queue is before the circuit: it is asked when the call gets its place."""
    go = rig.go()
    rig.wait()
    rig.guard.isolate("shop", "by hand", rig.now)
    rig.end(go)

    (refuse,) = rig.resume()

    assert trailers_of(refuse.answer)["outrigger-refused-by"] == "circuit"
    assert rig.guard.counts.in_flight == 0


def test_tokens_of_waits_and_letters_never_meet():
    """One count for both."""
    rig = Rig({"match": METHOD, "letter": "on", "max_attempts": 1}, concurrency=2)
    go, _ = rig.go(), rig.go()
    wait = rig.wait()
    letter = rig.end(go, UNAVAILABLE)

    assert isinstance(letter, Letter)
    assert letter.token != wait.token


def test_an_unknown_token_passes(rig):
    """Whoever is told twice is told nothing the second time."""
    assert rig.guard.resolved(99, Resumed(), rig.now).answer is None


ADAPTIVE = GradientSettings(initial=4, least=2, most=64, window_s=0.5)


def served(rig, seconds, elapsed_s):
    """Keep the upstream as full as the limit lets it, for a while."""
    end, out = rig.now + seconds, []
    while rig.now < end:
        while (verdict := rig.begin()) and isinstance(verdict, Go):
            out.append(verdict)
        rig.now += elapsed_s
        for go in out:
            rig.end(go)
        out.clear()


def limit(rig):
    """The limit of the upstream, now."""
    return shop(rig).limit.most


def shop(rig):
    """The standing of the upstream that is called."""
    return next(one for one in rig.guard._standings.upstreams() if one.name == "shop")


def test_an_adaptive_limit_grows_while_nothing_slows_down():
    """It begins small, and learns from how long answers take."""
    rig = Rig(adaptive=ADAPTIVE, queue=0)
    assert limit(rig) == 4

    served(rig, 5.0, 0.02)

    assert limit(rig) > 16


def test_an_adaptive_limit_shrinks_when_answers_take_longer():
    """What queues at the callee is too much for it."""
    rig = Rig(adaptive=ADAPTIVE, queue=0)
    served(rig, 5.0, 0.02)
    before = limit(rig)

    served(rig, 3.0, 0.2)

    assert limit(rig) < before


def test_an_adaptive_limit_shrinks_when_calls_are_turned_away():
    """RESOURCE_EXHAUSTED is the callee's own word for it."""
    rig = Rig({"match": "*", "max_attempts": 1}, adaptive=ADAPTIVE, queue=0)
    served(rig, 5.0, 0.02)
    before = limit(rig)
    for _ in range(20):
        gos = [rig.go() for _ in range(limit(rig))]
        rig.now += 0.1
        for number, go in enumerate(gos):
            rig.end(go, 8 if number % 3 == 0 else 0)

    assert limit(rig) < before


def test_who_waits_gets_the_places_of_a_limit_that_grew():
    """At the next tick at the latest."""
    rig = Rig(queue=5)
    rig.go()
    rig.wait()
    shop(rig).limit.most = 2
    rig.guard.tick(rig.now)

    assert isinstance(rig.resume()[0], Go)


@pytest.mark.parametrize(
    "wrong", [{"concurrency": 0}, {"queue": -1}, {"queue_max_s": 0.0}]
)
def test_an_impossible_policy_is_refused(wrong):
    """By the name of its field."""
    with pytest.raises(Invalid, match=next(iter(wrong))):
        GuardSettings(**wrong)
