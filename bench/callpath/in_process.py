"""What a Python client does without a sidecar: tenacity around pybreaker around a stub.

Run as `python -P -m bench.callpath.in_process [--guarded]`; speaks the lines of
`driver.py`. Without `--guarded` the same client calls bare: the difference is what
the guarding costs. Both are synchronous, one thread per call in flight, because
pybreaker has no asyncio. It holds its lock during the whole call, so that calls to
one breaker take turns: that is its design, and what 64 in flight show.
"""

import argparse
import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from bench.figures import percentile

TRIPS = 100
_PATIENCE_S = 20.0
_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
Work = Callable[[bytes], None]


def works(channel: grpc.Channel) -> dict[str, Work]:
    """Return how each kind of call is made."""
    unary: Any = channel.unary_unary("/bench.Echo/Unary")
    stream: Any = channel.unary_stream("/bench.Echo/Stream")
    chat: Any = channel.stream_stream("/bench.Echo/Chat")

    def one(request: bytes) -> None:
        unary(request, timeout=_PATIENCE_S)

    def many(request: bytes) -> None:
        for _ in stream(request, timeout=_PATIENCE_S):
            pass

    def trips(request: bytes) -> None:
        turns: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        answers = chat(_until_none(turns), timeout=_PATIENCE_S)
        for _ in range(TRIPS):
            turns.put(request)
            next(answers)
        turns.put(None)
        next(answers, None)

    return {"unary": one, "stream": many, "pingpong": trips}


def _until_none(turns: "queue.SimpleQueue[bytes | None]") -> Iterator[bytes]:
    while (turn := turns.get()) is not None:
        yield turn


def guarded(work: Work) -> Work:
    """Return the work behind a breaker and retries set as our defaults are."""
    import pybreaker  # noqa: PLC0415 - the plain client must not carry its memory
    import tenacity  # noqa: PLC0415 - the same

    breaker = pybreaker.CircuitBreaker(fail_max=5, reset_timeout=1, success_threshold=2)
    again = tenacity.retry(
        stop=tenacity.stop_after_attempt(3),
        wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
        retry=tenacity.retry_if_exception(_is_unavailable),
        reraise=True,
    )

    @again
    def call(request: bytes) -> None:
        breaker.call(work, request)

    return call


def _is_unavailable(error: BaseException) -> bool:
    return (
        isinstance(error, grpc.RpcError)
        and isinstance(error, grpc.Call)
        and error.code() is grpc.StatusCode.UNAVAILABLE
    )


class Crew:
    """Threads that make calls until their time is up."""

    def __init__(self, work: Work, request: bytes, seconds: float) -> None:
        self._work = work
        self._request = request
        self._end = time.perf_counter() + seconds
        self._took_us: list[float] = []
        self._errors: list[str] = []

    def run(self, in_flight: int) -> dict[str, object]:
        """Make the calls and return the answer's fields."""
        began = time.perf_counter()
        threads = [threading.Thread(target=self._calls) for _ in range(in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed_s = time.perf_counter() - began
        took_us = self._took_us or [0.0]
        return {
            "calls": len(self._took_us),
            "errors": len(self._errors),
            "error": self._errors[0] if self._errors else "",
            "elapsed_s": elapsed_s,
            "p50_us": percentile(took_us, 0.5),
            "p99_us": percentile(took_us, 0.99),
        }

    def _calls(self) -> None:
        while (began := time.perf_counter()) < self._end:
            try:
                self._work(self._request)
            except Exception as error:  # noqa: BLE001 - a bench counts what fails
                self._errors.append(str(error))
            else:
                self._took_us.append((time.perf_counter() - began) * 1e6)


def main() -> None:
    """Make the loads that standard input asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.callpath.in_process")
    parser.add_argument("--guarded", action="store_true")
    is_guarded = parser.parse_args().guarded
    known: dict[str, dict[str, Work]] = {}
    for line in sys.stdin:
        load = json.loads(line)
        target = load["target"]
        if target not in known:
            made = works(grpc.insecure_channel(target, options=_OPTIONS))
            if is_guarded:
                made = {kind: guarded(work) for kind, work in made.items()}
            known[target] = made
        crew = Crew(known[target][load["kind"]], bytes(load["bytes"]), load["seconds"])
        print(json.dumps(crew.run(load["in_flight"])), flush=True)


if __name__ == "__main__":
    main()
