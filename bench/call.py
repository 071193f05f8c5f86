"""A direct call against a relayed one: latency at one in flight, CPU per call."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc.aio

from bench.figures import Figure, cpu_s, median, percentile
from tests.support.processes import PYTHON, Stack, wait_for

ROUNDS = 5
CALLS = 400
LOADED_CALLS = 2000
IN_FLIGHT = 32
STREAMS = 40
PAYLOAD = b"x" * 1024


def measure(folder: Path) -> Iterator[Figure]:
    """Yield the figures of the call path."""
    with Stack(folder) as stack:
        echo = stack.start("echo", *PYTHON, "bench.echo")
        port = int(wait_for(lambda: echo.text().split(), "the echo's port")[0])
        target = f"127.0.0.1:{port}"
        sidecar = stack.sidecar("bench", upstream=target)
        relayed = sidecar.addresses["outbound"]
        yield from asyncio.run(_measure(target, relayed, sidecar.pid))


async def _measure(direct: str, relayed: str, pid: int) -> list[Figure]:
    async with (
        grpc.aio.insecure_channel(direct) as one,
        grpc.aio.insecure_channel(relayed) as two,
    ):
        await _latencies(one, 100), await _latencies(two, 100)
        pairs = [
            (await _latencies(one, CALLS), await _latencies(two, CALLS))
            for _ in range(ROUNDS)
        ]
        streams = [
            (await _streams(one, STREAMS), await _streams(two, STREAMS))
            for _ in range(ROUNDS)
        ]
        return [
            *_added("unary, 1 KiB, one in flight", pairs),
            *_added("stream of 100 x 1 KiB", streams),
            await _cpu(two, pid),
            await _stream_cpu(two, pid),
            *await _throughput(one, two),
        ]


def _added(what: str, pairs: list[tuple[list[float], list[float]]]) -> list[Figure]:
    found = []
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        direct = median([percentile(one, share) for one, _ in pairs]) * 1000
        relay = median([percentile(two, share) for _, two in pairs]) * 1000
        found.append(
            Figure(
                "call",
                f"{what}: added {name}",
                relay - direct,
                "ms",
                f"direct {direct:.3f} ms, relayed {relay:.3f} ms",
                relay / direct,
            )
        )
    return found


async def _latencies(channel: grpc.aio.Channel, count: int) -> list[float]:
    call = channel.unary_unary("/bench.Echo/Unary")
    found = []
    for _ in range(count):
        began = time.perf_counter()
        await call(PAYLOAD)
        found.append(time.perf_counter() - began)
    return found


async def _streams(channel: grpc.aio.Channel, count: int) -> list[float]:
    call = channel.unary_stream("/bench.Echo/Stream")
    found = []
    for _ in range(count):
        began = time.perf_counter()
        async for _message in call(PAYLOAD):
            pass
        found.append(time.perf_counter() - began)
    return found


async def _loaded(channel: grpc.aio.Channel) -> float:
    """Return the seconds that many calls take with many in flight."""
    call = channel.unary_unary("/bench.Echo/Unary")

    async def worker() -> None:
        for _ in range(LOADED_CALLS // IN_FLIGHT):
            await call(PAYLOAD)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(IN_FLIGHT)))
    return time.perf_counter() - began


async def _cpu(channel: grpc.aio.Channel, pid: int) -> Figure:
    before = cpu_s(pid)
    await _loaded(channel)
    used = (cpu_s(pid) - before) / LOADED_CALLS
    return Figure("call", "CPU of the sidecar per unary call", used * 1e6, "us")


async def _stream_cpu(channel: grpc.aio.Channel, pid: int) -> Figure:
    before = cpu_s(pid)
    await _streams(channel, STREAMS)
    used = (cpu_s(pid) - before) / STREAMS
    return Figure("call", "CPU of the sidecar per stream of 100", used * 1e6, "us")


async def _throughput(
    direct: grpc.aio.Channel, relayed: grpc.aio.Channel
) -> list[Figure]:
    pairs = [(await _loaded(direct), await _loaded(relayed)) for _ in range(ROUNDS)]
    one = LOADED_CALLS / median([pair[0] for pair in pairs])
    two = LOADED_CALLS / median([pair[1] for pair in pairs])
    return [
        Figure(
            "call",
            f"calls a second, {IN_FLIGHT} in flight",
            two,
            "/s",
            f"direct {one:.0f} /s",
            two / one,
        )
    ]
