"""What is asked of every party: kind of call, size, how many at once."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Load:
    """One kind of work."""

    shape: str
    """In words, as in the tables."""
    kind: str
    """What the load generator calls it: unary, stream or pingpong."""
    size_bytes: int
    """Of each message."""
    in_flight: int
    rate: float = 0.0
    """Calls due each second whatever became of the others; 0 means that each ended
    call makes room for the next."""

    @property
    def is_crowded(self) -> bool:
        """Say whether as many calls are in flight as can be had."""
        return self.in_flight == CROWDED and not self.rate

    @property
    def name(self) -> str:
        """Return how tables and ratios name it."""
        if self.rate:
            return f"{self.shape}, {self.rate:g} a second"
        return f"{self.shape}, {self.in_flight} in flight"


_SHAPES: Final = (
    ("unary 32 B", "unary", 32),
    ("unary 64 KiB", "unary", 64 * 1024),
    ("stream of 100 x 1 KiB", "stream", 1024),
    ("100 round trips of 32 B", "pingpong", 32),
)
ALONE: Final = 1
CROWDED: Final = 64
_OPEN_RATE: Final = 200.0
"""Well below what the slowest relay can do, or its queue would be measured."""

LOADS: Final = (
    *(Load(*shape, in_flight) for shape in _SHAPES for in_flight in (ALONE, CROWDED)),
    Load("unary 32 B", "unary", 32, CROWDED, _OPEN_RATE),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long a run takes its time."""

    rounds: int
    seconds: float
    """Of each load on each party in each round."""
    open_seconds: float
    """The same for loads with a rate; longer, for their tails."""


FULL: Final = Effort(rounds=7, seconds=0.6, open_seconds=1.5)
QUICK: Final = Effort(rounds=3, seconds=0.4, open_seconds=1.0)
WARM_UP: Final = Effort(rounds=1, seconds=0.4, open_seconds=0.4)
"""The same before every run: memory is read after it."""
