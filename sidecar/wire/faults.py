"""Faults made on purpose: an attempt that is delayed, aborted or never answered."""

import math
from typing import Final

from outrigger.core import names
from outrigger.core.clock import Clock
from sidecar.call.descriptor import Fault, Go, Origin, Outcome

_DEADLINE_EXCEEDED: Final = 4
_FOR_EVER_S: Final = 86_400.0
_MARK: Final = ((names.FAULT_TRAILER, "abort"),)


async def suffer(go: Go, fault: Fault, clock: Clock) -> Outcome | None:
    """Do what was asked to go wrong; None means that the attempt goes on.

    The outcome counts as the upstream's own: what is tried out is how the layers
    around it take that.
    """
    if fault.delay_s:
        await clock.sleep(min(fault.delay_s, _limit_s(go)))
    if fault.is_dropped:
        await clock.sleep(_limit_s(go))
        return Outcome(
            _DEADLINE_EXCEEDED,
            "a fault that an operator asked for dropped this call",
            Origin.UNKNOWN,
            committed=False,
            is_cut=go.answer_s is not None,
        )
    if fault.code:
        return Outcome(
            fault.code, fault.message, Origin.UPSTREAM, committed=False, trailers=_MARK
        )
    return None


def _limit_s(go: Go) -> float:
    limits = [limit for limit in (go.timeout_s, go.answer_s) if limit is not None]
    return min(limits, default=math.inf) if limits else _FOR_EVER_S
