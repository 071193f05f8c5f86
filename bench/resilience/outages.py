"""A callee that is gone for a minute, and one that is there and does not answer."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from bench.figures import Figure
from bench.resilience import timelines
from bench.resilience.parties import (
    OURS,
    CalleeProcess,
    Load,
    Party,
    envoys,
    ours,
)
from bench.resilience.timelines import Made
from tests.support.processes import Stack

RATE: Final = 20.0
SELDOM: Final = 3.0
_WARM_S: Final = 3.0
_PATIENT_S: Final = 60.0
_HASTY_S: Final = 1.0
_BACK_S: Final = 1.0
_OPEN_S: Final = 5.0
_AT_MOST_S: Final = 20.0
"""Recovery is promised no later than this after the return."""


async def gone(folder: Path, outage_s: float, after_s: float) -> list[Figure]:
    """Kill the callee under steady calls and start it again."""
    with Stack(folder) as stack:
        callee = CalleeProcess(stack, "callee")
        parties = [ours(stack, "outage", callee), *envoys(stack, callee)]
        async with AsyncExitStack() as loads:
            running = [
                await loads.enter_async_context(Load(party, RATE, _HASTY_S))
                for party in parties
            ]
            await asyncio.sleep(_WARM_S)
            callee.running.kill()
            await asyncio.sleep(outage_s)
            back = await asyncio.to_thread(callee.start)
            await asyncio.sleep(after_s)
    return [
        figure
        for load in running
        for figure in returned(load.party.name, load.made, back, outage_s)
    ]


def returned(
    name: str, calls: Sequence[Made], back: float, outage_s: float
) -> Iterator[Figure]:
    """Yield how soon after its return a callee was reached, once and for good."""
    first_s = timelines.first_success_s(calls, back)
    lasting_s = timelines.lasting_success_s(calls, back)
    slot_s = timelines.slot_s(calls, back)
    is_ours = name == OURS
    for what, value_s in (("first", first_s), ("lasting", lasting_s)):
        yield Figure(
            f"outage of {outage_s:g} s",
            f"{name}: callee's return to {what} success, {RATE:g} calls/s",
            value_s,
            "s",
            f"rest left at its return {slot_s:.2f} s" if is_ours else "",
            bound="<= 1 s + the rest left" if is_ours else "",
            holds=value_s <= _BACK_S + slot_s if is_ours else None,
        )


async def hole(folder: Path, hole_s: float, after_s: float) -> list[Figure]:
    """Stop callees under callers that are willing to wait for a minute."""
    with Stack(folder) as stack:
        often, seldom = (CalleeProcess(stack, name) for name in ("often", "seldom"))
        ways: list[tuple[Party, float]] = [
            (ours(stack, "often-called", often), RATE),
            (ours(stack, "seldom-called", seldom), SELDOM),
            *((party, RATE) for party in envoys(stack, often)),
        ]
        async with AsyncExitStack() as loads:
            running = [
                (await loads.enter_async_context(Load(party, rate, _PATIENT_S)), rate)
                for party, rate in ways
            ]
            await asyncio.sleep(_WARM_S)
            stopped = min(often.stop(), seldom.stop())
            await asyncio.sleep(hole_s)
            thawed = max(often.go_on(), seldom.go_on())
            await asyncio.sleep(after_s)
    return [
        figure
        for load, rate in running
        for figure in swallowed(load, rate, stopped, thawed)
    ]


def swallowed(
    load: Load, rate: float, stopped: float, thawed: float
) -> Iterator[Figure]:
    """Yield when a black hole was found, and when it was left."""
    name, is_ours = load.party.name, load.party.name == OURS
    opened_s = timelines.opened_s(load.made, stopped)
    part = f"black hole, {rate:g} calls/s"
    if is_ours:
        yield Figure(
            part,
            f"{name}: callee stopped to circuit open, deadlines of 60 s",
            opened_s,
            "s",
            bound="< 5 s",
            holds=opened_s < _OPEN_S,
        )
    meanwhile = [one for one in load.made if stopped <= one.begun < thawed]
    stuck = sum(one.ended >= thawed for one in meanwhile)
    yield Figure(
        part, f"{name}: calls stuck until it went on", stuck, f"of {len(meanwhile)}"
    )
    lasting_s = timelines.lasting_success_s(load.made, thawed)
    yield Figure(
        part,
        f"{name}: callee goes on to lasting success",
        lasting_s,
        "s",
        bound="<= 20 s" if is_ours else "",
        holds=lasting_s <= _AT_MOST_S if is_ours else None,
    )
