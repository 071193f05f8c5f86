import pytest

from outrigger.core import events
from outrigger.core.event_log import EventLog
from outrigger.core.rpc.events import event_from_proto, event_to_proto
from outrigger.v1 import event_pb2
from tests.support.clock import FakeClock

PAYLOADS = [
    events.ErrorSeen(boundary="b", reason="R", causes=("x", "y"), subject="s"),
    events.CircuitMoved(circuit="up", before="closed", after="open", reason="why"),
    events.LetterMoved(
        letter_id="l", before="", after="pending", reason="r", method="/s/M"
    ),
    events.CheckpointMoved(generation=3, action="saved", reason="", raw_size_bytes=9),
    events.Transitioned(
        before="awake", after="quiescing", input="sleep", reason="r", epoch=4
    ),
    events.Recovered(subject="controller", elapsed_s=1.5),
    events.Alerted(name="A", message="look"),
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=lambda p: type(p).__name__)
def test_every_event_survives_the_way_there_and_back(payload):
    """An event means the same on the other side."""
    event = events.Event(sequence=7, wall_s=1.25, agent_id="a", payload=payload)

    assert event_from_proto(event_to_proto(event)) == event


def test_an_unknown_payload_is_none():
    """An event from a newer peer is dropped, not misread."""
    assert event_from_proto(event_pb2.Event(sequence=1)) is None


async def test_watchers_see_events_in_order_from_their_start():
    """Numbers rise by one; what came before the watch is not seen."""
    log = EventLog(agent_id="a", clock=FakeClock())
    log.publish(PAYLOADS[0])
    watcher = log.watch()
    first = watcher.__anext__()
    import asyncio

    pending = asyncio.ensure_future(first)
    await asyncio.sleep(0)
    log.publish(PAYLOADS[1])
    log.publish(PAYLOADS[2], agent_id="b")

    one, two = await pending, await watcher.__anext__()
    await watcher.aclose()

    assert [(e.sequence, e.agent_id) for e in (one, two)] == [(2, "a"), (3, "b")]


async def test_a_slow_watcher_loses_the_oldest_and_sees_the_gap():
    """Nobody waits for a slow watcher, and its memory is bounded."""
    import asyncio

    log = EventLog(agent_id="a", clock=FakeClock())
    watcher = log.watch()
    pending = asyncio.ensure_future(watcher.__anext__())
    await asyncio.sleep(0)
    for _ in range(3000):
        log.publish(PAYLOADS[5])
    first, second = await pending, await watcher.__anext__()
    await watcher.aclose()

    assert first.sequence == 3000 - 1024 + 1
    assert second.sequence == first.sequence + 1


async def test_a_subscription_has_what_it_wants_and_ends_with_its_block():
    """Registered at once, filtered, counted, and gone afterwards."""
    log = EventLog(agent_id="a", clock=FakeClock())
    with log.subscribed(lambda p: isinstance(p, events.Alerted)) as backlog:
        for payload in PAYLOADS:
            log.publish(payload)
        for _ in range(2000):
            log.publish(PAYLOADS[6])
        event, missed = await backlog.take()
    log.publish(PAYLOADS[6])

    assert (event.payload, missed) == (PAYLOADS[6], 2001 - 1024)
    assert len(backlog) == 1023
