"""What every call of one wire needs."""

import asyncio
from dataclasses import dataclass, field

from outrigger.core.clock import Clock
from outrigger.core.rng import Rng
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Guard, LetterPort, Resolution
from sidecar.wire.options import WireOptions
from sidecar.wire.shapes import RequestShapes
from sidecar.wire.upstreams import Targets


@dataclass(slots=True)
class Parts:
    """The parts of a wire."""

    guard: Guard
    targets: Targets
    letters: LetterPort | None
    clock: Clock
    rng: Rng
    tasks: Tasks
    options: WireOptions
    parked: dict[int, asyncio.Future[Resolution]] = field(default_factory=dict)
    """Calls that wait for `Wire.resolve`, by token."""
    shapes: RequestShapes = field(init=False)

    def __post_init__(self) -> None:
        """Make what is learnt on the way."""
        self.shapes = RequestShapes(self.options.join_s)
