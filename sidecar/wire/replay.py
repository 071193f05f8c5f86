"""The request of one call: read from its caller once, replayed to every attempt.

Two parties work on it. The reader appends what the caller sends; the cursor of an
attempt takes it from the start. While nothing is committed all is kept, up to a
limit. Past the limit, or once the call is committed, what the live attempt has sent
is dropped and the reader waits until it has sent all: one message is held, not two.

Once all that is kept was sent, an attempt may let the reader send what comes next by
itself: two tasks that hand each message over cost a stream two turns of the loop.

Nobody is cancelled here: a read that is cancelled loses its message. An attempt that
is over closes its cursor; whoever waits there wakes and leaves.
"""

import asyncio
from collections import deque
from typing import Final, Protocol

from outrigger.core.errors import Bug

_MESSAGE_OVERHEAD: Final = 64
"""Bytes a message costs beside its own; else empty ones would cost nothing."""


class Sender(Protocol):
    """Sends what the reader reads straight on."""

    async def send(self, message: bytes) -> bool:
        """Send a message; False means that the attempt is over."""
        ...

    async def finish(self) -> None:
        """Half-close."""
        ...


class CursorClosed(Exception):
    """There is nothing more to send."""


class Replay:
    """Messages in order, with one reader and one live cursor at a time."""

    def __init__(self, limit_bytes: int) -> None:
        """Keep requests of up to `limit_bytes`."""
        self._room_left = limit_bytes + _MESSAGE_OVERHEAD
        self._messages: deque[bytes] = deque()
        self._dropped = 0
        self._is_streaming = False
        self._live: Cursor | None = None
        self.sender: Sender | None = None
        """Sends what comes, while it does so directly; the half-close too."""
        self._change = asyncio.Event()
        self._room = asyncio.Event()
        self.received = 0
        """Messages so far."""
        self.has_ended = False
        """The caller has half-closed."""
        self.is_broken = False
        """The caller went away, or nobody will send its request any more."""
        self.has_overflowed = False
        """More came than is kept: the call is committed."""
        self.was_whole = False
        """It was one message, ended before anything of the response was passed on."""

    @property
    def only_message(self) -> bytes | None:
        """Return the whole request if it is exactly one message, and kept."""
        if not self.has_ended or self.received != 1 or not self._messages:
            return None
        return self._messages[0]

    @property
    def is_settled(self) -> bool:
        """Say whether it is known if the request is one kept message."""
        return (
            self.has_ended or self.has_overflowed or self.is_broken or self.received > 1
        )

    async def put(self, message: bytes) -> None:
        """Append a message; return when there is room for another."""
        if self.sender is not None:
            if await self.sender.send(message):
                self.received += 1
                return
            # The attempt is over and will not be made again: wait for the end.
            self.sender = None
        self._messages.append(message)
        self.received += 1
        self._room_left -= len(message) + _MESSAGE_OVERHEAD
        if self._room_left < 0:
            self.has_overflowed = self._is_streaming = True
        self._trim()
        self._wake()
        while self._is_streaming and self._messages and not self.is_broken:
            self._room.clear()
            await self._room.wait()

    def fill(self, message: bytes) -> None:
        """Take a whole request of one message."""
        self._messages.append(message)
        self.received = 1
        self.end()

    def end(self) -> None:
        """Take note of the half-close."""
        self.has_ended = True
        self.was_whole = self.received == 1 and not self._is_streaming
        self._wake()

    def go_direct(self, cursor: "Cursor", sender: Sender) -> bool:
        """Let the reader send by itself from now on; False if that may not be.

        It may once nothing is kept any more and everything that came was sent.
        """
        may = (
            self._is_streaming
            and self._live is cursor
            and not self._messages
            and not self.has_ended
            and not self.is_broken
        )
        if may:
            self.sender = sender
        return may

    def abandon(self) -> None:
        """Let go of everything; the reader and all who wait leave."""
        self.is_broken = True
        self._messages.clear()
        self._room.set()
        self._wake()

    def stream(self) -> None:
        """Stop keeping what was sent: the call is committed."""
        self._is_streaming = True
        self._trim()

    def nudge(self) -> None:
        """Wake whoever waits for a change, to look at something else."""
        self._wake()

    async def changed(self) -> None:
        """Wait for the next message, half-close, break, or closed cursor."""
        await self._change.wait()

    def cursor(self) -> "Cursor":
        """Return the way of a new attempt through the whole request.

        Raises:
            Bug: NOT_KEPT, the call was committed and cannot be sent again.
        """
        if self._dropped:
            raise Bug("NOT_KEPT", "a committed request was to be sent again")
        self._live = Cursor(self)
        return self._live

    def message(self, index: int) -> bytes | None:
        """Return a message that is kept; None if it has not come yet."""
        at = index - self._dropped
        return self._messages[at] if at < len(self._messages) else None

    def left(self, cursor: "Cursor") -> None:
        """Take note that an attempt is over."""
        if self._live is cursor:
            self._live = None
            self.sender = None
        self._wake()

    def sent(self) -> None:
        """Take note that the live attempt has sent a message."""
        if self._is_streaming:
            self._trim()

    def _trim(self) -> None:
        if not self._is_streaming or self._live is None:
            return
        while self._messages and self._dropped < self._live.sent_count:
            self._messages.popleft()
            self._dropped += 1
        if not self._messages:
            self._room.set()

    def _wake(self) -> None:
        # Whoever waits now holds this event; later ones get the next.
        event, self._change = self._change, asyncio.Event()
        event.set()


class Cursor:
    """The way of one attempt through a request."""

    __slots__ = ("_is_closed", "_replay", "sent_count")

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._is_closed = False
        self.sent_count = 0

    async def get(self) -> bytes | None:
        """Return the first message not sent yet; None at the half-close.

        Raises:
            CursorClosed: the attempt is over, or the caller went away.
        """
        replay = self._replay
        while True:
            if self._is_closed or replay.is_broken:
                raise CursorClosed
            message = replay.message(self.sent_count)
            if message is not None or replay.has_ended:
                return message
            await replay.changed()

    def sent(self) -> None:
        """Take note that what `get` returned was sent."""
        self.sent_count += 1
        if not self._is_closed:
            self._replay.sent()

    def go_direct(self, sender: Sender) -> bool:
        """Hand the sending over to the reader; False if it is not time for that."""
        return not self._is_closed and self._replay.go_direct(self, sender)

    def close(self) -> None:
        """End the attempt's interest."""
        self._is_closed = True
        self._replay.left(self)
