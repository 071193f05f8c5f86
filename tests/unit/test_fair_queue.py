from dataclasses import dataclass

import pytest

from outrigger.core.errors import Bug, Invalid
from sidecar.policy.fair_queue import FairQueue, Offer


@dataclass
class Call:
    """Equal to others of its name, and not hashable, as the guard's own are."""

    name: str


def filled(most, **waiting):
    """Return a queue in which each agent has so many calls, with the calls."""
    queue = FairQueue(most)
    calls = {
        agent: [Call(f"{agent}{number}") for number in range(count)]
        for agent, count in waiting.items()
    }
    for agent, own in calls.items():
        for call in own:
            assert queue.offer(agent, call, expires=10.0).accepted
    return queue, calls


def names(queue, now=0.0):
    """Take everything out in order."""
    found = []
    while (call := queue.pop(now)) is not None:
        found.append(call.name)
    return found


def test_calls_of_one_agent_leave_as_they_came():
    """First in, first out."""
    queue, _ = filled(10, a=4)

    assert names(queue) == ["a0", "a1", "a2", "a3"]
    assert len(queue) == 0


def test_places_go_round_the_agents():
    """One flood does not keep two others waiting behind it."""
    queue, _ = filled(20, a=4, b=2, c=1)

    assert names(queue) == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_an_agent_that_comes_back_goes_to_the_end():
    """Having had its turn it does not get the next one, too."""
    queue, _ = filled(20, a=1, b=2)
    assert queue.pop(0.0).name == "a0"
    queue.offer("a", Call("again"), expires=10.0)

    assert names(queue) == ["b0", "again", "b1"]


def test_an_empty_queue_gives_nothing():
    """Neither a new one nor one that was emptied."""
    queue, _ = filled(3, a=1)
    queue.pop(0.0)

    assert queue.pop(0.0) is None
    assert queue.expired(99.0) == []


def test_a_full_queue_gives_up_the_newest_call_of_the_longest_line():
    """An agent with less in the queue is not kept out by one that flooded it."""
    queue, calls = filled(4, a=3, b=1)
    late = Call("c")

    offer = queue.offer("c", late, expires=10.0)

    assert offer == Offer(accepted=True, evicted=calls["a"][2])
    assert offer.evicted is calls["a"][2]
    assert names(queue) == ["a0", "b0", "c", "a1"]


def test_an_eviction_that_only_swaps_roles_is_refused():
    """With one more than the newcomer nobody is better off afterwards."""
    queue, _ = filled(5, a=3, b=2)

    assert queue.offer("b", Call("b2"), expires=10.0) == Offer(accepted=False)
    assert queue.offer("a", Call("a3"), expires=10.0) == Offer(accepted=False)
    assert len(queue) == 5


def test_the_longest_line_is_known_after_it_became_shorter():
    """Calls that left by every way are not counted any more."""
    queue, calls = filled(6, a=5, b=1)
    for call in calls["a"][:2]:
        queue.remove(call)
    queue.pop(0.0)
    for number in range(3):
        queue.offer("c", Call(f"c{number}"), expires=10.0)

    evicted = queue.offer("d", Call("d0"), expires=10.0).evicted

    assert evicted.name == "c2"
    assert [queue.waiting(agent) for agent in "abcd"] == [2, 1, 2, 1]


def test_pop_passes_over_calls_whose_time_is_up():
    """They get no place, cost their agent no turn, and stay to be told."""
    queue, _ = filled(9, b=1)
    first = Call("late")
    queue.offer("a", first, expires=1.0)
    queue.offer("a", Call("in time"), expires=10.0)

    assert names(queue, now=1.0) == ["b0", "in time"]
    assert len(queue) == 1
    assert queue.expired(1.0) == [first]
    assert len(queue) == 0


def test_expired_takes_out_those_whose_time_is_up_and_no_others():
    """Wherever in their line they are, and each once."""
    queue = FairQueue(9)
    for number, expires in enumerate((5.0, 1.0, 3.0)):
        queue.offer("a", Call(f"a{number}"), expires)
    queue.offer("b", Call("b0"), expires=2.0)

    assert sorted(call.name for call in queue.expired(2.0)) == ["a1", "b0"]
    assert queue.expired(2.0) == []
    assert names(queue, now=2.0) == ["a0", "a2"]


def test_a_removed_call_is_gone():
    """Its caller went away: it gets no place and is not told anything."""
    queue, calls = filled(9, a=2)

    assert queue.remove(calls["a"][0])
    assert not queue.remove(calls["a"][0])
    assert not queue.remove(Call("a1"))
    assert names(queue) == ["a1"]


def test_a_late_call_can_still_be_removed():
    """Between `pop` passing over it and `expired` telling of it."""
    queue, calls = filled(9, a=1)
    assert queue.pop(10.0) is None

    assert queue.remove(calls["a"][0])
    assert queue.expired(10.0) == []


def test_late_calls_keep_their_room_until_they_are_fetched():
    """What is held in memory is bounded, told or not."""
    queue, _ = filled(2, a=2)
    assert queue.pop(10.0) is None

    assert not queue.offer("b", Call("b0"), expires=20.0).accepted
    queue.expired(10.0)
    assert queue.offer("b", Call("b0"), expires=20.0).accepted


def test_a_queue_of_none_refuses_all():
    """Waiting can be switched off."""
    assert not FairQueue(0).offer("a", Call("a0"), expires=10.0).accepted


def test_a_call_cannot_wait_twice():
    """It would get two places, and one of them would be lost."""
    queue, calls = filled(9, a=1)
    with pytest.raises(Bug, match="report") as caught:
        queue.offer("b", calls["a"][0], expires=10.0)

    assert caught.value.reason == "OFFERED_TWICE"


def test_a_negative_bound_is_refused():
    """It is a mistake and not another way to say none."""
    with pytest.raises(Invalid, match="0 or more") as caught:
        FairQueue(-1)

    assert caught.value.reason == "BAD_QUEUE"
