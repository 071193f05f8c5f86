"""The agent's side of a sidecar with nothing but grpcio and the generated stubs.

Everything `outrigger.client` does is an RPC of `proto/outrigger/v1`. This file does
the same without it, one step after another, as a program in any language would:

    outrigger sidecar --agent-id bare --upstream tools=127.0.0.1:9000 \
        -- python examples/bare_stubs.py

The state of this agent is a list of lines, and it adds one line a second.
"""

import hashlib
import os
import queue
import threading
from collections.abc import Iterator

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from outrigger.v1 import attach_service_pb2 as attach_pb
from outrigger.v1 import checkpoint_service_pb2 as checkpoint_pb
from outrigger.v1 import letter_service_pb2 as letter_pb
from outrigger.v1.attach_service_pb2_grpc import AttachServiceStub
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub

# The sidecar tells its agent four things: OUTRIGGER_AGENT_ID, OUTRIGGER_API,
# OUTRIGGER_OUTBOUND and OUTRIGGER_TOKEN. Each RPC to the API carries the token.
TOKEN = (("outrigger-token", os.environ["OUTRIGGER_TOKEN"]),)

# No keepalive: an agent that was frozen wakes with all its timers due, and a ping
# that was never late would close the connection. A pool of its own, so that after a
# restart of the sidecar nobody else's reconnect backoff is waited out.
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.enable_http_proxy", 0),
)

BLOCK = 256 * 1024
CHUNK = 1024 * 1024

api = grpc.insecure_channel(os.environ["OUTRIGGER_API"], options=OPTIONS)
attach_service = AttachServiceStub(api)
checkpoints = CheckpointServiceStub(api)
letters = LetterServiceStub(api)

lines: list[str] = []
# Held while the state is changed; until the state is restored, and from
# `prepare_sleep` to `resume`, the conversation with the sidecar holds it.
quiet = threading.Lock()
stopped = threading.Event()


def state_digest(state: bytes) -> bytes:
    """SHA-256 over the SHA-256 digests of the state's blocks of 256 KiB."""
    blocks = [state[start : start + BLOCK] for start in range(0, len(state), BLOCK)]
    digests = [hashlib.sha256(block).digest() for block in blocks]
    return hashlib.sha256(b"".join(digests)).digest()


def save_messages(
    state: bytes, epoch: int
) -> Iterator[checkpoint_pb.SaveCheckpointRequest]:
    """Begin, the raw bytes in pieces of at most 1 MiB, commit.

    A stream that ends without `commit` leaves nothing behind. A client that wants
    to send less asks QueryBlocks first and sends a BlockReference for each block
    that is there already; `outrigger.client` does.
    """
    request = checkpoint_pb.SaveCheckpointRequest
    yield request(
        begin=checkpoint_pb.SaveBegin(epoch=epoch, expected_size_bytes=len(state))
    )
    for start in range(0, len(state), CHUNK):
        yield request(chunk=state[start : start + CHUNK])
    yield request(
        commit=checkpoint_pb.SaveCommit(
            raw_size_bytes=len(state), state_digest=state_digest(state)
        )
    )


def save(epoch: int = 0) -> int:
    """Save the state; the answer comes once it was read back from disk.

    While the agent is being put to sleep the epoch is that of the `save` message;
    0 is the current one. Returns the generation.
    """
    state = "\n".join(lines).encode()
    answer = checkpoints.SaveCheckpoint(
        save_messages(state, epoch), metadata=TOKEN, timeout=60
    )
    return answer.checkpoint.generation


def restore(generation: int) -> bytes:
    """Hold the state of a generation; return its digest, computed here."""
    request = checkpoint_pb.RestoreCheckpointRequest(generation=generation)
    answers = checkpoints.RestoreCheckpoint(request, metadata=TOKEN, timeout=60)
    # The first message is the checkpoint; its chunk is empty.
    state = b"".join(answer.chunk for answer in answers)
    lines[:] = state.decode().splitlines()
    return state_digest(state)


def reason_of(error: grpc.RpcError) -> str:
    """The reason in the error's google.rpc.ErrorInfo; empty if it has none."""
    trailers = dict(error.trailing_metadata() or ())
    status = Status.FromString(trailers.get("grpc-status-details-bin", b""))
    info = ErrorInfo()
    found = any(detail.Unpack(info) for detail in status.details)
    return info.reason if found else ""


class Conversation:
    """The Attach stream, opened again whenever it breaks; that changes nothing."""

    def __init__(self) -> None:
        self.has_state = False
        # What was restored when this process began; generation 0: it began afresh.
        self.proof = attach_pb.Restored()
        self.is_quiet = True
        quiet.acquire()

    def run(self) -> None:
        """Stay attached until the sidecar says stop or another stream takes over."""
        while not stopped.wait(0.5):
            say: queue.SimpleQueue[attach_pb.AttachRequest | None] = queue.SimpleQueue()
            # A stream that follows a broken one says `resumed`: nothing is to be
            # restored again.
            hello = attach_pb.Hello(pid=os.getpid(), resumed=self.has_state)
            say.put(attach_pb.AttachRequest(hello=hello))
            stream = attach_service.Attach(iter(say.get, None), metadata=TOKEN)
            try:
                for message in stream:
                    for answer in self.answers(message):
                        say.put(answer)
            except grpc.RpcError as error:
                reason = reason_of(error)
                print(f"attach: {error.code().name} {reason}", flush=True)
                if error.code() is grpc.StatusCode.ABORTED and reason == "REPLACED":
                    # If both came back they would throw each other out for ever.
                    self.left_alone()
                    return
            finally:
                say.put(None)

    def answers(
        self, message: attach_pb.AttachResponse
    ) -> Iterator[attach_pb.AttachRequest]:
        """Do what the sidecar asks; yield what it wants to hear."""
        request = attach_pb.AttachRequest
        match message.WhichOneof("message"):
            case "welcome":
                generation = message.welcome.restore_generation
                if generation and not self.has_state:
                    self.proof = attach_pb.Restored(
                        generation=generation, state_digest=restore(generation)
                    )
                self.has_state = True
                if generation:
                    # The sidecar compares the digest with what it gave: this is the
                    # proof that the state came back. A resumed stream is asked for
                    # it as well if it was lost with the stream before.
                    yield request(restored=self.proof)
                self.go_on()
                yield request(serving=attach_pb.Serving())
            case "prepare_sleep":
                # An agent that is busy answers with Veto(epoch, reason) instead.
                self.hold_still()
                epoch = message.prepare_sleep.epoch
                yield request(quiesced=attach_pb.Quiesced(epoch=epoch))
            case "save":
                self.hold_still()
                yield save_for_sleep(message.save.epoch)
            case "resume":
                # Also after a thaw: the sleep was given up, or is over.
                self.go_on()
            case "stop":
                stopped.set()

    def left_alone(self) -> None:
        """Go on: nobody will say that a sleep asked for on this stream is over."""
        if self.has_state:
            self.go_on()

    def hold_still(self) -> None:
        """From here to `resume` the state does not change."""
        if not self.is_quiet:
            quiet.acquire()
            self.is_quiet = True

    def go_on(self) -> None:
        """Let the state change again."""
        if self.is_quiet:
            self.is_quiet = False
            quiet.release()


def save_for_sleep(epoch: int) -> attach_pb.AttachRequest:
    """Save under the epoch of the sleep; return what the sidecar is to hear."""
    try:
        generation = save(epoch)
    except grpc.RpcError as error:
        failed = attach_pb.Failed(epoch=epoch, reason=str(error))
        return attach_pb.AttachRequest(failed=failed)
    saved = attach_pb.Saved(epoch=epoch, generation=generation)
    return attach_pb.AttachRequest(saved=saved)


def keep_awake(seconds: int, reason: str) -> str:
    """Take a lease: until it ends nobody puts this agent to sleep."""
    request = attach_pb.KeepAwakeRequest(ttl=Duration(seconds=seconds), reason=reason)
    answer = attach_service.KeepAwake(request, metadata=TOKEN, timeout=10)
    # The same id again would renew it, ReleaseKeepAwake ends it early.
    return answer.lease_id


def call_a_tool(method: str, request: bytes) -> bytes | None:
    """Call an upstream through the sidecar, which knows where it is.

    The relay asks for no token. The three keys are all optional: which upstream,
    that a call which failed for good may become a letter, and the name under which
    its repetitions are known.
    """
    outbound = grpc.insecure_channel(os.environ["OUTRIGGER_OUTBOUND"], options=OPTIONS)
    with outbound:
        metadata = (
            ("outrigger-upstream", "tools"),
            ("outrigger-letter", "on"),
            ("idempotency-key", f"bare/{len(lines)}"),
        )
        try:
            return outbound.unary_unary(method)(request, metadata=metadata, timeout=5)
        except grpc.RpcError as error:
            trailers = dict(error.trailing_metadata() or ())
            letter = trailers.get("outrigger-letter-id")
            if letter:
                # It is on the sidecar's disk and will be delivered: do not repeat.
                print(f"buffered as letter {letter}", flush=True)
            return None


def hand_over(method: str, request: bytes) -> str:
    """Hand a call over without trying it; return its letter's id."""
    call = letter_pb.DeliverCallRequest(
        upstream="tools", method=method, request=request
    )
    answer = letters.DeliverCall(call, metadata=TOKEN, timeout=10)
    return answer.letter.letter_id


def main() -> None:
    """Attach, then add a line a second until the sidecar says stop."""
    threading.Thread(target=Conversation().run, daemon=True).start()
    while not stopped.wait(1.0):
        with quiet:
            lines.append(f"line {len(lines) + 1}")
            print(lines[-1], flush=True)


if __name__ == "__main__":
    main()
