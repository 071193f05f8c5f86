"""Relays as one writes them without thinking, each wrong in one way.

The suite is worth something only if it notices them.
"""

import asyncio
from contextlib import asynccontextmanager, suppress

import grpc
import grpc.aio

from tests.support.fidelity_upstream import UNLIMITED

_OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.so_reuseport", 0),
    *UNLIMITED,
)


class NaiveRelay(grpc.GenericRpcHandler):
    """A pass-through of a few lines; `wrong` names what it gets wrong."""

    def __init__(self, target, wrong):
        self._wrong = wrong
        self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)

    def service(self, handler_call_details):
        details = handler_call_details

        async def relay(_, context):
            metadata = self._up(details.invocation_metadata)
            call = self._channel.stream_stream(details.method)(
                metadata=metadata, timeout=self._timeout_s(context)
            )
            writing = asyncio.ensure_future(self._requests(context, call))
            try:
                await self._responses(context, call)
            finally:
                writing.cancel()
                if self._wrong != "forgets to cancel":
                    call.cancel()

        return grpc.stream_stream_rpc_method_handler(relay)

    async def close(self):
        """Close the channel."""
        await self._channel.close()

    def _timeout_s(self, context):
        return None if self._wrong == "no deadline" else context.time_remaining()

    def _up(self, metadata):
        if self._wrong == "one value for each key":
            return tuple(dict(metadata).items())
        return tuple(metadata)

    async def _requests(self, context, call):
        with suppress(grpc.aio.BaseError, grpc.aio.AioRpcError, asyncio.CancelledError):
            kept = []
            while (message := await context.read()) is not grpc.aio.EOF:
                if self._wrong == "waits for the half-close":
                    kept.append(message)
                elif message or self._wrong != "drops empty messages":
                    await call.write(message)
            for message in kept:
                await call.write(message)
            await call.done_writing()

    async def _responses(self, context, call):
        headers = await call.initial_metadata()
        if headers or self._wrong == "headers at once":
            await context.send_initial_metadata(tuple(headers))
        code, details, trailers = await self._messages(context, call)
        if self._wrong != "no trailers":
            context.set_trailing_metadata(trailers)
        context.set_details("" if self._wrong == "no details" else details)
        context.set_code(code)

    async def _messages(self, context, call):
        kept = []
        try:
            async for message in call:
                if self._wrong == "reads ahead":
                    kept.append(message)
                else:
                    await context.write(message)
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details()
            return code, details, tuple(error.trailing_metadata())
        for message in kept:
            await context.write(message)
        trailers = tuple(await call.trailing_metadata())
        return grpc.StatusCode.OK, "", trailers


def naive_wire(wrong):
    """Return a wire maker, as in fidelity_wires."""

    @asynccontextmanager
    async def make(target):
        relay = NaiveRelay(target, wrong)
        server = grpc.aio.server(handlers=(relay,), options=_OPTIONS)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            await server.stop(None)
            await relay.close()

    return make
