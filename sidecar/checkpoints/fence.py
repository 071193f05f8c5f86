"""Fence: the highest epoch an agent's store was told of, on disk.

Only the sidecar issues epochs, and it fences each before it asks for a save under
it. So nothing is saved under a lower one, which is over, nor under a higher one,
which nobody issued; whoever asks, also after a restart.
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


def check_save(agent_id: str, epoch: int, fenced: int) -> None:
    """Refuse a save under any other epoch than the fenced one.

    Raises:
        Conflict: STALE_EPOCH or FUTURE_EPOCH.
    """
    check_rise(agent_id, epoch, fenced)
    if epoch > fenced:
        raise Conflict(
            "FUTURE_EPOCH",
            f"epoch {epoch} of agent {agent_id} was never issued: the present one is"
            f" {fenced}; save under the epoch of the save order, or under 0 outside of"
            " one",
            metadata={"epoch": str(fenced)},
        )


def check_rise(agent_id: str, epoch: int, fenced: int) -> None:
    """Refuse to go back below the fence.

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
