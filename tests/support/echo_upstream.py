"""A real gRPC server with every shape of method, for relays to be tried on."""

import asyncio
from contextlib import suppress

import grpc
import grpc.aio

OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 128 * 1024),
)


class Echo(grpc.GenericRpcHandler):
    """Methods by name; what each saw is in `seen`."""

    def __init__(self):
        self.seen = []
        """(method, metadata) of every call, in order of arrival."""
        self.requests = []
        """Messages of every call that read them, by arrival."""
        self.ended = []
        """How calls ended: "half-close" or "cancelled"."""
        self.remaining = []
        self.gate = asyncio.Event()
        self.fail_first = 0
        self.extra = {}
        """More methods: name to (context, echo) -> None."""

    def service(self, details):
        name = details.method.rpartition("/")[2]
        method = self.extra.get(name) or getattr(Echo, name.lower(), None)
        if method is None:
            return None

        async def call(_, context):
            self.seen.append((details.method, tuple(details.invocation_metadata)))
            self.remaining.append(context.time_remaining())
            try:
                await method(self, context)
            except (asyncio.CancelledError, grpc.aio.InternalError):
                # A write may hear of the cancellation before the handler does.
                self.ended.append("cancelled")
                raise asyncio.CancelledError from None

        return grpc.stream_stream_rpc_method_handler(call)

    async def read_all(self, context):
        found = []
        while (message := await context.read()) is not grpc.aio.EOF:
            found.append(message)
        self.requests.append(found)
        self.ended.append("half-close")
        return found

    async def echo(self, context):
        """Send every message back at once."""
        while (message := await context.read()) is not grpc.aio.EOF:
            await context.write(message)
        self.ended.append("half-close")

    async def join(self, context):
        """Answer a whole stream with one message."""
        await context.write(b"|".join(await self.read_all(context)))

    async def count(self, context):
        """Answer one message with as many as it says."""
        (request,) = await self.read_all(context)
        for number in range(int(request)):
            await context.write(b"%d" % number)

    async def nothing(self, context):
        """Answer with no message at all."""
        await self.read_all(context)

    async def speak(self, context):
        """Speak first: a message before anything is read."""
        await context.write(b"welcome")
        await Echo.echo(self, context)

    async def greet(self, context):
        """Send empty headers first, and a message only once one was sent."""
        await context.send_initial_metadata(())
        await Echo.echo(self, context)

    async def metadata(self, context):
        """Send back the metadata that begin with `x-`, both ways."""
        found = tuple(
            pair for pair in context.invocation_metadata() if pair[0].startswith("x-")
        )
        await context.send_initial_metadata(found)
        await self.read_all(context)
        await context.write(b"ok")
        context.set_trailing_metadata(found)

    async def status(self, context):
        """End with the status whose number is asked for, without headers."""
        (request,) = await self.read_all(context)
        number, _, text = request.decode().partition(" ")
        code = next(c for c in grpc.StatusCode if c.value[0] == int(number))
        context.set_code(code)
        context.set_details(text)
        context.set_trailing_metadata((("x-why", text.encode("ascii", "replace")),))
        context.set_trailing_metadata(
            (("x-number", number), ("grpc-status-details-bin", b"\x00\xff"))
        )

    async def broken(self, context):
        """Fail after headers with content and no message."""
        await self.read_all(context)
        await context.send_initial_metadata((("x-head", "1"),))
        await context.abort(grpc.StatusCode.UNAVAILABLE, "after headers")

    async def half(self, context):
        """Fail after one message."""
        await self.read_all(context)
        await context.write(b"part")
        await context.abort(grpc.StatusCode.UNAVAILABLE, "after a message")

    async def flaky(self, context):
        """Fail Trailers-Only `fail_first` times, then join."""
        if self.fail_first > 0:
            self.fail_first -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        await Echo.join(self, context)

    async def early(self, context):
        """Answer after the first message, however many are still to come."""
        await context.read()
        await context.abort(
            grpc.StatusCode.FAILED_PRECONDITION, "enough", (("x-early", "1"),)
        )

    async def hang(self, context):
        """Read one message and never answer."""
        await context.read()
        await self.gate.wait()


async def start(handler, address="127.0.0.1:0", options=OPTIONS):
    """Start a server; return it with its target."""
    server = grpc.aio.server(handlers=(handler,), options=options)
    port = server.add_insecure_port(address)
    await server.start()
    target = address if address.startswith("unix:") else f"127.0.0.1:{port}"
    return server, target


async def until(condition, limit_s=20.0):
    """Wait until something holds; raises TimeoutError if it does not."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.002)


async def stopped(server):
    """Stop a server at once."""
    with suppress(asyncio.CancelledError):
        await server.stop(None)
