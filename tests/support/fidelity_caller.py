"""A caller that writes down what it sees of its calls."""

import asyncio

import grpc
import grpc.aio

from tests.support.fidelity_observation import pairs, size, words
from tests.support.fidelity_upstream import SERVICE

DEFAULTS = (("grpc.use_local_subchannel_pool", 1),)
"""What every caller has: a connection of its own, and else gRPC's defaults."""


class CallerCall:
    """One call, as a stream each way or as a call of another arity."""

    def __init__(self, call):
        self.call = call
        self.events = []

    async def write(self, *messages):
        """Send messages."""
        for message in messages:
            await self.call.write(message)

    async def done(self):
        """Half-close."""
        await self.call.done_writing()

    async def headers(self):
        """Wait for the response headers."""
        found = pairs(await self.call.initial_metadata())
        self.events.append(("headers", found))
        return found

    async def read(self):
        """Return the next response message; None when there is none."""
        message = await self.call.read()
        if message is grpc.aio.EOF:
            return None
        self.events.append(("message", size(message)))
        return message

    async def rest(self):
        """Read messages until the status, whatever it is."""
        try:
            while await self.read() is not None:
                pass
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        return await self.status()

    async def status(self):
        """Wait for the status; return the events so far."""
        code = await self.call.code()
        details = words(await self.call.details())
        headers = pairs(await self.call.initial_metadata())
        trailers = pairs(await self.call.trailing_metadata())
        self.events.append(("status", code.name, details, headers, trailers))
        return self.events

    async def response(self):
        """Wait for the one response of a unary call, and its status."""
        try:
            message = await self.call
            self.events.append(("message", size(message)))
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass
        return await self.status()

    def cancel(self):
        """Give the call up."""
        self.call.cancel()


class Caller:
    """Makes calls on one channel."""

    def __init__(self, address, options=(), compression=None):
        self.address = address
        self.channel = grpc.aio.insecure_channel(
            address, options=(*DEFAULTS, *options), compression=compression
        )

    def stream(self, name="Any", **given):
        """Begin a call that is a stream both ways."""
        return CallerCall(self.channel.stream_stream(SERVICE + name)(**given))

    def download(self, request=b"", name="Any", **given):
        """Begin a call with one request and a stream of responses."""
        call = self.channel.unary_stream(SERVICE + name)(request, **given)
        return CallerCall(call)

    def upload(self, name="Any", **given):
        """Begin a call with a stream of requests and one response."""
        return CallerCall(self.channel.stream_unary(SERVICE + name)(**given))

    def unary(self, request=b"", name="Any", **given):
        """Begin a call with one message each way."""
        call = self.channel.unary_unary(SERVICE + name)(request, **given)
        return CallerCall(call)

    async def close(self):
        """Close the channel."""
        await self.channel.close()
