import pytest

from outrigger.core.errors import Invalid
from sidecar.wire.addresses import Address, HostName
from sidecar.wire.channel_handle import arguments
from sidecar.wire.upstream_spec import UpstreamSpec, checked

ONE = ("127.0.0.1:1",)


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"targets": ()}, "no target"),
        ({"targets": ("shop",)}, "target 'shop': expected HOST:PORT"),
        ({"targets": ("shop:0",)}, "from 1 to 65535"),
        ({"targets": ("http://shop:80",)}, "not a URL"),
        ({"targets": ("a:1", "a:1")}, "a target is listed twice"),
        ({"targets": ONE, "balance": "random"}, "pick_first or round_robin"),
        ({"targets": ("dns:///shop",), "balance": "round_robin"}, "dns:///NAME:PORT"),
        ({"targets": ("dns://1.1.1.1/shop:80", "b:1")}, "a DNS server of its own"),
        ({"targets": ONE, "ca": "ca.pem"}, "ca without tls: say tls = true"),
        ({"targets": ONE, "authority": "shop"}, "authority without tls"),
        ({"targets": ONE, "cert": "c", "key": "k"}, "cert, key without tls"),
        ({"targets": ONE, "keepalive_s": 9.9}, "too_many_pings"),
        ({"targets": ONE, "keepalive_timeout_s": 0}, "keepalive_timeout_s"),
        ({"targets": ONE, "warm_up": -1}, "warm_up"),
        ({"targets": ONE, "resolve_s": 0.5}, "resolve_s"),
    ],
)
def test_each_mistake_is_named(given, line):
    """What is wrong with an upstream is told in a line that says what to write."""
    (found,) = UpstreamSpec(**given).mistakes()
    assert line in found


def test_all_mistakes_are_told_at_once():
    """One error names every mistake of every upstream."""
    with pytest.raises(Invalid) as caught:
        checked(
            {
                "shop": UpstreamSpec(targets=(), keepalive_s=1, resolve_s=0),
                "bank": "nowhere",
                "fine": "127.0.0.1:1",
            }
        )
    assert caught.value.reason == "BAD_UPSTREAM"
    text = str(caught.value)
    assert text.count("shop: ") == 3
    assert "bank: target 'nowhere'" in text
    assert "fine" not in text


def test_a_target_stands_for_a_spec():
    """Who has nothing to say but a target need not."""
    assert checked({"up": "unix:/run/up.sock"})["up"] == UpstreamSpec(
        targets=("unix:/run/up.sock",)
    )


@pytest.mark.parametrize(
    ("given", "is_balanced"),
    [
        ({"targets": ONE}, False),
        ({"targets": ("a:1", "b:1")}, True),
        ({"targets": ("a:1", "b:1"), "balance": "pick_first"}, False),
        ({"targets": ("a:1",), "balance": "round_robin"}, True),
    ],
)
def test_several_targets_take_turns_unless_told_otherwise(given, is_balanced):
    """One target is left to gRPC; several are balanced; both can be said."""
    spec = UpstreamSpec(**given)
    assert spec.mistakes() == []
    assert spec.is_balanced is is_balanced
    kind = HostName if is_balanced and "127" not in spec.targets[0] else Address
    assert all(isinstance(place, kind) for place in spec.places())


def test_our_pings_are_what_servers_take_by_default():
    """Pings only with calls in flight, and above the 300 s every gRPC server grants."""
    found = arguments(UpstreamSpec(targets=ONE), Address(*ONE))
    assert found["grpc.keepalive_time_ms"] == 330_000
    assert found["grpc.keepalive_timeout_ms"] == 20_000
    assert found["grpc.keepalive_permit_without_calls"] == 0


def test_pings_may_be_turned_off():
    """Without an interval the library's own default holds: no pings."""
    found = arguments(UpstreamSpec(targets=ONE, keepalive_s=None), Address(*ONE))
    assert not [name for name in found if "keepalive" in name]


@pytest.mark.parametrize("tls", [False, True])
def test_the_pause_between_tries_to_connect_is_bounded(tls):
    """With TLS and without: 100 ms at first, a second at most; a try may take 5 s."""
    found = arguments(UpstreamSpec(targets=ONE, tls=tls), Address(*ONE))
    assert found["grpc.initial_reconnect_backoff_ms"] == 100
    assert found["grpc.max_reconnect_backoff_ms"] == 1000
    assert found["grpc.min_reconnect_backoff_ms"] == 5000
    assert found["grpc.use_local_subchannel_pool"] == 1


@pytest.mark.parametrize(
    ("spec", "address", "authority"),
    [
        ({}, Address("127.0.0.1:1"), None),
        ({}, Address("ipv4:10.0.0.1:1", "shop:1"), "shop:1"),
        ({"tls": True, "authority": "b"}, Address("shop:1"), "b"),
    ],
)
def test_a_callee_is_called_by_its_name(spec, address, authority):
    """Addresses that were looked up are dialled under the name they were found by."""
    found = arguments(UpstreamSpec(targets=ONE, **spec), address)
    assert found.get("grpc.default_authority") == authority
