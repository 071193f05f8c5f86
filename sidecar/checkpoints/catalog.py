"""Catalog: the manifests of one agent."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from outrigger.core.errors import Corrupt, NotFound, Refused
from sidecar.checkpoints import disk, manifest
from sidecar.checkpoints.manifest import Block, Manifest

_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class Survey:
    """Every generation of an agent, newest first."""

    readable: tuple[Manifest, ...]
    damaged: tuple[int, ...]
    """Their manifests are lost; their packs are not, yet."""
    foreign: tuple[int, ...]
    """Written by a newer program: we know neither what they need nor their worth."""

    @property
    def blocks(self) -> set[Block]:
        """Return every block that a readable generation names."""
        return {block for one in self.readable for block in one.blocks}

    def needed_packs(self) -> set[int]:
        """Return the packs to keep, not counting what foreign ones need."""
        own = {*self.damaged, *self.foreign}
        return own | {block.pack for block in self.blocks}


class Catalog:
    """Reads and writes manifests; every method blocks."""

    def __init__(self, folder: Path, agent_id: str) -> None:
        self.folder = folder
        self._agent_id = agent_id
        self._subject = f"the manifests of agent {agent_id}"
        # Manifests as last read, by file. Single operations only: no lock.
        self._read: dict[int, tuple[disk.Identity, Manifest]] = {}

    def generations(self) -> list[int]:
        """Return the numbers of all generations, newest first, good or bad.

        Raises:
            Transient: DISK_FAILED.
        """
        with disk.reading(self._subject):
            return sorted(numbered(disk.names(self.folder), _SUFFIX), reverse=True)

    def load(self, generation: int) -> Manifest:
        """Read one manifest from disk.

        Raises:
            NotFound: NO_SUCH_GENERATION.
            Corrupt: BROKEN_SEAL, BAD_MANIFEST or UNREADABLE.
            Refused: NEWER_FORMAT.
            Transient: DISK_FAILED.
        """
        if generation not in self.generations():
            raise NotFound(
                "NO_SUCH_GENERATION",
                f"agent {self._agent_id} has no checkpoint {generation}: list them and"
                " name one that is there",
            )
        path = self._path(generation)
        with disk.reading(path.name):
            data = disk.read_at(path, 0, manifest.MAX_BYTES)
        return manifest.decode(data, self._agent_id, generation)

    def survey(self) -> Survey:
        """Return what is there.

        A file that did not change since it was last read is not read again: this
        says what there is, only `load` says what is good.

        Raises:
            Transient: DISK_FAILED.
        """
        readable: list[Manifest] = []
        damaged: list[int] = []
        foreign: list[int] = []
        for generation in self.generations():
            try:
                readable.append(self._remembered(generation))
            except Corrupt:
                damaged.append(generation)
            except Refused:
                foreign.append(generation)
        return Survey(tuple(readable), tuple(damaged), tuple(foreign))

    def put(self, made: Manifest) -> None:
        """Make a generation visible as a whole, or not at all.

        Raises:
            Overloaded: DISK_FULL.
            Transient: DISK_FAILED.
        """
        path = self._path(made.generation)
        with disk.writing(path.name):
            try:
                disk.put(path, manifest.encode(made))
            except OSError:
                disk.remove(path)  # it may have its name, but perhaps not for good
                raise

    def remove(self, generations: Sequence[int]) -> None:
        """Remove manifests for good.

        Raises:
            Transient: DISK_FAILED.
        """
        with disk.writing(self._subject):
            for generation in generations:
                self._read.pop(generation, None)
                disk.remove(self._path(generation))
            disk.sync_folder(self.folder)

    def size(self, generation: int) -> int:
        """Return the bytes of a manifest; 0 if it is not there."""
        with disk.reading(self._subject):
            return disk.size(self._path(generation))

    def _remembered(self, generation: int) -> Manifest:
        path = self._path(generation)
        with disk.reading(path.name):
            identity = disk.identity(path)
        known = self._read.get(generation)
        if known is not None and known[0] == identity:
            return known[1]
        found = self.load(generation)
        self._read[generation] = identity, found
        return found

    def _path(self, generation: int) -> Path:
        return self.folder / f"{generation:012d}{_SUFFIX}"


def numbered(names: Iterable[str], suffix: str) -> set[int]:
    """Return the generations in file names; strange names are passed over."""
    stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
    return {int(stem) for stem in stems if stem.isascii() and stem.isdigit()}
