"""Calls of every arity, with callees that are of that arity themselves."""

import grpc
import grpc.aio

from tests.support.fidelity_cases import case
from tests.support.fidelity_raw import answer_frames
from tests.support.fidelity_upstream import SERVICE

ARITIES = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
HEAD, TAIL = (("x-head", "1"),), (("x-tail", "2"),)


def handler(arity, *, fails=False):
    """Return a method handler of an arity that answers with what it got."""
    many_in, many_out = arity.startswith("stream"), arity.endswith("stream")

    async def got(request):
        return [one async for one in request] if many_in else [request]

    async def begun(request, context):
        messages = await got(request)
        await context.send_initial_metadata(HEAD)
        context.set_trailing_metadata(TAIL)
        if fails:
            await context.abort(grpc.StatusCode.ABORTED, "asked to", TAIL)
        return messages

    async def one(request, context):
        return b"+".join(await begun(request, context))

    async def many(request, context):
        for message in await begun(request, context):
            yield b"<" + message + b">"

    make = getattr(grpc, f"{arity}_rpc_method_handler")
    return make(many if many_out else one)


async def made(caller, arity):
    """Make a call of an arity and return its events."""
    if arity == "unary_unary":
        return await caller.unary(b"a").response()
    if arity == "unary_stream":
        return await caller.download(b"a").rest()
    call = caller.upload() if arity == "stream_unary" else caller.stream()
    await call.write(b"a", b"", b"c")
    await call.done()
    return await (call.response() if arity == "stream_unary" else call.rest())


@case(over=ARITIES)
async def answers(caller, upstream, arity):
    """A call of an arity and its callee of the same one, healthy."""
    upstream.handler = handler(arity)
    return [await made(caller, arity)]


@case(over=ARITIES)
async def fails_after_headers(caller, upstream, arity):
    """The callee sends headers and then fails."""
    upstream.handler = handler(arity, fails=True)
    return [await made(caller, arity)]


@case(over=ARITIES)
async def handler_crashes(caller, upstream, arity):
    """The callee's own code breaks: UNKNOWN, with what its library says."""

    async def crash(call):
        if arity.startswith("unary"):
            await call.read_all()
        raise ValueError("a defect of the callee")

    upstream.script = crash
    return [await _unless_ended(caller, arity)]


async def _unless_ended(caller, arity):
    if arity.startswith("unary"):
        return await made(caller, arity)
    call = caller.upload() if arity == "stream_unary" else caller.stream()
    return await (call.response() if arity == "stream_unary" else call.rest())


@case(over=ARITIES)
async def method_is_unknown(caller, upstream, arity):
    """The callee has no such method."""
    return [await _unless_ended(caller, arity)]


@case()
async def unary_caller_of_a_stream_of_none(caller, upstream):
    """A unary caller that is answered OK without a message."""

    async def script(call):
        await call.read_all()

    upstream.script = script
    return [await caller.unary(b"x").response()]


@case()
async def unary_call_that_is_answered_twice(caller, upstream):
    """Two messages where one was expected: the caller is sent both, and the status.

    Asked by frames, for grpcio's own unary caller never ends such a call.
    """

    async def script(call):
        await call.read_all()
        await call.write(b"one")
        await call.write(b"two")

    upstream.script = script
    return [await answer_frames(caller.address, SERVICE + "Any")]
