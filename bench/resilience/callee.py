"""A callee that is told how to behave and counts what reaches it: a process.

Every method of `/bench.Callee/` is a call but `Order`, which takes JSON: `behave` is
answer, hang or hold; `share` is that of the calls to be answered well; `hold` is how
many calls are kept until all of them are there, then failed at once. It answers with
what was counted since the order before; without `behave` the count goes on.
"""

import argparse
import asyncio
import json
import random
import time
from typing import Final

import grpc
import grpc.aio

ORDER: Final = "/bench.Callee/Order"
_SEED: Final = 1


class Callee(grpc.GenericRpcHandler):
    """Answers, fails, hangs or holds."""

    def __init__(self) -> None:
        self._chance = random.Random(_SEED)
        self._behave = "answer"
        self._share = 1.0
        self._hold = self._in_flight = self._most = 0
        self._arrivals: list[float] = []
        self._all_there = asyncio.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        """Return the handler of any method."""
        handler = self._order if details.method == ORDER else self._call
        return grpc.unary_unary_rpc_method_handler(handler)

    async def _order(self, request: bytes, _context: grpc.aio.ServicerContext) -> bytes:
        order = json.loads(request)
        counted = {"arrivals": self._arrivals, "most": self._most}
        if "behave" in order:
            self._behave = order["behave"]
            self._share = order.get("share", 1.0)
            self._hold = order.get("hold", 0)
            self._all_there = asyncio.Event()
            self._arrivals, self._most = [], self._in_flight
        return json.dumps(counted).encode()

    async def _call(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        self._arrivals.append(time.monotonic())
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        try:
            await self._behaved(context)
        finally:
            self._in_flight -= 1
        return request

    async def _behaved(self, context: grpc.aio.ServicerContext) -> None:
        if self._behave == "hang":
            await asyncio.Event().wait()
        if self._behave == "hold" and len(self._arrivals) <= self._hold:
            if len(self._arrivals) == self._hold:
                self._all_there.set()
            await self._all_there.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "all at once")
        if self._chance.random() >= self._share:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "ill")


async def serve(address: str) -> None:
    """Serve for ever; print the port and since when (monotonic seconds)."""
    options = (("grpc.so_reuseport", 0),)
    server = grpc.aio.server(handlers=(Callee(),), options=options)
    port = server.add_insecure_port(address)
    await server.start()
    print(port, time.monotonic(), flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.resilience.callee")
    parser.add_argument("--listen", required=True)
    asyncio.run(serve(parser.parse_args().listen))
