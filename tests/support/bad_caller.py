"""A caller that speaks HTTP/2 as badly as a test wants, over a real socket."""

import asyncio
import contextlib

import hpack

from tests.support.raw_http2 import (
    ACK,
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    block,
    frame,
    next_frame,
    settings,
    window,
)

_GONE = (asyncio.IncompleteReadError, ConnectionError)


def opening(path, *more, upstream="hole"):
    """Return the header block of a call."""
    return block(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        ("outrigger-upstream", upstream),
        *more,
    )


class RawCaller:
    """One connection to a relay."""

    def __init__(self, address):
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._hearing = None
        self._decoder = hpack.Decoder(max_header_list_size=1 << 20)
        self.feeds = True
        """Give back the window of what was received."""
        self.statuses = {}
        """grpc-status by stream."""
        self.ended = set()
        """Streams that got a status or a reset."""
        self.received = {}
        """Bytes of data by stream."""
        self.is_gone = False
        """The relay has closed the connection."""

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(self, *_):
        if self._hearing is not None:
            self._hearing.cancel()
        self.writer.transport.abort()

    def greet(self, *pairs):
        """Begin as HTTP/2 begins, and listen."""
        self.writer.write(PREFACE + settings(*pairs))
        self.listen()

    def listen(self):
        """Take what comes, from now on."""
        self._hearing = asyncio.create_task(self._hear())

    async def send(self, *frames):
        """Write frames; waits while the relay takes nothing. A break is no error."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(b"".join(frames))
            await self.writer.drain()

    async def _hear(self):
        with contextlib.suppress(*_GONE):
            while True:
                self._take(*await next_frame(self.reader))
        self.is_gone = True

    def _take(self, kind, flags, stream, payload):
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == HEADERS:
            found = dict(self._decoder.decode(payload))
            if "grpc-status" in found:
                self.statuses[stream] = int(found["grpc-status"])
        elif kind == DATA and payload:
            self.received[stream] = self.received.get(stream, 0) + len(payload)
            if self.feeds:
                self.feed(stream, len(payload))
        if kind == RST or (kind in (HEADERS, DATA) and flags & END_STREAM):
            self.ended.add(stream)
        if kind == GOAWAY:
            self.is_gone = True

    def feed(self, stream, size):
        """Open the window of a stream and of the connection."""
        self.writer.write(window(0, size) + window(stream, size))
