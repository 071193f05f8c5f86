"""The channels of one upstream, and which of them the next attempt takes.

Who changes the members: names that were looked up, TLS files that changed. A member
that is to go is chosen no more, keeps its attempts for a while, and is closed when
they are over. Nothing here awaits between choosing a member and handing it out.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import grpc

from outrigger.core.events import Alerted, Recovered
from outrigger.core.tasks import Tasks, finish
from sidecar.call.descriptor import Origin
from sidecar.policy.outlier import Cleared, Ejected, Outliers, has_failed
from sidecar.wire.addresses import Address, HostName
from sidecar.wire.channel_handle import ChannelHandle, Mark, dial
from sidecar.wire.names import Hooks, Names
from sidecar.wire.rotation import Rotation
from sidecar.wire.surroundings import Surroundings
from sidecar.wire.upstream_spec import UpstreamSpec

_READY: Final = grpc.ChannelConnectivity.READY
_FAILING: Final = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_WORST: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressView:
    """One address, for people."""

    address: str
    state: str
    """READY, CONNECTING, IDLE or TRANSIENT_FAILURE."""
    is_ejected: bool
    back_in_s: float
    """0 if it is not ejected."""
    ejections: int
    """In a row."""
    why: str
    """Why it was last ejected; empty if it never was."""
    drops: int
    open_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamView:
    """One upstream, for people."""

    name: str
    balance: str
    tls: str
    """off, tls, or mutual."""
    addresses: tuple[AddressView, ...]


class Pool:
    """The channels of one upstream."""

    def __init__(
        self,
        name: str,
        spec: UpstreamSpec,
        on_ready: Callable[[str], None],
        tasks: Tasks,
        surroundings: Surroundings,
    ) -> None:
        """Take what is known; nothing is dialled before `open`.

        Args:
            name: of the upstream.
            spec: without mistakes.
            on_ready: told the name each time a connection is there and no other was.
            tasks: runs the watchers.
            surroundings: clock, chance, names, and somebody to tell.

        Raises:
            Invalid: BAD_TLS_FILE.
        """
        self._name = name
        self._spec = spec
        self._on_ready = on_ready
        self._tasks = tasks
        self._outside = surroundings
        self._outliers = Outliers(spec.outlier)
        self._addresses: dict[str, Address] = {}
        self._members: dict[str, ChannelHandle] = {}
        self._order: tuple[ChannelHandle, ...] = ()
        self._only: ChannelHandle | None = None
        self._turn = 0
        self._ready: set[ChannelHandle] = set()
        self._watchers: dict[ChannelHandle, asyncio.Task[None]] = {}
        self._leaving: dict[ChannelHandle, asyncio.Task[None]] = {}
        self._following: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()
        self._names = self._make_names()
        tls = spec.peer_tls
        self._rotation = (
            Rotation(name, tls, self._redial, surroundings) if tls else None
        )

    def open(self) -> None:
        """Begin to connect, to look names up, and to follow the TLS files."""
        if self._rotation is not None:
            self._follow("tls", self._rotation.run)
        if self._names is None:
            self._set(self._fixed())
        else:
            self._follow("names", self._names.run)

    async def warm(self) -> None:
        """Wait until as many addresses as asked for are READY, or all have failed.

        It gives up in time, and never fails: calls say it better.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(self._outside.times.warm_up_s):
                while not self._is_warm():
                    self._changed.clear()
                    await self._changed.wait()
        if not self._members and self._names is not None:
            self._set_with_names(self._names.addresses)

    def pick(self) -> ChannelHandle | None:
        """Return the channel for the next attempt; None before there is an address.

        Best is a READY one that is not ejected, then one that still connects and may
        be in time, then a READY one though it is ejected, then any: a call that
        cannot succeed fails there as a call to a dead upstream does.
        """
        if self._only is not None:
            return self._only
        order, count = self._order, len(self._order)
        now = self._outside.clock.monotonic()
        best, best_rank, best_at = None, _WORST, 0
        for step in range(count):
            at = (self._turn + step) % count
            rank = self._rank(order[at], now)
            if rank < best_rank:
                best, best_rank, best_at = order[at], rank, at
                if rank == 0:
                    break
        if self._spec.is_balanced:
            self._turn = best_at + 1
        return best

    async def close(self) -> None:
        """Close every channel; calls on them are cancelled."""
        handles = (*self._watchers, *self._leaving)
        # In this order: a channel closed under its watcher leaks its subchannels.
        for task in (
            *self._following,
            *self._watchers.values(),
            *self._leaving.values(),
        ):
            await finish(task)
        for handle in handles:
            await handle.channel.close()
        self._watchers.clear()
        self._leaving.clear()

    def view(self) -> UpstreamView:
        """Return what is the case now."""
        tls = self._spec.peer_tls
        return UpstreamView(
            name=self._name,
            balance="round_robin" if self._spec.is_balanced else "pick_first",
            tls=tls.kind if tls else "off",
            addresses=tuple(self._view(handle) for handle in self._order),
        )

    # Members.

    def _make_names(self) -> Names | None:
        names = [one for one in self._spec.places() if isinstance(one, HostName)]
        if not names:
            return None
        hooks = Hooks(on_answer=self._set_with_names, is_down=lambda: not self._ready)
        return Names(self._name, names, self._spec.resolve_s, hooks, self._outside)

    def _fixed(self) -> tuple[Address, ...]:
        return tuple(one for one in self._spec.places() if isinstance(one, Address))

    def _set_with_names(self, found: tuple[Address, ...]) -> None:
        self._set((*self._fixed(), *found))

    def _set(self, addresses: Iterable[Address]) -> None:
        """Have these addresses and no others; those that stay keep their channels."""
        self._addresses = {one.target: one for one in addresses}
        for target in tuple(self._members):
            if target not in self._addresses:
                self._retire(self._members.pop(target))
        self._outliers.keep(self._addresses)
        for target, address in self._addresses.items():
            if target not in self._members:
                self._members[target] = self._connect(address)
        self._reorder()

    def _redial(self) -> None:
        """Dial every address anew, with the credentials of now."""
        for target, address in self._addresses.items():
            self._retire(self._members[target])
            self._members[target] = self._connect(address)
        self._reorder()

    def _reorder(self) -> None:
        self._order = tuple(self._members[target] for target in self._addresses)
        self._only = self._order[0] if len(self._order) == 1 else None
        self._changed.set()

    def _connect(self, address: Address) -> ChannelHandle:
        credentials = self._rotation.credentials if self._rotation else None
        handle = ChannelHandle(
            self._name,
            address.target,
            dial(self._spec, address, credentials),
            None if self._is_single else self._ended,
        )
        self._match_generation(handle)
        self._watchers[handle] = self._tasks.spawn_forever(
            f"wire.watch[{self._name}]", lambda: handle.watch(self._on_state)
        )
        return handle

    @property
    def _is_single(self) -> bool:
        """Say whether there is one address and never will be another."""
        return self._names is None and len(self._addresses) == 1

    def _retire(self, handle: ChannelHandle) -> None:
        self._ready.discard(handle)
        watcher = self._watchers.pop(handle)
        self._leaving[handle] = self._tasks.spawn(
            f"wire.drain[{self._name}]", self._drain(handle, watcher)
        )

    async def _drain(self, handle: ChannelHandle, watcher: asyncio.Task[None]) -> None:
        await finish(watcher)
        await handle.emptied(self._outside.times.drain_s)
        await handle.channel.close()
        del self._leaving[handle]

    def _follow(self, what: str, run: Callable[[], Awaitable[object]]) -> None:
        self._following.append(
            self._tasks.spawn_forever(f"wire.{what}[{self._name}]", run)
        )

    # Choosing.

    def _rank(self, handle: ChannelHandle, now: float) -> int:
        state = handle.state
        if self._outliers.is_ejected(handle.target, now):
            return 2 if state is _READY else 3
        if state is _READY:
            return 0
        return 3 if state is _FAILING else 1

    def _is_warm(self) -> bool:
        if not self._members:
            return False
        wanted = min(self._spec.warm_up, len(self._members))
        return len(self._ready) >= wanted or all(
            handle.has_settled for handle in self._order
        )

    # What happens.

    def _on_state(self, handle: ChannelHandle, state: grpc.ChannelConnectivity) -> None:
        self._changed.set()
        if state is _READY:
            self._turned_ready(handle)
        elif state is _FAILING or handle in self._ready:
            self._turned_bad(handle)

    def _turned_ready(self, handle: ChannelHandle) -> None:
        # Asked anew: another one's watcher may not have seen yet that it was lost.
        others = any(one.is_ready for one in self._ready if one is not handle)
        self._ready.add(handle)
        if not others:
            self._on_ready(self._name)

    def _turned_bad(self, handle: ChannelHandle) -> None:
        self._ready.discard(handle)
        if self._names is not None:
            # Not again and again: the state of an address that stays dead does not
            # change any more.
            self._names.poke()

    def _ended(self, mark: Mark, code: int, origin: Origin) -> None:
        failed = has_failed(code, origin)
        if failed is None:
            return
        now = self._outside.clock.monotonic()
        if failed:
            draw = self._outside.rng.draw()
            ejected = self._outliers.failed(mark.address, mark.generation, now, draw)
            if ejected is not None:
                self._tell_ejected(ejected, now)
            return
        cleared = self._outliers.answered(mark.address, mark.generation, now)
        if cleared is not None:
            self._tell_cleared(cleared)

    def _tell_ejected(self, ejected: Ejected, now: float) -> None:
        self._match_generation(self._members[ejected.address])
        self._outside.publish(
            Alerted(
                name="UPSTREAM_ADDRESS_EJECTED",
                message=f"upstream {self._name}: {ejected.address} gets no calls for"
                f" {ejected.until - now:.1f} s ({ejected.why})",
            )
        )

    def _tell_cleared(self, cleared: Cleared) -> None:
        self._outside.publish(
            Recovered(
                subject=f"{cleared.address} of {self._name}", elapsed_s=cleared.after_s
            )
        )

    def _match_generation(self, handle: ChannelHandle) -> None:
        record = self._outliers.record(handle.target)
        if record is not None:
            handle.generation = record.generation

    def _view(self, handle: ChannelHandle) -> AddressView:
        now = self._outside.clock.monotonic()
        record = self._outliers.record(handle.target)
        back_in_s = max(record.until - now, 0.0) if record else 0.0
        return AddressView(
            address=handle.target,
            state=handle.state.name,
            is_ejected=back_in_s > 0,
            back_in_s=back_in_s,
            ejections=record.times if record else 0,
            why=record.why if record else "",
            drops=handle.drops,
            open_attempts=handle.open_attempts,
        )
