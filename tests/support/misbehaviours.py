"""Everything an upstream can do wrong, by name; each is a script for `BadUpstream`.

Where a script answers a call properly in the end, the answer is `ANSWER`.
"""

import asyncio
from functools import partial

from tests.support.bad_upstream import BadUpstream, FullBacklog
from tests.support.raw_http2 import (
    CALM,
    CANCEL,
    CONTINUATION,
    DATA,
    END_HEADERS,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    LAST_OF_ALL,
    MAX_CONCURRENT_STREAMS,
    NO_ERROR,
    PING,
    PREFACE,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RESPONSE,
    block,
    data,
    frame,
    goaway,
    headers,
    message,
    rst,
    settings,
    window,
)

ANSWER = b"answer"
FLOOD = 20_000
PAUSE_S = 0.05
"""Long enough for a connection to be taken for ready."""
KIB = 1024
PADDED = 8
STAGES = ("nothing", "headers", "part", "data", "trailers")
HTTP_1 = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x28"
"""What a TLS server says to plaintext: a fatal alert, handshake failure."""
CODES = {
    "refused": REFUSED_STREAM,
    "cancel": CANCEL,
    "internal": INTERNAL_ERROR,
    "no-error": NO_ERROR,
}


def status(stream, value=0, *more):
    """Return trailers with a status."""
    return headers(stream, ("grpc-status", str(value)), *more, end=True)


def proper(stream):
    """Return a whole good response."""
    return headers(stream, *RESPONSE) + data(stream, message(ANSWER)) + status(stream)


async def serve(peer):
    """Answer every further call of a connection."""
    while True:
        peer.send(proper(await peer.asked()))


async def well(peer):
    await peer.greet()
    await serve(peer)


# GOAWAY.


async def goaway_with_settings(peer):
    """Send GOAWAY in the same piece as SETTINGS, and keep the connection."""
    await peer.reader.readexactly(len(PREFACE))
    peer.send(settings(), goaway(0, NO_ERROR))
    peer.listen()
    await serve(peer)


async def goaway_before(peer, last, code):
    """Send GOAWAY to a connection that is ready."""
    await peer.greet()
    await asyncio.sleep(PAUSE_S)
    peer.send(goaway(last, code))
    await serve(peer)


async def goaway_during(peer, code, *, covers):
    """Send GOAWAY between headers and message; complete the call if it is covered."""
    await peer.greet()
    stream = await peer.asked()
    peer.send(headers(stream, *RESPONSE))
    peer.send(goaway(stream if covers else 0, code))
    if covers:
        peer.send(data(stream, message(ANSWER)), status(stream))


async def goaway_unanswered(peer, code):
    """Say of every stream that it was not processed; nothing was sent for it."""
    await peer.greet()
    await peer.asked()
    peer.send(goaway(0, code))


async def goaway_after(peer, code):
    await peer.greet()
    stream = await peer.asked()
    peer.send(proper(stream), goaway(stream, code))


# RST_STREAM.


async def reset(peer, code, after):
    await peer.greet()
    while True:
        stream = await peer.asked()
        peer.send(_until(stream, after), rst(stream, code))


def _until(stream, after):
    """Return a response up to where it is reset."""
    whole = message(ANSWER)
    parts = {
        "nothing": (),
        "headers": (headers(stream, *RESPONSE),),
        "part": (headers(stream, *RESPONSE), data(stream, whole[:-2])),
        "data": (headers(stream, *RESPONSE), data(stream, whole)),
        "trailers": (proper(stream),),
    }
    return b"".join(parts[after])


# Floods.


async def flood(peer, with_frame):
    """Send the same frame again and again, then answer."""
    await peer.greet()
    stream = await peer.asked()
    for _ in range(FLOOD // 100):
        peer.send(with_frame * 100)
        await peer.writer.drain()
    peer.send(proper(stream))
    await serve(peer)


async def deaf_ping_flood(peer):
    """Send pings and read nothing, not even their answers."""
    await peer.reader.readexactly(len(PREFACE))
    peer.send(settings())
    for number in range(FLOOD * 2):
        peer.send(frame(PING, 0, 0, number.to_bytes(8, "big")))
        await peer.writer.drain()
    await asyncio.Event().wait()


async def continuation_flood(peer):
    """Begin a header block and never end it: 32 MiB of one header."""
    await peer.greet()
    stream = await peer.asked()
    peer.send(frame(HEADERS, 0, stream, block(*RESPONSE)))
    for _ in range(2 * KIB):
        peer.send(frame(CONTINUATION, 0, stream, block(("x-a", "a" * 16_000))))
        await peer.writer.drain()


async def empty_continuation_flood(peer):
    """Begin a header block and go on with frames that are empty."""
    await peer.greet()
    stream = await peer.asked()
    peer.send(frame(HEADERS, 0, stream, block(*RESPONSE)))
    for _ in range(FLOOD // 100):
        peer.send(frame(CONTINUATION, 0, stream) * 100)
        await peer.writer.drain()


async def empty_data_flood(peer):
    """Send frames of data without data, then answer."""
    await peer.greet()
    stream = await peer.asked()
    peer.send(headers(stream, *RESPONSE))
    for _ in range(FLOOD // 100):
        peer.send(data(stream) * 100)
        await peer.writer.drain()
    peer.send(data(stream, message(ANSWER)), status(stream))


# SETTINGS and windows.


async def no_streams(peer):
    await peer.greet((MAX_CONCURRENT_STREAMS, 0))


async def one_stream(peer):
    await peer.greet((MAX_CONCURRENT_STREAMS, 1))
    await serve(peer)


async def changing_streams(peer):
    """Allow no streams, then one, then none, then many."""
    await peer.greet((MAX_CONCURRENT_STREAMS, 0))
    for count in (1, 0, 100):
        await asyncio.sleep(PAUSE_S)
        peer.send(settings((MAX_CONCURRENT_STREAMS, count)))
    await serve(peer)


async def narrow_window(peer):
    """Take one byte of each request and never more."""
    peer.feeds = False
    await peer.greet((INITIAL_WINDOW_SIZE, 1))


async def overflowing_window(peer):
    """Open the window further than it goes."""
    await peer.greet()
    stream = await peer.asked()
    peer.send(window(0, LAST_OF_ALL), window(0, LAST_OF_ALL), proper(stream))


async def no_window_step(peer):
    """Open the window by nothing."""
    await peer.greet()
    stream = await peer.asked()
    peer.send(window(stream, 0), proper(stream))


# No HTTP/2 at all.


async def says(peer, answer, *, closes=False):
    """Answer the connection with bytes."""
    peer.send(answer)
    if closes:
        await peer.writer.drain()
        peer.close()


async def closes_at_once(peer):
    peer.close()


async def silent(peer):
    await asyncio.Event().wait()


async def silent_after_settings(peer):
    await peer.greet()


async def closes_in_a_frame(peer):
    await peer.greet()
    stream = await peer.asked()
    whole = headers(stream, *RESPONSE) + data(stream, message(ANSWER))
    peer.send(whole[:-3])
    await peer.writer.drain()
    peer.close()


async def closes_after_request(peer):
    await peer.greet()
    await peer.asked()
    peer.close()


# Responses that are none.


def replying(*parts):
    """Return a script that answers each call with what the parts make of a stream."""

    async def reply(peer):
        await peer.greet()
        while True:
            stream = await peer.asked()
            peer.send(*(part(stream) for part in parts))

    return reply


def head(*pairs, end=False):
    """Return what makes a HEADERS frame for a stream."""
    return lambda stream: headers(stream, *pairs, end=end)


def body(payload, *, end=False):
    """Return what makes a DATA frame for a stream."""
    return lambda stream: data(stream, payload, end=end)


def web(code, *, end=True):
    """Return what a web server says that knows no gRPC."""
    return head((":status", str(code)), ("content-type", "text/html"), end=end)


def raw(kind, flags, payload, *, on_stream=True):
    """Return what makes any frame."""
    return lambda stream: frame(kind, flags, stream if on_stream else 0, payload)


def _long_block(stream):
    """Return headers of 240 KiB, in as many frames as they need."""
    found = frame(HEADERS, 0, stream, block(*RESPONSE))
    for number in range(16):
        more = block((f"x-{number}", "x" * 15 * KIB))
        flags = END_HEADERS if number == 15 else 0
        found += frame(CONTINUATION, flags, stream, more)
    return found


def _long_trailers(stream):
    """Return trailers of 60 KiB, which both sides must take."""
    more = [block((f"x-{number}", "x" * 15 * KIB)) for number in range(4)]
    first = frame(HEADERS, 1, stream, block(("grpc-status", "0")))
    last = frame(CONTINUATION, END_HEADERS, stream, more.pop())
    return first + b"".join(frame(CONTINUATION, 0, stream, m) for m in more) + last


GOOD, WHOLE = head(*RESPONSE), body(message(ANSWER))
TYPE = RESPONSE[1]
MISBEHAVIOURS = {
    "well": well,
    "goaway-with-settings": goaway_with_settings,
    # GOAWAY: before any call, before its answer, within it, and after it.
    "goaway-before": partial(goaway_before, last=0, code=NO_ERROR),
    "goaway-before-calm": partial(goaway_before, last=0, code=CALM),
    "goaway-before-last-above": partial(goaway_before, last=LAST_OF_ALL, code=NO_ERROR),
    "goaway-unanswered": partial(goaway_unanswered, code=NO_ERROR),
    "goaway-unanswered-calm": partial(goaway_unanswered, code=CALM),
    "goaway-during-below": partial(goaway_during, code=NO_ERROR, covers=False),
    "goaway-during-below-calm": partial(goaway_during, code=CALM, covers=False),
    "goaway-during-above": partial(goaway_during, code=NO_ERROR, covers=True),
    "goaway-during-above-calm": partial(goaway_during, code=CALM, covers=True),
    "goaway-after": partial(goaway_after, code=NO_ERROR),
    "goaway-after-calm": partial(goaway_after, code=CALM),
    # RST_STREAM: at once, after headers, within a message, and after it.
    **{
        f"rst-{name}-after-{after}": partial(reset, code=code, after=after)
        for after in STAGES
        for name, code in CODES.items()
    },
    # Floods.
    "ping-flood": partial(flood, with_frame=frame(PING, 0, 0, bytes(8))),
    "ping-flood-unread": deaf_ping_flood,
    "settings-flood": partial(
        flood, with_frame=settings((MAX_CONCURRENT_STREAMS, 100))
    ),
    "continuation-flood": continuation_flood,
    "continuation-flood-empty": empty_continuation_flood,
    "data-flood-empty": empty_data_flood,
    # SETTINGS and windows.
    "streams-0": no_streams,
    "streams-1": one_stream,
    "streams-changing": changing_streams,
    "window-1-byte": narrow_window,
    "window-overflow": overflowing_window,
    "window-step-0": no_window_step,
    # No HTTP/2, or no longer.
    "garbage": partial(says, answer=bytes(range(256)) * 4),
    "http-1": partial(says, answer=HTTP_1, closes=True),
    "tls": partial(says, answer=TLS_ALERT),
    "closes-at-once": closes_at_once,
    "closes-before-answer": closes_after_request,
    "closes-in-a-frame": closes_in_a_frame,
    "silent": silent,
    "silent-after-settings": silent_after_settings,
    "silent-after-headers": replying(GOOD),
    "silent-after-message": replying(GOOD, WHOLE),
    # Responses that are none.
    "no-grpc-status": replying(GOOD, WHOLE, head(("x-a", "b"), end=True)),
    "no-trailers": replying(GOOD, body(message(ANSWER), end=True)),
    "grpc-status-99": replying(GOOD, WHOLE, partial(status, value=99)),
    "grpc-status-abc": replying(GOOD, WHOLE, partial(status, value="abc")),
    "grpc-status-empty": replying(GOOD, WHOLE, partial(status, value="")),
    "no-content-type": replying(head((":status", "200")), WHOLE, status),
    "html": replying(web(200, end=False), body(b"<html>", end=True)),
    "http-404": replying(web(404)),
    "http-429": replying(web(429)),
    "http-502": replying(web(502)),
    "http-503": replying(web(503)),
    "http-502-with-a-page": replying(web(502, end=False), body(b"<html>", end=True)),
    "http-100-first": replying(head((":status", "100")), proper),
    "no-http-status": replying(head(TYPE), WHOLE, status),
    "data-before-headers": replying(WHOLE, GOOD, status),
    "data-after-end": replying(proper, body(b"more", end=True)),
    "headers-twice": replying(GOOD, GOOD, WHOLE, status),
    "bad-hpack": replying(raw(HEADERS, END_HEADERS, b"\xff" * 12)),
    "uppercase-header": replying(head(*RESPONSE, ("X-Upper", "a")), WHOLE, status),
    "newline-in-header": replying(head(*RESPONSE, ("x-a", "a\nb")), WHOLE, status),
    "metadata-60-kib": replying(GOOD, WHOLE, _long_trailers),
    "metadata-240-kib": replying(_long_block, WHOLE, status),
    "message-cut-short": replying(GOOD, body(message(ANSWER, size=100)), status),
    "message-of-4-gib": replying(GOOD, body(message(size=2**32 - 1)), status),
    "message-unknown-flag": replying(GOOD, body(message(ANSWER, flag=2)), status),
    "compressed-unknown": replying(
        head(*RESPONSE, ("grpc-encoding", "rot13")), body(message(b"a", flag=1)), status
    ),
    "compressed-undeclared": replying(GOOD, body(message(b"a", flag=1)), status),
    "compressed-broken": replying(
        head(*RESPONSE, ("grpc-encoding", "gzip")), body(message(b"a", flag=1)), status
    ),
    "frame-too-large": replying(GOOD, raw(DATA, 0, bytes((1 << 24) - 1)), status),
    "frame-of-unknown-kind": replying(raw(0xEE, 0, b"?"), proper),
    "push-promise": replying(raw(PUSH_PROMISE, END_HEADERS, bytes(4)), proper),
    "data-on-stream-0": replying(raw(DATA, 0, b"x", on_stream=False), proper),
    "answer-to-nobody": replying(lambda stream: proper(stream + 2), proper),
    "even-stream": replying(lambda _: headers(2, *RESPONSE), proper),
    "padding-too-long": replying(GOOD, raw(DATA, PADDED, b"\xff"), status),
    "rst-of-stream-0": replying(lambda _: rst(0, CANCEL), proper),
}


def upstream(name):
    """Return the upstream that does this, to be entered."""
    if name == "backlog-full":
        return FullBacklog()
    return BadUpstream(MISBEHAVIOURS[name])
