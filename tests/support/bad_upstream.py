"""An HTTP/2 upstream that misbehaves as a script says, over real sockets.

A script is a coroutine function that is given each connection as a `Peer`. It ends
early or late; the connection stays open until the other side, the script or the test
closes it.
"""

import asyncio
import contextlib
import socket

from tests.support.raw_http2 import (
    ACK,
    DATA,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RST,
    SETTINGS,
    frame,
    next_frame,
    settings,
    window,
)

_GONE = (asyncio.IncompleteReadError, ConnectionError)


class Peer:
    """One connection, as its script sees it."""

    def __init__(self, reader, writer, number):
        self.reader, self.writer = reader, writer
        self.number = number
        """Which connection this is, from 1."""
        self.feeds = True
        """Give back the window of what was received."""
        self._opened = asyncio.Queue()
        self._half_closed = set()
        self._moved = asyncio.Condition()
        self._listening = None

    async def greet(self, *pairs):
        """Take the other side's preface, send SETTINGS, and listen from now on."""
        await self.reader.readexactly(len(PREFACE))
        self.send(settings(*pairs))
        self.listen()

    def listen(self):
        """Take frames in the background: acknowledge, feed, remember."""
        self._listening = asyncio.create_task(self._listen())

    def send(self, *frames):
        """Write frames as they are."""
        self.writer.write(b"".join(frames))

    async def opened(self):
        """Return the next stream that is opened."""
        return await self._opened.get()

    async def asked(self):
        """Return the next stream, once its request has ended."""
        stream = await self.opened()
        async with self._moved:
            await self._moved.wait_for(lambda: stream in self._half_closed)
        return stream

    def close(self):
        """Close the connection once all is written."""
        self.writer.close()

    async def finish(self):
        """Wait until the other side has closed, or the connection broke."""
        if self._listening is None:
            self.listen()
        await self._listening

    def drop(self):
        """Break the connection and stop listening."""
        if self._listening is not None:
            self._listening.cancel()
        self.writer.close()

    async def _listen(self):
        with contextlib.suppress(*_GONE):
            while True:
                await self._take(*await next_frame(self.reader))

    async def _take(self, kind, flags, stream, payload):
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == HEADERS:
            self._opened.put_nowait(stream)
        elif kind == DATA and payload and self.feeds:
            self.send(window(0, len(payload)), window(stream, len(payload)))
        if (kind in (DATA, HEADERS) and flags & END_STREAM) or kind == RST:
            async with self._moved:
                self._half_closed.add(stream)
                self._moved.notify_all()


class BadUpstream:
    """Listens on loopback and runs the script for each connection."""

    def __init__(self, script):
        self._script = script
        self._server = None
        self._peers = set()
        self._running = set()
        self.connections = 0
        self.target = ""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.target = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.drop()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def drop(self):
        """Break every connection."""
        for peer in tuple(self._peers):
            peer.drop()

    async def _serve(self, reader, writer):
        self.connections += 1
        peer = Peer(reader, writer, self.connections)
        task = asyncio.current_task()
        self._running.add(task)
        self._peers.add(peer)
        try:
            await self._script(peer)
            await peer.finish()
        except (*_GONE, asyncio.CancelledError):
            pass  # either side broke it, which is what these tests are about
        finally:
            self._running.discard(task)
            self._peers.discard(peer)
            peer.drop()


class FullBacklog:
    """A listener that nobody accepts from, its queue full: SYNs are not answered."""

    connections = 0

    async def __aenter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        address = self._listener.getsockname()
        self.target = "{}:{}".format(*address)
        self._waiting = [socket.socket() for _ in range(4)]
        for one in self._waiting:
            one.setblocking(False)
            one.connect_ex(address)
        return self

    async def __aexit__(self, *_):
        for one in (*self._waiting, self._listener):
            one.close()
