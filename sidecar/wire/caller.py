"""The two kinds of caller: a call that arrived, and a letter on its way."""

import asyncio
from typing import Any, Final, Protocol

import grpc.aio

from sidecar.call.descriptor import Trailers
from sidecar.wire.parts import Parts
from sidecar.wire.replay import Replay

Context = grpc.aio.ServicerContext[Any, Any]

_JOINED_S: Final = 0.001
_YIELDS: Final = 3


class CallerGone(Exception):
    """Nothing can be passed to this caller any more."""


class Caller(Protocol):
    """Whom a call is made for."""

    replay: Replay
    is_committed: bool
    """Something of the response was passed on."""

    def open(self) -> None:
        """Begin to read the request; the call was not refused."""
        ...

    async def headers(self, metadata: Trailers) -> None:
        """Pass response headers on.

        Raises:
            CallerGone: nobody is there.
        """
        ...

    async def message(self, message: bytes) -> None:
        """Pass a response message on, with empty headers if none went before.

        Raises:
            CallerGone: nobody is there.
        """
        ...


class RemoteCaller:
    """A call that arrived at a listener."""

    def __init__(self, context: Context, parts: Parts) -> None:
        self._context = context
        self._tasks = parts.tasks
        self._clock = clock = parts.clock
        self._settle_s = parts.options.settle_s
        self.replay = Replay(parts.options.replay_bytes)
        self.is_committed = False
        self.last_message = clock.monotonic()
        """When the newest message passed, either way."""

    def open(self) -> None:
        """Begin to read the request."""
        _ = self._tasks.spawn("wire.read", self._read())

    async def headers(self, metadata: Trailers) -> None:
        """Pass response headers on."""
        self.is_committed = True
        self.replay.stream()
        try:
            await self._context.send_initial_metadata(metadata)
        except grpc.aio.BaseError as error:
            raise CallerGone from error

    async def message(self, message: bytes) -> None:
        """Pass a response message on."""
        if not self.is_committed:
            self.is_committed = True
            self.replay.stream()
        self.last_message = self._clock.monotonic()
        try:
            await self._context.write(message)
        except grpc.aio.BaseError as error:
            raise CallerGone from error

    async def _read(self) -> None:
        """Read until the half-close; a read is never cancelled, it ends by itself."""
        replay = self.replay
        while not replay.is_broken:
            try:
                message = await self._context.read()
            except grpc.aio.BaseError:
                return  # the call was answered meanwhile
            if message is grpc.aio.EOF:
                await self._settle()
                replay.end()
                if replay.sender is not None:
                    await replay.sender.finish()
                return
            self.last_message = self._clock.monotonic()
            await replay.put(message)

    async def _settle(self) -> None:
        """Wait until a half-close is sure to be one.

        The library reports a cancelled or broken call to its reader as the end of
        the request, a few steps of the loop before it cancels the handler, and now
        and then 1 to 4 ms before. Passed on as a half-close, it would complete an
        upload that was given up. The end that comes with a single message is taken
        at its word sooner, for every unary call has it: an upload cancelled within
        a millisecond after its first message is told from one only by those steps.
        """
        for _ in range(_YIELDS):
            await self._clock.sleep(0)
        came_alone = self._clock.monotonic() - self.last_message > _JOINED_S
        if came_alone or self.replay.received != 1:
            await self._clock.sleep(self._settle_s)


class LetterCaller:
    """A letter: its request is there, and of the response the last message is kept."""

    def __init__(self, request: bytes) -> None:
        self.replay = Replay(len(request))
        self.is_committed = False
        self.response = b""
        self._request = request

    def open(self) -> None:
        """Offer the stored request."""
        self.replay.fill(self._request)

    async def headers(self, metadata: Trailers) -> None:  # noqa: ARG002 - of Caller
        """Take note that the callee answers."""
        self.is_committed = True

    async def message(self, message: bytes) -> None:
        """Keep the message in place of the one before."""
        self.is_committed = True
        self.response = message


async def settled(replay: Replay, limit_s: float) -> None:
    """Wait, for at most `limit_s`, until it is known if a request is one message."""
    loop = asyncio.get_running_loop()
    ends = loop.time() + limit_s
    timer: asyncio.TimerHandle | None = None
    try:
        while not replay.is_settled and loop.time() < ends:
            timer = timer or loop.call_at(ends, replay.nudge)
            await replay.changed()
    finally:
        if timer is not None:
            timer.cancel()
