"""The portable wire: relays any method, any arity, over grpc.aio.

Nothing here decides about a call: the guard does. Nothing of ours is served here
either, no health and no reflection: the relay is transparent.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import grpc
import grpc.aio

from outrigger.core import names
from outrigger.core.clock import Clock
from outrigger.core.errors import Bug
from outrigger.core.ids import letter_id
from outrigger.core.rng import Rng
from outrigger.core.tasks import Tasks, finish
from sidecar.call.descriptor import (
    Answer,
    Call,
    GivenUp,
    Guard,
    Kind,
    LetterPort,
    Metadata,
    Outcome,
    Refuse,
    Resolution,
)
from sidecar.wire import local
from sidecar.wire.caller import Context, LetterCaller, RemoteCaller
from sidecar.wire.exchange import Ended, Exchange
from sidecar.wire.listening import Listening
from sidecar.wire.options import Listener, WireOptions
from sidecar.wire.parts import Parts
from sidecar.wire.upstreams import Targets

__all__ = ["Delivered", "GrpcioWire", "Listener", "WireOptions"]

_CODES: Final = {int(code.value[0]): code for code in grpc.StatusCode}
_LEAVE_S: Final = 1.0
_NO_OPTIONS: Final = WireOptions()


@dataclass(slots=True)
class Delivered:
    """A delivery that was attempted; see `protocol.Sent`."""

    outcome: Outcome
    response: bytes


class GrpcioWire:
    """See `protocol.Wire`."""

    def __init__(  # noqa: PLR0913 - the one place where a wire is put together
        self,
        guard: Guard,
        targets: Targets,
        *,
        letters: LetterPort | None,
        clock: Clock,
        rng: Rng,
        tasks: Tasks,
        listen: Sequence[Listener],
        options: WireOptions = _NO_OPTIONS,
    ) -> None:
        """Take the parts; nothing is bound before `start`.

        Args:
            guard: decides about every call; called on the loop's thread only.
            targets: channels; started and closed by whoever made them.
            letters: takes letters; None refuses them.
            clock: what the guard is told.
            rng: chance.
            tasks: runs readers, writers and hand-overs.
            listen: where calls arrive.
            options: times and sizes.
        """
        self._parts = Parts(guard, targets, letters, clock, rng, tasks, options)
        self._listening = Listening(_AnyMethod(self), listen, clock=clock, tasks=tasks)
        self._ticking: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._open: set[RemoteCaller] = set()
        self._all_done = asyncio.Event()

    @property
    def addresses(self) -> list[str]:
        """As bound, in the order of `listen`."""
        return self._listening.addresses

    async def start(self) -> None:
        """Bind every listener and begin to accept calls.

        Raises:
            Invalid: an address cannot be listened on.
            Refused: PORT_TAKEN or SOCKET_TAKEN.
        """
        self._loop = asyncio.get_running_loop()
        await self._listening.start()
        self._ticking = self._parts.tasks.spawn_forever("wire.tick", self._tick)

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, wait for those in flight, then cancel them.

        Parked calls are given up at once.
        """
        gone = GivenUp(local.answer(local.stopping()))
        for token in tuple(self._parts.parked):
            self.resolve(token, gone)
        await self._listening.stop(grace_s)
        while self._open:
            self._all_done.clear()
            await self._all_done.wait()
        if self._ticking is not None:
            await finish(self._ticking)
            self._ticking = None

    def resolve(self, token: int, result: Resolution) -> None:
        """Go on with a parked call; unknown tokens are ignored.

        It takes effect a step of the loop later, so that a guard may resolve a call
        while it still decides to park it.
        """
        if self._loop is not None:
            self._loop.call_soon(self._resolve, token, result)

    def post(self, work: Callable[[], None]) -> None:
        """Run `work` on the loop's thread; failures are recorded."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._spawn, work)

    async def send(
        self,
        upstream: str,
        method: str,
        metadata: Metadata,
        request: bytes,
        timeout_s: float,
    ) -> Delivered | Answer:
        """Deliver one request; an Answer means it was refused and nothing was sent."""
        parts = self._parts
        # Last, so that it wins over one that the letter may carry.
        routed = (*metadata, (names.UPSTREAM_METADATA, upstream))
        deadline = parts.clock.monotonic() + timeout_s
        call = Call(self._new_id(), method, routed, deadline, Kind.DELIVERY)
        caller = LetterCaller(request)
        ended = await Exchange(parts, call, caller).run()
        if ended.outcome is None:
            return _answer(ended)
        return Delivered(ended.outcome, caller.response)

    async def set_target(self, name: str, target: str | None) -> None:
        """Give an upstream a fresh channel, or take its channel away."""
        await self._parts.targets.set_target(name, target)

    def open_streams(self) -> tuple[float, ...]:
        """Return when each open stream last passed a message, monotonic seconds.

        A stream is a call that is still open after something of its response was
        passed on. It is in the guard's `in_flight` too.
        """
        return tuple(one.last_message for one in self._open if one.is_committed)

    async def serve(
        self, method: str, metadata: Metadata, _requests: object, context: Context
    ) -> None:
        """Relay one call."""
        parts = self._parts
        call = Call(self._new_id(), method, metadata, self._deadline(context))
        caller = RemoteCaller(context, parts)
        self._open.add(caller)
        exchange = Exchange(parts, call, caller)
        task = parts.tasks.spawn("wire.call", exchange.carry(), subject=call.call_id)
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError:
            await _left(exchange, task)
            raise
        finally:
            self._open.discard(caller)
            if not self._open:
                self._all_done.set()
        if task.cancelled():
            raise asyncio.CancelledError
        ended = exchange.ended or Ended(Refuse(local.answer(_bug())), None)
        _set_status(context, _answer(ended))

    def _deadline(self, context: Context) -> float | None:
        remaining_s = cast("float | None", context.time_remaining())
        if remaining_s is None:
            return None
        return self._parts.clock.monotonic() + remaining_s

    def _new_id(self) -> str:
        return letter_id(self._parts.clock.wall(), self._parts.rng.token_bytes(10))

    def _resolve(self, token: int, result: Resolution) -> None:
        parked = self._parts.parked.get(token)
        if parked is not None and not parked.done():
            parked.set_result(result)

    def _spawn(self, work: Callable[[], None]) -> None:
        _ = self._parts.tasks.spawn("wire.post", _run(work))

    async def _tick(self) -> None:
        while True:
            await self._parts.clock.sleep(self._parts.options.tick_s)
            parts = self._parts
            parts.guard.tick(parts.clock.monotonic(), parts.rng.draw())


class _AnyMethod(grpc.GenericRpcHandler):
    """Takes every method as a stream of bytes each way."""

    def __init__(self, wire: GrpcioWire) -> None:
        self._wire = wire

    def service(self, handler_call_details: Any) -> Any:  # noqa: ANN401 - grpc's own
        """Return a handler for whatever is called."""

        async def relay(requests: object, context: Context) -> None:
            await self._wire.serve(
                handler_call_details.method,
                handler_call_details.invocation_metadata,
                requests,
                context,
            )

        return grpc.stream_stream_rpc_method_handler(relay)


def _answer(ended: Ended) -> Answer:
    """Return the status a call ends with."""
    verdict = ended.verdict
    if isinstance(verdict, Refuse):
        return verdict.answer
    answer = verdict.answer
    if answer is None:
        if ended.outcome is None:
            return local.answer(_bug())
        answer = _of_outcome(ended.outcome)
    return Answer(answer.code, answer.message, (*answer.trailers, *verdict.trailers))


def _of_outcome(outcome: Outcome) -> Answer:
    return Answer(outcome.code, outcome.message, outcome.trailers)


def _set_status(context: Context, answer: Answer) -> None:
    """Leave the status for the library to send when the handler returns.

    If no header went before it goes out Trailers-Only.
    """
    context.set_trailing_metadata(answer.trailers)
    context.set_details(answer.message)
    context.set_code(_CODES[answer.code])


def _bug() -> Bug:
    return Bug("UNEXPECTED", "a defect of ours; see the log of this sidecar")


async def _left(exchange: Exchange, task: asyncio.Task[None]) -> None:
    """End a call whose caller went away, without cancelling what the library does.

    A batch of the library that is cancelled is never freed (grpcio 1.85.1, half a
    kibibyte each): a call upstream is cancelled instead, and what waits for it ends by
    itself. That is why a call is carried by a task of its own.
    """
    if exchange.leave():
        await asyncio.wait((task,), timeout=_LEAVE_S)
    task.cancel()
    await asyncio.wait((task,))


async def _run(work: Callable[[], None]) -> None:
    work()
