"""Just enough HTTP/2 to be a peer that no gRPC library would be."""

import asyncio
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
PUSH_PROMISE, WINDOW_UPDATE, CONTINUATION = 5, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM, CANCEL, CALM = 0, 2, 7, 8, 11
"""Error codes; CALM is ENHANCE_YOUR_CALM."""
LAST_OF_ALL = (1 << 31) - 1


def frame(kind, flags, stream, payload=b""):
    """Return one frame."""
    head = struct.pack(">I", len(payload))[1:] + bytes((kind, flags))
    return head + struct.pack(">I", stream) + payload


def text(value):
    """Return a string as a header block has it, without Huffman coding."""
    raw = value if isinstance(value, bytes) else value.encode()
    if len(raw) < 127:
        return bytes((len(raw),)) + raw
    size, rest = b"\x7f", len(raw) - 127
    while rest >= 128:
        size, rest = size + bytes((rest % 128 + 128,)), rest // 128
    return size + bytes((rest,)) + raw


def block(*headers):
    """Return a header block of literals without indexing."""
    return b"".join(b"\x00" + text(key) + text(value) for key, value in headers)


def headers(stream, *pairs, end=False):
    """Return a HEADERS frame; its block must fit."""
    flags = END_HEADERS | (END_STREAM if end else 0)
    return frame(HEADERS, flags, stream, block(*pairs))


def data(stream, payload=b"", *, end=False):
    """Return a DATA frame."""
    return frame(DATA, END_STREAM if end else 0, stream, payload)


def message(body=b"", *, flag=0, size=None):
    """Return a gRPC message; `size` lies about its length."""
    return struct.pack(">BI", flag, len(body) if size is None else size) + body


def rst(stream, code):
    """Return a RST_STREAM frame."""
    return frame(RST, 0, stream, struct.pack(">I", code))


def goaway(last, code):
    """Return a GOAWAY frame; streams beyond `last` were not processed."""
    return frame(GOAWAY, 0, 0, struct.pack(">II", last, code))


def settings(*pairs):
    """Return a SETTINGS frame."""
    packed = (struct.pack(">HI", *pair) for pair in pairs)
    return frame(SETTINGS, 0, 0, b"".join(packed))


def window(stream, size):
    """Return a WINDOW_UPDATE frame."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size))


async def next_frame(reader):
    """Return kind, flags, stream and payload of the next frame."""
    head = await reader.readexactly(9)
    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
    return head[3], head[4], int.from_bytes(head[5:9], "big"), payload


RESPONSE = ((":status", "200"), ("content-type", "application/grpc"))


class RawUpstream:
    """Answers every call with the frames a test gives.

    `answer(stream)` returns bytes; after them the connection is left open.
    """

    def __init__(self, answer):
        self._answer = answer
        self._server = None
        self._open = set()
        self.opened, self.half_closed, self.reset = set(), set(), set()
        """Streams that were opened, ended by their caller, and cancelled."""

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.target = f"127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.drop()

    def drop(self):
        """Break every connection."""
        for writer in tuple(self._open):
            writer.close()

    async def _serve(self, reader, writer):
        self._open.add(writer)
        try:
            await reader.readexactly(len(PREFACE))
            writer.write(frame(SETTINGS, 0, 0))
            while True:
                kind, flags, stream, payload = await next_frame(reader)
                if kind == SETTINGS and not flags & ACK:
                    writer.write(frame(SETTINGS, ACK, 0))
                elif kind == PING and not flags & ACK:
                    writer.write(frame(PING, ACK, 0, payload))
                elif kind == HEADERS:
                    self.opened.add(stream)
                    writer.write(self._answer(stream))
                if kind in (DATA, HEADERS) and flags & END_STREAM:
                    self.half_closed.add(stream)
                elif kind == RST:
                    self.reset.add(stream)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()


async def raw_call(address, path, *headers):
    """Make a unary call with an empty message; return all frames until its end."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    opening = block(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "test"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *headers,
    )
    writer.write(
        PREFACE
        + frame(SETTINGS, 0, 0)
        + frame(HEADERS, END_HEADERS, 1, opening)
        + frame(DATA, END_STREAM, 1, b"\0\0\0\0\0")
    )
    found = []
    try:
        async with asyncio.timeout(5):
            while True:
                kind, flags, stream, payload = await next_frame(reader)
                found.append((kind, flags, payload))
                if stream == 1 and (kind == RST or flags & END_STREAM):
                    return found
    finally:
        writer.close()
