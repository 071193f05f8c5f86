"""Many callers at once: at half open, after a common failure, against an ill callee."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc.aio

from bench.figures import Figure
from bench.resilience import timelines
from bench.resilience.parties import (
    OURS,
    CalleeProcess,
    Load,
    Party,
    envoys,
    make,
    naive,
    ours,
)
from bench.resilience.timelines import Made
from tests.support.processes import Stack

_PROBES: Final = 3
_RETRIES: Final = 210
_FAILURES: Final = 1000
_PER_METHOD: Final = 4
"""Fewer than open a method's circuit: what is left to hold retries is the budget."""
_WAIT_S: Final = 0.5
_MOST_LOAD: Final = 1.2
_GOODPUT: Final = 0.95
_BACK_S: Final = 30.0
_DEADLINE_S: Final = 5.0
_TO_OPEN: Final = 12


async def half_open(folder: Path, callers: int, seconds: float) -> list[Figure]:
    """Let everybody come back when the rest is over, to a callee that hangs."""
    with Stack(folder) as stack:
        callee = CalleeProcess(stack, "callee")
        async with ours(stack, "half-open", callee).channel() as channel:
            await make(channel, _DEADLINE_S)
            await callee.order(behave="answer", share=0.0)
            for _ in range(_TO_OPEN):
                await make(channel, _DEADLINE_S)
            await callee.order(behave="hang")
            end = time.monotonic() + seconds
            made = await asyncio.gather(
                *(_come_back(channel, end) for _ in range(callers))
            )
            counted = await callee.order()
    probes = len(counted["arrivals"])
    return [
        Figure(
            "half open",
            f"most probes in flight, {callers} callers, callee hangs",
            counted["most"],
            "calls",
            f"{probes} probes, {sum(made)} calls made",
            bound="1 to 3",
            holds=0 < counted["most"] <= _PROBES,
        )
    ]


async def _come_back(channel: grpc.aio.Channel, end: float) -> int:
    """Call until `end`, when it is said to; return how often."""
    made = 0
    while (left_s := end - time.monotonic()) > 0:
        one = await make(channel, left_s)
        made += 1
        pushback_s = one.pushback_s or 0.0
        # All that were refused with one rest come back at one moment.
        await asyncio.sleep(pushback_s if pushback_s > _WAIT_S / 2 else _WAIT_S)
    return made


async def failures(folder: Path) -> list[Figure]:
    """Fail a thousand calls in one moment; count the retries that come of it."""
    with Stack(folder) as stack:
        callee = CalleeProcess(stack, "callee")
        return [
            await _all_fail(stack, "one-method", callee, methods=1),
            await _all_fail(stack, "methods", callee, methods=_FAILURES // _PER_METHOD),
        ]


async def _all_fail(
    stack: Stack, name: str, callee: CalleeProcess, *, methods: int
) -> Figure:
    async with ours(stack, name, callee).channel() as channel:
        await callee.order(behave="hold", hold=_FAILURES)
        made = await asyncio.gather(
            *(
                make(channel, 30.0, f"/bench.Callee/Call{number % methods}")
                for number in range(_FAILURES)
            )
        )
        counted = await callee.order(behave="answer")
    retries = len(counted["arrivals"]) - _FAILURES
    return Figure(
        "1,000 failures at once",
        f"retries seen by the callee, calls of {methods} methods",
        retries,
        "calls",
        f"{sum(one.is_good for one in made)} answered by them",
        bound="<= 210",
        holds=0 <= retries <= _RETRIES,
    )


@dataclass(frozen=True, slots=True)
class Ill:
    """What happened to one party while its callee was ill, and after."""

    name: str
    began: float
    recovered: float
    calls: list[Made]
    arrivals: list[float]
    """Of attempts, while it was ill and after."""


async def amplified(
    folder: Path, rate: float, ill_s: float, after_s: float
) -> list[Ill]:
    """Offer everybody the same calls while nine in ten of them fail, and after."""
    with Stack(folder) as stack:
        parties = _everybody(stack)
        async with AsyncExitStack() as loads:
            running = [
                await loads.enter_async_context(Load(party, rate, _DEADLINE_S))
                for party in parties
            ]
            await asyncio.sleep(2.0)
            began = time.monotonic()
            for party in parties:
                await party.callee.order(behave="answer", share=0.1)
            await asyncio.sleep(ill_s)
            recovered = time.monotonic()
            ill = [await party.callee.order(behave="answer") for party in parties]
            await asyncio.sleep(after_s)
            well = [await party.callee.order() for party in parties]
    return [
        Ill(
            load.party.name,
            began,
            recovered,
            load.made,
            before["arrivals"] + after["arrivals"],
        )
        for load, before, after in zip(running, ill, well, strict=True)
    ]


def _everybody(stack: Stack) -> list[Party]:
    callees = [CalleeProcess(stack, f"callee-{number}") for number in range(3)]
    return [
        ours(stack, "ill", callees[0]),
        *envoys(stack, callees[1]),
        naive(callees[2]),
    ]


def of_ill(ill: Ill) -> Iterator[Figure]:
    """Yield what a party's load became at the callee, and how it came back."""
    is_ours = ill.name == OURS
    meanwhile = [one for one in ill.calls if ill.began <= one.begun < ill.recovered]
    arrivals = [when for when in ill.arrivals if when < ill.recovered]
    part = f"callee answers 10 % for {ill.recovered - ill.began:.0f} s"
    factor = timelines.amplification(arrivals, meanwhile)
    yield Figure(
        part,
        f"{ill.name}: attempts per call offered",
        factor,
        "",
        f"{len(arrivals)} of {len(meanwhile)}",
        bound="<= 1.2" if is_ours else "",
        holds=factor <= _MOST_LOAD if is_ours else None,
    )
    good = sum(one.is_good for one in meanwhile) / max(len(meanwhile), 1)
    yield Figure(part, f"{ill.name}: calls answered meanwhile", 100 * good, "%")
    yield Figure(
        part,
        f"{ill.name}: p99 of the wait for a failure",
        1000 * timelines.waited_p99_s(meanwhile),
        "ms",
    )
    back_s = timelines.goodput_back_s(ill.calls, ill.recovered, _GOODPUT)
    yield Figure(
        part,
        f"{ill.name}: recovery to 95 % answered in every second",
        back_s,
        "s",
        bound="<= 30 s" if is_ours else "",
        holds=back_s <= _BACK_S if is_ours else None,
    )
