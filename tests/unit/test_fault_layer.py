"""Faults between the policy that picks them and the guard that asks."""

import asyncio

import pytest

from outrigger.core.errors import NotFound, Overloaded
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Fault
from sidecar.call.faults import FaultLayer
from sidecar.policy.fault import MOST_RULES, FaultRule
from tests.support.clock import FakeClock
from tests.support.guard_rig import METHOD, UNAVAILABLE, GuardRig


def rule(**changes):
    """An abort of every call, for a minute, changed as wished."""
    given = {"match": "*", "kind": "abort", "code": UNAVAILABLE, "ttl_s": 60.0}
    return FaultRule(**(given | changes))


class Layered:
    """A guard with a layer of faults, on a clock of its own."""

    def __init__(self):
        self.rig = GuardRig()
        self.clock = FakeClock(monotonic=self.rig.now)
        self.alerts = []
        self.tasks = Tasks(self.alerts.append, self.clock)
        self.layer = FaultLayer(
            self.rig.guard,
            clock=self.clock,
            tasks=self.tasks,
            publish=self.alerts.append,
        )

    @property
    def told(self):
        return [alert.name for alert in self.alerts]

    def fault(self, method=METHOD):
        """What the guard would do to a call that begins now."""
        return self.rig.go(method).fault


@pytest.fixture
async def layered():
    """A guard without faults; its timers are ended afterwards."""
    made = Layered()
    yield made
    await made.tasks.close()


async def test_without_a_fault_the_guard_asks_nobody(layered):
    """None in force costs a call nothing, before and after."""
    assert layered.rig.guard.faults is None
    assert layered.fault() is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"code": 8, "message": "on purpose"},
            Fault(code=8, message="on purpose"),
        ),
        ({"kind": "delay", "code": 0, "delay_s": 1.5}, Fault(delay_s=1.5)),
        ({"kind": "drop", "code": 0}, Fault(is_dropped=True)),
    ],
)
async def test_each_kind_reaches_the_attempt(layered, changes, expected):
    """The wire is told exactly what the operator asked for."""
    layered.layer.inject(rule(**changes))

    assert layered.fault() == expected


async def test_an_abort_without_words_says_whose_it_is(layered):
    """Nobody takes it for the callee's answer."""
    layered.layer.inject(rule())

    assert "operator asked for" in layered.fault().message


async def test_it_ends_by_itself_though_nobody_calls(layered):
    """The guard is left alone again, and both ends of it are told."""
    view = layered.layer.inject(rule(ttl_s=10.0))
    assert layered.rig.guard.faults is layered.layer
    assert (view.fault_id, view.expires) == ("fault-1", layered.clock.monotonic() + 10)
    await layered.clock.wait_for_sleepers()
    layered.clock.advance(9.9)
    await asyncio.sleep(0)
    assert layered.told == ["FAULT_INJECTED"]
    layered.clock.advance(0.1)
    while len(layered.tasks):
        await asyncio.sleep(0)

    assert layered.rig.guard.faults is None
    assert layered.told == ["FAULT_INJECTED", "FAULT_ENDED"]
    assert "its time is over" in layered.alerts[-1].message
    assert layered.layer.views() == ()


async def test_the_guard_asks_until_the_last_one_ends(layered):
    """One of two that ends leaves the other in force."""
    layered.layer.inject(rule(match="/a.B/C"))
    second = layered.layer.inject(rule())
    layered.layer.clear("fault-1")
    assert layered.fault() is not None
    layered.layer.clear(second.fault_id)

    assert layered.rig.guard.faults is None
    assert layered.told == ["FAULT_INJECTED"] * 2 + ["FAULT_ENDED"] * 2
    assert "an operator cleared it" in layered.alerts[-1].message


async def test_clearing_leaves_no_timer_behind(layered):
    """An operator who injects and clears for ever fills no memory."""
    for _ in range(100):
        fault_id = layered.layer.inject(rule(ttl_s=3600.0)).fault_id
        layered.layer.clear(fault_id)
    for _ in range(5):
        await asyncio.sleep(0)

    assert len(layered.tasks) == 0


async def test_all_are_cleared_at_once_and_counted(layered):
    """Each end is told; a second time there is nothing left."""
    for _ in range(3):
        layered.layer.inject(rule())

    assert (layered.layer.clear_all(), layered.layer.clear_all()) == (3, 0)
    assert layered.rig.guard.faults is None
    assert layered.told[3:] == ["FAULT_ENDED"] * 3


async def test_what_is_over_or_never_was_cannot_be_cleared(layered):
    """Not even in the moment between its end and anybody's noticing."""
    with pytest.raises(NotFound, match="no fault 'fault-9'"):
        layered.layer.clear("fault-9")
    layered.layer.inject(rule(ttl_s=1.0))
    await layered.clock.wait_for_sleepers()
    layered.clock.advance(1.0)
    while len(layered.tasks):
        await asyncio.sleep(0)
    with pytest.raises(NotFound, match="no fault 'fault-1'"):
        layered.layer.clear("fault-1")

    assert layered.told == ["FAULT_INJECTED", "FAULT_ENDED"]


async def test_one_fault_too_many_changes_nothing(layered):
    """It is refused, no timer runs for it and nothing is told."""
    for _ in range(MOST_RULES):
        layered.layer.inject(rule())
    with pytest.raises(Overloaded, match="faults are in force"):
        layered.layer.inject(rule())

    assert len(layered.told) == MOST_RULES
    assert layered.layer.clear_all() == MOST_RULES


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 0.1}, "10 % of the calls of * end with UNAVAILABLE for 60 s"),
        (
            {"kind": "delay", "code": 0, "delay_s": 2.0, "upstream": "shop"},
            "100 % of the calls of * to shop wait 2 s",
        ),
        ({"kind": "drop", "code": 0, "match": "/a.B/*"}, "of /a.B/* get no answer"),
    ],
)
async def test_an_alert_says_what_goes_wrong_and_how_to_end_it(layered, changes, words):
    """Whoever is on call need not guess."""
    layered.layer.inject(rule(**changes))

    (alert,) = layered.alerts
    assert words in alert.message
    assert "'outrigger faults clear fault-1' ends it" in alert.message
