"""An upstream that answers any method with the request, and Stream with 100 copies.

Run as `python -P -m bench.echo`; prints its port.
"""

import asyncio

import grpc
import grpc.aio


class Echo(grpc.GenericRpcHandler):
    """Answers bytes with bytes."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Serve any method."""
        if details.method.endswith("/Stream"):
            return grpc.unary_stream_rpc_method_handler(self._stream)
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, _context: object) -> bytes:
        return request

    async def _stream(self, request: bytes, context: grpc.aio.ServicerContext) -> None:
        for _ in range(100):
            await context.write(request)


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((Echo(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
