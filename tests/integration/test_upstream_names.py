"""Names of upstreams: looked up, followed, and kept when the look-up fails."""

import asyncio
import socket

import pytest

from outrigger.core.events import Alerted, Recovered
from sidecar.call.descriptor import Origin
from sidecar.wire.addresses import Address, HostName, places, system_resolve
from sidecar.wire.upstreams import UpstreamSpec
from tests.support.echo_upstream import until
from tests.support.upstream_rig import (
    Callee,
    ScriptedNames,
    callees,
    open_channels,
    surroundings,
)

SHOP = UpstreamSpec(targets=("dns:///shop.invalid:80",), balance="round_robin")
GONE = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("target", "found"),
    [
        ("dns:///shop:80", [HostName("shop", 80)]),
        ("dns:shop:80", [HostName("shop", 80)]),
        ("shop.example:80", [HostName("shop.example", 80)]),
        ("127.0.0.1:80", [Address("127.0.0.1:80")]),
        ("[::1]:80", [Address("[::1]:80")]),
        ("dns:///127.0.0.1:80", [Address("dns:///127.0.0.1:80")]),
        ("ipv4:10.0.0.1:80", [Address("ipv4:10.0.0.1:80")]),
        ("ipv4:10.0.0.1:80,10.0.0.2:81",
         [Address("ipv4:10.0.0.1:80"), Address("ipv4:10.0.0.2:81")]),
        ("ipv6:[::1]:80,[::2]:80",
         [Address("ipv6:[::1]:80"), Address("ipv6:[::2]:80")]),
        ("unix:/run/shop.sock", [Address("unix:/run/shop.sock")]),
        ("unix:/run/shop:1", [Address("unix:/run/shop:1")]),
        ("unix-abstract:shop:1", [Address("unix-abstract:shop:1")]),
        ("vsock:2:80", [Address("vsock:2:80")]),
        ("dns://10.0.0.1/shop:80", [Address("dns://10.0.0.1/shop:80")]),
        ("dns:///shop", [Address("dns:///shop")]),
    ],
)  # fmt: skip
def test_targets_are_taken_apart(target, found):
    """Lists become addresses, names are ours to look up, all else is gRPC's."""
    assert list(places(target)) == found


async def test_the_machine_resolves_both_families():
    """Answers are gRPC targets, each once."""
    assert "ipv4:127.0.0.1:80" in await system_resolve("localhost", 80)
    assert await system_resolve("127.0.0.1", 80) == ("ipv4:127.0.0.1:80",)
    assert await system_resolve("::1", 80) == ("ipv6:[::1]:80",)
    with pytest.raises(OSError, match=r"."):
        await system_resolve("shop.invalid", 80)


async def test_a_name_without_a_script_is_looked_up_by_the_machine():
    """The machine's own resolver serves where no test puts another in."""
    async with callees(1) as made:
        target = f"localhost:{made[0].port}"
        spec = UpstreamSpec(targets=(target,), balance="round_robin")
        async with open_channels(up=spec) as channels:
            await until(lambda: "READY" in channels.states())
            assert await channels.call() == 0


async def test_a_name_that_moves_is_followed():
    """Addresses that stay keep their connections, new ones join, old ones leave."""
    async with callees(3) as made:
        names = ScriptedNames(shop=(made[0].address, made[1].address))
        outside = surroundings(resolve=names)
        async with open_channels(up=SHOP, outside=outside) as channels:
            await until(lambda: channels.states() == ["READY"] * 2)
            kept = {channels.pick() for _ in range(2)}
            names.answers["shop"] = (made[2].address, made[1].address)
            await made[0].down()  # a failure: the name is looked up at once
            await until(lambda: made[2].address in seen(channels))
            assert set(seen(channels)) == {made[1].address, made[2].address}
            await until(lambda: channels.states() == ["READY"] * 2)
            for _ in range(4):
                assert await channels.call() == 0
            assert [one.calls for one in made] == [0, 2, 2]
            assert any(channels.pick() in kept for _ in range(2))
            assert channels.ready == ["up"]


def seen(channels):
    return [one.address for one in channels.view().addresses]


async def test_all_addresses_moved_are_found():
    """A callee that comes back behind its name at another port is called again."""
    async with callees(1) as made:
        names = ScriptedNames(shop=(made[0].address,))
        outside = surroundings(resolve=names)
        async with open_channels(up=SHOP, outside=outside) as channels:
            assert await channels.call() == 0
            await made[0].down()
            await until(lambda: channels.states() == ["TRANSIENT_FAILURE"])
            asked = names.asked
            await until(lambda: names.asked > asked + 2)  # again and again while down
            elsewhere = await Callee().up()
            names.answers["shop"] = (elsewhere.address,)
            await until(lambda: channels.states() == ["READY"])
            assert await channels.call() == 0
            assert (elsewhere.calls, channels.ready) == (1, ["up", "up"])
            await elsewhere.down()


async def test_names_are_looked_up_from_time_to_time():
    """Without any failure a new address is found all the same."""
    async with callees(2) as made:
        names = ScriptedNames(shop=(made[0].address,))
        spec = UpstreamSpec(targets=SHOP.targets, balance="round_robin", resolve_s=1.0)
        outside = surroundings(resolve=names)
        async with open_channels(up=spec, outside=outside) as channels:
            names.answers["shop"] = tuple(one.address for one in made)
            await until(lambda: channels.states() == ["READY"] * 2)
            assert channels.ready == ["up"]


async def test_a_dead_address_beside_a_live_one_is_no_reason_to_hurry():
    """Its first failure asks for a look-up; that it stays dead does not."""
    async with callees(2) as made:
        await made[1].down()
        names = ScriptedNames(shop=tuple(one.address for one in made))
        outside = surroundings(resolve=names)
        async with open_channels(up=SHOP, outside=outside) as channels:
            await until(lambda: min(channels.states()) == "READY")
            await until(lambda: "TRANSIENT_FAILURE" in channels.states())
            await until(lambda: names.asked > 1)
            await asyncio.sleep(0.2)
            asked = names.asked
            await asyncio.sleep(0.5)
            assert names.asked <= asked + 1


@pytest.mark.parametrize("lost", [GONE, (), UnicodeError("label too long")])
async def test_the_last_answer_stays_when_names_fail(lost):
    """Calls go on to the addresses known, and people are told once, and when over."""
    async with callees(1) as made:
        names = ScriptedNames(shop=(made[0].address,))
        spec = UpstreamSpec(targets=SHOP.targets, balance="round_robin", resolve_s=1.0)
        outside = surroundings(resolve=names)
        async with open_channels(up=spec, outside=outside) as channels:
            await until(lambda: channels.states() == ["READY"])
            names.answers["shop"] = lost
            alert = await channels.told(Alerted, "shop.invalid:80")
            assert alert.name == "UPSTREAM_NAME_LOST"
            assert "the 1 last known stay" in alert.message
            assert await channels.call() == 0
            await made[0].down()
            asked = names.asked
            await until(lambda: names.asked > asked + 2)
            assert len(channels.events) == 1
            await made[0].up()
            names.answers["shop"] = (made[0].address,)
            recovered = await channels.told(Recovered, "addresses of up")
            assert recovered.elapsed_s > 0
            await until(lambda: channels.states() == ["READY"])
            assert await channels.call() == 0


async def test_a_name_that_was_never_found_fails_as_transport():
    """Calls fail as they do when nobody is there, and its coming is noticed."""
    names = ScriptedNames(shop=GONE)
    outside = surroundings(resolve=names)
    async with callees(1) as made, open_channels(up=SHOP, outside=outside) as channels:
        assert await channels.call(timeout=30) == 14
        assert channels.last_origin is Origin.TRANSPORT
        alert = await channels.told(Alerted, "shop.invalid:80")
        assert "none was known before" in alert.message
        names.answers["shop"] = (made[0].address,)
        await until(lambda: channels.states() == ["READY"])
        assert seen(channels) == [made[0].address]
        assert await channels.call() == 0


async def test_a_resolver_that_does_not_answer_holds_up_no_start():
    """GRPC looks the name up instead until there is an answer."""
    never = asyncio.Event()
    outside = surroundings(resolve=ScriptedNames(shop=never), warm_up_s=0.05)
    async with open_channels(up=SHOP, outside=outside) as channels:
        assert seen(channels) == ["dns:///shop.invalid:80"]
        assert await channels.call(timeout=30) == 14
        assert channels.last_origin is Origin.TRANSPORT


async def test_before_any_answer_there_is_no_address():
    """A call that is earlier than the first answer is refused as sent nowhere."""
    never = asyncio.Event()
    outside = surroundings(resolve=ScriptedNames(shop=never), warm_up_s=0.5)
    async with open_channels(outside=outside) as channels:
        channels.channels._specs["up"] = SHOP
        starting = asyncio.ensure_future(channels.channels.start())
        await asyncio.sleep(0.05)
        assert channels.pick() is None
        await starting
        assert channels.pick() is not None


async def test_an_address_that_leaves_finishes_its_calls():
    """A call in flight at an address that is gone from its name ends as it would."""
    async with callees(2) as made:
        made[0].extra["Join"] = Callee.hang
        names = ScriptedNames(shop=(made[0].address,))
        spec = UpstreamSpec(targets=SHOP.targets, balance="round_robin", resolve_s=1.0)
        outside = surroundings(resolve=names)
        async with open_channels(up=spec, outside=outside) as channels:
            old = channels.pick()
            calling = asyncio.ensure_future(channels.call(timeout=30))
            await until(lambda: made[0].calls == 1)
            names.answers["shop"] = (made[1].address,)
            await until(lambda: seen(channels) == [made[1].address])
            assert await channels.call() == 0
            assert not calling.done()
            made[0].gate.set()
            assert await calling == 0
            await until(lambda: old.state.name == "SHUTDOWN")


async def test_an_address_that_leaves_is_not_kept_for_ever():
    """A call that outlasts the bound is cut off."""
    async with callees(2) as made:
        made[0].extra["Join"] = Callee.hang
        names = ScriptedNames(shop=(made[0].address,))
        spec = UpstreamSpec(targets=SHOP.targets, balance="round_robin", resolve_s=1.0)
        outside = surroundings(resolve=names, drain_s=0.05)
        async with open_channels(up=spec, outside=outside) as channels:
            await until(lambda: channels.states() == ["READY"])
            old = channels.pick()
            calling = asyncio.ensure_future(channels.call(timeout=30))
            await until(lambda: made[0].calls == 1)
            names.answers["shop"] = (made[1].address,)
            await until(lambda: old.state.name == "SHUTDOWN")
            await asyncio.wait((calling,), timeout=5)
            assert calling.done()
            calling.cancelled() or calling.exception()
            made[0].gate.set()


async def test_closing_ends_what_is_still_draining():
    """A close does not wait for calls at addresses that have left."""
    async with callees(2) as made:
        names = ScriptedNames(shop=(made[0].address,))
        spec = UpstreamSpec(targets=SHOP.targets, balance="round_robin", resolve_s=1.0)
        outside = surroundings(resolve=names, drain_s=1000.0)
        async with open_channels(up=spec, outside=outside) as channels:
            old = channels.pick()
            old.opened()
            names.answers["shop"] = (made[1].address,)
            await until(lambda: seen(channels) == [made[1].address])
        assert old.state.name == "SHUTDOWN"
        assert len(channels.tasks) == 0


async def test_names_and_addresses_may_be_mixed():
    """What is written out stays beside what names say."""
    async with callees(2) as made:
        names = ScriptedNames(shop=(made[0].address,))
        spec = UpstreamSpec(targets=("shop.invalid:80", made[1].target))
        outside = surroundings(resolve=names)
        async with open_channels(up=spec, outside=outside) as channels:
            await until(lambda: channels.states() == ["READY"] * 2)
            for _ in range(4):
                assert await channels.call() == 0
            assert [one.calls for one in made] == [2, 2]


async def test_a_single_target_is_found_again_by_grpc_itself():
    """Behind a name that gRPC resolves, a callee that comes back is called again."""
    async with callees(1) as made:
        target = f"dns:///localhost:{made[0].port}"
        async with open_channels(up=target) as channels:
            await until(lambda: channels.states() == ["READY"])
            assert await channels.call() == 0
            await made[0].down()
            await until(lambda: channels.states() != ["READY"])
            await made[0].up()
            await until(lambda: channels.states() == ["READY"])
            assert await channels.call() == 0
            assert channels.ready == ["up", "up"]
