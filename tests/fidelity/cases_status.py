"""Every status at every place, with its message, details and trailers."""

from tests.support.fidelity_cases import case
from tests.support.fidelity_raw import answer_frames
from tests.support.fidelity_upstream import SERVICE

CODES = tuple(range(17))
TAIL = (("x-tail", "1"), ("x-tail", "2"), ("grpc-status-details-bin", b"\0\xff\n"))

TEXTS = {
    "empty": "",
    "unicode": "nicht möglich: 不可能 🚣",
    "percent": "100 % of %41 and %zz",
    "newlines": "a\nb\r\tc",
    "control": "\x01\x1f\x7f",
    "spaces": "  a  b  ",
    "long": "é" * 1500,
    "quotes": "\"a\" 'b' \\ c",
}


@case(over=CODES)
async def status_of_a_unary_call(caller, upstream, code):
    """A status with nothing before it."""

    async def script(call):
        await call.read_all()
        if code == 0:
            await call.write(b"well")
        call.end(code, f"status {code}", *TAIL)

    upstream.script = script
    return [await caller.unary(b"x").response()]


@case(over=CODES)
async def status_of_a_stream_after_a_message(caller, upstream, code):
    """A status after part of the response was passed on."""

    async def script(call):
        await call.write(b"part")
        await call.read_all()
        call.end(code, f"status {code}", *TAIL)

    upstream.script = script
    call = caller.stream()
    await call.read()
    await call.done()
    return [await call.rest()]


@case(over=CODES)
async def trailers_only_stay_trailers_only(caller, upstream, code):
    """A status in place of headers is one on the caller's connection too."""

    async def script(call):
        await call.read_all()
        call.end(code, "alone", *TAIL)

    upstream.script = script
    return [await answer_frames(caller.address, SERVICE + "Any")]


@case(over=("headers", "a message", "messages"))
async def what_is_not_trailers_only_is_not_made_so(caller, upstream, what):
    """Headers that were sent are there, as frames of their own."""

    async def script(call):
        if what == "headers":
            await call.headers(("x-head", "1"))
        for _ in range({"a message": 1, "messages": 2}.get(what, 0)):
            await call.write(b"m")
        await call.read_all()
        call.end(9, "after", *TAIL)

    upstream.script = script
    return [await answer_frames(caller.address, SERVICE + "Any")]


@case(over=tuple(TEXTS))
async def status_messages_pass(caller, upstream, kind):
    """Whatever is in a status message, percent signs and all."""

    async def script(call):
        await call.read_all()
        call.end(7, TEXTS[kind], *TAIL)

    upstream.script = script
    return [await caller.unary(b"x").response()]


@case(raw=True)
async def message_of_an_ok_status(caller, upstream):
    """An OK that comes with a message, as some peers send it."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.headers()
    upstream.message(b"m")
    upstream.trailers(0, ("grpc-message", "all is well"), ("x-tail", "1"))
    return [await call.rest()]


@case(over=("stream", "download", "upload"))
async def status_after_headers_only(caller, upstream, arity):
    """Headers with content, no message, and a failure."""

    async def script(call):
        await call.headers(("x-head", "1"))
        await call.read_all()
        call.end(14, "after headers", *TAIL)

    upstream.script = script
    if arity == "download":
        return [await caller.download(b"x").rest()]
    call = caller.stream() if arity == "stream" else caller.upload()
    await call.headers()
    await call.done()
    return [await (call.rest() if arity == "stream" else call.response())]


@case(over=("-1", "17", "99", "x"), raw=True)
async def status_that_no_grpc_has(caller, upstream, code):
    """A number that means nothing, with nothing before it."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.trailers_only(code, ("grpc-message", "odd"), ("x-tail", "1"))
    return [await call.rest()]


@case(raw=True)
async def trailers_without_a_status(caller, upstream):
    """A response that ends and never says how."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.headers(("x-head", "1"))
    upstream.message(b"m")
    upstream.end_without_status()
    return [await call.rest()]


@case(over=("200", "404", "503"), raw=True)
async def answer_of_a_server_that_speaks_no_grpc(caller, upstream, status):
    """HTTP statuses become what gRPC says they become."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.plain_http(status)
    events = await call.rest()
    return [[event[:2] for event in events]]
