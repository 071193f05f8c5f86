import asyncio
import itertools

import grpc
import grpc.aio
import pytest

from outrigger.core.errors import Overloaded
from outrigger.core.rpc.errors import from_rpc_error
from sidecar.call.descriptor import (
    Answer,
    Finish,
    GivenUp,
    Kind,
    Letter,
    LetterRefused,
    LetterTaken,
    Origin,
    Permit,
    Refuse,
    Resumed,
    Retry,
    Wait,
)
from sidecar.wire.grpcio import WireOptions
from tests.support.echo_upstream import until
from tests.support.relay import SERVICE, open_relay

UNAVAILABLE = 14


class Letters:
    """Takes letters as a test says."""

    def __init__(self):
        self.drafts = []
        self.error = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def accept(self, draft):
        self.drafts.append(draft)
        await self.gate.wait()
        if self.error:
            raise self.error
        return draft.letter_id


@pytest.fixture
async def relay():
    """A wire that takes letters; a failure's guard says what to do."""
    letters = Letters()
    options = WireOptions(replay_bytes=10_000, letter_wait_s=0.2)
    async with open_relay(letters=letters, options=options) as opened:
        opened.letters = letters
        yield opened


def letter_of(relay, permit, code=UNAVAILABLE, message="down"):
    return Letter(
        permit, next(relay.guard.tokens), "up", "key-1", (("x-a", "1"),), code, message
    )


def want_letters(relay, *, at_once=False):
    """Have the guard ask for a letter: of every call, or of those that failed."""

    def on_begin(call):
        return letter_of(relay, Permit(call, "up")) if at_once else None

    def on_ended(outcome):
        if outcome.code:
            permit = next(p for p, _ in relay.guard.open.values())
            return letter_of(relay, permit, outcome.code, outcome.message)
        return None

    def on_resolved(token, result):
        trailers = (
            (("outrigger-letter-id", result.letter_id),)
            if isinstance(result, LetterTaken)
            else (("outrigger-letter-refused", result.reason),)
        )
        return Finish(Answer(UNAVAILABLE, "down", trailers))

    relay.guard.on_begin = on_begin
    relay.guard.on_ended = on_ended
    relay.guard.on_resolved = on_resolved


def retry(times, after_s=0.0):
    left = itertools.repeat(True, times)
    return lambda outcome: Retry(after_s) if outcome.code and next(left, 0) else None


async def test_retry_sends_the_request_again(relay):
    """The whole request is replayed to each attempt, and the caller sees one call."""
    relay.echo.fail_first = 2
    relay.guard.on_ended = retry(5)
    assert await relay.unary("Flaky", b"again") == b"again"
    assert [o.code for o in relay.guard.outcomes] == [14, 14, 0]
    assert len(relay.echo.seen) == 3
    assert {o.committed for o in relay.guard.outcomes[:2]} == {False}


async def test_retry_replays_a_stream(relay):
    """A request of several messages is replayed too, in order, while it is kept."""

    async def reads_then_fails(echo, context):
        found = [await context.read() for _ in range(3)]
        echo.requests.append(found)
        if len(echo.requests) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "no")
        await context.write(b"".join(found))

    relay.echo.extra["Thrice"] = reads_then_fails
    relay.guard.on_ended = retry(5)
    call = relay.stream("Thrice", timeout=5)
    for part in (b"a", b"b", b"c"):
        await call.write(part)
    assert await call.read() == b"abc"
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK
    assert relay.echo.requests == [[b"a", b"b", b"c"]] * 3


async def test_more_than_is_kept_may_come_between_attempts(relay):
    """What overflows the buffer during the pause reaches the next attempt whole."""
    relay.echo.fail_first = 1
    relay.guard.on_ended = retry(1, 0.2)
    call = relay.stream("Flaky", timeout=10)
    await call.write(b"first")
    await until(lambda: relay.guard.outcomes)
    await call.write(b"x" * 20_000)
    await call.write(b"last")
    await call.done_writing()
    assert await call.read() == b"first|" + b"x" * 20_000 + b"|last"
    assert await call.read() is grpc.aio.EOF


async def test_request_beyond_the_buffer_is_committed(relay):
    """What was not kept cannot be sent again, and the guard hears so."""
    relay.echo.fail_first = 1
    error = await relay.fails("Flaky", b"x" * 20_000)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert [o.committed for o in relay.guard.outcomes] == [True]


async def test_many_empty_messages_fill_the_buffer(relay):
    """Messages without bytes cost memory too, so that they cannot pile up."""

    async def reads_then_fails(echo, context):
        for _ in range(1000):
            await context.read()
        await context.abort(grpc.StatusCode.UNAVAILABLE, "no")

    relay.echo.extra["Many"] = reads_then_fails
    call = relay.stream("Many", timeout=5)
    for _ in range(1000):
        await call.write(b"")
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert relay.guard.outcomes[0].committed


async def test_guard_may_end_a_retry(relay):
    """A refusal at the second attempt is the answer."""
    relay.echo.fail_first = 9
    relay.guard.on_ended = retry(1)
    relay.guard.on_attempt = lambda permit: _end(relay, permit, Answer(8, "no more"))
    error = await relay.fails("Flaky")
    assert (error.code(), error.details()) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "no more",
    )
    assert len(relay.echo.seen) == 1


def _end(relay, permit, answer):
    relay.guard.open.pop(id(permit))
    return Refuse(answer)


async def test_refusal_is_answered_at_once(relay):
    """A refused call sends nothing upstream and carries the guard's trailers."""
    answer = Answer(UNAVAILABLE, "öffen", (("outrigger-refused-by", "circuit"),))
    relay.guard.on_begin = lambda call: Refuse(answer)
    error = await relay.fails("Echo")
    assert (error.code(), error.details()) == (grpc.StatusCode.UNAVAILABLE, "öffen")
    assert tuple(error.trailing_metadata()) == answer.trailers
    assert relay.echo.seen == []


async def test_trailers_of_the_guard_are_added(relay):
    """Finish may add trailers to the upstream's own."""
    relay.guard.on_ended = lambda o: Finish(None, (("outrigger-attempts", "2"),))
    error = await relay.fails("Status", b"5 gone")
    trailers = dict(error.trailing_metadata())
    assert (trailers["x-number"], trailers["outrigger-attempts"]) == ("5", "2")


async def test_attempt_time_limit_ends_the_attempt(relay):
    """The time limit of an attempt ends it as DEADLINE_EXCEEDED, not by its callee."""
    usual = relay.guard.go
    relay.guard.go = lambda permit, now: usual(permit, now, timeout_s=0.1)
    error = await relay.fails("Hang", timeout=10)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (outcome,) = relay.guard.outcomes
    assert (outcome.code, outcome.origin) == (4, Origin.UNKNOWN)
    await until(lambda: relay.echo.ended == ["cancelled"])


async def test_failed_call_becomes_a_letter(relay):
    """The whole request goes to the letters and the caller gets the letter's id."""
    want_letters(relay)
    error = await relay.fails("Status", b"14 down")
    (draft,) = relay.letters.drafts
    assert dict(error.trailing_metadata()) == {"outrigger-letter-id": draft.letter_id}
    assert draft.letter_id == relay.guard.calls[0].call_id
    assert (draft.request, draft.method) == (b"14 down", SERVICE + "Status")
    assert (draft.upstream, draft.idempotency_key) == ("up", "key-1")
    assert (draft.metadata, draft.code, draft.message) == (
        (("x-a", "1"),),
        14,
        "down",
    )


async def test_refused_call_becomes_a_letter(relay):
    """A call nothing was sent of is read to its end and handed over."""
    want_letters(relay, at_once=True)
    error = await relay.fails("Echo", b"payload")
    (draft,) = relay.letters.drafts
    assert draft.request == b"payload"
    assert "outrigger-letter-id" in dict(error.trailing_metadata())
    assert relay.echo.seen == []


async def test_request_beyond_the_buffer_makes_no_letter(relay):
    """The caller hears why no letter was taken."""
    want_letters(relay, at_once=True)
    error = await relay.fails("Echo", b"x" * 20_000)
    assert relay.letters.drafts == []
    assert dict(error.trailing_metadata()) == {
        "outrigger-letter-refused": "REQUEST_TOO_LARGE"
    }


@pytest.mark.parametrize("messages", [0, 2])
async def test_streaming_request_makes_no_letter(relay, messages):
    """A request of no message or of two is no letter."""
    want_letters(relay, at_once=True)
    call = relay.stream("Echo", timeout=5)
    try:
        for _ in range(messages):
            await call.write(b"part")
        await call.done_writing()
    except asyncio.InvalidStateError:
        pass  # it was answered before all was written
    trailers = dict(await call.trailing_metadata())
    assert trailers == {"outrigger-letter-refused": "STREAMING_REQUEST"}


async def test_request_without_an_end_makes_no_letter(relay):
    """A caller that does not half-close, for it waits for an answer, gets one."""
    want_letters(relay, at_once=True)
    call = relay.stream("Echo", timeout=5)
    await call.write(b"hello?")
    trailers = dict(await call.trailing_metadata())
    assert trailers == {"outrigger-letter-refused": "STREAMING_REQUEST"}


async def test_refused_letter_says_why(relay):
    """The journal's reason reaches the guard, and by it the caller."""
    want_letters(relay)
    relay.letters.error = Overloaded("TOO_MANY_LETTERS", "no room")
    error = await relay.fails("Status", b"14 down")
    assert dict(error.trailing_metadata()) == {
        "outrigger-letter-refused": "TOO_MANY_LETTERS"
    }


async def test_defect_of_the_journal_is_recorded(relay):
    """An unexpected error takes no letter, is recorded, and the call still ends."""
    want_letters(relay)
    relay.letters.error = ValueError("a defect")
    error = await relay.fails("Status", b"14 down")
    assert dict(error.trailing_metadata()) == {"outrigger-letter-refused": "UNEXPECTED"}
    await until(lambda: relay.reports)
    assert relay.reports[0].boundary == "wire.letter"


async def test_letter_is_taken_though_its_caller_goes(relay):
    """A caller that goes while its letter is written does not undo the letter."""
    want_letters(relay)
    relay.letters.gate.clear()
    call = relay.channel.unary_unary(SERVICE + "Status")(b"14 down")
    await until(lambda: relay.letters.drafts)
    call.cancel()
    await asyncio.sleep(0.05)
    assert relay.guard.results == []
    relay.letters.gate.set()
    await until(lambda: relay.guard.results)
    assert isinstance(relay.guard.results[0], LetterTaken)
    assert relay.guard.cancels == []


async def test_wire_without_letters_refuses_them():
    """Where no letters are taken the reason is NO_LETTERS."""
    async with open_relay() as relay:
        want_letters(relay)
        error = await relay.fails("Status", b"14 down")
        assert dict(error.trailing_metadata()) == {
            "outrigger-letter-refused": "NO_LETTERS"
        }


def park(relay, resolve=None):
    """Have the guard park every call; `resolve(token)` may resolve it at once."""
    parked = []

    def on_begin(call):
        wait = Wait(Permit(call, "up"), next(relay.guard.tokens))
        parked.append(wait)
        if resolve:
            resolve(wait.token)
        return wait

    def on_resolved(token, result):
        if isinstance(result, GivenUp):
            return Refuse(result.answer)
        permit = next(w.permit for w in parked if w.token == token)
        return relay.guard.go(permit, 0.0, timeout_s=5)

    relay.guard.on_begin = on_begin
    relay.guard.on_resolved = on_resolved
    return parked


async def test_parked_call_goes_on(relay):
    """A parked call waits, then goes on with its whole request."""
    parked = park(relay)
    calls = [relay.channel.unary_unary(SERVICE + "Echo")(b"%d" % n) for n in range(5)]
    await until(lambda: len(parked) == 5)
    assert relay.echo.seen == []
    for wait in parked:
        relay.wire.resolve(wait.token, Resumed())
    assert await asyncio.gather(*calls) == [b"0", b"1", b"2", b"3", b"4"]
    assert relay.wire._parts.parked == {}


async def test_parked_call_may_be_resolved_while_it_is_parked(relay):
    """A guard that resolves a call before it has answered `Wait` loses nothing."""
    park(relay, lambda token: relay.wire.resolve(token, Resumed()))
    assert await relay.unary("Echo", b"at once") == b"at once"


async def test_parked_call_may_be_given_up(relay, caplog):
    """A call whose wait was in vain gets the answer it is given."""
    parked = park(relay)
    call = relay.channel.unary_unary(SERVICE + "Echo")(b"x")
    await until(lambda: parked)
    relay.wire.resolve(999, Resumed())
    relay.wire.resolve(parked[0].token, GivenUp(Answer(14, "no agent")))
    relay.wire.resolve(parked[0].token, Resumed())
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert await call.details() == "no agent"
    assert caplog.records == []


async def test_stop_gives_parked_calls_up(relay):
    """Stopping does not wait for calls that are parked."""
    parked = park(relay)
    call = relay.channel.unary_unary(SERVICE + "Echo")(b"x")
    await until(lambda: parked)
    await relay.wire.stop(30)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in await call.details()


async def test_stop_lets_calls_in_flight_end(relay):
    """Within the grace a call that is on its way comes to its end."""
    call = relay.channel.unary_unary(SERVICE + "Hang")(b"x")
    await until(lambda: relay.echo.seen)
    stopping = asyncio.ensure_future(relay.wire.stop(10))
    await asyncio.sleep(0.05)
    assert not stopping.done()
    relay.echo.gate.set()
    await stopping
    assert await call.code() is grpc.StatusCode.OK


async def test_delivery_goes_through_the_guard(relay):
    """A delivery reaches its upstream, is marked as one, and brings the response."""
    sent = await relay.wire.send("up", SERVICE + "Echo", (("x-a", "1"),), b"hi", 5)
    assert (sent.outcome.code, sent.response) == (0, b"hi")
    (call,) = relay.guard.calls
    assert call.kind is Kind.DELIVERY
    assert call.metadata == (("x-a", "1"), ("outrigger-upstream", "up"))
    assert call.deadline is not None


async def test_delivery_keeps_the_last_message(relay):
    """Of a response stream a delivery keeps the last message, and no more."""
    sent = await relay.wire.send("up", SERVICE + "Count", (), b"5", 5)
    assert sent.response == b"4"
    sent = await relay.wire.send("up", SERVICE + "Nothing", (), b"", 5)
    assert (sent.outcome.code, sent.response) == (0, b"")


async def test_failed_delivery_reports_its_outcome(relay):
    """A delivery the upstream refused brings status and trailers."""
    sent = await relay.wire.send("up", SERVICE + "Status", (), b"9 not now", 5)
    assert (sent.outcome.code, sent.outcome.message) == (9, "not now")
    assert sent.outcome.origin is Origin.UPSTREAM
    sent = await relay.wire.send("up", SERVICE + "Broken", (), b"", 5)
    assert sent.outcome.committed


async def test_refused_delivery_is_an_answer(relay):
    """A delivery the guard refused was not attempted."""
    relay.guard.on_begin = lambda call: Refuse(Answer(14, "open"))
    answer = await relay.wire.send("up", SERVICE + "Echo", (), b"hi", 5)
    assert answer == Answer(14, "open")


async def test_cancelled_delivery_is_told_to_the_guard(relay):
    """A delivery that is given up is cancelled at the upstream and at the guard."""
    sending = asyncio.ensure_future(
        relay.wire.send("up", SERVICE + "Hang", (), b"hi", 5)
    )
    await until(lambda: relay.echo.seen)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert len(relay.guard.cancels) == 1
    await until(lambda: relay.echo.ended == ["cancelled"])


async def test_upstream_without_a_channel_is_answered(relay):
    """An upstream that has no address now is UNAVAILABLE, by our doing."""
    await relay.wire.set_target("up", None)
    error = await relay.fails("Echo")
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert from_rpc_error(error).reason == "NO_CHANNEL"
    assert relay.guard.outcomes[0].origin is Origin.LOCAL
    await relay.wire.set_target("up", relay.target)
    assert await relay.unary("Echo", b"back") == b"back"


async def test_channel_taken_away_during_a_call(relay):
    """A call whose channel is taken away ends as UNAVAILABLE, not as cancelled."""
    call = relay.channel.unary_unary(SERVICE + "Hang")(b"x")
    await until(lambda: relay.echo.seen)
    await relay.wire.set_target("up", None)
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    assert relay.guard.outcomes[0].origin is Origin.LOCAL
    assert relay.guard.cancels == []
    await relay.wire.set_target("up", relay.target)


async def test_defect_of_the_guard_ends_the_call_only(relay, caplog):
    """A guard that raises is recorded; its call ends as INTERNAL, ours."""

    def defect(outcome):
        raise ValueError("a defect")

    relay.guard.on_ended = defect
    error = await relay.fails("Echo")
    assert error.code() is grpc.StatusCode.INTERNAL
    assert from_rpc_error(error).reason == "UNEXPECTED"
    await until(lambda: relay.reports)
    assert relay.reports[0].causes == ("ValueError: a defect",)
    relay.guard.on_ended = None
    assert await relay.unary("Echo", b"next") == b"next"


async def test_verdict_without_an_outcome_ends_the_call(relay):
    """A guard that passes on what was never attempted gets a defect answered."""
    want_letters(relay, at_once=True)
    relay.guard.on_resolved = lambda token, result: Finish(None)
    error = await relay.fails("Echo")
    assert error.code() is grpc.StatusCode.INTERNAL


async def test_guard_is_told_the_time(relay):
    """The guard ticks at least every 250 ms."""
    await until(lambda: relay.guard.ticks >= 2)


async def test_posted_work_runs_on_the_loop(relay):
    """Work posted from another thread runs on the loop's; a defect is recorded."""
    ran = []

    def work():
        ran.append(asyncio.get_running_loop())
        raise ValueError("a defect")

    await asyncio.to_thread(relay.wire.post, work)
    await until(lambda: relay.reports)
    assert ran == [asyncio.get_running_loop()]
    assert relay.reports[0].boundary == "wire.post"


async def test_letter_is_dropped_when_the_tasks_close_under_it(relay):
    """A hand-over that is ended from outside ends its call as well."""
    want_letters(relay)
    relay.letters.gate.clear()
    call = relay.channel.unary_unary(SERVICE + "Status")(b"14 down", timeout=5)
    await until(lambda: relay.letters.drafts)
    await relay.tasks.close()
    assert await call.code() is not grpc.StatusCode.OK
    assert isinstance(relay.guard.results[0], LetterRefused)


async def test_guard_that_cannot_resolve_a_letter_ends_the_call_only(relay):
    """A defect after the letter was taken is recorded and answered INTERNAL."""
    want_letters(relay)

    def defect(token, result):
        relay.guard.open.clear()
        raise ValueError("a defect")

    relay.guard.on_resolved = defect
    error = await relay.fails("Status", b"14 down")
    assert error.code() is grpc.StatusCode.INTERNAL
    await until(lambda: len(relay.reports) == 2)
    assert {r.boundary for r in relay.reports} == {"wire.letter", "wire.call"}
