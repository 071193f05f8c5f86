"""A demo agent: reads its share of the books, asks the tool, keeps an index."""

import argparse
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue

from outrigger.client import Agent, Options, attach, letter_id_of
from outrigger.core.blocks import state_digest
from outrigger.core.clock import SystemClock
from outrigger.core.errors import OutriggerError, Refused
from outrigger.core.names import IDEMPOTENCY_KEY_METADATA, LETTER_METADATA
from outrigger.demo.contract import ANALYZE, DIGEST, LOOKUP, serve, struct
from outrigger.demo.index import Index
from outrigger.demo.passages import Passage, share

_CALL_TIMEOUT_S: Final = 5.0
_AGAIN_S: Final = 0.5
_LEASE_S: Final = 10.0
_SAVE_EVERY: Final = 100
"""Passages; what an agent that crashes has to do again at most."""

Analyze = Callable[..., Struct]


class Lookups:
    """The methods of `outrigger.demo.Index`."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def lookup(self, request: StringValue, _context: grpc.ServicerContext) -> Struct:
        """Say which passages hold a word, and how often."""
        found = self._index.lookup(request.value)
        return struct(word=request.value, count=sum(found.values()), passages=found)

    def digest(self, _request: Empty, _context: grpc.ServicerContext) -> Struct:
        """Say what the index holds, and the digest of its state."""
        state = self._index.save()
        return struct(
            digest=state_digest(state).hex(), bytes=len(state), **self._index.counts()
        )


def read(
    agent: Agent, index: Index, passages: Sequence[Passage], pace_s: float
) -> None:
    """Deal with every passage that the index does not have yet."""
    left = [passage for passage in passages if not index.has(passage)]
    if not left:
        return
    clock = SystemClock()
    with agent.channel() as channel, agent.keep_awake(_LEASE_S, "reading its share"):
        analyze = ANALYZE.on(channel)
        for done, passage in enumerate(left, start=1):
            while not deal_with(agent, index, passage, analyze):
                clock.pause(_AGAIN_S)
            if done % _SAVE_EVERY == 0:
                agent.save_checkpoint()
            clock.pause(pace_s)


def deal_with(agent: Agent, index: Index, passage: Passage, analyze: Analyze) -> bool:
    """Ask the tool about a passage and index it; return whether that is settled.

    A call that became a letter is settled: it is on the sidecar's disk and must
    not be made again.
    """
    metadata = (
        (LETTER_METADATA, "on"),
        (IDEMPOTENCY_KEY_METADATA, f"{agent.agent_id}/{passage.name}"),
    )
    with agent.working():
        try:
            answer = analyze(
                StringValue(value=passage.text),
                metadata=metadata,
                timeout=_CALL_TIMEOUT_S,
            )
        except grpc.RpcError as error:
            letter_id = letter_id_of(error)
            if letter_id is not None:
                index.buffered(passage, letter_id)
            return letter_id is not None
        index.answered(passage, _plain(answer))
        return True


def run(agent: Agent, index: Index, passages: Sequence[Passage], pace_s: float) -> None:
    """Read until done, then wait for calls until the sidecar ends it."""
    try:
        read(agent, index, passages, pace_s)
    except Refused as refusal:
        if refusal.reason != "AGENT_STOPPED":
            raise
    agent.wait_until_stopped()


def main(argv: Sequence[str]) -> int:
    """Be an agent until the sidecar ends it; return an exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m outrigger.demo.agent")
    parser.add_argument("--share", required=True, metavar="I/N")
    parser.add_argument("--pace-s", type=float, default=0.0, help="between passages")
    flags = parser.parse_args(argv)
    number, _, count = flags.share.partition("/")
    index = Index()
    lookups = Lookups(index)
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    serve(server, {LOOKUP: lookups.lookup, DIGEST: lookups.digest})
    port = server.add_insecure_port("127.0.0.1:0")
    options = Options(schema="outrigger.demo.index/1", proves_by_saving=True)
    with attach(
        index.save,
        index.restore,
        app_address=f"127.0.0.1:{port}",
        options=options,
    ) as agent:
        agent.wait_until_restored()
        server.start()
        agent.serving()
        run(agent, index, share(int(number), int(count)), flags.pace_s)
    server.stop(grace=None)
    return 0


def _plain(answer: Struct) -> dict[str, Any]:
    return dict(MessageToDict(answer))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except OutriggerError as error:
        sys.exit(f"outrigger.demo.agent: {error.message} [{error.reason}]")
