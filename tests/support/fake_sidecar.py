"""A sidecar on grpcio-testing's fake channel, played by the test line by line."""

import hashlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import grpc
import grpc_testing
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from outrigger.client import Agent, Options, attach
from outrigger.core.blocks import BLOCK_BYTES
from outrigger.v1 import (
    attach_service_pb2,
    checkpoint_pb2,
    checkpoint_service_pb2,
    letter_service_pb2,
)
from outrigger.v1.attach_service_pb2 import AttachRequest, AttachResponse

T = TypeVar("T")

ENVIRON = {
    "OUTRIGGER_AGENT_ID": "otter",
    "OUTRIGGER_API": "api",
    "OUTRIGGER_OUTBOUND": "outbound",
    "OUTRIGGER_TOKEN": "s3cret",
}

_ATTACH = attach_service_pb2.DESCRIPTOR.services_by_name["AttachService"]
_CHECKPOINTS = checkpoint_service_pb2.DESCRIPTOR.services_by_name["CheckpointService"]
_LETTERS = letter_service_pb2.DESCRIPTOR.services_by_name["LetterService"]


def digest_of(state: bytes) -> bytes:
    """The contract's state digest, written down a second time on purpose."""
    blocks = [state[i : i + BLOCK_BYTES] for i in range(0, len(state), BLOCK_BYTES)]
    roots = b"".join(hashlib.sha256(block).digest() for block in blocks)
    return hashlib.sha256(roots).digest()


def ours(code: grpc.StatusCode, reason: str, message: str = "") -> tuple:
    """Trailers, code and details of an answer that the sidecar made itself."""
    info = AnyMessage()
    info.Pack(ErrorInfo(reason=reason, domain="outrigger", metadata={"k": "v"}))
    status = Status(code=code.value[0], message=message, details=[info])
    return (("grpc-status-details-bin", status.SerializeToString()),), code, message


class Timers:
    """The strict fake clock, and a way to know that somebody waits on it."""

    def __init__(self) -> None:
        self.time = grpc_testing.strict_fake_time(0.0)
        self._set = threading.Semaphore(0)
        self.delays: list[float] = []

    def call_in(self, behaviour: Callable[[], None], delay_s: float) -> Any:
        # The fake clock runs what is due under its own lock, where nothing more
        # can be put on it; a real timer has a thread to itself.
        due = threading.Thread(target=behaviour, daemon=True)
        pending = self.time.call_in(due.start, delay_s)
        self.delays.append(delay_s)
        self._set.release()
        return pending

    def pass_next(self, seconds: float) -> None:
        """Move the clock once one more timer has been set."""
        self.wait_for_one()
        self.time.sleep_for(seconds)

    def wait_for_one(self) -> None:
        assert self._set.acquire(timeout=10)


class Stream:
    """One Attach stream seen from the sidecar."""

    def __init__(self, metadata: Any, rpc: Any) -> None:
        self.metadata = metadata
        self.rpc = rpc

    def next(self) -> AttachRequest:
        return self.rpc.take_request()

    def say(self, **message: Any) -> None:
        self.rpc.send_response(AttachResponse(**message))

    def welcome(self, **fields: Any) -> None:
        self.say(welcome=attach_service_pb2.Welcome(agent_id="otter", **fields))

    def finish(self) -> None:
        """End the stream as a sidecar does once the agent has closed its side."""
        self.rpc.requests_closed()
        self.end()

    def end(self, code: grpc.StatusCode = grpc.StatusCode.OK) -> None:
        self.rpc.terminate((), code, "broken by the test")


class FakeSidecar:
    """Holds both ends: the agent under test and the calls it makes.

    Used as a context: at its end its agents are closed and its threads joined.
    """

    def __init__(self) -> None:
        self.timers = Timers()
        self.channels = {
            name: grpc_testing.channel((), self.timers.time)
            for name in ("api", "outbound")
        }
        self.api = self.channels["api"]
        self._pool = ThreadPoolExecutor(8)
        self._agents: list[Agent] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in self._agents:
            agent.close()
        self._pool.shutdown()

    def elsewhere(self, call: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Run a blocking call on another thread."""
        return self._pool.submit(call, *args, **kwargs)

    def attach(
        self,
        save: Callable[[], bytes] = lambda: b"state",
        restore: Callable[[bytes], None] = lambda state: None,
        **more: Any,
    ) -> Agent:
        chosen = {
            name: more.pop(name)
            for name in ("schema", "proves_by_saving")
            if name in more
        }
        options = Options(
            connect=self.channels.__getitem__, call_in=self.timers.call_in, **chosen
        )
        agent = attach(save, restore, environ=ENVIRON, options=options, **more)
        self._agents.append(agent)
        return agent

    def serve(self, **hooks: Any) -> tuple[Agent, Stream]:
        """Attach an agent that starts afresh and serves."""
        agent = self.attach(**hooks)
        stream = self.fresh()
        agent.serving(timeout_s=10)
        assert stream.next().HasField("serving")
        return agent, stream

    def stream(self) -> tuple[Stream, AttachRequest]:
        """Take the next Attach stream and its first message."""
        method = _ATTACH.methods_by_name["Attach"]
        stream = Stream(*self.api.take_stream_stream(method))
        return stream, stream.next()

    def fresh(self) -> Stream:
        """Take the next stream and welcome the agent with nothing to restore."""
        stream, _ = self.stream()
        stream.welcome(epoch=1)
        return stream

    def unary(self, service: str, method: str) -> tuple[Any, Any, Any]:
        """Take a unary call: metadata, request, rpc."""
        descriptor = {"attach": _ATTACH, "checkpoints": _CHECKPOINTS}.get(
            service, _LETTERS
        )
        return self.api.take_unary_unary(descriptor.methods_by_name[method])

    def answer(self, service: str, method: str, response: Any) -> Any:
        """Answer a unary call with OK; return its request."""
        _, request, rpc = self.unary(service, method)
        rpc.terminate(response, (), grpc.StatusCode.OK, "")
        return request

    def refuse(self, service: str, method: str, status: tuple) -> Any:
        """Answer a unary call with an error; return its request."""
        _, request, rpc = self.unary(service, method)
        rpc.terminate(None, *status)
        return request

    def send_checkpoint(
        self, state: bytes, generation: int, chunks: Iterable[bytes] | None = None
    ) -> Any:
        """Answer a RestoreCheckpoint; return its request."""
        _, request, rpc = self.api.take_unary_stream(
            _CHECKPOINTS.methods_by_name["RestoreCheckpoint"]
        )
        checkpoint = checkpoint_pb2.Checkpoint(
            generation=generation, state_digest=digest_of(state)
        )
        answer = checkpoint_service_pb2.RestoreCheckpointResponse
        rpc.send_response(answer(checkpoint=checkpoint))
        for chunk in [state] if chunks is None else chunks:
            rpc.send_response(answer(chunk=chunk))
        rpc.terminate((), grpc.StatusCode.OK, "")
        return request

    def refuse_restore(self, status: tuple) -> None:
        _, _, rpc = self.api.take_unary_stream(
            _CHECKPOINTS.methods_by_name["RestoreCheckpoint"]
        )
        rpc.terminate(*status)

    def no_blocks(self, present: Iterable[bytes] = ()) -> Any:
        """Answer a QueryBlocks; return its request."""
        answer = checkpoint_service_pb2.QueryBlocksResponse(present_digests=present)
        return self.answer("checkpoints", "QueryBlocks", answer)

    def take_save(
        self, generation: int = 1, status: tuple | None = None
    ) -> list[checkpoint_service_pb2.SaveCheckpointRequest]:
        """Take every message of a SaveCheckpoint and answer it."""
        _, rpc = self.api.take_stream_unary(
            _CHECKPOINTS.methods_by_name["SaveCheckpoint"]
        )
        rpc.send_initial_metadata(())
        messages = [rpc.take_request()]
        while not messages[-1].HasField("commit"):
            messages.append(rpc.take_request())
        checkpoint = checkpoint_pb2.Checkpoint(generation=generation)
        answer = checkpoint_service_pb2.SaveCheckpointResponse(checkpoint=checkpoint)
        if status is None:
            rpc.terminate(answer, (), grpc.StatusCode.OK, "")
        else:
            rpc.terminate(None, *status)
        return messages
