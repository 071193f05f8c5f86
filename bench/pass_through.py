"""A bare relay over grpc.aio: any method, bytes both ways, no policy whatever.

Run as `python -P -m bench.pass_through TARGET`; prints its port. What it leaks is
the library's own.
"""

import asyncio
import contextlib
import sys
from typing import Any

import grpc
import grpc.aio

from outrigger.core.rpc.server import channel


class PassThrough(grpc.GenericRpcHandler):
    """Sends every call on and every answer back."""

    def __init__(self, upstream: grpc.aio.Channel) -> None:
        self._upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Serve any method as a stream both ways."""

        async def relay(_: object, context: Any) -> None:  # noqa: ANN401 - grpc's own
            call: Any = self._upstream.stream_stream(details.method)()
            up = asyncio.create_task(_send_up(context, call))
            try:
                while (message := await call.read()) is not grpc.aio.EOF:
                    await context.write(message)
            finally:
                call.cancel()
                up.cancel()

        return grpc.stream_stream_rpc_method_handler(relay)


async def _send_up(context: Any, call: Any) -> None:  # noqa: ANN401 - grpc's own
    with contextlib.suppress(grpc.aio.AioRpcError, grpc.aio.BaseError):
        while (message := await context.read()) is not grpc.aio.EOF:
            await call.write(message)
        await call.done_writing()


async def main(target: str) -> None:
    """Serve until killed."""
    async with channel(target) as upstream:
        server = grpc.aio.server(handlers=(PassThrough(upstream),))
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
