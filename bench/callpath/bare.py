"""A bare grpc.aio pass-through: what relaying costs in Python before any policy.

Run as `python -P -m bench.callpath.bare --upstream HOST:PORT [--unary]`; prints its
port. The plain kind takes any method of any arity, as bytes, with metadata, deadline,
status and trailers. With `--unary` it was told that every method is unary, which saves
most of the events of a call; no relay that must take any method can do that.

It leaves out what costs: no response headers before the first message, no retry, no
breaker, no care for cancelled uploads. It is the floor, not an alternative.
"""

import argparse
import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

Context = grpc.aio.ServicerContext[Any, Any]
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)


class AnyArity(grpc.GenericRpcHandler):
    """Takes every call as a stream each way."""

    def __init__(self, upstream: grpc.aio.Channel) -> None:
        self._upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Relay whatever is called."""

        async def relay(_requests: object, context: Context) -> None:
            call = self._upstream.stream_stream(details.method)(
                metadata=details.invocation_metadata, timeout=context.time_remaining()
            )
            requests = asyncio.get_running_loop().create_task(
                _requests_up(context, call)
            )
            try:
                await _responses_down(call, context)
            finally:
                requests.cancel()
                call.cancel()

        return grpc.stream_stream_rpc_method_handler(relay)


async def _requests_up(context: Context, call: Any) -> None:  # noqa: ANN401 - grpc's
    while (message := await context.read()) is not grpc.aio.EOF:
        await call.write(message)
    await call.done_writing()


async def _responses_down(call: Any, context: Context) -> None:  # noqa: ANN401 - grpc's
    while (message := await call.read()) is not grpc.aio.EOF:
        await context.write(message)
    await _status_down(call, context)


class Unary(grpc.GenericRpcHandler):
    """Takes every call as one message each way."""

    def __init__(self, upstream: grpc.aio.Channel) -> None:
        self._upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Relay whatever is called."""

        async def relay(request: bytes, context: Context) -> bytes:
            call = self._upstream.unary_unary(details.method)(
                request,
                metadata=details.invocation_metadata,
                timeout=context.time_remaining(),
            )
            response = await call
            await _status_down(call, context)
            return response

        return grpc.unary_unary_rpc_method_handler(relay)


async def _status_down(call: Any, context: Context) -> None:  # noqa: ANN401 - grpc's
    context.set_trailing_metadata(tuple(await call.trailing_metadata()))
    context.set_details(await call.details() or "")
    context.set_code(await call.code())


async def _serve(upstream: str, kind: Callable[[grpc.aio.Channel], Any]) -> None:
    async with grpc.aio.insecure_channel(upstream, options=_OPTIONS) as channel:
        server = grpc.aio.server(handlers=(kind(channel),), options=_OPTIONS)
        print(server.add_insecure_port("127.0.0.1:0"), flush=True)
        await server.start()
        await server.wait_for_termination()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(prog="python -m bench.callpath.bare")
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--unary", action="store_true")
    given = parser.parse_args()
    asyncio.run(_serve(given.upstream, Unary if given.unary else AnyArity))


if __name__ == "__main__":
    main()
