"""One attempt: the request goes up, the response comes down, an outcome is left.

The commit rule. Response headers with content, or the first message, are passed on
at once and commit the call. Empty headers prove nothing: the library reports them
for a failure without headers (Trailers-Only) too, and that must stay one, or the
caller's own retries die. So the first message races the status for a few
milliseconds; if neither has come by then, the headers are passed on, because a
caller may wait for them before it sends.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

import grpc
import grpc.aio

from outrigger.core import names
from sidecar.call.descriptor import Go, Origin, Outcome, Trailers
from sidecar.wire import faults, local
from sidecar.wire.caller import Caller, CallerGone, settled
from sidecar.wire.parts import Parts
from sidecar.wire.pump import Pump
from sidecar.wire.replay import Cursor
from sidecar.wire.upstreams import ChannelHandle

UpstreamCall = Any
"""grpc.aio's call objects; what we need of them is in no public protocol."""

_DEADLINE_EXCEEDED: Final = 4
_TIMER_SLACK_S: Final = 0.02
_YIELDS: Final = 3
_OURS: Final = frozenset(
    {
        names.LETTER_ID_TRAILER,
        names.LETTER_REFUSED_TRAILER,
        names.REFUSED_BY_TRAILER,
        names.ATTEMPTS_TRAILER,
        names.FAULT_TRAILER,
    }
)

Claim = Callable[[int], bool]
"""Told, before anything of an attempt's response is passed on, the attempt's number;
says whether it may be."""


class Lost(Exception):
    """Another attempt of the call answered first."""


def unrivalled(_attempt: int) -> bool:
    """Let an attempt that has no rival pass its response on."""
    return True


class Attempt:
    """One attempt of one call."""

    def __init__(
        self,
        go: Go,
        method: str,
        caller: Caller,
        handle: ChannelHandle,
        parts: Parts,
        claim: Claim = unrivalled,
    ) -> None:
        self._go = go
        self._claim = claim
        self._is_claimed = False
        self._cut_timer: asyncio.TimerHandle | None = None
        self._is_cut = False
        self._has_left = False
        self._method = method
        self._caller = caller
        self._handle = handle
        self._tasks = parts.tasks
        self._clock = parts.clock
        self._guard = parts.guard
        self._options = parts.options
        self._shapes = parts.shapes
        self._mark = handle.mark()
        self._began = parts.clock.monotonic()
        self._call: UpstreamCall = None
        self._cursor: Cursor | None = None
        self._pump: Pump | None = None
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._early_headers: asyncio.Task[None] | None = None
        self._is_decided = False
        """A first message or a status has come."""

    async def run(self) -> Outcome:
        """Make the attempt and return how it ended.

        Raises:
            CallerGone: the response cannot be passed on.
            Lost: another attempt's response is passed on.
            asyncio.CancelledError: the caller went away.
        """
        if self._go.fault is not None:
            ended = await faults.suffer(self._go, self._go.fault, self._clock)
            if ended is not None:
                return ended
        metadata = tuple(self._go.metadata)
        key = local.illegal(metadata)
        if key is not None:
            return local.outcome(local.illegal_request(key))
        replay = self._caller.replay
        await settled(replay, self._shapes.patience_s(self._method))
        try:
            self._open(metadata)
        except grpc.aio.UsageError:  # the channel was closed while we waited
            error = local.no_channel(self._handle.name)
            return local.outcome(error, committed=self._is_committed)
        self._handle.opened()
        try:
            return await self._relay()
        finally:
            self._close()

    def leave(self) -> bool:
        """Cancel the call upstream for a caller that went away; False if there is none.

        `run` then raises CancelledError.
        """
        if self._call is None:
            return False
        self._has_left = True
        self._call.cancel()
        return True

    def late(self) -> Outcome:
        """Return the outcome of an attempt cut short by the caller's deadline."""
        origin = self._handle.origin(_DEADLINE_EXCEEDED, (), self._mark, timed_out=True)
        self._handle.ended(self._mark, _DEADLINE_EXCEEDED, origin)
        return Outcome(
            _DEADLINE_EXCEEDED,
            "the caller's deadline has passed",
            origin,
            self._is_committed,
        )

    @property
    def _is_committed(self) -> bool:
        return self._caller.is_committed or self._caller.replay.has_overflowed

    def _open(self, metadata: Trailers) -> None:
        replay = self._caller.replay
        channel, timeout_s = self._handle.channel, self._go.timeout_s
        request = replay.only_message
        if request is not None:
            # Headers, message and half-close in one piece; whether one response or
            # many come back does not matter to it.
            unary: Any = channel.unary_stream(self._method)
            self._call = unary(request, metadata=metadata, timeout=timeout_s)
            self._sent()
            return
        self._call = channel.stream_stream(self._method)(
            metadata=metadata, timeout=timeout_s
        )
        self._cursor = replay.cursor()
        self._pump = Pump(self._call, self._cursor, self._sent)
        self._writer = self._tasks.spawn("wire.write", self._pump.run())

    def _sent(self) -> None:
        """Wait for an answer from now on: the whole request is on its way."""
        go = self._go
        self._guard.sent(go.permit, go.attempt, self._clock.monotonic())
        if go.answer_s is not None and not self._is_claimed:
            self._cut_timer = asyncio.get_running_loop().call_later(
                go.answer_s, self._cut
            )

    async def _relay(self) -> Outcome:
        try:
            await self._respond()
        except grpc.aio.AioRpcError as error:
            if self._has_left:
                raise asyncio.CancelledError from None
            if self._is_cut:
                return self._cut_outcome()
            trailers = tuple(error.trailing_metadata() or ())
            code = _number(error.code())
            return await self._outcome(code, error.details() or "", trailers)
        except asyncio.CancelledError:
            if self._has_left or not self._was_closed_here():
                raise
            if self._is_cut:
                return self._cut_outcome()
            return local.outcome(
                local.channel_closed(self._handle.name), committed=self._is_committed
            )
        if self._has_left:
            raise asyncio.CancelledError
        trailers = tuple(await self._call.trailing_metadata())
        return await self._outcome(0, await self._call.details() or "", trailers)

    async def _respond(self) -> None:
        """Pass the response on until its status."""
        headers = tuple(await self._call.initial_metadata())
        if headers:
            self._win()
            await self._caller.headers(_legal(headers))
        else:
            self._timer = asyncio.get_running_loop().call_later(
                self._options.commit_s, self._headers_due
            )
        while True:
            message = await self._call.read()
            if not self._is_decided:
                await self._decided()
            if message is grpc.aio.EOF:
                return
            if not self._is_claimed:
                self._win()
            await self._caller.message(message)

    def _win(self) -> None:
        """Be the one whose response is passed on.

        Raises:
            Lost: another attempt is.
        """
        if not self._claim(self._go.attempt):
            raise Lost
        self._is_claimed = True
        if self._cut_timer is not None:
            self._cut_timer.cancel()

    def _cut(self) -> None:
        self._is_cut = True
        self._call.cancel()

    def _cut_outcome(self) -> Outcome:
        limit_s = self._go.answer_s or 0.0
        outcome = local.outcome(
            local.cut(self._method, limit_s), committed=self._is_committed
        )
        outcome.is_cut = True
        self._handle.ended(self._mark, outcome.code, Origin.UNKNOWN)
        return outcome

    def _headers_due(self) -> None:
        self._early_headers = self._tasks.spawn("wire.headers", self._send_headers())

    async def _send_headers(self) -> None:
        # Timers run before what the same round of the loop received: look again.
        for _ in range(_YIELDS):
            await self._clock.sleep(0)
        if self._is_decided or self._call.done():
            return
        try:
            if not self._is_claimed:
                self._win()
            await self._caller.headers(())
        except (CallerGone, Lost):
            return  # the handler is told the same, and ends the call

    async def _decided(self) -> None:
        """Stop the race; headers on their way arrive before what follows them."""
        self._is_decided = True
        if self._timer is not None:
            self._timer.cancel()
        if self._early_headers is not None:
            await asyncio.wait((self._early_headers,))

    async def _outcome(self, code: int, message: str, trailers: Trailers) -> Outcome:
        await self._decided()
        timed_out = self._has_timed_out()
        origin = await self._handle.judge(
            code, trailers, self._mark, self._clock, timed_out=timed_out
        )
        self._handle.ended(self._mark, code, origin)
        passed = _legal(_without_ours(trailers))
        return Outcome(code, message, origin, self._is_committed, passed)

    def _has_timed_out(self) -> bool:
        limit_s = self._go.timeout_s
        elapsed_s = self._clock.monotonic() - self._began
        return limit_s is not None and elapsed_s >= limit_s - _TIMER_SLACK_S

    def _was_closed_here(self) -> bool:
        """Say whether the channel was closed, and not this task cancelled."""
        task = asyncio.current_task()
        return task is not None and not task.cancelling() and self._call.cancelled()

    def _close(self) -> None:
        self._handle.closed()
        if self._call is not None and self._caller.replay.received:
            was_single = self._caller.replay.was_whole
            self._shapes.learn(self._method, was_single=was_single)
        # A call that is dropped unfinished is never collected by the library, so it
        # is always cancelled; one that is done takes no notice.
        if self._call is not None:
            self._call.cancel()
        if self._cursor is not None:
            self._cursor.close()
        pump, writer = self._pump, self._writer
        if pump is not None and writer is not None and not pump.is_sending:
            # It may wait for a connection that never comes to a call that is over.
            writer.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._cut_timer is not None:
            self._cut_timer.cancel()
        self._is_decided = True


def _without_ours(trailers: Trailers) -> Trailers:
    """Leave out the trailers that only this sidecar may set.

    A caller believes a letter's id; an upstream could otherwise make one up.
    """
    if not any(key in _OURS for key, _ in trailers):
        return trailers
    return tuple(pair for pair in trailers if pair[0] not in _OURS)


def _legal(metadata: Trailers) -> Trailers:
    """Leave out what gRPC refuses to send, though a peer may have sent it."""
    if local.illegal(metadata) is None:
        return metadata
    return tuple(pair for pair in metadata if local.illegal((pair,)) is None)


def _number(code: grpc.StatusCode) -> int:
    return int(code.value[0])
