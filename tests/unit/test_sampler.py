"""Measuring a real process tree."""

import asyncio
import os
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest

from outrigger.core.clock import SystemClock
from sidecar.load import sampler as module
from sidecar.load.sampler import Sampler
from tests.support.clock import FakeClock

MIB = 1 << 20
TREE = """
import os, subprocess, sys
ballast = bytearray(os.urandom(1024)) * (48 * 1024)
child = subprocess.Popen(["/bin/sleep", "60"])
print(child.pid, flush=True)
for line in sys.stdin:
    if line == "burn\\n":
        before = os.times()
        while sum(os.times()[:2]) - sum(before[:2]) < 0.2:
            pass
    if line == "breed\\n":
        code = "import os\\nwhile sum(os.times()[:2]) < 0.2: pass"
        subprocess.run([sys.executable, "-S", "-c", code])
    if line == "reap\\n":
        child.wait()
    print("done", flush=True)
"""


class Tree:
    """A process with a child of its own and 48 MiB of ballast."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", TREE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.child = int(self.process.stdout.readline())

    def do(self, word):
        """Have it do something; return when it has."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        self.process.stdout.readline()

    def close(self):
        """End both."""
        with self.process, suppress(ProcessLookupError):
            os.killpg(self.pid, 9)


@pytest.fixture
def tree():
    """A running tree."""
    made = Tree()
    yield made
    made.close()


async def test_a_tree_is_measured_whole(tree):
    """Count, RSS and PSS are the tree's; PSS counts what is shared once."""
    sample = await Sampler(SystemClock()).sample(tree.pid)

    rss = sum(psutil.Process(p).memory_info().rss for p in (tree.pid, tree.child))
    assert sample.process_count == 2
    assert sample.cpu_ratio == 0
    assert abs(sample.rss_bytes - rss) < 4 * MIB
    assert 48 * MIB < sample.pss_bytes < sample.rss_bytes
    assert sample.sidecar_pss_bytes > MIB


@pytest.mark.parametrize("word", ["burn", "breed"])
async def test_cpu_is_the_share_of_a_core_since_the_last_sample(tree, word):
    """0.2 s of CPU in 2 s are a tenth of a core, in a child long gone too."""
    clock = FakeClock()
    sampler = Sampler(clock)
    await sampler.sample(tree.pid)
    tree.do(word)
    clock.advance(2.0)

    busy = await sampler.sample(tree.pid)
    clock.advance(2.0)
    idle = await sampler.sample(tree.pid)

    assert 0.08 <= busy.cpu_ratio < 0.25
    assert idle.cpu_ratio < 0.05
    assert busy.wall_s == clock.wall() - 2.0


async def test_two_samples_at_once_divide_by_nothing(tree):
    """A clock that stands still gives no ratio."""
    sampler = Sampler(FakeClock())
    await sampler.sample(tree.pid)

    assert (await sampler.sample(tree.pid)).cpu_ratio == 0


async def test_pss_is_read_seldom_or_when_asked(tree, monkeypatch):
    """In between the last value stands; another process is read at once."""
    asked = []
    values = iter(range(1, 100))

    def read(process):
        asked.append(process.pid)
        return next(values)

    monkeypatch.setattr(module, "_pss", read)
    sampler = Sampler(FakeClock(), pss_every=3)
    found = [(await sampler.sample(tree.pid)).pss_bytes for _ in range(5)]
    assert found == [3, 3, 3, 9, 9]
    assert asked == [tree.pid, tree.child, os.getpid()] * 2

    forced = await sampler.sample(tree.pid, read_pss=True)
    assert (forced.pss_bytes, forced.sidecar_pss_bytes) == (15, 9)
    other = await sampler.sample(tree.child)
    assert (other.pss_bytes, other.process_count) == (10, 1)


@pytest.mark.parametrize("pid", [0, -1])
async def test_no_process_is_a_sample_of_nothing(pid):
    """An agent that sleeps uses nothing; the sidecar still does."""
    sample = await Sampler(SystemClock()).sample(pid)

    assert (sample.process_count, sample.rss_bytes, sample.pss_bytes) == (0, 0, 0)
    assert sample.sidecar_pss_bytes > 0


async def test_processes_that_vanish_are_left_out(tree):
    """The child, then the root, end between samples; the counts follow."""
    sampler = Sampler(SystemClock())
    await sampler.sample(tree.pid)
    os.kill(tree.child, 9)
    tree.do("reap")
    after = await sampler.sample(tree.pid)
    assert (after.process_count, after.rss_bytes > 48 * MIB) == (1, True)

    tree.process.kill()
    tree.process.wait()
    gone = await sampler.sample(tree.pid, read_pss=True)

    assert (gone.process_count, gone.rss_bytes, gone.pss_bytes) == (0, 0, 0)
    assert gone.cpu_ratio == 0


async def test_processes_that_vanish_while_being_read_are_left_out(tree, monkeypatch):
    """Between the list and the look a process may end; the sample stands."""
    ended = subprocess.Popen(["/bin/true"])
    ended.wait()
    true_children = module._children

    def children(pid):
        yield from true_children(pid)
        if pid == tree.pid:
            yield ended.pid

    monkeypatch.setattr(module, "_children", children)
    gone = psutil.Process(tree.child)
    sampler = Sampler(SystemClock())
    assert (await sampler.sample(tree.pid)).process_count == 2

    os.kill(tree.child, 9)
    tree.do("reap")
    assert module._pss(gone) == 0
    assert sampler._usage([gone]) == (0, 0.0, 0)


async def test_a_recycled_number_is_another_process(tree):
    """What a former process of the same number used is not counted."""
    clock = FakeClock()
    sampler = Sampler(clock)
    await sampler.sample(tree.pid)
    sampler._root.is_running = lambda: False
    tree.do("burn")
    clock.advance(2.0)

    assert (await sampler.sample(tree.pid)).cpu_ratio == 0


async def test_samples_are_taken_one_at_a_time(tree):
    """Two who ask at once do not take each other's measure."""
    sampler = Sampler(SystemClock())

    samples = await asyncio.gather(*(sampler.sample(tree.pid) for _ in range(4)))

    assert {sample.process_count for sample in samples} == {2}


def test_a_process_that_is_gone_has_no_children():
    """Reading what is gone is harmless."""
    assert list(module._children(1 << 22)) == []


def test_more_children_than_a_page_of_the_kernel_holds(monkeypatch):
    """The list is read to its end, however many reads that takes."""
    numbers = [str(100000 + n) for n in range(3000)]
    text = " ".join(numbers).encode()
    pieces = iter([text[:4096], text[4096:8192], text[8192:], b""])
    monkeypatch.setattr(module.os, "open", lambda *_: 99)
    monkeypatch.setattr(module.os, "close", lambda _: None)
    monkeypatch.setattr(module.os, "read", lambda *_: next(pieces))

    assert module._read("anything") == text
