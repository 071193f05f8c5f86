"""Shelf: the folder of one agent, its generations and what they share.

    <root>/<agent_id>/fence              highest epoch it was fenced with
                      manifests/N.json   what generation N consists of
                      packs/N.pack       frames that generation N added

Every method blocks and runs on a worker thread, but `claim`, `enter` and `leave`.

Who wants what at once:
- A save reuses blocks of a generation that is being pruned: manifests go at once,
  packs only while nobody saves or reads (`tidy`); what a save took up meanwhile
  is needed by its manifest and stays. Hence collection is in two phases.
- A command fences a higher epoch while a save of a lower one ends: both hold
  `_lock`, so after `fence` returns nothing lower can appear.
- A crash leaves a pack without a manifest, or a temporary file: nothing refers to
  them, and they go when the folder is next opened.
"""

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from outrigger.core.clock import Clock
from outrigger.core.errors import Conflict, Corrupt
from sidecar.checkpoints import disk, fence, pack
from sidecar.checkpoints.catalog import Catalog, Survey, numbered
from sidecar.checkpoints.frames import Frames
from sidecar.checkpoints.manifest import Block, Manifest

_log = logging.getLogger("outrigger.checkpoints")

_SPARSE_RATIO: Final = 0.5
_BUSY_RETRY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Start:
    """What a save begins with."""

    generation: int
    parent_generation: int
    epoch: int
    index: Mapping[bytes, Block]
    """Stored blocks by digest."""
    sparse: frozenset[int]
    """Packs that are mostly garbage: what is reused of them is copied on, so that
    they can go."""
    used_bytes: int
    """On disk, garbage included."""


class Shelf:
    """One agent's checkpoints."""

    def __init__(
        self, root: Path, agent_id: str, *, clock: Clock, reverify_s: float
    ) -> None:
        self.agent_id = agent_id
        self._folder = root / agent_id
        self._packs = self._folder / "packs"
        self.catalog = Catalog(self._folder / "manifests", agent_id)
        self.frames = Frames(self._packs, clock=clock, reverify_s=reverify_s)
        self._lock = threading.RLock()
        self._gate = threading.Lock()  # never held while a file is touched
        self._saving = False
        self._users = 0
        self._opened = False
        self._untidy = True
        self._index: Mapping[bytes, Block] = MappingProxyType({})
        self._sparse: frozenset[int] = frozenset()

    # Who is at work here; these three never wait for a disk.

    def claim(self) -> None:
        """Take the one place for a save; give it back with `leave`.

        Raises:
            Conflict: SAVE_IN_PROGRESS.
        """
        with self._gate:
            if self._saving:
                raise Conflict(
                    "SAVE_IN_PROGRESS",
                    f"another save of agent {self.agent_id} is under way: wait for"
                    " its end, then look whether another is still needed",
                    retry_after_s=_BUSY_RETRY_S,
                )
            self._saving = True
            self._users += 1

    def enter(self) -> None:
        """Begin to read: packs stay until `leave`."""
        with self._gate:
            self._users += 1

    def leave(self, *, saving: bool = False) -> None:
        """Be done; call `tidy` some time after."""
        with self._gate:
            self._users -= 1
            if saving:
                self._saving = False

    # Generations.

    def open(self) -> None:
        """Sweep what a crash left, once, and learn which blocks are there.

        Raises:
            Transient: DISK_FAILED.
        """
        with self._lock:
            if not self._opened:
                for folder in (self._folder, self.catalog.folder):
                    self._sweep(folder, _temporaries(folder))
                self.tidy()
                self._opened = True

    def load(self, generation: int) -> Manifest:
        """Read one manifest from disk; see `Catalog.load` for errors."""
        with self._lock:  # or a removal could make it look damaged
            return self.stamped(self.catalog.load(generation))

    def survey(self) -> Survey:
        """Return what is there; see `Catalog.survey`."""
        with self._lock:
            return self.catalog.survey()

    def stamped(self, found: Manifest) -> Manifest:
        """Return the manifest with the time of its last verification."""
        return replace(found, verified_wall_s=self.frames.verified_wall_s(found))

    def index(self) -> Mapping[bytes, Block]:
        """Return the stored blocks by digest."""
        return self._index

    def begin(self, epoch: int) -> Start:
        """Make the folders and return what a save begins with; after `claim`.

        Raises:
            Conflict: STALE_EPOCH or FUTURE_EPOCH.
            Corrupt: FENCE_CORRUPT.
            Overloaded: DISK_FULL.
            Transient: DISK_FAILED.
        """
        with self._lock:
            fenced = fence.read(self._folder)
            epoch = epoch or fenced
            fence.check_save(self.agent_id, epoch, fenced)
            with disk.writing(f"the folder of agent {self.agent_id}"):
                for folder in (self._folder, self._packs, self.catalog.folder):
                    disk.make_folder(folder)
            survey = self.catalog.survey()
            readable = [one.generation for one in survey.readable]
            return Start(
                generation=max(self.catalog.generations(), default=0) + 1,
                parent_generation=max(readable, default=0),
                epoch=epoch,
                index=self._index,
                sparse=self._sparse,
                used_bytes=self._used_bytes(),
            )

    def keep(self, made: Manifest) -> Manifest:
        """Make a generation visible; its blocks are on disk and were read back.

        Raises:
            Conflict: STALE_EPOCH when a higher epoch was fenced meanwhile.
            Corrupt: FENCE_CORRUPT.
            Overloaded: DISK_FULL.
            Transient: DISK_FAILED.
        """
        with self._lock:
            fence.check_save(self.agent_id, made.epoch, fence.read(self._folder))
            self.catalog.put(made)
            added = {block.digest: block for block in made.blocks}
            self._index = MappingProxyType({**self._index, **added})
        return self.stamped(made)

    def fence(self, epoch: int) -> None:
        """Refuse every later save under a lower epoch.

        Raises:
            Conflict: STALE_EPOCH when a higher one is fenced already.
            Overloaded: DISK_FULL.
            Transient: DISK_FAILED.
        """
        with self._lock:
            try:
                fenced = fence.read(self._folder)
            except Corrupt as error:
                # Nobody knows what was fenced, so saves stay refused until now. No
                # generation was saved above it, so this never goes back below what
                # is kept.
                _log.warning("mending: %s", error)
                survey = self.catalog.survey()
                fenced = max((one.epoch for one in survey.readable), default=0)
            fence.check_rise(self.agent_id, epoch, fenced)
            with disk.writing(f"the folder of agent {self.agent_id}"):
                disk.make_folder(self._folder)
            fence.write(self._folder, epoch)

    # Removal, in two phases.

    def remove(self, generations: Sequence[int]) -> None:
        """Remove generations; `tidy` then frees the packs nothing else needs.

        Raises:
            Transient: DISK_FAILED.
        """
        with self._lock:
            self._untidy = True
            self.catalog.remove(generations)

    def tidy(self) -> None:
        """Remove packs nothing needs, if there may be any and nobody is at work.

        Raises:
            Transient: DISK_FAILED.
        """
        with self._lock:
            with self._gate:
                idle = self._users == 0
            # Whoever enters now does no harm: a save takes its view of the index
            # under `_lock`, a reader of a generation that is gone is told so.
            if self._untidy and idle:
                survey = self.catalog.survey()
                if not survey.foreign:
                    gone = self._pack_numbers() - survey.needed_packs()
                    self._sweep(
                        self._packs, [pack.path_of(self._packs, n).name for n in gone]
                    )
                self._learn(survey)
                self._untidy = False

    def freed_by(self, generations: Sequence[int]) -> int:
        """Return the bytes that `remove` and `tidy` would free.

        Raises:
            Transient: DISK_FAILED.
        """
        with self._lock:
            survey = self.catalog.survey()
            going = set(generations)
            left = Survey(
                tuple(m for m in survey.readable if m.generation not in going),
                tuple(one for one in survey.damaged if one not in going),
                survey.foreign,
            )
            gone = self._pack_numbers() - left.needed_packs()
            packs = 0 if left.foreign else sum(map(self.pack_bytes, gone))
            return packs + sum(map(self.catalog.size, going))

    def pack_bytes(self, generation: int) -> int:
        """Return the size of a generation's own pack; 0 if there is none."""
        with disk.reading(f"the packs of agent {self.agent_id}"):
            return disk.size(pack.path_of(self._packs, generation))

    def _learn(self, survey: Survey) -> None:
        # Oldest first: of two copies of a block the newer one is used.
        self._index = MappingProxyType(
            {b.digest: b for one in reversed(survey.readable) for b in one.blocks}
        )
        live: dict[int, int] = {}
        for block in survey.blocks:
            live[block.pack] = live.get(block.pack, 0) + block.frame_bytes
        self._sparse = frozenset(
            number
            for number, count in live.items()
            if count < self.pack_bytes(number) * _SPARSE_RATIO
        )
        self.frames.keep_stamps(survey.blocks)

    def _used_bytes(self) -> int:
        packs = sum(map(self.pack_bytes, self._pack_numbers()))
        return packs + sum(map(self.catalog.size, self.catalog.generations()))

    def _pack_numbers(self) -> set[int]:
        with disk.reading(f"the packs of agent {self.agent_id}"):
            return numbered(disk.names(self._packs), pack.SUFFIX)

    def _sweep(self, folder: Path, names: Iterable[str]) -> None:
        for name in names:
            try:
                disk.remove(folder / name)
            except OSError as error:
                # A disk that takes no changes must still restore.
                _log.warning("cannot remove %s: %s", folder / name, error.strerror)


def _temporaries(folder: Path) -> list[str]:
    with disk.reading(folder.name):
        return [name for name in disk.names(folder) if name.endswith(disk.TEMPORARY)]
