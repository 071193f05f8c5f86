"""The demo's upstream: a tool service that can be killed and remembers its calls."""

import argparse
import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue

from outrigger.core.names import IDEMPOTENCY_KEY_METADATA
from outrigger.demo.contract import ANALYZE, SEEN, TERMS, serve, struct
from outrigger.demo.passages import words

_TOP: Final = 5
_THREADS: Final = 8


class Ledger:
    """Which idempotency keys came, one line per call, in a file.

    A line is with the kernel before its call is answered, so that what was
    answered is counted after SIGKILL as well. The machine's own death is not the
    demo's subject: nothing is synced.
    """

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        # A line without its end was never answered.
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        os.ftruncate(self._file, len(whole) + 1 if whole else 0)
        lines = whole.decode().splitlines()
        self._keys = set(lines)
        self._calls = len(lines)

    def note(self, key: str) -> None:
        """Count one call."""
        with self._lock:
            os.write(self._file, f"{key}\n".encode())
            self._keys.add(key)
            self._calls += 1

    def counts(self) -> tuple[int, int]:
        """Return how many different keys came, and how many calls."""
        with self._lock:
            return len(self._keys), self._calls

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class Tools:
    """The methods of `outrigger.demo.Tools`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def analyze(self, request: StringValue, context: grpc.ServicerContext) -> Struct:
        """Count the words of a passage and name the commonest."""
        metadata = {entry[0]: entry[1] for entry in context.invocation_metadata()}
        self._ledger.note(str(metadata.get(IDEMPOTENCY_KEY_METADATA, "none")))
        counts = _counts(request.value)
        return struct(
            words=sum(count for _, count in counts),
            top=[word for word, _ in counts[:_TOP]],
        )

    def terms(
        self, request: StringValue, _context: grpc.ServicerContext
    ) -> Iterator[Struct]:
        """Send every word of a passage with its count, commonest first."""
        for word, count in _counts(request.value):
            yield struct(term=word, count=count)

    def seen(self, _request: Empty, _context: grpc.ServicerContext) -> Struct:
        """Say how many different keys came, and how many calls."""
        distinct, calls = self._ledger.counts()
        return struct(distinct=distinct, calls=calls, duplicates=calls - distinct)


def make_server(ledger: Ledger, listen: str) -> tuple[grpc.Server, int]:
    """Return a server that is not started yet, and its port."""
    # One that shares its port would take calls meant for another process.
    server = grpc.server(
        ThreadPoolExecutor(_THREADS), options=[("grpc.so_reuseport", 0)]
    )
    tools = Tools(ledger)
    serve(server, {ANALYZE: tools.analyze, TERMS: tools.terms, SEEN: tools.seen})
    return server, server.add_insecure_port(listen)


def main(argv: Sequence[str]) -> int:
    """Serve until killed; return an exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m outrigger.demo.tool_server")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT")
    parser.add_argument("--port-file", type=Path, help="write the port here")
    parser.add_argument("--seen", type=Path, required=True, help="file of the calls")
    flags = parser.parse_args(argv)
    server, port = make_server(Ledger(flags.seen), flags.listen)
    server.start()
    if flags.port_file:
        draft = flags.port_file.with_suffix(".new")
        draft.write_text(f"{port}\n")
        draft.replace(flags.port_file)
    server.wait_for_termination()
    return 0


def _counts(text: str) -> list[tuple[str, int]]:
    counts = Counter(words(text))
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
