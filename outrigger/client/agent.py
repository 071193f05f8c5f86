"""The agent's side of the sidecar, for any program with threads."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc

from outrigger.client.addressing import to_upstream
from outrigger.client.errors import error_of
from outrigger.client.gate import Gate
from outrigger.client.leases import Lease
from outrigger.client.life import Hooks, Life
from outrigger.client.link import Link
from outrigger.client.saves import Saves
from outrigger.client.surroundings import (
    CallIn,
    Surroundings,
    call_in,
    open_channel,
    read_surroundings,
)
from outrigger.core.names import TOKEN_METADATA
from outrigger.v1.attach_service_pb2_grpc import AttachServiceStub
from outrigger.v1.checkpoint_pb2 import Checkpoint
from outrigger.v1.letter_pb2 import MetadataEntry
from outrigger.v1.letter_service_pb2 import DeliverCallRequest
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub

_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What few agents need to change."""

    schema: str = ""
    """The agent's own name for the form of its state; at most 128 characters."""
    proves_by_saving: bool = False
    """After a restore call `save` and refuse to serve unless it gives the very
    bytes that were restored. For agents whose `save` is exact: sorted keys, no
    times."""
    connect: Callable[[str], grpc.Channel] = open_channel
    """Makes a channel to a target; tests hand out fake ones."""
    call_in: CallIn = call_in
    """Runs a function after so many seconds; tests use a clock of their own."""


DEFAULTS: Final = Options()


def attach(
    save: Callable[[], bytes],
    restore: Callable[[bytes], None],
    *,
    quiesce: Callable[[], None] | None = None,
    app_address: str = "",
    environ: Mapping[str, str] | None = None,
    options: Options = DEFAULTS,
) -> "Agent":
    """Take hold of the sidecar this program was started by; returns at once.

    The state is restored in the background, and the stream is opened again for as
    long as it takes whenever it breaks; `Agent.serving` waits for the first.

    Args:
        save: gives the whole state as bytes. Called on other threads than the
            caller's, never while a `working()` block is under way.
        restore: takes the bytes of a checkpoint. Called at most once, before
            `serving` returns; not called for an agent that starts afresh.
        quiesce: called before a sleep, after the last `working()` block has ended;
            raises NotNow to put the sleep off.
        app_address: where the agent serves calls, "host:port"; `serving` can say
            it too.
        environ: where to look for the sidecar; the process environment if None.
        options: what few agents need to change.

    Raises:
        Invalid: NOT_BESIDE_A_SIDECAR.
    """
    if environ is None:
        environ = os.environ  # noqa: TID251 - the one place where the client reads it
    hooks = Hooks(
        save=save,
        restore=restore,
        quiesce=quiesce or (lambda: None),
        proves_by_saving=options.proves_by_saving,
    )
    return Agent(read_surroundings(environ), hooks, app_address, options)


class Agent:
    """This program as the sidecar's agent. Made by `attach`; safe on any thread.

    Every method that asks the sidecar raises the classes of
    `outrigger.core.errors`: Transient while the sidecar is away, TimedOut when it
    did not answer within 10 s, and what the sidecar itself answered.
    """

    def __init__(
        self,
        surroundings: Surroundings,
        hooks: Hooks,
        app_address: str,
        options: Options,
    ) -> None:
        self.agent_id: Final = surroundings.agent_id
        self._surroundings = surroundings
        self._options = options
        self._metadata = ((TOKEN_METADATA, surroundings.token),)
        self._api = options.connect(surroundings.api)
        self._channels = [self._api]
        self._attach = AttachServiceStub(self._api)
        self._gate = Gate()
        self._saves = Saves(self._api, self._metadata, options.schema)
        make_link = functools.partial(
            Link, self._attach, self._metadata, options.call_in
        )
        self._life = Life(hooks, self._saves, self._gate, make_link, app_address)
        self._life.start()

    def serving(self, app_address: str = "", *, timeout_s: float | None = None) -> None:
        """Say that the agent serves calls, once its state is back.

        Waits until the state has been restored, or for `timeout_s` seconds; None
        waits for ever. From then on `working()` lets work in.

        Args:
            app_address: where it serves, "host:port"; empty leaves what was said
                before, by `attach` or by the sidecar's `--app`.
            timeout_s: seconds.

        Raises:
            TimedOut: ATTACH_TIMED_OUT.
            Denied: the token is not good.
            Refused: AGENT_STOPPED.
        """
        self._life.serve(app_address, timeout_s)

    def wait_until_restored(self, timeout_s: float | None = None) -> None:
        """Wait until the state is back; an agent that starts afresh has it at once.

        For what must come between the state and `serving`, a server's start say.

        Raises:
            TimedOut: ATTACH_TIMED_OUT.
            Denied: the token is not good.
            Refused: AGENT_STOPPED.
        """
        self._life.wait_until_restored(timeout_s)

    def wait_until_serving(self, timeout_s: float | None = None) -> None:
        """Wait until the sidecar was told that the agent serves.

        Raises:
            TimedOut: ATTACH_TIMED_OUT.
            Denied: the token is not good.
            Refused: AGENT_STOPPED.
        """
        self._life.wait_until_serving(timeout_s)

    def wait_until_stopped(self, timeout_s: float | None = None) -> bool:
        """Wait until the sidecar says that the process will be ended.

        Returns:
            True if it was said or the agent was closed, False after `timeout_s`
            seconds. An agent that ends on its own then spares itself a signal.
        """
        return self._life.wait_until_stopped(timeout_s)

    def working(self) -> AbstractContextManager[None]:
        """Hold saves and sleeps off while the state is being changed.

        Waits while the agent is saved or about to sleep. Keep the block as short
        as one piece of work: a sleep waits for its end.

        Raises:
            Refused: AGENT_STOPPED, when entered after the end.
        """
        return self._gate.work()

    def save_checkpoint(self) -> Checkpoint:
        """Save the state now; return once the sidecar has read it back from disk.

        Raises:
            Refused: SAVE_INSIDE_WORK, when called in a `working()` block.
        """
        return self._life.save()

    def restore_checkpoint(self, generation: int = 0) -> bytes:
        """Return the state of a generation, 0 being the newest good one.

        The bytes are verified on both sides. Nothing is done with them here.

        Raises:
            Corrupt: STATE_DIGEST_MISMATCH.
            NotFound: there is no such generation.
        """
        return self._saves.restore(generation)[1]

    @contextmanager
    def keep_awake(self, ttl_s: float, reason: str = "") -> Iterator[None]:
        """Keep the agent from being put to sleep until the block ends.

        The lease is renewed every third of `ttl_s`, 1 to 3600 seconds; that is
        how long it outlives an agent that dies in the block.
        """
        lease = Lease(self._attach, self._metadata, self._options.call_in)
        lease.take(ttl_s, reason)
        try:
            yield
        finally:
            lease.release()

    def deliver_later(
        self,
        method: str,
        request: bytes,
        *,
        upstream: str = "",
        metadata: Sequence[tuple[str, str | bytes]] = (),
        idempotency_key: str = "",
    ) -> str:
        """Hand a call over; return its letter's id once it is on disk.

        Args:
            method: "/package.Service/Method".
            request: the one request message, serialized.
            upstream: empty means the route of the method.
            metadata: request metadata; credentials are removed.
            idempotency_key: the same key again returns the same letter; empty
                means that the letter's id is the key.
        """
        message = DeliverCallRequest(
            upstream=upstream,
            method=method,
            request=request,
            metadata=[_entry(key, value) for key, value in metadata],
            idempotency_key=idempotency_key,
        )
        try:
            answer = LetterServiceStub(self._api).DeliverCall(
                message, timeout=_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise error_of(error) from error
        return answer.letter.letter_id

    def channel(self, upstream: str = "") -> grpc.Channel:
        """Return a channel on which calls go out through the sidecar.

        Args:
            upstream: empty means the route of each method. Close the channel
                yourself, or leave it to `close`.
        """
        channel = self._options.connect(self._surroundings.outbound)
        self._channels.append(channel)
        return to_upstream(channel, upstream) if upstream else channel

    def close(self) -> None:
        """Let go of the sidecar. The process may live on; a second time is fine."""
        self._life.end()
        for channel in self._channels:
            channel.close()
        self._life.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _entry(key: str, value: str | bytes) -> MetadataEntry:
    raw = value if isinstance(value, bytes) else value.encode("ascii")
    return MetadataEntry(key=key, value=raw)
