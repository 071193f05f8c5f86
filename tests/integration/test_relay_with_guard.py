import asyncio

import grpc
import grpc.aio
import pytest

from outrigger.core.events import ErrorSeen
from outrigger.core.rpc.errors import details_metadata, from_rpc_error, retry_hint_s
from sidecar.call.guard import CallGuard
from sidecar.call.routes import MethodRule, Routes, Upstream
from sidecar.policy.classify import Code
from tests.support.echo_upstream import start, stopped, until
from tests.support.relay import SERVICE, open_relay


class Letters:
    def __init__(self):
        self.drafts = []

    async def accept(self, draft):
        self.drafts.append(draft)
        return draft.letter_id


@pytest.fixture
async def relay():
    """A wire with the real guard: every layer of the call path."""
    letters = Letters()
    async with open_relay(letters=letters) as opened:
        guard = CallGuard(
            Routes(
                [Upstream("up")],
                [
                    MethodRule(match=SERVICE + "Flaky", idempotent=True),
                    MethodRule(match=SERVICE + "Late", letter="always"),
                ],
            ),
            publish=opened.reports.append,
            now=opened.clock.monotonic(),
            details=details_metadata,
            retry_hint=retry_hint_s,
        )
        opened.real, opened.letters = guard, letters
        opened.wire._parts.guard = guard
        opened.targets._on_ready = lambda name: guard.connection_ready(
            name, opened.clock.monotonic()
        )
        yield opened
        await until(lambda: guard.counts.in_flight == 0)
        counts = guard.counts
        assert counts.begun == counts.ok + counts.failed + counts.cancelled + sum(
            counts.refused.values()
        )


async def test_healthy_call_gets_nothing_of_ours(relay):
    """A call that goes well at once carries no trailer of the sidecar."""
    call = relay.channel.unary_unary(SERVICE + "Echo")(b"x")
    assert await call == b"x"
    assert tuple(await call.trailing_metadata()) == ()


async def test_flaky_upstream_is_tried_again(relay):
    """The caller sees one call that went well, and how many attempts it took."""
    relay.echo.fail_first = 2
    call = relay.channel.unary_unary(SERVICE + "Flaky")(b"x", timeout=10)
    assert await call == b"x"
    assert dict(await call.trailing_metadata()) == {"outrigger-attempts": "3"}
    keys = {dict(metadata)["idempotency-key"] for _, metadata in relay.echo.seen}
    assert len(keys) == 1


async def test_outage_opens_the_circuit_and_the_return_closes_it(relay):
    """Calls fail fast during an outage, as ours, and pass soon after the return."""
    await relay.unary("Echo")
    await stopped(relay.server)

    async def refused():
        return from_rpc_error(await relay.fails("Echo", timeout=5)).reason

    async with asyncio.timeout(10):
        while not (await refused()).startswith("CIRCUIT_"):
            pass
    relay.server, _ = await start(relay.echo, relay.target)
    async with asyncio.timeout(20):
        while True:
            try:
                assert await relay.unary("Echo", b"back") == b"back"
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
    views = {view.circuit_id: view for view in relay.real.circuits()}
    assert views["up"].open_count >= 1


async def test_caller_that_asks_gets_a_letter(relay):
    """In an outage a call with `outrigger-letter: on` becomes a letter."""
    await stopped(relay.server)
    for _ in range(8):
        error = await relay.fails(
            "Echo",
            b"payload",
            timeout=5,
            metadata=(("outrigger-letter", "on"), ("authorization", "Bearer x")),
        )
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert [d.request for d in relay.letters.drafts] == [b"payload"] * 8
    assert {d.metadata[0][0] for d in relay.letters.drafts} == {"user-agent"}
    trailers = dict(error.trailing_metadata())
    assert trailers["outrigger-letter-id"] == relay.letters.drafts[-1].letter_id
    assert trailers["grpc-retry-pushback-ms"] == "-1"
    relay.server, _ = await start(relay.echo, relay.target)


async def test_black_hole_becomes_a_letter_before_the_deadline(relay):
    """An attempt ends a margin before the deadline, so that the id still arrives."""
    error = await relay.fails(
        "Hang", timeout=0.5, metadata=(("outrigger-letter", "on"),)
    )
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    (draft,) = relay.letters.drafts
    assert dict(error.trailing_metadata())["outrigger-letter-id"] == draft.letter_id


async def test_delivery_passes_the_same_guard(relay):
    """A delivery goes to its upstream with its key and is no call of the agent."""
    sent = await relay.wire.send(
        "up", SERVICE + "Echo", (("idempotency-key", "k"),), b"late", 5
    )
    assert (sent.outcome.code, sent.response) == (Code.OK, b"late")
    assert dict(relay.echo.seen[0][1])["idempotency-key"] == "k"
    assert relay.real.counts.in_flight == 0


async def test_storm_of_cancellations_leaves_no_place_taken(relay):
    """Whenever callers go, places, probes and counts come back."""
    # One that is surely on its way: a busy machine may cancel the others too soon.
    sure = relay.channel.unary_unary(SERVICE + "Hang")(b"x", timeout=20)
    await until(lambda: relay.echo.seen)
    sure.cancel()

    async def one(number):
        name = ("Hang", "Echo", "Flaky")[number % 3]
        call = relay.channel.unary_unary(SERVICE + name)(b"x", timeout=5)
        await asyncio.sleep(number * 0.0003)
        call.cancel()

    await asyncio.gather(*(one(number) for number in range(200)))
    await until(lambda: relay.real.counts.in_flight == 0)
    assert not [r for r in relay.reports if isinstance(r, ErrorSeen)]
    assert relay.real.counts.cancelled
    assert await relay.unary("Echo", b"next") == b"next"
