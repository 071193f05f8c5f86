"""UpstreamService: what a wire knows of its upstreams, shown in full."""

from types import SimpleNamespace

import pytest

from outrigger.core.errors import Invalid
from outrigger.v1 import upstream_service_pb2 as pb
from outrigger.v1.upstream_pb2 import Upstream, UpstreamAddress
from sidecar.rpc.upstreams import UpstreamServicer


def address(**changes):
    """One address as a wire shows it: connected and well, changed as wished."""
    given = {
        "address": "10.0.0.1:50051",
        "state": "READY",
        "is_ejected": False,
        "back_in_s": 0.0,
        "ejections": 0,
        "why": "",
        "drops": 0,
        "open_attempts": 0,
    }
    return SimpleNamespace(**(given | changes))


def upstream(name, *addresses, tls="off", balance="pick_first"):
    """One upstream as a wire shows it."""
    return SimpleNamespace(name=name, tls=tls, balance=balance, addresses=addresses)


async def listed(*views, **request):
    """List upstreams whose every one has 3 of 8 places taken."""
    servicer = UpstreamServicer(lambda: views, lambda name: (3, 8))
    return await servicer.ListUpstreams(pb.ListUpstreamsRequest(**request), None)


async def test_an_upstream_is_shown_with_all_its_addresses():
    """Which are connected, which are ejected, until when and why."""
    bad = address(
        address="10.0.0.2:50051",
        state="TRANSIENT_FAILURE",
        is_ejected=True,
        back_in_s=2.5,
        ejections=3,
        why="5 failures in a row",
        drops=4,
        open_attempts=1,
    )
    answer = await listed(
        upstream("shop", address(), bad, tls="mutual", balance="round_robin")
    )

    (shown,) = answer.upstreams
    assert (shown.name, shown.upstream_id) == ("upstreams/shop", "shop")
    assert (shown.tls, shown.balance) == (
        Upstream.TLS_MUTUAL,
        Upstream.BALANCE_ROUND_ROBIN,
    )
    assert (shown.in_flight_count, shown.in_flight_limit) == (3, 8)
    good, bad = shown.addresses
    assert (good.state, good.ejected) == (UpstreamAddress.STATE_READY, False)
    assert not good.HasField("ejected_for")
    assert (bad.address, bad.ejected) == ("10.0.0.2:50051", True)
    assert bad.ejected_for.ToMilliseconds() == 2500
    assert (bad.ejection_count, bad.drop_count, bad.open_attempt_count) == (3, 4, 1)
    assert bad.reason == "5 failures in a row"


@pytest.mark.parametrize(
    "state", ["IDLE", "CONNECTING", "READY", "TRANSIENT_FAILURE", "SHUTDOWN"]
)
async def test_every_state_of_a_channel_can_be_shown(state):
    """They are gRPC's own, all five."""
    answer = await listed(upstream("shop", address(state=state)))

    found = answer.upstreams[0].addresses[0].state
    assert UpstreamAddress.State.Name(found) == f"STATE_{state}"


@pytest.mark.parametrize(
    ("tls", "expected"),
    [("off", "TLS_OFF"), ("tls", "TLS_SERVER"), ("mutual", "TLS_MUTUAL")],
)
async def test_every_protection_can_be_shown(tls, expected):
    """None, theirs, and both sides'."""
    answer = await listed(upstream("shop", tls=tls))

    assert Upstream.Tls.Name(answer.upstreams[0].tls) == expected


async def test_upstreams_come_by_name_in_pages():
    """Each once, however the wire keeps them; a foreign token is refused."""
    views = [upstream(name) for name in ("c", "a", "b")]
    first = await listed(*views, page_size=2)
    second = await listed(*views, page_size=2, page_token=first.next_page_token)

    assert [one.upstream_id for one in first.upstreams] == ["a", "b"]
    assert [one.upstream_id for one in second.upstreams] == ["c"]
    assert second.next_page_token == ""
    with pytest.raises(Invalid, match="not one of ours"):
        await listed(*views, page_token="%%%")
