"""How cases are named, collected and run: directly, and through a wire."""

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tests.support import fidelity_upstream
from tests.support.fidelity_caller import Caller
from tests.support.fidelity_observation import Observation
from tests.support.fidelity_raw import RawCallee
from tests.support.fidelity_upstream import UNLIMITED, Upstream


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a case's peers are like."""

    caller: tuple = UNLIMITED
    """Channel options of the caller."""
    upstream: tuple = UNLIMITED
    """Server options of the upstream."""
    caller_compression: Any = None
    upstream_compression: Any = None
    unordered: bool = False
    """Its calls reach the upstream in no certain order."""
    end_is_open: bool = False
    """Whether the callee hears that its caller failed depends on how much of what it
    said fits into the buffers on the way, and with a relay there are more of them."""
    majority: bool = False
    """It makes the same call many times, and what most of them were counts."""
    raw: bool = False
    """The upstream is a bare HTTP/2 peer that sees frames."""


@dataclass(frozen=True)
class Case:
    """A caller and an upstream doing something with each other."""

    name: str
    act: Callable
    setting: Setting


CASES: dict[str, Case] = {}
"""The one list."""


def case(over=(None,), **setting):
    """Add an async function of (caller, upstream) to the list.

    Args:
        over: values for a third argument: one case for each.
        setting: fields of Setting.
    """

    def add(act):
        for value in over:
            given = () if over == (None,) else (value,)
            suffix = f"[{value}]" if given else ""
            name = act.__name__ + suffix
            assert name not in CASES, name
            CASES[name] = Case(name, _bound(act, given), Setting(**setting))
        return act

    return add


def _bound(act, given):
    async def bound(caller, upstream):
        return await act(caller, upstream, *given)

    bound.__module__ = act.__module__
    return bound


async def observe(case, wire=None):
    """Run a case, directly or through a wire; return what was observed."""
    async with (
        asyncio.timeout(2 * fidelity_upstream.LIMIT_S),
        _upstream(case.setting) as upstream,
    ):
        if wire is None:
            return await _act(case, upstream.target, upstream)
        async with wire(upstream.target) as address:
            return await _act(case, address, upstream)


@asynccontextmanager
async def _upstream(setting):
    upstream = RawCallee() if setting.raw else Upstream()
    serving = (
        upstream.serving()
        if setting.raw
        else upstream.serving(setting.upstream, setting.upstream_compression)
    )
    async with serving:
        yield upstream


async def _act(case, address, upstream):
    setting = case.setting
    caller = Caller(address, setting.caller, setting.caller_compression)
    try:
        found = await case.act(caller, upstream)
        seen = await upstream.observed()
        if setting.end_is_open:
            _without_cancellation(seen)
        if setting.majority:
            seen = [Counter(seen).most_common(1)[0][0]]
        if setting.unordered:
            seen.sort(key=repr)
    finally:
        await caller.close()
    if isinstance(found, Observation):
        found.upstream = seen
        return found
    return Observation(caller=found, upstream=seen)


def _without_cancellation(seen):
    for call in seen:
        call["events"] = [event for event in call["events"] if event != ("cancelled",)]
