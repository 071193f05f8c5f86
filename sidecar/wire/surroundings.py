"""What the upstreams of a wire take from outside; tests put their own in."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from outrigger.core.clock import Clock, SystemClock
from outrigger.core.events import Alerted, Payload
from outrigger.core.rng import Rng, SystemRng
from sidecar.wire.addresses import Resolve, system_resolve

_log = logging.getLogger("outrigger.upstreams")


def say(payload: Payload) -> None:
    """Log an event where nobody publishes it."""
    level = logging.WARNING if isinstance(payload, Alerted) else logging.INFO
    _log.log(level, "%s", payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times; the defaults suit everybody but tests."""

    warm_up_s: float = 1.0
    """Longest a start waits for connections."""
    drain_s: float = 300.0
    """Longest a channel that is no longer chosen is left to its calls."""
    reload_s: float = 10.0
    """How often TLS files are looked at."""
    resolve_gap_s: float = 1.0
    """Least time between two look-ups of a name."""


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """Clock, chance, names, and somebody to tell."""

    clock: Clock = field(default_factory=SystemClock)
    rng: Rng = field(default_factory=SystemRng)
    resolve: Resolve = system_resolve
    publish: Callable[[Payload], object] = say
    times: Times = field(default_factory=Times)
