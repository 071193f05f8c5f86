"""The calls of the soak: unary, server-streaming and bidi, one in ten cancelled.

Run as `python -P -m bench.soak_load` it is the upstream, and prints its port.
"""

import asyncio
import contextlib
from typing import Any

import grpc
import grpc.aio

IN_FLIGHT = 32
MESSAGES = 10
PAYLOAD = b"x" * 256
_UNARY, _COUNT, _BIDI = ("/soak.Echo/Unary", "/soak.Echo/Count", "/soak.Echo/Bidi")


class Echo(grpc.GenericRpcHandler):
    """Answers each message with itself; Count answers one message with ten."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Serve any method."""
        times = MESSAGES if details.method == _COUNT else 1

        async def echo(_: object, context: Any) -> None:  # noqa: ANN401 - grpc's own
            while (message := await context.read()) is not grpc.aio.EOF:
                for _number in range(times):
                    await context.write(message)

        return grpc.stream_stream_rpc_method_handler(echo)


class Load:
    """Makes calls on one channel; `done` and `cancelled` count them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._unary: Any = channel.unary_unary(_UNARY)
        self._count: Any = channel.unary_stream(_COUNT)
        self._bidi: Any = channel.stream_stream(_BIDI)
        self.done = self.cancelled = 0

    async def run(self, calls: int) -> None:
        """Make that many calls, a few at a time.

        Raises:
            grpc.aio.AioRpcError: a call failed.
        """
        numbers = iter(range(self.done, self.done + calls))

        async def worker() -> None:
            for number in numbers:
                await self._one(number)
                self.done += 1

        await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))

    async def _one(self, number: int) -> None:
        shape = (self._make_unary, self._make_count, self._make_bidi)[number % 3]
        # One in ten of each shape: 3 and 10 have no factor in common.
        is_cancelled = number % 10 == 0
        try:
            await shape(is_cancelled=is_cancelled)
        except asyncio.CancelledError:
            if not is_cancelled:
                raise
        self.cancelled += is_cancelled

    async def _make_unary(self, *, is_cancelled: bool) -> None:
        call = self._unary(PAYLOAD, timeout=60)
        if is_cancelled:
            await call.wait_for_connection()
            call.cancel()
        await call

    async def _make_count(self, *, is_cancelled: bool) -> None:
        await _read(self._count(PAYLOAD, timeout=60), is_cancelled=is_cancelled)

    async def _make_bidi(self, *, is_cancelled: bool) -> None:
        call = self._bidi(timeout=60)
        for number in range(MESSAGES):
            await call.write(PAYLOAD)
            await call.read()
            if is_cancelled and number == MESSAGES // 2:
                call.cancel()
                break
        else:
            await call.done_writing()
        await _read(call, is_cancelled=is_cancelled)


async def _read(call: Any, *, is_cancelled: bool) -> None:  # noqa: ANN401 - grpc's own
    """Read to the end; cancelled calls after the first message."""
    while await call.read() is not grpc.aio.EOF:
        if is_cancelled:
            call.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await call.code()


async def main() -> None:
    """Serve until killed."""
    server = grpc.aio.server(handlers=(Echo(),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main())
