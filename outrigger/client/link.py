"""The Attach stream: held open, and opened again whenever it breaks."""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Final

import grpc

from outrigger.client.errors import error_of
from outrigger.client.surroundings import CallIn
from outrigger.core.errors import OutriggerError, Transient
from outrigger.v1.attach_service_pb2 import AttachRequest, AttachResponse
from outrigger.v1.attach_service_pb2_grpc import AttachServiceStub

_log = logging.getLogger("outrigger.client")

_PAUSE_FIRST_S: Final = 0.1
_PAUSE_MAX_S: Final = 2.0
"""No jitter: each sidecar has one agent, so nobody else comes at the same time."""

REPLACED: Final = "REPLACED"
"""Reason of a stream that ended because another one attached as this agent."""

Outbox = queue.SimpleQueue[AttachRequest | None]


class Link:
    """One stream after another, on a thread of its own, until closed.

    `hello` makes the first message of each stream, `take` gets every message of
    the sidecar in order, `broke` hears why a stream ended. All three are called
    on the link's thread.

    Race: two programs may attach as one agent, and the sidecar keeps the newer
    stream. Whoever is told REPLACED gives up: if both came back they would throw
    each other out for ever. A stream of ours is over before the next begins, so
    it is never ourselves who replaced it.
    """

    def __init__(
        self,
        stub: AttachServiceStub,
        metadata: tuple[tuple[str, str], ...],
        call_in: CallIn,
        *,
        hello: Callable[[], AttachRequest],
        take: Callable[[AttachResponse], None],
        broke: Callable[[OutriggerError], None],
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._call_in = call_in
        self._hello = hello
        self._take = take
        self._broke = broke
        self._lock = threading.Lock()
        self._outbox: Outbox | None = None
        self._call: grpc.Call | None = None
        self._nudge = threading.Event()
        self._renewals = 0
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, name="outrigger-attach", daemon=True
        )

    def start(self) -> None:
        """Open the first stream."""
        self._thread.start()

    def send(self, message: AttachRequest) -> None:
        """Send on the stream of now; without one it is dropped.

        A message is about one stream's conversation: after a break the next
        stream begins with `hello` and says what still holds.
        """
        with self._lock:
            if self._outbox is not None:
                self._outbox.put(message)

    def renew(self) -> None:
        """End the stream of now once all of it was heard, and begin a new one.

        Only our side is closed: the sidecar reads what was sent before and then
        ends the stream.
        """
        with self._lock:
            self._renewals += 1
            if self._outbox is not None:
                self._outbox.put(None)
        self._nudge.set()

    def close(self) -> None:
        """End the stream, whatever was heard of it, and the thread."""
        self._closed = True
        self._nudge.set()
        self._cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        pause_s = _PAUSE_FIRST_S
        while not self._closed:
            heard = self._converse()
            pause_s = _PAUSE_FIRST_S if heard else min(pause_s * 2, _PAUSE_MAX_S)
            self._pause(pause_s)

    def _converse(self) -> bool:
        """Hold one stream; return whether the sidecar said anything on it."""
        outbox: Outbox = queue.SimpleQueue()
        renewals = self._renewals
        outbox.put(self._hello())
        heard = False
        try:
            call = self._stub.Attach(iter(outbox.get, None), metadata=self._metadata)
            self._adopt(outbox, call, renewals)
            for message in call:
                heard = True
                self._take(message)
            self._broke(
                Transient("ATTACH_ENDED", "the sidecar ended the Attach stream")
            )
        except grpc.RpcError as error:
            self._ended(error_of(error))
        except Exception as error:  # noqa: BLE001 - the boundary of this thread
            # It must live, or no sleep and no stop ever reaches the agent again.
            _log.exception("the Attach stream is opened again after a defect")
            self._broke(Transient("ATTACH_DEFECT", f"{type(error).__name__}: {error}"))
        finally:
            self._abandon(outbox)
        return heard

    def _adopt(self, outbox: Outbox, call: grpc.Call, renewals: int) -> None:
        with self._lock:
            self._outbox, self._call = outbox, call
            if self._renewals != renewals:
                # `renew` came after `hello` was made and found no stream to end.
                outbox.put(None)
        if self._closed:
            call.cancel()

    def _ended(self, problem: OutriggerError) -> None:
        if problem.reason == REPLACED:
            _log.warning("another stream holds the agent now; this one stays away")
            self._closed = True
        self._broke(problem)

    def _abandon(self, outbox: Outbox) -> None:
        self._cancel()
        with self._lock:
            self._outbox = self._call = None
        # Lets go of the thread on which gRPC waits for more to send.
        outbox.put(None)

    def _cancel(self) -> None:
        with self._lock:
            call = self._call
        if call is not None:
            call.cancel()

    def _pause(self, seconds: float) -> None:
        if self._closed:
            return
        timer = self._call_in(self._nudge.set, seconds)
        self._nudge.wait()
        self._nudge.clear()
        timer.cancel()
