"""Fence: the highest epoch an agent's store was told of, on disk.

Nothing is saved under a lower one, whoever asks, also after a restart.
"""

from pathlib import Path
from typing import Final

from outrigger.core.errors import Conflict, Corrupt
from sidecar.checkpoints import disk
from sidecar.checkpoints.sealed import seal, unseal

FILE: Final = "fence"
_MAX_BYTES: Final = 4096


def read(folder: Path) -> int:
    """Return the fenced epoch of an agent's folder; 0 if there was none.

    Raises:
        Corrupt: FENCE_CORRUPT; the next fencing mends it.
        Transient: DISK_FAILED.
    """
    try:
        with disk.reading("the fence"):
            if FILE not in disk.names(folder):
                return 0
            data = disk.read_at(folder / FILE, 0, _MAX_BYTES)
        return int(unseal(data, "the fence")["epoch"])
    except (Corrupt, KeyError) as error:
        raise Corrupt(
            "FENCE_CORRUPT",
            f"the file 'fence' of agent {folder.name} is damaged: nothing is saved"
            " until the agent's present epoch is fenced anew, which a restart of the"
            " sidecar does",
        ) from error


def write(folder: Path, epoch: int) -> None:
    """Put the epoch on disk.

    Raises:
        Overloaded: DISK_FULL.
        Transient: DISK_FAILED.
    """
    with disk.writing("the fence"):
        disk.put(folder / FILE, seal({"epoch": epoch}))


def check(agent_id: str, epoch: int, fenced: int) -> None:
    """Refuse an epoch below the fence.

    Raises:
        Conflict: STALE_EPOCH.
    """
    if epoch < fenced:
        raise Conflict(
            "STALE_EPOCH",
            f"epoch {epoch} of agent {agent_id} is over: the present one is {fenced};"
            " read the agent's state and decide anew",
            metadata={"epoch": str(fenced)},
        )
