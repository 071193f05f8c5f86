"""The channel to one address: kept connected, watched, and asked who failed.

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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import grpc
import grpc.aio

from outrigger.core.clock import Clock
from outrigger.core.rpc.server import CHANNEL_OPTIONS
from sidecar.call.descriptor import Origin, Trailers
from sidecar.wire.addresses import Address
from sidecar.wire.upstream_spec import UpstreamSpec

_IDLE: Final = grpc.ChannelConnectivity.IDLE
_REST_S: Final = 0.1
"""As long as the backoff after a first connection that failed."""
_READY: Final = grpc.ChannelConnectivity.READY
_SHUTDOWN: Final = grpc.ChannelConnectivity.SHUTDOWN
_SETTLED: Final = frozenset({_READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE})
_OK: Final = 0
_UNAVAILABLE: Final = 14
_DEADLINE_EXCEEDED: Final = 4
_MADE_HERE_TOO: Final = frozenset({1, 2, _DEADLINE_EXCEEDED, 13, _UNAVAILABLE})
"""Statuses the library makes on this side too: of resets (CANCELLED, UNKNOWN,
INTERNAL), of its own timer, of connections."""

_LOOKS: Final = 5
_LOOK_S: Final = 0.001

_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # 30 s by default: an upstream that came back under another address would be
    # found too late for the promise that recovery takes no more than 20 s.
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # Whatever its name says, this is how long one try to connect may take. With the
    # 100 ms of our own parts a callee that needs 1.5 s to shake hands, being far away
    # or busy, was never reached (eight tries in 5 s, measured). The pause between
    # tries stays what it was.
    ("grpc.min_reconnect_backoff_ms", 5000),
)


@dataclass(slots=True)
class Mark:
    """A channel as it was when an attempt began."""

    was_ready: bool
    drops: int
    address: str = ""
    """Where the attempt goes."""
    generation: int = 0
    """How often that address had been ejected."""


class ChannelHandle:
    """The channel of an upstream, or of one of its addresses."""

    __slots__ = (
        "_emptied",
        "_on_end",
        "channel",
        "drops",
        "generation",
        "has_settled",
        "name",
        "open_attempts",
        "target",
    )

    def __init__(
        self,
        name: str,
        target: str,
        channel: grpc.aio.Channel | None = None,
        on_end: "OnEnd | None" = None,
    ) -> None:
        """Take a channel, or make a plaintext one.

        Args:
            name: of the upstream.
            target: the address.
            channel: to it; see `dial`.
            on_end: told how each attempt ended.
        """
        self.name = name
        self.target = target
        self.channel = channel or dial(
            UpstreamSpec(targets=(target,)), Address(target), None
        )
        self.drops = 0
        """How often a connection that was READY was lost."""
        self.generation = 0
        """How often the address was ejected; goes into marks."""
        self.has_settled = False
        """A first try to connect has ended, well or not."""
        self.open_attempts = 0
        self._on_end = on_end
        self._emptied: asyncio.Event | None = None

    @property
    def state(self) -> grpc.ChannelConnectivity:
        """Return the channel's state as it is now."""
        return self.channel.get_state()

    @property
    def is_ready(self) -> bool:
        """Say whether there is a connection now."""
        return self.channel.get_state() is _READY

    def mark(self) -> Mark:
        """Remember the channel's state at the start of an attempt."""
        return Mark(self.is_ready, self.drops, self.target, self.generation)

    def opened(self) -> None:
        """Take note that an attempt uses the channel; `closed` must follow."""
        self.open_attempts += 1

    def closed(self) -> None:
        """Take note that an attempt needs the channel no more."""
        self.open_attempts -= 1
        if self._emptied is not None and self.open_attempts == 0:
            self._emptied.set()

    def ended(self, mark: Mark, code: int, origin: Origin) -> None:
        """Take note of how an attempt ended.

        Args:
            mark: taken when it began.
            code: gRPC status number.
            origin: as judged.
        """
        if self._on_end is not None:
            self._on_end(mark, code, origin)

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

    async def watch(self, on_state: "OnState") -> None:
        """Keep the channel connected and tell each state it turns to."""
        state = self.channel.get_state(try_to_connect=True)
        while state is not _SHUTDOWN:
            self.has_settled = self.has_settled or state in _SETTLED
            on_state(self, state)
            await self.channel.wait_for_state_change(state)
            if state is _READY:
                self.drops += 1
                on_state(self, self.channel.get_state())
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

    async def emptied(self, limit_s: float) -> None:
        """Wait until no attempt uses the channel, `limit_s` seconds at most."""
        if self.open_attempts == 0:
            return
        self._emptied = asyncio.Event()
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._emptied.wait()


OnEnd = Callable[[Mark, int, Origin], None]
OnState = Callable[[ChannelHandle, grpc.ChannelConnectivity], None]


def dial(
    spec: UpstreamSpec, address: Address, credentials: grpc.ChannelCredentials | None
) -> grpc.aio.Channel:
    """Return a channel to an address of an upstream; it connects when asked to.

    Args:
        spec: how to reach it.
        address: where.
        credentials: for TLS; None means plaintext.
    """
    options = tuple(arguments(spec, address).items())
    if credentials is None:
        return grpc.aio.insecure_channel(address.target, options=options)
    return grpc.aio.secure_channel(address.target, credentials, options=options)


def arguments(spec: UpstreamSpec, address: Address) -> dict[str, Any]:
    """Return the channel arguments for an address of an upstream."""
    ours: dict[str, Any] = dict(CHANNEL_OPTIONS) | dict(_OPTIONS)
    return ours | _keepalive(spec) | _names(spec, address)


def _keepalive(spec: UpstreamSpec) -> dict[str, int]:
    """Return the arguments for pings.

    Only with calls in flight: without, a server takes one in two hours. How many go
    out without data between them is left to the library, which from two on sends one
    a minute at most.
    """
    if spec.keepalive_s is None:
        return {}
    return {
        "grpc.keepalive_time_ms": int(spec.keepalive_s * 1000),
        "grpc.keepalive_timeout_ms": int(spec.keepalive_timeout_s * 1000),
        "grpc.keepalive_permit_without_calls": 0,
    }


def _names(spec: UpstreamSpec, address: Address) -> dict[str, str]:
    """Return what the callee is called, where its address does not say it."""
    authority = spec.authority or address.authority
    # The certificate must carry it too, port aside.
    return {"grpc.default_authority": authority} if authority else {}
