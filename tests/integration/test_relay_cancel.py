import asyncio
import random

import grpc
import grpc.aio
import pytest

from sidecar.call.descriptor import Finish, Letter, LetterTaken, Origin, Retry
from sidecar.wire.attempt import Attempt
from sidecar.wire.options import WireOptions
from tests.support.echo_upstream import until
from tests.support.raw_http2 import RawUpstream
from tests.support.relay import SERVICE, open_relay


@pytest.fixture
async def relay(caplog):
    """A wire whose guard lets everything pass; nothing may be logged as a traceback."""
    async with open_relay() as opened:
        yield opened
        assert opened.reports == []
    assert "Traceback" not in caplog.text
    assert not [r for r in caplog.records if r.exc_info]


async def test_cancel_of_the_caller_reaches_the_upstream(relay):
    """A caller that cancels cancels the upstream's call, and the guard hears it."""
    call = relay.channel.unary_unary(SERVICE + "Hang")(b"x")
    await until(lambda: relay.echo.seen)
    call.cancel()
    await until(lambda: relay.echo.ended == ["cancelled"])
    await until(lambda: relay.guard.cancels)
    assert relay.guard.outcomes == []


async def test_cancelled_upload_is_never_half_closed(relay):
    """An upload given up half-way never looks complete to the upstream."""
    rng = random.Random(7)

    async def upload():
        call = relay.stream("Join")
        for _ in range(rng.choice([0, 2, 3])):
            await call.write(b"part")
        await asyncio.sleep(rng.random() * 0.01)
        call.cancel()

    async with RawUpstream(lambda stream: b"") as upstream:
        await relay.wire.set_target("up", upstream.target)
        for _ in range(10):
            await asyncio.gather(*(upload() for _ in range(20)))
        await until(lambda: len(relay.guard.cancels) == len(relay.guard.calls))
        await until(lambda: upstream.reset == upstream.opened)
        assert relay.guard.outcomes == []
        assert upstream.half_closed == set()
        await relay.wire.set_target("up", relay.target)


async def test_connection_lost_by_the_caller_cancels(relay):
    """A caller whose connection breaks is a caller that cancelled."""
    channel = relay.dial()
    call = channel.stream_stream(SERVICE + "Hang")()
    await call.write(b"x")
    await until(lambda: relay.echo.seen)
    await channel.close()
    await until(lambda: relay.echo.ended == ["cancelled"])
    await until(lambda: len(relay.guard.cancels) == 1)


async def test_deadline_of_the_caller_reaches_the_upstream(relay):
    """The upstream is told the time that is left, and no more of it."""
    await relay.unary("Echo", timeout=7)
    await relay.unary("Echo")
    assert 6 < relay.echo.remaining[0] <= 7.1
    assert relay.echo.remaining[1] is None
    assert relay.guard.calls[1].deadline is None


async def test_passed_deadline_is_an_outcome(relay):
    """At the caller's deadline the guard hears DEADLINE_EXCEEDED."""
    usual = relay.guard.go
    relay.guard.go = lambda permit, now: usual(permit, now, timeout_s=None)
    errors = await asyncio.gather(
        *(relay.fails("Hang", timeout=0.1 + n * 0.01) for n in range(20))
    )
    assert {e.code() for e in errors} == {grpc.StatusCode.DEADLINE_EXCEEDED}
    await until(lambda: len(relay.guard.outcomes) == 20)
    told = {(o.code, o.origin, o.committed) for o in relay.guard.outcomes}
    assert told == {(4, Origin.UNKNOWN, False)}
    assert relay.guard.cancels == []


async def test_deadline_with_a_retry_in_mind_is_cancelled(relay):
    """A retry granted at the deadline is of no use, and the guard is told so."""
    usual = relay.guard.go
    relay.guard.go = lambda permit, now: usual(permit, now, timeout_s=None)
    relay.guard.on_ended = lambda outcome: Retry(0.0)
    await relay.fails("Hang", timeout=0.1)
    await until(lambda: relay.guard.cancels)
    assert len(relay.guard.outcomes) == 1


async def test_deadline_between_two_attempts_is_cancelled(relay):
    """An attempt that has ended is not ended once more by the deadline."""
    relay.guard.on_ended = lambda outcome: Retry(30.0)
    await relay.fails("Status", b"14 x", timeout=0.1)
    await until(lambda: relay.guard.cancels)
    assert len(relay.guard.outcomes) == 1


async def test_cancel_between_two_attempts(relay):
    """A caller that goes during the pause before a retry gets no further attempt."""
    relay.guard.on_ended = lambda outcome: Retry(30.0)
    call = relay.channel.unary_unary(SERVICE + "Status")(b"14 x")
    await until(lambda: relay.guard.outcomes)
    call.cancel()
    await until(lambda: relay.guard.cancels)
    assert relay.guard.attempted == []


class Letters:
    def __init__(self):
        self.drafts = []

    async def accept(self, draft):
        self.drafts.append(draft)
        return draft.letter_id


@pytest.mark.parametrize("half_closed", [True, False])
async def test_letter_after_the_deadline(half_closed):
    """A guard may want a letter though its caller's time is up, if it is whole."""
    letters = Letters()
    async with open_relay(letters=letters) as relay:
        usual = relay.guard.go
        relay.guard.go = lambda permit, now: usual(permit, now, timeout_s=None)
        relay.guard.on_ended = lambda o: Letter(
            next(p for p, _ in relay.guard.open.values()), 1, "up", "k", (), 4, "late"
        )
        relay.guard.on_resolved = lambda token, result: Finish(None)
        call = relay.stream("Hang", timeout=0.15)
        await call.write(b"x")
        if half_closed:
            await call.done_writing()
        assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: relay.guard.results)
        assert len(letters.drafts) == half_closed
        assert isinstance(relay.guard.results[0], LetterTaken) is half_closed


async def hurried(relay, rng):
    """Make a call of some shape and give it up at some moment."""
    name = rng.choice(["Echo", "Hang", "Join", "Greet", "Speak", "Early"])
    call = relay.stream(name, timeout=rng.choice([None, 0.05, 5]))
    try:
        for _ in range(rng.randrange(4)):
            await call.write(b"14" * rng.choice([1, 30_000]))
        if rng.random() < 0.7:
            await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
    except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError):
        return
    finally:
        call.cancel()


async def test_storm_of_cancellations_balances(relay):
    """Of 200 calls cancelled at random moments each is told to the guard once."""
    rng = random.Random(1)
    guard = relay.guard
    guard.on_ended = lambda o: (
        Retry(0.01) if not o.committed and rng.random() < 0.3 else None
    )
    hurry = [asyncio.ensure_future(hurried(relay, rng)) for _ in range(200)]
    for one in rng.sample(hurry, len(hurry)):
        await asyncio.sleep(rng.random() * 0.002)
        one.cancel()
    await asyncio.gather(*hurry, return_exceptions=True)
    await until(lambda: not guard.open)
    assert guard.cancels
    assert guard.finished
    assert len(guard.calls) == guard.finished + len(guard.cancels)
    await until(lambda: len(relay.tasks) == 3)  # the watcher, the listener, the clock
    assert relay.wire.open_streams() == ()


async def test_caller_gone_while_a_message_is_written(relay):
    """A response that cannot be passed on ends the call as cancelled."""

    async def endless(echo, context):
        while True:
            await context.write(b"x" * 100_000)

    relay.echo.extra["Endless"] = endless
    call = relay.stream("Endless")
    await call.read()
    call.cancel()
    await until(lambda: relay.guard.cancels)
    await until(lambda: relay.echo.ended == ["cancelled"])


async def test_slow_reader_holds_the_upstream_back(relay):
    """A caller that does not read keeps the upstream from sending without bound."""
    sent = 0

    async def endless(echo, context):
        nonlocal sent
        while True:
            await context.write(b"x" * 100_000)
            sent += 1

    relay.echo.extra["Endless"] = endless
    call = relay.stream("Endless")
    await call.read()
    await asyncio.sleep(0.3)
    before = sent
    await asyncio.sleep(0.2)
    assert sent == before < 200
    call.cancel()
    await until(lambda: relay.guard.cancels)


async def test_slow_upstream_holds_the_caller_back(relay):
    """An upstream that does not read keeps the caller from sending without bound."""
    sent = 0

    async def upload(call):
        nonlocal sent
        while True:
            await call.write(b"x" * 100_000)
            sent += 1

    call = relay.stream("Hang")
    uploading = asyncio.ensure_future(upload(call))
    await asyncio.sleep(0.3)
    before = sent
    await asyncio.sleep(0.2)
    assert sent == before < 200
    uploading.cancel()
    call.cancel()
    await until(lambda: relay.guard.cancels)


async def test_open_streams_are_listed_with_their_last_message():
    """A stream shows when it last passed a message, and is gone when it ends."""
    async with open_relay(options=WireOptions(commit_s=0.001)) as relay:
        call = relay.stream("Echo")
        await call.write(b"x")
        await call.read()
        (first,) = relay.wire.open_streams()
        hanging = relay.channel.unary_unary(SERVICE + "Hang")(b"x")
        await until(lambda: len(relay.guard.calls) == 2)
        assert len(relay.wire.open_streams()) == 1
        hanging.cancel()
        await call.write(b"y")
        await call.read()
        assert relay.wire.open_streams()[0] > first
        await call.done_writing()
        await call.code()
        await until(lambda: relay.wire.open_streams() == ())


async def test_committed_stream_keeps_nothing(relay):
    """Once something was passed on, what was sent is not kept any more."""
    call = relay.stream("Echo")
    for _ in range(5):
        await call.write(b"x" * 1000)
        await call.read()
    (caller,) = relay.wire._open
    assert list(caller.replay._messages) == []
    await call.done_writing()
    await call.code()


async def test_nothing_of_the_library_is_cancelled_half_way(relay, monkeypatch):
    """What grpcio has begun and is cancelled is never freed: it ends by itself."""
    asked, respond = [], Attempt._respond

    async def watched(self):
        try:
            await respond(self)
        except asyncio.CancelledError:
            asked.append(asyncio.current_task().cancelling())
            raise

    monkeypatch.setattr(Attempt, "_respond", watched)

    async def endless(_, context):
        while True:
            await context.write(b"x")
            await asyncio.sleep(0.001)

    relay.echo.extra["Endless"] = endless
    for _ in range(5):
        call = relay.stream("Endless")
        await call.done_writing()
        await call.read()
        call.cancel()
    await until(lambda: len(relay.guard.cancels) == 5)

    assert 1 not in asked
