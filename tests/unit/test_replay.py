import asyncio

import pytest

from outrigger.core.errors import Bug
from sidecar.wire.replay import CursorClosed, Replay


async def put_all(replay, *messages):
    for message in messages:
        await asyncio.wait_for(replay.put(message), 1)


async def drain(cursor):
    found = []
    while (message := await asyncio.wait_for(cursor.get(), 1)) is not None:
        found.append(message)
        cursor.sent()
    return found


async def test_every_attempt_gets_the_whole_request():
    """Each cursor starts at the beginning, and ends at the half-close."""
    replay = Replay(100)
    await put_all(replay, b"a", b"")
    replay.end()
    for _ in range(3):
        cursor = replay.cursor()
        assert await drain(cursor) == [b"a", b""]
        cursor.close()


async def test_cursor_waits_for_what_has_not_come():
    """A cursor that is ahead of the caller gets each message as it comes."""
    replay = Replay(100)
    draining = asyncio.ensure_future(drain(replay.cursor()))
    await asyncio.sleep(0)
    await put_all(replay, b"a")
    await asyncio.sleep(0)
    await put_all(replay, b"b")
    replay.end()
    assert await draining == [b"a", b"b"]


async def test_request_at_the_limit_is_kept():
    """A message of exactly the limit is kept, one byte more is not."""
    kept, lost = Replay(1000), Replay(1000)
    await put_all(kept, b"x" * 1000)
    kept.end()
    assert (kept.has_overflowed, kept.only_message) == (False, b"x" * 1000)
    reading = asyncio.ensure_future(lost.put(b"x" * 1001))
    await asyncio.sleep(0)
    assert lost.has_overflowed
    assert not reading.done()
    assert await asyncio.wait_for(lost.cursor().get(), 1) == b"x" * 1001
    lost.abandon()
    await reading


async def test_overflow_holds_the_reader_until_all_is_sent():
    """Past the limit one message is held at a time."""
    replay = Replay(10)
    cursor = replay.cursor()
    reading = asyncio.ensure_future(put_all(replay, b"x" * 100, b"y" * 100))
    await asyncio.sleep(0)
    assert await cursor.get() == b"x" * 100
    await asyncio.sleep(0)
    assert replay.received == 1
    cursor.sent()
    assert await asyncio.wait_for(cursor.get(), 1) == b"y" * 100
    cursor.sent()
    await reading
    with pytest.raises(Bug, match="committed"):
        replay.cursor()


async def test_commit_drops_what_was_sent():
    """Once committed nothing sent is kept, and a reader with room reads on."""
    replay = Replay(1000)
    cursor = replay.cursor()
    await put_all(replay, b"a", b"b")
    assert [await cursor.get(), cursor.sent()] == [b"a", None]
    replay.stream()
    assert replay.only_message is None
    reading = asyncio.ensure_future(put_all(replay, b"c"))
    await asyncio.sleep(0)
    assert not reading.done()
    replay.end()
    assert await drain(cursor) == [b"b", b"c"]
    await reading


async def test_overflow_between_attempts_loses_nothing():
    """What overflows while no attempt is live is kept for the next one."""
    replay = Replay(10)
    first = replay.cursor()
    await put_all(replay, b"a")
    await first.get()
    first.sent()
    first.close()
    reading = asyncio.ensure_future(put_all(replay, b"x" * 100))
    await asyncio.sleep(0)
    replay.end()
    assert await drain(replay.cursor()) == [b"a", b"x" * 100]
    await reading


async def test_closed_cursor_wakes_and_moves_nothing():
    """An attempt that is over leaves at once and drops nothing afterwards."""
    replay = Replay(1000)
    old = replay.cursor()
    waiting = asyncio.ensure_future(old.get())
    await asyncio.sleep(0)
    old.close()
    with pytest.raises(CursorClosed):
        await waiting
    await put_all(replay, b"a")
    replay.stream()
    old.sent()
    assert await asyncio.wait_for(replay.cursor().get(), 1) == b"a"


async def test_abandoned_request_lets_everybody_leave():
    """When the caller is gone readers and cursors wake, and nothing is held."""
    replay = Replay(1)
    cursor = replay.cursor()
    reading = asyncio.ensure_future(put_all(replay, b"x" * 100, b"y"))
    await asyncio.sleep(0)
    replay.abandon()
    await reading
    with pytest.raises(CursorClosed):
        await cursor.get()
    assert replay.is_settled
    assert replay.only_message is None


async def test_only_message_is_told_from_others():
    """A request is one message if one came and then the half-close."""
    replay = Replay(100)
    assert (replay.is_settled, replay.only_message) == (False, None)
    await put_all(replay, b"a")
    assert (replay.is_settled, replay.only_message) == (False, None)
    replay.end()
    assert (replay.is_settled, replay.only_message) == (True, b"a")
    two = Replay(100)
    await put_all(two, b"a", b"b")
    assert (two.is_settled, two.only_message) == (True, None)
    stored = Replay(1)
    stored.fill(b"whole")
    assert (stored.is_settled, stored.only_message) == (True, b"whole")


class Direct:
    """Sends straight on, until it is over."""

    def __init__(self):
        self.sent = []
        self.is_over = False

    async def send(self, message):
        if not self.is_over:
            self.sent.append(message)
        return not self.is_over


async def test_a_committed_request_is_sent_straight_on_once_all_was_sent():
    """The reader does it; nothing is kept and nothing is handed over."""
    replay, sender = Replay(1000), Direct()
    cursor = replay.cursor()
    await replay.put(b"one")
    assert not cursor.go_direct(sender)
    replay.stream()
    assert not cursor.go_direct(sender)
    assert await cursor.get() == b"one"
    cursor.sent()

    assert cursor.go_direct(sender)
    await replay.put(b"two")

    assert sender.sent == [b"two"]
    assert replay.received == 2


async def test_what_cannot_be_sent_any_more_waits_for_the_end():
    """As without a sender: a caller that goes on sending is not read without bound."""
    replay, sender = Replay(1000), Direct()
    cursor = replay.cursor()
    replay.stream()
    assert cursor.go_direct(sender)
    sender.is_over = True

    late = asyncio.ensure_future(replay.put(b"late"))
    await asyncio.sleep(0)
    assert not late.done()
    replay.abandon()
    await late

    assert sender.sent == []


async def test_an_attempt_that_is_over_sends_nothing_more():
    """Neither before it was asked nor after."""
    replay, sender = Replay(1000), Direct()
    cursor = replay.cursor()
    replay.stream()
    assert cursor.go_direct(sender)
    cursor.close()

    assert replay.sender is None
    assert not cursor.go_direct(sender)


@pytest.mark.parametrize("spoken_first", [True, False])
async def test_a_request_is_whole_if_it_ended_before_any_answer(spoken_first):
    """One message whose sender waits for the answer first is a conversation."""
    replay = Replay(1000)
    await replay.put(b"one")
    if spoken_first:
        replay.cursor().sent()
        replay.stream()
    replay.end()

    assert replay.was_whole is not spoken_first
