"""Hedges, probes that hang and faults on request, over real connections."""

import asyncio

import grpc
import grpc.aio
import pytest

from outrigger.core.rpc.errors import details_metadata, from_rpc_error
from sidecar.call.descriptor import Fault
from sidecar.call.guard import CallGuard, GuardSettings
from sidecar.call.routes import MethodRule, Routes, Upstream
from sidecar.policy.circuit import CircuitSettings
from tests.support.echo_upstream import until
from tests.support.relay import SERVICE, open_relay

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
RULES = (
    MethodRule(match=SERVICE + "First", idempotent=True, hedge_s=0.05),
    MethodRule(match=SERVICE + "Both", idempotent=True, hedge_s=0.05, max_attempts=2),
    MethodRule(match=SERVICE + "Count", idempotent=True, hedge_s=0.05),
    MethodRule(match="*", max_attempts=1),
)


class Slow:
    """Methods whose first attempts hang until the test ends."""

    def __init__(self):
        self.begun = self.gone = 0

    async def first(self, _, context):
        """Hang the first time, answer the second."""
        request = await context.read()
        self.begun += 1
        if self.begun == 1:
            await self.hang()
        await context.write(request + b"!")

    async def both(self, _, context):
        """Fail the first time after the second has begun."""
        await context.read()
        self.begun += 1
        if self.begun == 1:
            await until(lambda: self.begun == 2)
        await context.abort(UNAVAILABLE, f"attempt {self.begun}")

    async def hang(self):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.gone += 1
            raise


@pytest.fixture
async def relay():
    """A wire with the real guard, whose probes are cut soon."""
    async with open_relay() as opened:
        opened.slow = Slow()
        opened.echo.extra = {
            "First": opened.slow.first,
            "Both": opened.slow.both,
        }
        opened.real = CallGuard(
            Routes([Upstream("up")], RULES),
            GuardSettings(circuit=CircuitSettings(open_s=0.05, lease_s=0.5)),
            publish=opened.reports.append,
            now=opened.clock.monotonic(),
            details=details_metadata,
        )
        opened.wire._parts.guard = opened.real
        yield opened
        await until(lambda: opened.real.counts.in_flight == 0)


async def test_a_late_answer_is_overtaken_by_a_hedge(relay):
    """The caller gets the second one's answer, and the first is cancelled."""
    call = relay.channel.unary_unary(SERVICE + "First")(b"x", timeout=20)

    assert await call == b"x!"

    assert dict(await call.trailing_metadata()) == {"outrigger-attempts": "2"}
    await until(lambda: relay.slow.gone == 1)
    assert relay.real.counts.hedges == 1
    keys = {dict(metadata)["idempotency-key"] for _, metadata in relay.echo.seen}
    assert len(keys) == 1


async def test_attempts_that_all_fail_give_the_last_status(relay):
    """One status for the caller, whichever of the two ended last."""
    error = await relay.fails("Both", timeout=20)

    assert error.code() is UNAVAILABLE
    assert error.details() == "attempt 2"
    assert dict(error.trailing_metadata())["outrigger-attempts"] == "2"


async def test_a_stream_that_answers_is_not_hedged(relay):
    """Once its first message is there nobody else can win, however long it goes on."""
    call = relay.stream("Count", timeout=20)
    await call.write(b"200")
    await call.done_writing()
    found = [message async for message in call]

    assert len(found) == 200
    assert [method for method, _ in relay.echo.seen] == [SERVICE + "Count"]


async def test_a_loser_is_cancelled_while_the_winner_goes_on(relay):
    """A stream may go on for hours; the other attempt must not."""
    gate = asyncio.Event()

    async def stream(_, context):
        await context.read()
        relay.slow.begun += 1
        if relay.slow.begun == 1:
            await relay.slow.hang()
        await context.write(b"first")
        await gate.wait()

    relay.echo.extra["First"] = stream
    call = relay.stream("First", timeout=20)
    await call.write(b"x")
    await call.done_writing()
    assert await call.read() == b"first"

    await until(lambda: relay.slow.gone == 1)
    gate.set()
    assert await call.read() is grpc.aio.EOF


async def test_a_request_of_several_messages_is_not_hedged(relay):
    """It is not known to be whole: it goes out once."""
    call = relay.stream("First", timeout=20)
    await call.write(b"one")
    await call.write(b"two")
    await until(lambda: relay.slow.begun == 1)
    await asyncio.sleep(0.2)
    call.cancel()

    await until(lambda: relay.slow.gone == 1)
    assert relay.slow.begun == 1


async def test_a_caller_that_goes_away_ends_every_attempt(relay):
    """Nothing is left running upstream or here."""
    relay.echo.extra["First"] = relay.echo.extra["Both"] = None
    relay.echo.extra["First"] = lambda echo, context: hang_all(relay, context)
    call = relay.channel.unary_unary(SERVICE + "First")(b"x")
    await until(lambda: relay.slow.begun == 2)
    call.cancel()

    await until(lambda: relay.slow.gone >= 2)
    await until(lambda: relay.real.counts.cancelled == 1)


async def hang_all(relay, context):
    """Hang every time."""
    await context.read()
    relay.slow.begun += 1
    await relay.slow.hang()


async def test_a_deadline_ends_every_attempt(relay):
    """Two attempts hang; the caller hears of its deadline, the circuit of both."""
    relay.echo.extra["First"] = lambda echo, context: hang_all(relay, context)

    error = await relay.fails("First", timeout=0.4)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: relay.real.counts.in_flight == 0)
    view = relay.real.circuit("up" + SERVICE + "First")
    assert view.window_failures >= 1


async def test_a_probe_that_hangs_is_cut_and_opens_the_circuit_again(relay):
    """Its caller has a minute; the circuit does not wait that long."""
    for _ in range(5):
        await relay.fails("Status", b"13 broken")
    await asyncio.sleep(0.06)
    relay.echo.extra["Status"] = lambda echo, context: hang_all(relay, context)

    error = await relay.fails("Status", b"13", timeout=60)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert from_rpc_error(error).reason == "PROBE_CUT"
    assert dict(error.trailing_metadata())["outrigger-refused-by"] == "relay"
    view = relay.real.circuit("up" + SERVICE + "Status")
    assert "a probe got no answer" in [step.reason for step in view.history]
    await until(lambda: relay.slow.gone == 1)


async def test_a_probe_that_answers_in_time_is_not_cut(relay):
    """A stream that has begun may go on beyond the probe's limit."""
    for _ in range(5):
        await relay.fails("Status", b"13 broken")
    await asyncio.sleep(0.06)

    async def long(_, context):
        await context.read()
        await context.write(b"first")
        await asyncio.sleep(0.8)
        await context.write(b"last")

    relay.echo.extra["Status"] = long
    call = relay.stream("Status", timeout=60)
    await call.write(b"13")
    await call.done_writing()

    assert [message async for message in call] == [b"first", b"last"]


async def test_the_guard_hears_when_a_request_is_complete(relay):
    """At once for one message, at the half-close for a stream."""
    heard = []
    sent = relay.real.sent
    relay.real.sent = lambda *args: (heard.append(args[1]), sent(*args))
    assert await relay.unary("Echo", b"x") == b"x"
    assert heard == [0]

    call = relay.stream("Echo")
    for message in (b"1", b"2", b"3"):
        await call.write(message)
        assert await call.read() == message
    assert heard == [0]
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF

    assert heard == [0, 0]


class Faulty:
    """Wants one thing to go wrong."""

    def __init__(self, fault):
        self.wanted = fault

    def fault(self, upstream, method, now):
        return self.wanted


async def test_an_aborted_call_never_leaves(relay):
    """The status asked for, marked, and counted as if it were the upstream's."""
    relay.real.faults = Faulty(Fault(code=14, message="an experiment"))

    error = await relay.fails("Echo")

    assert (error.code(), error.details()) == (UNAVAILABLE, "an experiment")
    assert dict(error.trailing_metadata())["outrigger-fault"] == "abort"
    assert relay.echo.seen == []
    assert relay.real.circuit("up" + SERVICE + "Echo").window_failures == 1


async def test_a_delayed_call_goes_through(relay):
    """Later, and unharmed."""
    relay.real.faults = Faulty(Fault(delay_s=0.05))

    assert await relay.unary("Echo", b"x") == b"x"


async def test_a_dropped_call_runs_into_its_deadline(relay):
    """Nothing is sent, and nothing answers."""
    relay.real.faults = Faulty(Fault(is_dropped=True))

    error = await relay.fails("Echo", timeout=0.3)

    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert relay.echo.seen == []


async def test_an_upstream_cannot_claim_that_it_was_a_fault(relay):
    """The trailer is ours alone."""

    async def claims(_, context):
        await context.read()
        await context.abort(UNAVAILABLE, "mine", (("outrigger-fault", "abort"),))

    relay.echo.extra["Echo"] = claims
    error = await relay.fails("Echo")

    assert "outrigger-fault" not in dict(error.trailing_metadata())
