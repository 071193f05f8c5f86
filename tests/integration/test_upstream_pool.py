"""Several addresses: whose turn it is, who is left out, and what people see."""

import asyncio

import pytest

from outrigger.core.events import Alerted, Recovered
from sidecar.call.descriptor import Origin
from sidecar.policy.outlier import OutlierSettings
from sidecar.wire.upstreams import UpstreamSpec
from tests.support.clock import FakeClock
from tests.support.echo_upstream import until
from tests.support.processes import Stack
from tests.support.raw_http2 import SETTINGS, frame
from tests.support.relay import SERVICE, open_relay
from tests.support.upstream_rig import (
    Callee,
    callees,
    open_channels,
    surroundings,
)


def pool_of(made, **given):
    """Return the spec of an upstream at these callees."""
    return UpstreamSpec(
        targets=tuple(one.target for one in made),
        **{"warm_up": len(made), **given},
    )


def refuses(callee):
    """Make a callee a gateway that finds nobody behind it."""

    async def unavailable(echo, context):
        await context.abort(14, "nobody behind")

    callee.extra["Join"] = unavailable


async def test_addresses_take_turns():
    """Each address gets every third call of three."""
    async with callees(3) as made, open_channels(up=pool_of(made)) as channels:
        for _ in range(9):
            assert await channels.call() == 0
        assert [one.calls for one in made] == [3, 3, 3]


async def test_attempts_of_one_call_take_turns_too():
    """A relay picks an address for each attempt, and its mark says which."""
    async with callees(2) as made:
        spec = pool_of(made)
        async with open_relay(specs={"up": spec}) as relay:
            for _ in range(4):
                assert await relay.unary("Join") == b"hello"
            assert [one.calls for one in made] == [2, 2]
            marks = {relay.targets.get("up").mark().address for _ in range(2)}
            assert marks == {one.target for one in made}


async def test_an_address_that_is_down_is_passed_over():
    """Its calls go to the others in equal parts, and it is used when it is back."""
    async with callees(3) as made, open_channels(up=pool_of(made)) as channels:
        await made[1].down()
        await until(lambda: channels.states().count("READY") == 2)
        for _ in range(6):
            assert await channels.call() == 0
        assert [one.calls for one in made] == [3, 0, 3]
        await made[1].up()
        await until(lambda: channels.states().count("READY") == 3)
        for _ in range(6):
            assert await channels.call() == 0
        assert [one.calls for one in made] == [5, 2, 5]


async def test_pick_first_keeps_to_the_first_that_is_there():
    """Only when it is away is the next one used, and it gets its calls back."""
    async with callees(2) as made:
        spec = pool_of(made, balance="pick_first")
        async with open_channels(up=spec) as channels:
            assert channels.view().balance == "pick_first"
            for _ in range(4):
                await channels.call()
            assert [one.calls for one in made] == [4, 0]
            await made[0].down()
            await until(lambda: channels.states()[0] != "READY")
            assert await channels.call() == 0
            assert made[1].calls == 1
            await made[0].up()
            await until(lambda: channels.states()[0] == "READY")
            assert await channels.call() == 0
            assert made[0].calls == 5


async def test_ready_is_told_when_the_first_address_is_there():
    """One of several coming or going is no news; the first one back is."""
    async with callees(2) as made, open_channels(up=pool_of(made)) as channels:
        noticed = channels.channels._pools["up"]._ready
        assert channels.ready == ["up"]
        await made[0].down()
        await until(lambda: len(noticed) == 1)
        await made[0].up()
        await until(lambda: len(noticed) == 2)
        assert channels.ready == ["up"]
        for one in made:
            await one.down()
        await until(lambda: len(noticed) == 0)
        assert [one.drops for one in channels.view().addresses] == [2, 1]
        await made[1].up()
        await until(lambda: channels.ready == ["up", "up"])


async def test_ready_is_told_though_a_loss_was_not_noticed_yet():
    """An address whose end nobody has looked at does not hide another's return."""
    async with callees(2) as made, open_channels(up=pool_of(made)) as channels:
        for one in made:
            await one.down()
        await until(lambda: channels.states() == ["TRANSIENT_FAILURE"] * 2)
        pool = channels.channels._pools["up"]
        await until(lambda: not pool._ready)
        pool._ready.add(pool._order[0])
        await made[1].up()
        await until(lambda: channels.ready == ["up", "up"])


async def test_all_addresses_down_fails_as_transport():
    """The caller is told UNAVAILABLE at once, and the circuit may count it."""
    async with callees(2) as made, open_channels(up=pool_of(made)) as channels:
        for one in made:
            await one.down()
        await until(lambda: channels.states() == ["TRANSIENT_FAILURE"] * 2)
        assert await channels.call() == 14
        assert channels.last_origin is Origin.TRANSPORT


async def test_an_address_worse_than_the_others_is_ejected_and_comes_back():
    """It is told of, seen, spared for a while, tried by real calls, and cleared."""
    clock = FakeClock()
    async with callees(2) as made:
        refuses(made[0])
        outside = surroundings(clock=clock)
        async with open_channels(up=pool_of(made), outside=outside) as channels:
            await until(lambda: channels.states() == ["READY"] * 2)
            codes = [await channels.call() for _ in range(10)]
            assert codes == [14, 0] * 5
            alert = await channels.told(Alerted, made[0].target)
            assert alert.name == "UPSTREAM_ADDRESS_EJECTED"
            assert "gets no calls for 4.5 s" in alert.message
            first, second = channels.view().addresses
            assert (first.is_ejected, second.is_ejected) == (True, False)
            assert (first.back_in_s, first.ejections) == (4.5, 1)
            assert "5 failures in a row" in first.why
            assert [await channels.call() for _ in range(6)] == [0] * 6
            assert made[0].calls == 5

            clock.advance(4.5)
            assert [await channels.call() for _ in range(3)].count(14) == 1
            assert channels.view().addresses[0].ejections == 2
            del made[0].extra["Join"]
            clock.advance(9.0)
            assert [await channels.call() for _ in range(3)] == [0] * 3
            recovered = await channels.told(Recovered, made[0].target)
            assert recovered.elapsed_s == 13.5
            assert not channels.view().addresses[0].is_ejected


async def test_the_relay_ejects_by_the_attempts_it_makes():
    """Failures that callers see are what an address is judged by."""
    async with callees(2) as made:
        refuses(made[0])
        outlier = OutlierSettings(failures=2)
        spec = pool_of(made, outlier=outlier)
        async with open_relay(specs={"up": spec}) as relay:
            for _ in range(12):
                await relay.channel.unary_unary(SERVICE + "Join")(b"", timeout=5).code()
            assert (made[0].calls, made[1].calls) == (2, 10)


async def test_a_black_hole_is_ejected():
    """An address that takes calls and never answers is left out after some."""
    async with callees(2) as made:
        made[0].extra["Join"] = Callee.hang
        outlier = OutlierSettings(failures=2)
        async with open_relay(specs={"up": pool_of(made, outlier=outlier)}) as relay:
            for _ in range(8):
                call = relay.channel.unary_unary(SERVICE + "Join")(b"x", timeout=0.3)
                await call.code()
            assert made[0].calls == 2
            made[0].gate.set()


async def test_an_ejected_address_is_better_than_none():
    """If all others are away, the ejected one is called; none is worse than it."""
    async with callees(2) as made:
        refuses(made[0])
        spec = pool_of(made, outlier=OutlierSettings(failures=1))
        async with open_channels(up=spec) as channels:
            await until(lambda: channels.states() == ["READY"] * 2)
            while not channels.view().addresses[0].is_ejected:
                await channels.call()
            await made[1].down()
            await until(lambda: channels.states()[1] == "TRANSIENT_FAILURE")
            del made[0].extra["Join"]
            assert await channels.call() == 0


async def test_an_outage_ejects_nobody():
    """Failures of all addresses leave all of them in their turns."""
    async with callees(3) as made, open_channels(up=pool_of(made)) as channels:
        for one in made:
            refuses(one)
        for _ in range(30):
            assert await channels.call() == 14
        assert not any(one.is_ejected for one in channels.view().addresses)


async def test_answers_of_the_relay_itself_are_nobodys_fault():
    """What was made here says nothing about an address."""
    async with callees(2) as made, open_channels(up=pool_of(made)) as channels:
        handle = channels.pick()
        for _ in range(10):
            handle.ended(handle.mark(), 14, Origin.LOCAL)
        await channels.call()
        assert channels.events == []


async def test_start_waits_for_connections():
    """After a start the first call finds a connection; people see READY."""
    async with callees(2) as made, open_channels(up=pool_of(made)) as channels:
        assert channels.states() == ["READY", "READY"]


async def test_start_does_not_wait_for_the_dead():
    """An upstream that refuses connections fails no start and is not waited for."""
    made = await Callee().up()
    await made.down()
    outside = surroundings(warm_up_s=1000.0)
    async with open_channels(up=made.target, outside=outside) as channels:
        assert channels.states() == ["TRANSIENT_FAILURE"]


class Slow:
    """Accepts connections and shakes hands only after a while."""

    def __init__(self, after_s=0.0):
        self._after_s = after_s
        self._writers = []
        self.gate = asyncio.Event()
        self.tries = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.target = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.gate.set()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0.01)

    async def _serve(self, reader, writer):
        self.tries += 1
        self._writers.append(writer)
        await asyncio.sleep(self._after_s)
        await self.gate.wait()
        writer.write(frame(SETTINGS, 0, 0))


async def test_start_gives_up_on_the_silent():
    """An upstream that accepts and says nothing does not hold up a start for long."""
    outside = surroundings(warm_up_s=0.05)
    async with (
        Slow() as silent,
        open_channels(up=silent.target, outside=outside) as channels,
    ):
        assert channels.states() == ["CONNECTING"]
        silent.gate.set()
        await until(lambda: channels.states() == ["READY"], 10)


async def test_start_waits_for_as_many_as_asked_for():
    """One address that is there is enough, or none, if nobody asks for more."""
    outside = surroundings(warm_up_s=1000.0)
    async with Slow() as silent, callees(1) as made:
        for count, state in ((0, None), (1, "READY")):
            targets = (silent.target, made[0].target)
            spec = UpstreamSpec(targets=targets, warm_up=count)
            async with open_channels(up=spec, outside=outside) as channels:
                assert channels.states()[0] != "READY"
                assert state is None or channels.states()[1] == state


async def test_a_callee_that_is_slow_to_shake_hands_is_reached():
    """A try to connect is not given up before a busy or distant callee can answer."""
    slow = Slow(1.5)
    slow.gate.set()
    async with slow, open_channels(up=slow.target) as channels:
        await until(lambda: channels.states() == ["READY"], 10)
        assert slow.tries == 1


async def test_a_process_that_is_back_after_three_seconds_is_called_again(tmp_path):
    """Its long absence does not make the channel wait long before it looks again."""
    with Stack(tmp_path) as stack:
        upstream = await asyncio.to_thread(stack.upstream)
        async with open_channels(up=upstream.target) as channels:
            call = channels.pick().channel.unary_unary("/test.Ledger/Call")
            assert await call(b"before", timeout=5) == b"before"
            upstream.kill()
            await until(lambda: channels.states() != ["READY"])
            await asyncio.sleep(3)
            await asyncio.to_thread(stack.upstream, "again", port=upstream.port)
            await until(lambda: channels.states() == ["READY"], 10)
            assert await call(b"after", timeout=5) == b"after"
            assert channels.ready == ["up", "up"]


async def test_taking_a_pool_away_closes_all_its_channels():
    """Its name is unknown afterwards, and no watcher is left."""
    async with callees(2) as made, open_channels(up=pool_of(made)) as channels:
        await channels.channels.set_target("up", None)
        assert channels.pick() is None
        assert channels.channels.views() == ()
        assert len(channels.tasks) == 0


async def test_a_pool_may_give_way_to_one_target():
    """A fresh target replaces all addresses at once."""
    async with callees(3) as made, open_channels(up=pool_of(made[:2])) as channels:
        await channels.channels.set_target("up", made[2].target)
        for _ in range(3):
            assert await channels.call() == 0
        assert [one.calls for one in made] == [0, 0, 3]
        assert channels.view().balance == "pick_first"


async def test_attempts_are_seen_while_they_last():
    """People see how many attempts use an address now."""
    async with callees(1) as made:
        made[0].extra["Join"] = Callee.hang
        async with open_relay(specs={"up": pool_of(made)}) as relay:
            call = relay.channel.unary_unary(SERVICE + "Join")(b"x", timeout=10)
            count = lambda: relay.targets.views()[0].addresses[0].open_attempts  # noqa: E731
            await until(lambda: count() == 1)
            made[0].gate.set()
            await call.code()
            await until(lambda: count() == 0)


@pytest.mark.parametrize("balance", ["pick_first", "round_robin"])
async def test_one_address_is_handed_out_as_it_is(balance):
    """With nothing to choose from the same channel comes each time, dead or alive."""
    async with callees(1) as made:
        spec = pool_of(made, balance=balance)
        async with open_channels(up=spec) as channels:
            first = channels.pick()
            await made[0].down()
            await until(lambda: not first.is_ready)
            assert channels.pick() is first
            assert await channels.call() == 14


async def test_a_cancelled_attempt_is_no_outcome():
    """A caller that goes away says nothing about the address it was sent to."""
    async with callees(2) as made:
        for one in made:
            one.extra["Join"] = Callee.hang
        spec = pool_of(made, outlier=OutlierSettings(failures=1))
        async with open_relay(specs={"up": spec}) as relay:
            for count in range(1, 5):
                call = relay.channel.unary_unary(SERVICE + "Join")(b"x")
                await until(lambda: sum(one.calls for one in made) == count)  # noqa: B023
                call.cancel()
            await until(lambda: not relay.guard.open)
            (view,) = relay.targets.views()
            assert [one.open_attempts for one in view.addresses] == [0, 0]
            assert not any(one.ejections for one in view.addresses)
            for one in made:
                one.gate.set()
