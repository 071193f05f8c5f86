"""One channel per upstream: kept connected, watched, and asked who failed.

A channel of its own, with its own subchannels: channels with equal arguments share
one connection and its reconnect backoff, so that a new one would start in the old
one's penalty. An idle channel never turns READY by itself, so the watcher asks it to
connect: that is how an upstream's return is noticed while its circuit is open.

Races. A connection may break and be there again before anybody looks: every READY
that ended is counted, and an attempt compares the count. The failure of an attempt
may be reported before the channel leaves READY (in one of 25 to 50 cases, by up to
0.3 ms on grpcio 1.85.1): what looks like the callee's own UNAVAILABLE is looked at
again for a few milliseconds.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import grpc
import grpc.aio

from outrigger.core.clock import Clock
from outrigger.core.rpc.server import channel
from outrigger.core.tasks import Tasks, finish
from sidecar.call.descriptor import Origin, Trailers

_IDLE: Final = grpc.ChannelConnectivity.IDLE
_READY: Final = grpc.ChannelConnectivity.READY
_SHUTDOWN: Final = grpc.ChannelConnectivity.SHUTDOWN
_OK: Final = 0
_UNAVAILABLE: Final = 14
_DEADLINE_EXCEEDED: Final = 4
_MADE_HERE_TOO: Final = frozenset({1, 2, _DEADLINE_EXCEEDED, 13, _UNAVAILABLE})
"""Statuses the library makes on this side too: of resets (CANCELLED, UNKNOWN,
INTERNAL), of its own timer, of connections."""

_LOOKS: Final = 5
_LOOK_S: Final = 0.001
_REST_S: Final = 0.1
"""As long as the backoff after a first connection that failed."""

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # 30 s by default: an upstream that came back under another address would be
    # found too late for the promise that recovery takes no more than 20 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
)


@dataclass(slots=True)
class Mark:
    """A channel as it was when an attempt began."""

    was_ready: bool
    drops: int


class ChannelHandle:
    """The channel of one upstream."""

    def __init__(self, name: str, target: str) -> None:
        self.name: Final = name
        self.target: Final = target
        self.channel: Final = channel(target, _OPTIONS)
        self.drops = 0
        """How often a connection that was READY was lost."""

    @property
    def is_ready(self) -> bool:
        """Say whether there is a connection now."""
        return self.channel.get_state() is _READY

    def mark(self) -> Mark:
        """Remember the channel's state at the start of an attempt."""
        return Mark(self.is_ready, self.drops)

    def origin(
        self, code: int, trailers: Trailers, mark: Mark, *, timed_out: bool
    ) -> Origin:
        """Judge who made a status, from the channel's state and never from text.

        Args:
            code: gRPC status number.
            trailers: its trailing metadata; a status made on this side has none.
            mark: taken when the attempt began.
            timed_out: the attempt's own time limit had run out.
        """
        if code == _OK or trailers or code not in _MADE_HERE_TOO:
            return Origin.UPSTREAM
        was_lost = not self.is_ready or self.drops != mark.drops
        if code == _DEADLINE_EXCEEDED:
            if was_lost:
                return Origin.TRANSPORT
            return Origin.UNKNOWN if timed_out else Origin.UPSTREAM
        if code == _UNAVAILABLE and (was_lost or not mark.was_ready):
            return Origin.TRANSPORT if was_lost else Origin.UNKNOWN
        return Origin.UNKNOWN if was_lost else Origin.UPSTREAM

    async def judge(
        self,
        code: int,
        trailers: Trailers,
        mark: Mark,
        clock: Clock,
        *,
        timed_out: bool,
    ) -> Origin:
        """Judge as `origin` does, giving a broken connection time to show."""
        origin = self.origin(code, trailers, mark, timed_out=timed_out)
        for _ in range(_LOOKS):
            if code != _UNAVAILABLE or trailers or origin is not Origin.UPSTREAM:
                break
            await clock.sleep(_LOOK_S)
            origin = self.origin(code, trailers, mark, timed_out=timed_out)
        return origin

    async def watch(self, on_ready: Callable[[str], None]) -> None:
        """Keep the channel connected and tell each time it turns READY."""
        state = self.channel.get_state(try_to_connect=True)
        while state is not _SHUTDOWN:
            if state is _READY:
                on_ready(self.name)
            await self.channel.wait_for_state_change(state)
            if state is _READY:
                self.drops += 1
                await self._rest()
            state = self.channel.get_state(try_to_connect=True)

    async def _rest(self) -> None:
        """Leave a lost connection alone for a moment, unless a call wants it back.

        The library's backoff begins anew with every connection that was READY: an
        upstream that greets and hangs up would be dialled 90 to 170 times a second.
        """
        if self.channel.get_state() is not _IDLE:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_REST_S):
                await self.channel.wait_for_state_change(_IDLE)


class Targets(Protocol):
    """Where a wire finds the channels it sends on."""

    def get(self, name: str) -> ChannelHandle | None:
        """Return the channel of an upstream; None if it has none now."""
        ...

    async def set_target(self, name: str, target: str | None) -> None:
        """Give an upstream a fresh channel, or take its channel away."""
        ...


class UpstreamChannels:
    """The channels of one wire, by upstream."""

    def __init__(
        self,
        targets: Mapping[str, str],
        on_ready: Callable[[str], None],
        *,
        tasks: Tasks,
    ) -> None:
        """Take the targets; nothing is connected before `start`.

        Args:
            targets: upstream to gRPC target, `unix:` ones included.
            on_ready: told the upstream's name each time a connection is there.
            tasks: runs the watchers.
        """
        self._targets = dict(targets)
        self._on_ready = on_ready
        self._tasks = tasks
        self._handles: dict[str, ChannelHandle] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Open a channel to every target and begin to connect."""
        for name, target in self._targets.items():
            self._open(name, target)

    def get(self, name: str) -> ChannelHandle | None:
        """Return the channel of an upstream; None if it has none now."""
        return self._handles.get(name)

    async def set_target(self, name: str, target: str | None) -> None:
        """Give an upstream a fresh channel, or take its channel away.

        Calls on the old channel are cancelled.
        """
        handle = self._handles.pop(name, None)
        watcher = self._watchers.pop(name, None)
        if target is not None:
            self._open(name, target)
        if handle is not None and watcher is not None:
            await _close(handle, watcher)

    async def close(self) -> None:
        """Close every channel; calls on them are cancelled."""
        for name in tuple(self._handles):
            await self.set_target(name, None)

    def _open(self, name: str, target: str) -> None:
        handle = ChannelHandle(name, target)
        self._handles[name] = handle
        self._watchers[name] = self._tasks.spawn_forever(
            f"wire.watch[{name}]", lambda: handle.watch(self._on_ready)
        )


async def _close(handle: ChannelHandle, watcher: asyncio.Task[None]) -> None:
    # In this order: a channel closed under its watcher leaks its subchannels.
    await finish(watcher)
    await handle.channel.close()
