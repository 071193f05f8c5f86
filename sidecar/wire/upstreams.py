"""The upstreams of one wire: by name, and for each attempt a channel."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Protocol

from outrigger.core.tasks import Tasks
from sidecar.wire.channel_handle import ChannelHandle, Mark
from sidecar.wire.pool import AddressView, Pool, UpstreamView
from sidecar.wire.surroundings import Surroundings
from sidecar.wire.upstream_spec import UpstreamSpec, checked

__all__ = [
    "AddressView",
    "ChannelHandle",
    "Mark",
    "Targets",
    "UpstreamChannels",
    "UpstreamSpec",
    "UpstreamView",
]


class Targets(Protocol):
    """Where a wire finds the channels it sends on."""

    def get(self, name: str) -> ChannelHandle | None:
        """Return the channel for the next attempt; None if there is none now."""
        ...

    async def set_target(self, name: str, target: str | None) -> None:
        """Give an upstream a fresh channel, or take its channel away."""
        ...


class UpstreamChannels:
    """The channels of one wire, by upstream."""

    def __init__(
        self,
        targets: Mapping[str, UpstreamSpec | str],
        on_ready: Callable[[str], None],
        *,
        tasks: Tasks,
        surroundings: Surroundings | None = None,
    ) -> None:
        """Take the upstreams; nothing is connected before `start`.

        Args:
            targets: by name; a gRPC target, `unix:` ones included, or a whole spec.
            on_ready: told the upstream's name each time a connection is there and no
                other was.
            tasks: runs the watchers.
            surroundings: clock, chance, names, and somebody to tell; the machine's
                if not given.

        Raises:
            Invalid: BAD_UPSTREAM, with every mistake.
        """
        self._specs = checked(targets)
        self._on_ready = on_ready
        self._tasks = tasks
        self._surroundings = surroundings or Surroundings()
        self._pools: dict[str, Pool] = {}

    async def start(self) -> None:
        """Begin to connect everywhere, and wait a second at most for connections.

        So that a first call does not pay for the handshake. An upstream that is not
        there fails no start.

        Raises:
            Invalid: BAD_TLS_FILE, a file was changed since it was checked.
        """
        pools = [self._open(name, spec) for name, spec in self._specs.items()]
        await asyncio.gather(*(pool.warm() for pool in pools))

    def get(self, name: str) -> ChannelHandle | None:
        """Return the channel for the next attempt; None if there is none now.

        Each time another one, where an upstream's addresses take turns.
        """
        pool = self._pools.get(name)
        return None if pool is None else pool.pick()

    async def set_target(self, name: str, target: str | None) -> None:
        """Give an upstream a fresh channel, or take its channel away.

        Calls on the old channel are cancelled.
        """
        old = self._pools.pop(name, None)
        if target is not None:
            self._open(name, UpstreamSpec(targets=(target,)))
        if old is not None:
            await old.close()

    async def close(self) -> None:
        """Close every channel; calls on them are cancelled."""
        for name in tuple(self._pools):
            await self.set_target(name, None)

    def views(self) -> tuple[UpstreamView, ...]:
        """Return every upstream with its addresses, for people."""
        return tuple(pool.view() for pool in self._pools.values())

    def _open(self, name: str, spec: UpstreamSpec) -> Pool:
        pool = Pool(name, spec, self._tell_ready, self._tasks, self._surroundings)
        self._pools[name] = pool
        pool.open()
        return pool

    def _tell_ready(self, name: str) -> None:
        self._on_ready(name)
