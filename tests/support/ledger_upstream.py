"""An upstream as a process of its own, which writes down every call it answered.

Run as `python -P -m tests.support.ledger_upstream --listen HOST:PORT --seen FILE`.
Any method: the last request message is the answer. `/test.Ledger/Stream` answers
with ten copies. Each answered call leaves one line in FILE: its idempotency key
and the SHA-256 of the request.
"""

import argparse
import asyncio
import hashlib
import signal
from pathlib import Path

import grpc
import grpc.aio


class Ledger(grpc.GenericRpcHandler):
    """Answers anything and writes it down."""

    def __init__(self, seen: Path):
        self._seen = seen.open("a", buffering=1)

    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(
            self._stream if details.method.endswith("/Stream") else self._answer
        )

    async def _answer(self, requests, context):
        yield await self._take(requests, context)

    async def _stream(self, requests, context):
        last = await self._take(requests, context)
        for _ in range(10):
            yield last

    async def _take(self, requests, context):
        last = b""
        async for message in requests:
            last = message
        key = dict(context.invocation_metadata()).get("idempotency-key", "-")
        self._seen.write(f"{key} {hashlib.sha256(last).hexdigest()}\n")
        return last


async def serve(listen: str, seen: Path) -> None:
    server = grpc.aio.server(
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
    )
    server.add_generic_rpc_handlers((Ledger(seen),))
    port = server.add_insecure_port(listen)
    await server.start()
    print(port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--seen", type=Path, required=True)
    args = parser.parse_args()
    asyncio.run(serve(args.listen, args.seen))
