"""Faults between the policy that picks them and the guard that asks.

The guard asks only while a rule is in force: with none its `faults` is None, which
costs a call nothing. Every rule has a timer, so that this holds again after the last
one ended by itself, be there calls or not.

Who may end a rule at once, and who wins: its time, and an operator. Whoever is first;
the timer of a cleared rule is cancelled, so that its end is told once.
"""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from outrigger.core.clock import Clock
from outrigger.core.events import Alerted
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Fault
from sidecar.call.guard import FaultSource
from sidecar.policy.classify import Code
from sidecar.policy.fault import FaultRule, Faults, FaultView

_OVER: Final = "its time is over"
_CLEARED: Final = "an operator cleared it"
_ON_PURPOSE: Final = "a fault that an operator asked for ended this call"


class Suffers(Protocol):
    """A guard, as far as faults go."""

    faults: FaultSource | None


class FaultLayer:
    """Puts an operator's faults into a guard and takes them out again."""

    def __init__(
        self,
        guard: Suffers,
        *,
        clock: Clock,
        tasks: Tasks,
        publish: Callable[[Alerted], object],
    ) -> None:
        """Prepare; the guard is touched with the first fault only.

        Args:
            guard: whose calls go wrong.
            clock: says when faults end.
            tasks: runs their timers.
            publish: takes an Alerted when one begins and when it ends.
        """
        self._guard = guard
        self._clock = clock
        self._tasks = tasks
        self._publish = publish
        self._faults = Faults()
        self._timers: dict[str, asyncio.Task[None]] = {}

    def inject(self, rule: FaultRule) -> FaultView:
        """Put a rule in force and return it with its id.

        Raises:
            Overloaded: TOO_MANY_FAULTS.
        """
        now = self._clock.monotonic()
        fault_id = self._faults.inject(rule, now)
        self._timers[fault_id] = self._tasks.spawn(
            "faults.expire", self._expire(fault_id, now + rule.ttl_s)
        )
        self._guard.faults = self
        self._tell(
            "FAULT_INJECTED",
            f"{fault_id} makes {_words(rule)} for {rule.ttl_s:g} s, because an operator"
            f" asked for it: 'outrigger faults clear {fault_id}' ends it",
        )
        now_live = self._faults.rules(now)
        return next(one for one in now_live if one.fault_id == fault_id)

    def clear(self, fault_id: str) -> None:
        """End a rule.

        Raises:
            NotFound: UNKNOWN_FAULT.
        """
        self._faults.clear(fault_id)
        self._cleared(fault_id)

    def clear_all(self) -> int:
        """End every rule and return how many there were."""
        self._faults.clear_all()
        ended = tuple(self._timers)
        for fault_id in ended:
            self._cleared(fault_id)
        return len(ended)

    def views(self) -> tuple[FaultView, ...]:
        """Return the rules in force."""
        return self._faults.rules(self._clock.monotonic())

    def fault(self, upstream: str, method: str, now: float) -> Fault | None:
        """Return what is to go wrong with an attempt that begins now."""
        rule = self._faults.pick(upstream, method, now)
        if rule is None:
            return None
        if rule.kind == "abort":
            return Fault(code=rule.code, message=rule.message or _ON_PURPOSE)
        return Fault(delay_s=rule.delay_s, is_dropped=rule.kind == "drop")

    async def _expire(self, fault_id: str, expires: float) -> None:
        while (left_s := expires - self._clock.monotonic()) > 0:
            await self._clock.sleep(left_s)
        self.views()  # which forgets it: nobody can clear what is over
        del self._timers[fault_id]
        self._ended(fault_id, _OVER)

    def _cleared(self, fault_id: str) -> None:
        self._timers.pop(fault_id).cancel()
        self._ended(fault_id, _CLEARED)

    def _ended(self, fault_id: str, why: str) -> None:
        if not self._timers:
            self._guard.faults = None
        self._tell("FAULT_ENDED", f"{fault_id} makes nothing go wrong any more: {why}")

    def _tell(self, name: str, message: str) -> None:
        self._publish(Alerted(name=name, message=message))


def _words(rule: FaultRule) -> str:
    """Return what a rule does, for a person."""
    where = "" if rule.upstream is None else f" to {rule.upstream}"
    what = {
        "delay": f"wait {rule.delay_s:g} s",
        "abort": f"end with {Code(rule.code).name}",
        "drop": "get no answer",
    }[rule.kind]
    return f"{rule.share * 100:g} % of the calls of {rule.match}{where} {what}"
