import contextvars

import pytest

from controller.policy.schedule import Settings
from controller.scheduler import Scheduler
from controller.store.protocol import KeptSettings
from controller.trail import Trail, note
from outrigger.core.errors import Invalid, Transient
from outrigger.core.rpc.chain import Audited
from tests.support.clock import FakeClock


class Memory:
    """As much of a store as an audit and a scheduler need; can fail."""

    def __init__(self):
        self.entries = []
        self.settings = None
        self.failing = False

    def _check(self):
        if self.failing:
            raise Transient("STORE_FAILED", "disk gone")

    async def append_audit(self, entry):
        self._check()
        self.entries.append(entry)

    async def set_scheduler(self, settings):
        self._check()
        self.settings = settings


@pytest.fixture
def store():
    """A store in memory."""
    return Memory()


@pytest.fixture
def reports():
    """What the trail reports."""
    return []


@pytest.fixture
def trail(store, reports):
    """A trail over them."""
    return Trail(store, FakeClock(wall=1.7e9), reports.append)


def call(**changes):
    entry = {
        "principal": "operator",
        "method": "/x/Y",
        "subject": "",
        "status_code": 0,
        "reason": "",
    }
    return Audited(**(entry | changes))


async def noted(trail, entry, *notes):
    """Record a call whose servicer left a note, as one task does."""
    for one in notes:
        note(*one)
    await trail.called(entry)


async def test_a_call_is_recorded_with_what_its_servicer_noted(trail, store):
    """The agent and the reason come from the servicer, the rest from the chain."""
    await contextvars.copy_context().run(
        lambda: noted(trail, call(), ("otter", "nightly"))
    )
    (entry,) = store.entries

    assert (entry.principal, entry.method) == ("operator", "/x/Y")
    assert (entry.subject, entry.reason) == ("otter", "nightly")
    assert entry.wall_us == 1_700_000_000_000_000


async def test_the_reason_of_a_refusal_stands_before_the_callers(trail, store):
    """And without a note the chain's subject stands."""
    await trail.called(call(subject="heron", status_code=7, reason="FORBIDDEN"))

    (entry,) = store.entries
    assert (entry.subject, entry.status_code, entry.reason) == ("heron", 7, "FORBIDDEN")


async def test_an_audit_that_fails_stops_changes_until_it_works_again(
    trail, store, reports
):
    """The failure itself is reported, never raised."""
    trail.check()
    store.failing = True
    await trail.called(call())
    assert [report.boundary for report in reports] == ["audit"]
    with pytest.raises(Transient) as caught:
        trail.check()
    assert caught.value.reason == "AUDIT_FAILED"

    store.failing = False
    await trail.called(call())

    trail.check()


async def test_long_texts_are_cut(trail, store):
    """A caller cannot fill the disk with one name."""
    await trail.called(call(method="x" * 10_000))

    assert len(store.entries[0].method) == 512


async def test_settings_are_used_only_once_they_are_kept(store):
    """A scheduler that could not be enabled on disk is not enabled."""
    scheduler = Scheduler(store, KeptSettings(), Settings(keep_alive_s=60.0))
    store.failing = True
    with pytest.raises(Transient):
        await scheduler.enable(None)
    assert not scheduler.settings.enabled

    store.failing = False
    await scheduler.enable(None)

    assert (scheduler.settings.enabled, scheduler.settings.keep_alive_s) == (True, 60)
    assert store.settings == KeptSettings(enabled=True, keep_alive_s=None)


async def test_a_keep_alive_outlives_disabling(store):
    """Enabling again without one keeps what was set before."""
    scheduler = Scheduler(store, KeptSettings(), Settings())
    await scheduler.enable(12.0)
    await scheduler.disable()
    assert not scheduler.settings.enabled

    await scheduler.enable(None)

    assert scheduler.settings.keep_alive_s == 12.0


async def test_disabling_holds_even_if_it_cannot_be_kept(store):
    """Stopping is never refused by a broken disk, but the caller is told."""
    scheduler = Scheduler(store, KeptSettings(enabled=True), Settings())
    store.failing = True

    with pytest.raises(Transient):
        await scheduler.disable()

    assert not scheduler.settings.enabled


def test_a_bad_keep_alive_is_refused_before_it_is_set(store):
    """Also when only validated."""
    scheduler = Scheduler(store, KeptSettings(), Settings())
    with pytest.raises(Invalid):
        scheduler.enabled(0.5)
    assert store.settings is None
