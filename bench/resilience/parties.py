"""Who calls, and whom: callees of this bench and the ways to them."""

import asyncio
import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import grpc
import grpc.aio

from bench.callpath import envoy
from bench.resilience.callee import ORDER
from bench.resilience.timelines import Made
from tests.support.processes import PYTHON, Running, Stack, wait_for

OURS: Final = "Outrigger"
ENVOY: Final = "Envoy"
NAIVE: Final = "client that retries 3 times"
_CALL: Final = "/bench.Callee/Call"
_MS: Final = 1000
_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 200),
)
_RETRIES: Final = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


class CalleeProcess:
    """A callee that can be ordered, killed, started again and stopped."""

    def __init__(self, stack: Stack, name: str) -> None:
        self._stack, self._name = stack, name
        self._port = 0
        self.running: Running
        self.start()

    @property
    def target(self) -> str:
        """Where it is reached."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> float:
        """Start it, on the same port as before; return since when it serves."""
        log = self._stack.folder / f"{self._name}.log"
        before = log.stat().st_size if log.exists() else 0
        self.running = self._stack.start(
            self._name,
            *PYTHON,
            "bench.resilience.callee",
            *("--listen", f"127.0.0.1:{self._port}"),
        )
        port, since = wait_for(lambda: self._announced(before), f"{self._name}'s port")
        self._port = int(port)
        return float(since)

    def _announced(self, before: int) -> Sequence[bytes] | None:
        words: Sequence[bytes] = self.running.port_line(before)
        return words if len(words) == 2 else None

    def stop(self) -> float:
        """Freeze it; return when."""
        self.running.process.send_signal(signal.SIGSTOP)
        return time.monotonic()

    def go_on(self) -> float:
        """Thaw it; return when."""
        now = time.monotonic()
        self.running.process.send_signal(signal.SIGCONT)
        return now

    async def order(self, **order: object) -> dict[str, Any]:
        """Tell it how to behave; return what it counted since the order before."""
        async with grpc.aio.insecure_channel(self.target, _OPTIONS) as channel:
            call = channel.unary_unary(ORDER)
            request = json.dumps(order).encode()
            counted: dict[str, Any] = json.loads(
                await call(request, timeout=10, wait_for_ready=True)
            )
        return counted


@dataclass(frozen=True, slots=True)
class Party:
    """One way to a callee."""

    name: str
    callee: CalleeProcess
    target: str
    retries: bool = False
    """The client itself does."""

    def channel(self) -> grpc.aio.Channel:
        """Return a channel; close it."""
        options: tuple[tuple[str, object], ...] = _OPTIONS
        if self.retries:
            options += (("grpc.service_config", json.dumps(_RETRIES)),)
        else:
            options += (("grpc.enable_retries", 0),)
        return grpc.aio.insecure_channel(self.target, options)


def ours(stack: Stack, name: str, callee: CalleeProcess) -> Party:
    """Start a sidecar with its defaults in front of a callee."""
    sidecar = stack.sidecar(name, upstream=callee.target)
    return Party(OURS, callee, sidecar.addresses["outbound"])


def envoys(stack: Stack, callee: CalleeProcess) -> list[Party]:
    """Start Envoy in front of a callee; none if its wheel is not here."""
    if envoy.version() is None:
        return []
    _, target = envoy.start(stack, callee.target)
    return [Party(ENVOY, callee, target)]


def naive(callee: CalleeProcess) -> Party:
    """Return a client that calls directly and retries by gRPC's own policy."""
    return Party(NAIVE, callee, callee.target, retries=True)


async def make(
    channel: grpc.aio.Channel, deadline_s: float, method: str = _CALL
) -> Made:
    """Make one call and return how it went."""
    call = channel.unary_unary(method)
    begun = time.monotonic()
    try:
        await call(b"x", timeout=deadline_s)
    except grpc.aio.AioRpcError as error:
        told = {str(key): value for key, value in error.trailing_metadata() or ()}
        pushback = told.get("grpc-retry-pushback-ms")
        return Made(
            begun,
            time.monotonic(),
            error.code().value[0],
            str(told.get("outrigger-refused-by", "")),
            None if pushback is None else int(pushback) / _MS,
        )
    return Made(begun, time.monotonic(), 0)


class Load:
    """Calls at a steady rate, whatever becomes of them (an open loop)."""

    def __init__(self, party: Party, rate: float, deadline_s: float) -> None:
        self.party = party
        self._rate, self._deadline_s = rate, deadline_s
        self._channel = party.channel()
        self._calls: set[asyncio.Task[None]] = set()
        self._driver: asyncio.Task[None] | None = None
        self.made: list[Made] = []

    async def __aenter__(self) -> Self:
        """Begin."""
        self._driver = asyncio.create_task(self._drive())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop; calls that are still out are given up and not counted."""
        if self._driver is not None:
            self._driver.cancel()
        for call in tuple(self._calls):
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        await self._channel.close()

    async def _drive(self) -> None:
        began, number = time.monotonic(), 0
        while True:
            await asyncio.sleep(began + number / self._rate - time.monotonic())
            call = asyncio.create_task(self._one())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            number += 1

    async def _one(self) -> None:
        self.made.append(await make(self._channel, self._deadline_s))
