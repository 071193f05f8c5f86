"""Calls as they end: who is told, of what, and of what never."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrigger.core.errors import Overloaded
from sidecar.call.descriptor import Call, Kind, LetterTaken, SeenCall
from sidecar.call.tap import MOST_TAPS, MOST_WAITING, REDACTED, TapFilter, TapHub
from tests.support.guard_rig import METHOD, UNAVAILABLE, GuardRig

SECRET = "hunter2hunter2"
SECRETS = [
    ("authorization", f"Bearer {SECRET}"),
    ("proxy-authorization", SECRET),
    ("x-api-key", SECRET),
    ("cookie", f"session={SECRET}"),
    ("outrigger-token", SECRET),
    ("x-amz-security-token-bin", SECRET.encode()),
    ("x-forwarded", f"basic {SECRET}"),
    ("x-goog-api-key", SECRET),
    ("grpc-trace-bin", SECRET.encode()),
]


@pytest.fixture
def rig():
    """A guard whose hub is open to taps."""
    rig = GuardRig()
    rig.hub = TapHub(rig.guard.watch)
    return rig


def watched(rig):
    """Whom the guard tells."""
    return rig.guard._endings.watch


async def everything(backlog):
    return [(await backlog.take())[0] for _ in range(len(backlog))]


async def test_a_call_is_shown_as_it_went(rig):
    """Its ids, its times, its attempts and its status, at its end."""
    with rig.hub.tapped(TapFilter()) as backlog:
        go = rig.retry(rig.go(metadata=(("x-b", "hello"), ("x-bin", b"\0\1"))))
        rig.now += 2.0
        assert len(backlog) == 0
        rig.end(go)
        call, missed = await backlog.take()

    assert missed == 0
    assert (call.call_id, call.method, call.upstream) == ("call-1", METHOD, "shop")
    assert (call.code, call.attempts, call.refused_by) == (0, 2, "")
    assert call.ended == rig.now
    assert call.elapsed_s == pytest.approx(rig.now - 1000.0)
    assert call.metadata == (("x-b", "hello"), ("x-bin", "(2 bytes)"))
    assert (call.is_delivery, call.omitted, call.letter_id) == (False, 0, "")


async def test_refusals_cancellations_and_deliveries_are_shown_too(rig):
    """By the layer that refused; a caller that left; a letter on its way."""
    with rig.hub.tapped(TapFilter()) as backlog:
        rig.begin(metadata=(("outrigger-upstream", "nowhere"),))
        rig.begin(timeout_s=0.0)
        rig.guard.cancelled(rig.go().permit, rig.now)
        rig.end(rig.go(kind=Kind.DELIVERY))
        rig.trip()
        rig.refused()
        shown = await everything(backlog)

    assert [call.refused_by for call in shown[:2]] == ["route", "deadline"]
    assert (shown[2].code, shown[2].refused_by) == (1, "")
    assert shown[3].is_delivery
    assert shown[-1].refused_by == "circuit"
    assert shown[0].upstream == ""


async def test_a_letter_is_named(rig):
    """The call that became one says which."""
    rig = GuardRig({"match": METHOD, "letter": "on"})
    hub = TapHub(rig.guard.watch)
    rig.trip()
    with hub.tapped(TapFilter()) as backlog:
        letter = rig.letter()
        assert len(backlog) == 0
        rig.guard.resolved(letter.token, LetterTaken("letter-7"), rig.now)
        call, _ = await backlog.take()

    assert (call.letter_id, call.refused_by) == ("letter-7", "circuit")


async def test_filters_narrow_by_method_upstream_and_failure(rig):
    """All given ones must match."""
    wanted = [
        TapFilter(),
        TapFilter(method_prefix="/acme.Orders/"),
        TapFilter(method_prefix="/acme.Ord", upstream="bank"),
        TapFilter(failures_only=True),
        TapFilter(upstream="shop", failures_only=True),
    ]
    taps = [rig.hub.tapped(one) for one in wanted]
    backlogs = [tap.__enter__() for tap in taps]
    rig.end(rig.go())
    rig.end(rig.go("/other.S/M", metadata=(("outrigger-upstream", "shop"),)))
    rig.fail(METHOD, 5)
    rig.end(rig.go(metadata=(("outrigger-upstream", "bank"),)), 5)

    assert [len(one) for one in backlogs] == [4, 3, 1, 2, 1]
    for tap in taps:
        tap.__exit__(None, None, None)


async def test_no_secret_is_shown_in_any_form(rig):
    """Neither as it is, nor encoded, nor a part of it; its key is."""
    with rig.hub.tapped(TapFilter()) as backlog:
        rig.end(rig.go(metadata=SECRETS))
        call, _ = await backlog.take()

    shown = repr(call)
    encoded = base64.b64encode(SECRET.encode()).decode()
    for form in (SECRET, encoded.rstrip("="), SECRET.encode().hex(), SECRET[:6]):
        assert form not in shown
    assert [key for key, _ in call.metadata] == [key for key, _ in SECRETS]
    values = dict(call.metadata)
    assert values.pop("grpc-trace-bin") == f"({len(SECRET)} bytes)"
    assert set(values.values()) == {REDACTED}


async def test_what_waits_is_bounded_whatever_callers_send(rig):
    """Long names, long values and many entries are cut, and said to be."""
    metadata = [(f"k{i}", "v" * 60_000) for i in range(100)]
    with rig.hub.tapped(TapFilter()) as backlog:
        rig.begin("/" + "m" * 60_000 + "/M", metadata=metadata)
        call, _ = await backlog.take()

    kept = sum(len(key) + len(value) for key, value in call.metadata)
    assert kept <= 4096
    assert len(call.method) == 1024 + len("...")
    assert call.metadata[0] == ("k0", "v" * 256 + "...")
    assert call.omitted == 100 - len(call.metadata)
    assert call.omitted > 0


async def test_a_reader_that_stopped_loses_the_oldest_and_holds_nobody_up(rig):
    """Its queue never grows past its bound, and another's is whole."""
    with (
        rig.hub.tapped(TapFilter()) as stopped,
        rig.hub.tapped(TapFilter()) as reading,
    ):
        for _ in range(MOST_WAITING + 500):
            rig.end(rig.go())
            await reading.take()
        assert len(stopped) == MOST_WAITING
        first, missed = await stopped.take()

    assert (first.call_id, missed) == ("call-501", 500)


async def test_the_guard_is_told_of_readers_only_while_there_are_any(rig):
    """None before the first, and None again after the last, in whatever order."""
    assert watched(rig) is None
    first, second = rig.hub.tapped(TapFilter()), rig.hub.tapped(TapFilter())
    first.__enter__()
    second.__enter__()
    assert watched(rig) is not None
    first.__exit__(None, None, None)
    assert watched(rig) is not None
    second.__exit__(None, None, None)
    assert watched(rig) is None


async def test_a_tap_too_many_is_refused_and_changes_nothing(rig):
    """Eight may be open; the ninth is told so, and a place that is free is given."""
    taps = [rig.hub.tapped(TapFilter()) for _ in range(MOST_TAPS)]
    for tap in taps:
        tap.__enter__()
    with (
        pytest.raises(Overloaded, match="8 taps are open"),
        rig.hub.tapped(TapFilter()),
    ):
        pass
    taps.pop().__exit__(None, None, None)
    with rig.hub.tapped(TapFilter()):
        pass
    for tap in taps:
        tap.__exit__(None, None, None)

    assert watched(rig) is None


_KEYS = st.text(st.characters(codec="utf-8"), max_size=300)
_VALUES = st.one_of(st.text(max_size=600), st.binary(max_size=600))


@given(st.lists(st.tuples(_KEYS, _VALUES), max_size=40), st.text(max_size=2000))
async def test_no_call_of_whatever_form_harms_the_guard(metadata, method):
    """The hub never raises: a call's end would be lost in it."""
    told = []
    hub = TapHub(told.append)
    call = Call("c", method, metadata)
    with hub.tapped(TapFilter()) as backlog:
        told[0](SeenCall(call, "up", 1.0, 0.5, 1, UNAVAILABLE))
        tapped, _ = await backlog.take()

    assert len(tapped.metadata) + tapped.omitted == len(metadata)
    assert tapped.ended == 1.5
