"""Sends a request upstream: what is kept first, then message by message."""

from collections.abc import Callable
from typing import Any

import grpc.aio

from sidecar.wire.replay import Cursor, CursorClosed

_OVER = (grpc.aio.AioRpcError, grpc.aio.BaseError)
"""What the library raises when a call ended before its request did. It is never the
attempt's outcome: the status says why."""


class Pump:
    """The request side of one attempt; see `replay.Sender`."""

    def __init__(
        self,
        call: Any,  # noqa: ANN401 - grpc.aio's call objects are in no public protocol
        cursor: Cursor,
        on_sent: Callable[[], None],
    ) -> None:
        """Take the call, the way through its request, and who is told of the end."""
        self._call = call
        self._cursor = cursor
        self._on_sent = on_sent
        self.is_sending = False
        """The library is at work and must not be cancelled: it would never free what
        it works with. When its call is cancelled it ends by itself."""

    async def run(self) -> None:
        """Send what is there, until the end or until the reader goes on by itself."""
        try:
            await self._call.wait_for_connection()
            while not self._cursor.go_direct(self):
                message = await self._cursor.get()
                if message is None:
                    await self._half_close()
                    return
                await self._write(message)
                self._cursor.sent()
        except CursorClosed:
            return
        except _OVER:
            return

    async def send(self, message: bytes) -> bool:
        """Send a message; False means that the attempt is over."""
        try:
            await self._write(message)
        except _OVER:
            return False
        return True

    async def finish(self) -> None:
        """Half-close."""
        try:
            await self._half_close()
        except _OVER:
            return

    async def _write(self, message: bytes) -> None:
        """Send one message.

        Not `call.write`: when the callee has answered before it read everything, that
        one replaces the callee's status by an INTERNAL of its own (186 of 200 times
        on grpcio 1.85.1).
        """
        self.is_sending = True
        try:
            await self._call._cython_call.send_serialized_message(message)  # noqa: SLF001 - see above
        finally:
            self.is_sending = False

    async def _half_close(self) -> None:
        self.is_sending = True
        try:
            await self._call.done_writing()
        finally:
            self.is_sending = False
        self._on_sent()
