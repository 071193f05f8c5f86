"""Upstreams that do wrong: the caller gets a status, nobody else notices.

Real guard, real wire, real channels; the upstream is a script over a real socket.
"""

import asyncio
import contextlib

import grpc
import psutil
import pytest

from tests.bad_peers.classification import BEGIN, CLASSIFICATION, END, PAGE, tables
from tests.support.bad_site import METHOD, open_site, sockets
from tests.support.bad_upstream import BadUpstream
from tests.support.echo_upstream import until
from tests.support.misbehaviours import ANSWER, MISBEHAVIOURS, upstream

PATIENCE_S = 20
"""Far more than any deadline here: a call that takes it hangs."""
GROWTH_BYTES = 128 << 20
GRPCIO_EATS_MEMORY = {"goaway-with-settings"}
LARGE = b"r" * (64 << 10)
AGAIN = (
    *("goaway-unanswered", "rst-refused-after-nothing", "http-503"),
    *("garbage", "closes-before-answer"),
)


@contextlib.asynccontextmanager
async def others_served(site):
    """Meanwhile, and afterwards, every call to the good upstream is answered."""
    calling = asyncio.create_task(site.keep_calling())
    try:
        yield
        assert not calling.done(), calling.result()
    finally:
        calling.cancel()
        await asyncio.gather(calling, return_exceptions=True)
    assert await site.is_well()


@pytest.fixture(autouse=True)
async def nothing_left():
    """Sockets are back to what they were; memory has not grown by much."""
    async with upstream("well") as good, open_site(good.target):
        pass  # what the library opens once and keeps is open from here on
    before, process = sockets(), psutil.Process()
    memory = process.memory_info().rss
    yield memory
    await until(lambda: sockets() <= before, PATIENCE_S)


async def outcome_of(site, shape, deadline_s):
    """Make one call; return its status and what came before it."""
    call = site.unary if shape == "unary" else site.stream
    async with asyncio.timeout(PATIENCE_S), others_served(site):
        return await call(LARGE, deadline_s)


@pytest.mark.parametrize("shape", ["unary", "stream"])
@pytest.mark.parametrize("case", CLASSIFICATION)
async def test_caller_gets_a_status_and_the_circuits_the_right_one(
    case, shape, nothing_left
):
    """Status, origin and circuit are those of the table, whatever the arity."""
    row = CLASSIFICATION[case]
    async with upstream(case) as bad, open_site(bad.target) as site:
        if row.origin != "transport":
            await until(lambda: site.targets.get("bad").is_ready, PATIENCE_S)
        code, answers = await outcome_of(site, shape, row.deadline_s)
        await until(lambda: site.guard.counts.in_flight == 0)

        (outcome,) = site.guard.outcomes
        assert code.name in row.status.split(" or ")
        assert outcome.origin.value in row.origin.split(" or ")
        assert (site.counted() or "none") == row.counted
        if code is grpc.StatusCode.OK:
            assert (answers or [None]) == [row.answer]
        assert site.reports == []
    if case not in GRPCIO_EATS_MEMORY:
        assert psutil.Process().memory_info().rss - nothing_left < GROWTH_BYTES


@pytest.mark.parametrize("case", AGAIN)
async def test_retries_end_with_the_same_status(case):
    """Three attempts at a bad upstream are still one status for the caller."""
    async with upstream(case) as bad, open_site(bad.target, attempts=3) as site:
        code, _ = await outcome_of(site, "unary", PATIENCE_S)

        assert code.name in CLASSIFICATION[case].status.split(" or ")
        assert 1 <= len(site.guard.outcomes) <= 3


async def test_one_stream_at_a_time_serves_all_in_turn():
    """Callers wait for one another where the upstream takes one call at a time."""
    async with upstream("streams-1") as bad, open_site(bad.target) as site:
        await until(lambda: site.targets.get("bad").is_ready, PATIENCE_S)
        found = await asyncio.gather(
            *(outcome_of(site, "unary", PATIENCE_S) for _ in range(8))
        )

        assert found == [(grpc.StatusCode.OK, [ANSWER])] * 8
        assert bad.connections == 1


@pytest.mark.parametrize("case", ["streams-0", "silent-after-settings", "silent"])
async def test_caller_without_a_deadline_that_leaves_takes_all_with_it(case):
    """A call that nothing would ever end is ended by its caller."""
    async with upstream(case) as bad, open_site(bad.target) as site:
        call = site.channel.stream_stream(METHOD)()
        await call.write(b"x")
        await until(lambda: site.guard.counts.in_flight == 1)
        call.cancel()
        await until(lambda: site.guard.counts.in_flight == 0)
        assert await site.is_well()


async def test_bad_upstream_that_recovers_is_used_again():
    """The first connection is garbage, the next one good: no restart is needed."""

    async def once(peer):
        name = "garbage" if peer.number == 1 else "well"
        await MISBEHAVIOURS[name](peer)

    async with BadUpstream(once) as bad, open_site(bad.target) as site:
        async with asyncio.timeout(PATIENCE_S):
            while (await site.unary(b"x", 5))[0] is not grpc.StatusCode.OK:
                await asyncio.sleep(0.01)
        assert bad.connections == 2


def test_every_misbehaviour_is_classified():
    """No script without a row, no row without a script."""
    assert set(CLASSIFICATION) == {*MISBEHAVIOURS, "backlog-full"}


def test_the_page_has_the_table():
    """docs/bad-peers.md shows what is tested here, row by row."""
    shown = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]

    assert shown.strip() == tables().strip()
