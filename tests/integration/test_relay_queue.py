"""Calls that wait for a place, over real connections."""

import asyncio

import grpc
import pytest

from sidecar.call.guard import CallGuard, GuardSettings
from sidecar.call.routes import Routes, Upstream
from tests.support.echo_upstream import until
from tests.support.relay import SERVICE, open_relay


@pytest.fixture
async def relay():
    """A wire with the real guard: one place, and one more may wait."""
    async with open_relay() as opened:
        opened.real = CallGuard(
            Routes([Upstream("up")]),
            GuardSettings(concurrency=1, queue=1, queue_max_s=30.0),
            publish=opened.reports.append,
            now=opened.clock.monotonic(),
            resolve=opened.wire.resolve,
        )
        opened.wire._parts.guard = opened.real
        yield opened
        await until(lambda: opened.real.counts.in_flight == 0)


async def hanging(relay):
    """Begin a call that takes the only place until the echo's gate opens."""
    call = relay.channel.unary_unary(SERVICE + "Hang")(b"x")
    await until(lambda: len(relay.echo.seen) == 1)
    return call


async def waiting(relay, **given):
    """Begin a call that must wait."""
    call = relay.channel.unary_unary(SERVICE + "Echo")(b"mine", **given)
    await until(lambda: relay.real.counts.held == 1)
    return call


async def test_a_call_waits_and_is_sent_whole(relay):
    """It gets its own answer as soon as the one before it has ended."""
    first = await hanging(relay)
    second = await waiting(relay)
    assert len(relay.echo.seen) == 1

    relay.echo.gate.set()

    assert await second == b"mine"
    await until(first.done)


async def test_a_caller_that_goes_away_makes_room_for_the_next(relay):
    """Nothing of it is sent."""
    first = await hanging(relay)
    second = await waiting(relay)
    second.cancel()
    await until(lambda: relay.real.counts.held == 0)
    third = await waiting(relay)

    first.cancel()

    assert await third == b"mine"
    assert len(relay.echo.seen) == 2


async def test_one_too_many_is_refused_with_a_push_back(relay):
    """Its trailers say by what, and when to come back."""
    first = await hanging(relay)
    second = await waiting(relay)

    error = await relay.fails("Echo")

    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = dict(error.trailing_metadata())
    assert trailers["outrigger-refused-by"] == "limit"
    assert int(trailers["grpc-retry-pushback-ms"]) > 0
    second.cancel()
    first.cancel()


async def test_a_wait_ends_with_the_callers_deadline(relay):
    """It is told so by its own library or by us; nothing is left waiting."""
    first = await hanging(relay)
    second = await waiting(relay, timeout=0.3)

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await second

    assert error.value.code() in {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    await until(lambda: relay.real.counts.held == 0)
    first.cancel()


async def test_a_wire_that_stops_lets_nobody_wait(relay):
    """Who waits is told that this sidecar is stopping."""
    first = await hanging(relay)
    second = await waiting(relay)

    stopping = asyncio.ensure_future(relay.wire.stop(0.5))

    with pytest.raises(grpc.aio.AioRpcError) as error:
        await second
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in error.value.details()
    first.cancel()
    await stopping
