import os

import pytest

from outrigger.core.clock import SystemClock
from sidecar.checkpoints import heap
from sidecar.checkpoints.store import CheckpointStore
from tests.support.checkpoints import restore, save_state


class Libc:
    """A C library that notes what it is asked."""

    def __init__(self):
        self.asked = []

    def mallopt(self, *arguments):
        self.asked.append(arguments)
        return 1

    def malloc_trim(self, *arguments):
        self.asked.append(arguments)
        return 1


@pytest.fixture
def libc(monkeypatch):
    made = Libc()
    monkeypatch.setattr(heap, "_libc", made)
    return made


def test_the_real_library_takes_it():
    """Whatever C library this is, asking does no harm."""
    assert heap.give_back(heap.LARGE_BYTES) in {True, False}
    assert not heap.give_back(heap.LARGE_BYTES - 1)


def test_arenas_are_bounded(libc):
    """M_ARENA_MAX is -8 in malloc.h."""
    assert heap.bound_arenas()
    assert libc.asked == [(-8, 2)]


def test_another_library_is_no_harm(monkeypatch):
    """The one of musl has neither call."""
    monkeypatch.setattr(heap, "_libc", object())

    assert not heap.bound_arenas()
    assert not heap.give_back(heap.LARGE_BYTES)


async def test_only_large_states_are_followed_by_a_trim(libc, tmp_path):
    """Once after the save and once after the restore."""
    store = CheckpointStore(tmp_path, clock=SystemClock())
    made = await save_state(store, b"small")
    await restore(store, made)
    assert libc.asked == []

    made = await save_state(store, os.urandom(heap.LARGE_BYTES))
    assert libc.asked == [(0,)]
    await restore(store, made)
    await store.close()

    assert libc.asked == [(0,)] * 2
