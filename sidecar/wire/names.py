"""Names of an upstream, looked up again and again.

A failed look-up changes nothing: the last good answer stays, and a name that never
had one is left to gRPC, so that calls fail as they do when nobody is there.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from outrigger.core.events import Alerted, Recovered
from sidecar.wire.addresses import Address, HostName
from sidecar.wire.surroundings import Surroundings

OnAnswer = Callable[[tuple[Address, ...]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Who is told and who is asked."""

    on_answer: OnAnswer
    """Given all addresses after each look-up, good or not."""
    is_down: Callable[[], bool]
    """Says whether no address can be reached: then there is no waiting."""


class Names:
    """The names of one upstream; `run` follows them."""

    def __init__(
        self,
        upstream: str,
        names: Sequence[HostName],
        every_s: float,
        hooks: Hooks,
        surroundings: Surroundings,
    ) -> None:
        """Take the names; nothing is looked up before `run`.

        Args:
            upstream: named in events.
            names: what to look up.
            every_s: seconds between two look-ups when nothing fails.
            hooks: who is told and who is asked.
            surroundings: clock, resolver, and somebody to tell.
        """
        self._upstream = upstream
        self._names = tuple(names)
        self._every_s = every_s
        self._hooks = hooks
        self._outside = surroundings
        self._known: dict[HostName, tuple[Address, ...]] = {}
        self._failing: dict[HostName, float] = {}
        """Since when, monotonic seconds."""
        self._poked = asyncio.Event()

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Return the addresses of all names as last known."""
        return tuple(
            address
            for name in self._names
            for address in self._known.get(name, (name.unresolved,))
        )

    def poke(self) -> None:
        """Look up as soon as allowed: an address has failed."""
        self._poked.set()

    async def run(self) -> None:
        """Look the names up until cancelled."""
        clock, gap_s = self._outside.clock, self._outside.times.resolve_gap_s
        while True:
            self._poked.clear()
            for name in self._names:
                await self._look_up(name)
            self._hooks.on_answer(self.addresses)
            await clock.sleep(gap_s)
            if self._hooks.is_down():
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(self._every_s - gap_s):
                    await self._poked.wait()

    async def _look_up(self, name: HostName) -> None:
        # No time limit: the thread that asks cannot be stopped, and a second one
        # beside it would wait as long.
        try:
            targets = await self._outside.resolve(name.host, name.port)
        except (OSError, UnicodeError) as error:
            self._failed(name, str(error))
            return
        if not targets:
            self._failed(name, "the answer is empty")
            return
        self._known[name] = tuple(Address(one, name.authority) for one in targets)
        self._answered(name)

    def _failed(self, name: HostName, why: str) -> None:
        """Alert once per failure, not once per look-up."""
        if name in self._failing:
            return
        self._failing[name] = self._outside.clock.monotonic()
        kept = len(self._known.get(name, ()))
        then = f"the {kept} last known stay" if kept else "none was known before"
        self._outside.publish(
            Alerted(
                name="UPSTREAM_NAME_LOST",
                message=f"upstream {self._upstream}: no addresses for"
                f" {name.authority} ({why}); {then}, and the look-up is repeated",
            )
        )

    def _answered(self, name: HostName) -> None:
        since = self._failing.pop(name, None)
        if since is not None:
            elapsed_s = self._outside.clock.monotonic() - since
            subject = f"addresses of {self._upstream}"
            self._outside.publish(Recovered(subject=subject, elapsed_s=elapsed_s))
