"""An upstream that follows a script and writes down what it sees."""

import asyncio
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from tests.support.fidelity_observation import About, pairs, size

SERVICE = "/fidelity.v1.Case/"

UNLIMITED = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    ("grpc.absolute_max_metadata_size", 128 * 1024),
)
"""Options of a peer that takes whatever comes."""

_CODES = {code.value[0]: code for code in grpc.StatusCode}
LIMIT_S = 45.0
"""How long a peer may wait for the other; only what is wrong takes so long."""


class Gate:
    """A barrier between a caller and its upstream: one opens it, the other waits."""

    def __init__(self):
        self._event = asyncio.Event()

    @property
    def is_open(self):
        return self._event.is_set()

    def open(self):
        """Let whoever waits go on."""
        self._event.set()

    async def passed(self):
        """Wait until it is open; TimeoutError if it never is."""
        async with asyncio.timeout(LIMIT_S):
            await self._event.wait()


class UpstreamCall:
    """One call as its callee sees it."""

    def __init__(self, context):
        # What is asked of a context after its call is over may crash the process.
        self.context = context
        self.peer = context.peer()
        self.user_agent = dict(context.invocation_metadata()).get("user-agent", "")
        left_s = context.time_remaining()
        self.metadata = pairs(context.invocation_metadata())
        self.deadline = None if left_s is None else About(left_s)
        self.events = []
        self.ended = Gate()

    def saw(self, *event):
        """Write an event down."""
        self.events.append(event)

    async def read(self):
        """Return the next request message; None at the half-close."""
        message = await self.context.read()
        if message is grpc.aio.EOF:
            self.saw("half-close")
            return None
        self.saw("message", size(message))
        return message

    async def read_all(self):
        """Return all request messages."""
        found = []
        while (message := await self.read()) is not None:
            found.append(message)
        return found

    async def headers(self, *metadata):
        """Send response headers now."""
        await self.context.send_initial_metadata(metadata)

    async def write(self, message):
        """Send a response message."""
        await self.context.write(message)

    def end(self, code=0, details="", *trailers):
        """Set the status the script ends with when it returns."""
        self.context.set_trailing_metadata(trailers)
        self.context.set_details(details)
        self.context.set_code(_CODES[code])

    async def hang(self):
        """Do nothing until the call is cancelled."""
        await asyncio.Event().wait()

    def observed(self):
        """Return what was seen, as plain data."""
        return {
            "metadata": self.metadata,
            "deadline": self.deadline,
            "events": list(self.events),
        }


class Upstream(grpc.GenericRpcHandler):
    """Answers every method with one script; without a script it knows no method."""

    def __init__(self):
        self.script = None
        """An async function of an UpstreamCall."""
        self.handler = None
        """A grpc method handler in place of a script: one of the other arities."""
        self.calls = []
        self.target = ""
        self.methods = []

    def service(self, handler_call_details):
        self.methods.append(handler_call_details.method)
        if self.handler is not None:
            return self.handler
        if self.script is None:
            return None
        return grpc.stream_stream_rpc_method_handler(self._serve)

    async def _serve(self, _requests, context):
        call = UpstreamCall(context)
        self.calls.append(call)
        try:
            await self.script(call)
        except (asyncio.CancelledError, grpc.aio.InternalError):
            # A write may hear of the cancellation before the handler does.
            call.saw("cancelled")
            raise asyncio.CancelledError from None
        finally:
            call.ended.open()

    async def arrived(self, count=1):
        """Wait until so many calls have come."""
        async with asyncio.timeout(LIMIT_S):
            while len(self.calls) < count:
                await asyncio.sleep(0.001)

    async def observed(self):
        """Wait until every call is over and return what was seen of them."""
        for call in self.calls:
            await call.ended.passed()
        return [call.observed() for call in self.calls]

    @asynccontextmanager
    async def serving(self, options=UNLIMITED, compression=None):
        """Listen on a port of the kernel's choice."""
        server = grpc.aio.server(
            handlers=(self,),
            options=(("grpc.so_reuseport", 0), *options),
            compression=compression,
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        self.target = f"127.0.0.1:{port}"
        try:
            yield self
        finally:
            await server.stop(None)
