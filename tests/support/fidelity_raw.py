"""HTTP/2 peers that see and send frames, for what no gRPC library shows."""

import asyncio
from contextlib import asynccontextmanager

from tests.support.raw_http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PREFACE,
    RESPONSE,
    RST,
    SETTINGS,
    block,
    frame,
    next_frame,
)

_LIMIT_S = 45.0
_SHOWN = {HEADERS: "headers", DATA: "data", RST: "reset"}


class RawCallee:
    """An upstream of frames; a case says what it sends, and when."""

    def __init__(self):
        self.target = ""
        self.streams = {}
        """What came on each stream: its frames, in order."""
        self._server = None
        self.blocks = []
        """Header blocks as they came; gRPC's own libraries leave text readable."""
        self._writers = {}
        self._ended = set()
        """Streams that this side has ended: whether the other one resets them then is
        nobody's business."""
        self._change = asyncio.Event()
        self._connections = set()

    async def came(self, *kinds):
        """Wait until the frames of the newest stream end with these."""
        async with asyncio.timeout(_LIMIT_S):
            while not self._ends_with(kinds):
                self._change.clear()
                await self._change.wait()

    def headers(self, *metadata):
        """Send response headers on the newest stream."""
        self._send(HEADERS, END_HEADERS, block(*RESPONSE, *metadata))

    def message(self, message):
        """Send a response message, uncompressed."""
        head = b"\0" + len(message).to_bytes(4, "big")
        self._send(DATA, 0, head + message)

    def trailers(self, code, *metadata):
        """Send trailers after headers."""
        found = block(("grpc-status", str(code)), *metadata)
        self._send(HEADERS, END_HEADERS | END_STREAM, found)

    def trailers_only(self, code, *metadata):
        """Send a status in place of headers."""
        found = block(*RESPONSE, ("grpc-status", str(code)), *metadata)
        self._send(HEADERS, END_HEADERS | END_STREAM, found)

    def end_without_status(self):
        """Send trailers that name no status."""
        self._send(HEADERS, END_HEADERS | END_STREAM, block(("x-tail", "1")))

    def plain_http(self, status):
        """Answer as a server does that knows nothing of gRPC."""
        found = block((":status", status), ("content-type", "text/html"))
        self._send(HEADERS, END_HEADERS | END_STREAM, found)

    def reset(self, code):
        """Reset the newest stream."""
        self._send(RST, 0, code.to_bytes(4, "big"))

    def hang_up(self):
        """Close every connection, and take no new one."""
        self._server.close()
        for writer in tuple(self._connections):
            writer.close()

    async def observed(self):
        """Return the frames of every stream, in order."""
        return [tuple(frames) for frames in self.streams.values()]

    @asynccontextmanager
    async def serving(self):
        """Listen on a port of the kernel's choice."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.target = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            self.hang_up()
            async with asyncio.timeout(_LIMIT_S):
                while self._connections:
                    await asyncio.sleep(0.001)

    def _ends_with(self, kinds):
        if not self.streams:
            return False
        frames = next(reversed(self.streams.values()))
        return tuple(frame[0] for frame in frames)[-len(kinds) :] == kinds

    def _send(self, kind, flags, payload):
        key = next(reversed(self.streams))
        stream, writer = self._writers[key]
        writer.write(frame(kind, flags, stream, payload))
        if kind == RST or flags & END_STREAM:
            self._ended.add(key)

    async def _serve(self, reader, writer):
        self._connections.add(writer)
        try:
            await reader.readexactly(len(PREFACE))
            writer.write(frame(SETTINGS, 0, 0))
            while True:
                await self._take(await next_frame(reader), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()

    async def _take(self, found, writer):
        kind, flags, stream, payload = found
        if kind == SETTINGS and not flags & ACK:
            writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            writer.write(frame(PING, ACK, 0, payload))
        key = (id(writer), stream)
        if kind not in _SHOWN or key in self._ended:
            return
        self._writers[key] = stream, writer
        self._note(self.streams.setdefault(key, []), kind, flags, payload)
        self._change.set()

    def _note(self, frames, kind, flags, payload):
        if kind == RST:
            frames.append(("reset", int.from_bytes(payload, "big")))
        elif kind == HEADERS:
            self.blocks.append(payload)
            frames.append(("headers",))
        elif payload:
            frames.append(("data", payload))
        if kind != RST and flags & END_STREAM:
            frames.append(("half-close",))


async def ask(address, path, *headers, subtype=""):
    """Make a unary call with an empty message; return the frames of its answer.

    Each is (kind, flags, payload). `subtype` follows the content type.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(PREFACE + frame(SETTINGS, 0, 0) + _request(path, headers, subtype))
    found = []
    try:
        async with asyncio.timeout(_LIMIT_S):
            while True:
                kind, flags, stream, payload = await next_frame(reader)
                if stream == 1 and kind in _SHOWN:
                    found.append((kind, flags, payload))
                    if kind == RST or flags & END_STREAM:
                        return found
    finally:
        writer.close()


def _request(path, headers, subtype):
    opening = block(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "fidelity"),
        ("te", "trailers"),
        ("content-type", "application/grpc" + subtype),
        *headers,
    )
    message = frame(DATA, END_STREAM, 1, bytes(5))
    return frame(HEADERS, END_HEADERS, 1, opening) + message


async def answer_bytes(address, path, *headers, subtype=""):
    """Make a unary call; return the payloads of the answer's frames."""
    found = await ask(address, path, *headers, subtype=subtype)
    return b"".join(payload for _, _, payload in found)


async def answer_frames(address, path):
    """Make a unary call; return the kinds of frames of the answer, in order.

    Each is "headers", "data" or "reset"; "end" follows the one that ends the stream.
    Two frames of data in a row are one: where they are cut has no meaning.
    """
    found = []
    for kind, flags, payload in await ask(address, path):
        if kind == DATA and not payload:
            continue
        if not (kind == DATA and found[-1:] == ["data"]):
            found.append(_SHOWN[kind])
        if kind != RST and flags & END_STREAM:
            found.append("end")
    return found
