"""The queue of a reader that may be slow."""

import asyncio

import pytest

from outrigger.core.backlog import Backlog


async def test_things_come_in_order_and_none_is_missed():
    """A reader that keeps up gets everything, and is told of no gap."""
    backlog = Backlog(3)
    for number in range(3):
        backlog.put(number)

    assert [await backlog.take() for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]


async def test_a_full_backlog_loses_its_oldest_and_counts_them_once():
    """The count stands at the first thing after the gap and nowhere else."""
    backlog = Backlog(3)
    for number in range(10):
        backlog.put(number)

    assert len(backlog) == 3
    assert [await backlog.take() for _ in range(3)] == [(7, 7), (8, 0), (9, 0)]


async def test_a_reader_waits_for_what_comes_later():
    """An empty backlog makes its reader wait, as often as it is empty."""
    backlog = Backlog(3)
    for number in range(2):
        waiting = asyncio.ensure_future(backlog.take())
        await asyncio.sleep(0)
        assert not waiting.done()
        backlog.put(number)
        assert await waiting == (number, 0)


async def test_a_reader_that_gives_up_takes_nothing_with_it():
    """What comes after a cancelled wait is there for the next."""
    backlog = Backlog(3)
    waiting = asyncio.ensure_future(backlog.take())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    backlog.put("x")

    assert await backlog.take() == ("x", 0)
