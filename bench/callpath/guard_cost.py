"""What deciding about one healthy call costs: `begin` and `ended` of the real guard.

Run as `python -P -m bench.callpath.guard_cost`. CPU time, and the least of many short
rounds: what else the machine does can only add to it.
"""

import gc
import time
from typing import Final

from rich.console import Console

from bench.figures import Figure, show
from sidecar.call.descriptor import Call, Go, Origin, Outcome
from sidecar.call.guard import CallGuard
from sidecar.call.routes import Routes, Upstream

BOUND_US: Final = 5.0
ROUNDS: Final = 100
CALLS: Final = 1000
_EVERY_S: Final = 0.001
"""Time between two calls as the guard is told it: a window moves on as in life."""
_METADATA: Final = (
    ("user-agent", "grpc-go/1.85.0"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
)


def guard_us(rounds: int = ROUNDS) -> float:
    """Return the microseconds of `begin` and `ended` together."""
    guard = CallGuard(
        Routes([Upstream("default", "127.0.0.1:1")], [], {}),
        publish=lambda _event: None,
        now=0.0,
    )
    gc.collect()
    found = [_round(guard, number * CALLS * _EVERY_S) for number in range(rounds)]
    return min(found) * 1e6


def _round(guard: CallGuard, now: float) -> float:
    """Return the seconds per call, less those of a loop that decides nothing."""
    calls = [
        Call(f"call-{number}", "/bench.Echo/Unary", _METADATA, now + 3600)
        for number in range(CALLS)
    ]
    outcome = Outcome(0, "", Origin.UPSTREAM, committed=True)
    busy_s = _decided(guard, calls, outcome, now)
    return (busy_s - _idle(calls, now)) / CALLS


def _decided(
    guard: CallGuard, calls: list[Call], outcome: Outcome, now: float
) -> float:
    began = time.thread_time()
    for call in calls:
        now += _EVERY_S
        go = guard.begin(call, now)
        if type(go) is not Go:
            raise TypeError(f"a healthy call was not admitted: {go}")
        guard.ended(go.permit, go.attempt, outcome, now, 0.5)
    return time.thread_time() - began


def _idle(calls: list[Call], now: float) -> float:
    began = time.thread_time()
    for _call in calls:
        now += _EVERY_S
    return time.thread_time() - began


def main() -> int:
    """Print it; exit 1 if it is over the bound."""
    found = guard_us()
    figure = Figure(
        "guard",
        "begin + ended of a healthy call",
        found,
        "us",
        bound=f"< {BOUND_US:g} us",
        holds=found < BOUND_US,
    )
    show("Deciding about one call", [figure])
    if found >= BOUND_US:
        Console(stderr=True).print("the guard costs too much: profile begin and ended")
    return int(found >= BOUND_US)


if __name__ == "__main__":
    raise SystemExit(main())
