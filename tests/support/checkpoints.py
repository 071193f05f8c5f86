"""Saving and restoring whole states, faults of the disk, damage to files."""

import os
import threading

from outrigger.core.blocks import BLOCK_BYTES, state_digest

AGENT = "agent-1"


async def save_state(store, data, *, agent=AGENT, epoch=0, step=300_000, schema=""):
    """Save `data` in pieces of `step` bytes; return the manifest."""
    save = await store.begin_save(agent, epoch, schema, len(data))
    for start in range(0, len(data), step):
        await save.write(data[start : start + step])
    return await save.commit(len(data), state_digest(data))


async def restore(store, manifest):
    """Return the raw bytes of a generation."""
    return b"".join([piece async for piece in store.read(manifest)])


async def restore_newest(store, agent=AGENT):
    """Return the newest good state; None when there is none."""
    found = await store.newest_good(agent)
    return None if found is None else await restore(store, found)


def blocks_of(*tags):
    """Return a state of one whole, compressible block per tag."""
    return b"".join(tag.encode().ljust(BLOCK_BYTES, b".") for tag in tags)


def files(root):
    """Return every file below `root` with its contents, fences left out."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != "fence"
    }


def pack_path(root, generation, agent=AGENT):
    return root / agent / "packs" / f"{generation:012d}.pack"


def manifest_path(root, generation, agent=AGENT):
    return root / agent / "manifests" / f"{generation:012d}.json"


def flip(path, position=None):
    """Change one byte of a file, in its middle unless said otherwise."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 0x40
    path.write_bytes(data)


class Faults:
    """Makes the n-th system call on files fail, once or from then on.

    Only calls on descriptors, which in a test are the store's alone, and on paths
    below `root` count.
    """

    NAMES = ("open", "pwrite", "fsync", "pread", "rename", "unlink", "mkdir", "stat")

    def __init__(self, monkeypatch, root):
        self._root = os.fspath(root)
        self._lock = threading.Lock()
        self._fails = lambda name, count: None
        self.calls = []
        for name in self.NAMES:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def at(self, number, error, *, always=False):
        """Fail the call with this number, counted from now; 0 is the first."""
        self.calls.clear()

        def fails(name, count):
            due = count >= number if always else count == number
            return error if due else None

        self._fails = fails

    def on(self, name, error, *, after=0):
        """Fail every call of one name, from the one after `after` on."""
        self.calls.clear()
        self._fails = lambda called, count: (
            error if called == name and self.calls.count(name) > after else None
        )

    def off(self):
        self._fails = lambda name, count: None

    def _wrapped(self, name, real):
        def call(first, *args, **kwargs):
            ours = isinstance(first, int) or os.fspath(first).startswith(self._root)
            error = self._count(name) if ours else None
            if error is not None:
                raise OSError(error, os.strerror(error))
            return real(first, *args, **kwargs)

        return call

    def _count(self, name):
        with self._lock:
            self.calls.append(name)
            return self._fails(name, len(self.calls) - 1)
