"""The sidecar's end of the Connect stream: reports and events up, commands down.

The stream is held for ever: when it breaks it is made again after a jittered pause.
While there is no controller nothing is decided here: the agent stays as it is, and
nobody but its own calls and operators moves it.

Races, and who wins: a command sent twice (its stream broke before the result) is
answered from memory, not done again; an event that was being sent when the stream
broke is sent again, and the controller knows it by its sequence.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, Final, cast

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration

from outrigger.core import names
from outrigger.core.clock import Clock
from outrigger.core.errors import Invalid, OutriggerError, Refused, TimedOut, Transient
from outrigger.core.event_log import EventLog
from outrigger.core.events import Event, Recovered, Transitioned
from outrigger.core.rng import Rng
from outrigger.core.rpc.errors import (
    as_outrigger,
    code_number,
    from_rpc_error,
    status_code,
)
from outrigger.core.rpc.events import event_to_proto
from outrigger.core.rpc.server import CHANNEL_OPTIONS, channel
from outrigger.core.tasks import Tasks, describe, finish
from outrigger.v1 import agent_pb2, connect_service_pb2, connect_service_pb2_grpc

Act = Callable[[int, str], Awaitable[agent_pb2.Agent]]
"""Takes the epoch the controller saw and its reason; returns the agent once the
move is accepted and begun, or raises an OutriggerError."""

BACKOFF_FIRST_S: Final = 0.1
BACKOFF_MAX_S: Final = 2.0
WELCOME_TIMEOUT_S: Final = 5.0

_INTERVAL_S: Final = 1.0
_SHORTEST_INTERVAL_S: Final = 0.02
_LONGEST_INTERVAL_S: Final = 60.0
_MOST_EVENTS: Final = 256
_MOST_RESULTS: Final = 256
_REASON_CHARS: Final = 512

_Call = Any  # grpc.aio types neither end of a stream
_Result = connect_service_pb2.CommandResult


class Reporter:
    """Keeps one controller informed of one agent; `run` it in a task."""

    def __init__(  # noqa: PLR0913 - both ends of the stream, each used once
        self,
        target: str,
        join_token: str,
        *,
        agent: Callable[[], agent_pb2.Agent],
        sleep: Act,
        wake: Act,
        events: EventLog,
        clock: Clock,
        rng: Rng,
        tasks: Tasks,
        operator_token: str,
        version: str,
        credentials: grpc.ChannelCredentials | None = None,
    ) -> None:
        """Prepare; nothing is sent before `run`.

        Args:
            target: the controller's connect listener, any gRPC target.
            join_token: sent as `outrigger-token`.
            agent: returns the agent as it is now, addresses and load included.
            sleep: puts the agent to sleep.
            wake: wakes it.
            events: what happens here; forwarded, and transitions reported at once.
            clock: for the time between reports and the length of an outage.
            rng: for the jitter.
            tasks: where commands run.
            operator_token: with which the controller may call our API.
            version: ours.
            credentials: for TLS; None is plaintext.
        """
        self._target = target
        self._metadata = ((names.TOKEN_METADATA, join_token),)
        self._agent = agent
        self._acts: dict[int, Act] = {
            connect_service_pb2.Command.ACTION_SLEEP: sleep,
            connect_service_pb2.Command.ACTION_WAKE: wake,
        }
        self._events = events
        self._clock = clock
        self._rng = rng
        self._tasks = tasks
        self._operator_token = operator_token
        self._version = version
        self._credentials = credentials
        self._pending: deque[Event] = deque(maxlen=_MOST_EVENTS)
        self._results: deque[_Result] = deque(maxlen=_MOST_RESULTS)
        self._done: OrderedDict[str, _Result | None] = OrderedDict()
        self._stir = asyncio.Event()
        self._report_due = False
        self._lost_at: float | None = None
        self._lost_for = ""
        self._interval_s = _INTERVAL_S
        self._sequence = 0
        self._reported_at = 0.0
        self.connected = False
        """Whether the controller has welcomed us on the present stream."""

    def poke(self) -> None:
        """Report at once instead of at the next interval."""
        self._report_due = True
        self._stir.set()

    async def run(self) -> None:
        """Report for ever; a controller that is away is tried again and again."""
        watcher = self._tasks.spawn_forever("reporter events", self._watch)
        pause_s = BACKOFF_FIRST_S
        try:
            while True:
                error = await self._session()
                if self.connected:
                    pause_s = BACKOFF_FIRST_S
                self.connected = False
                self._lost(error)
                # Jitter keeps a whole fleet from coming back in one instant.
                await self._clock.sleep(pause_s * (0.5 + self._rng.draw() / 2))
                pause_s = min(pause_s * 2, BACKOFF_MAX_S)
        finally:
            await finish(watcher)

    def _lost(self, error: Exception) -> None:
        """Tell of an outage when it begins, and again when its reason is another."""
        if self._lost_at is None:
            self._lost_at = self._clock.monotonic()
            self._lost_for = ""
        told = describe("controller", error)
        if told.reason != self._lost_for:
            self._lost_for = told.reason
            self._events.publish(told)

    def _found(self) -> None:
        self.connected = True
        if self._lost_at is not None:
            elapsed_s = self._clock.monotonic() - self._lost_at
            self._lost_at = None
            self._events.publish(Recovered(subject="controller", elapsed_s=elapsed_s))

    async def _watch(self) -> None:
        """Collect events, also while there is nobody to send them to."""
        watch = cast("AsyncGenerator[Event]", self._events.watch())
        async with aclosing(watch) as events:
            async for event in events:
                self._pending.append(event)
                self._report_due |= isinstance(event.payload, Transitioned)
                self._stir.set()

    async def _session(self) -> Exception:
        """Hold one stream until it ends; return why it did."""
        # A channel of its own: a kept one would add its own reconnect backoff.
        async with self._channel() as connection:
            stub = connect_service_pb2_grpc.ConnectServiceStub(connection)
            call = cast("_Call", stub.Connect(metadata=self._metadata))
            try:
                await self._greet(call)
                self._found()
                return await self._serve(call)
            except grpc.RpcError as error:
                return from_rpc_error(error)
            except asyncio.InvalidStateError:
                # A write on a stream that has just ended; its status says why.
                return await _ending(call)
            except Exception as error:  # noqa: BLE001 - the boundary of a session
                return error
            finally:
                call.cancel()

    def _channel(self) -> grpc.aio.Channel:
        if self._credentials is None:
            return channel(self._target)
        return grpc.aio.secure_channel(
            self._target, self._credentials, options=CHANNEL_OPTIONS
        )

    async def _greet(self, call: _Call) -> None:
        """Say hello and take the welcome.

        Raises:
            TimedOut: NO_WELCOME.
            Invalid: NO_WELCOME when something else came.
        """
        self._sequence = 0
        self._results.clear()
        hello = connect_service_pb2.ConnectHello(
            agent=self._agent(),
            version=self._version,
            operator_token=self._operator_token,
        )
        try:
            async with asyncio.timeout(WELCOME_TIMEOUT_S):
                await call.write(connect_service_pb2.ConnectRequest(hello=hello))
                first = await call.read()
        except TimeoutError as error:
            raise TimedOut(
                "NO_WELCOME",
                f"the controller at {self._target} did not welcome us within"
                f" {WELCOME_TIMEOUT_S:g} s",
            ) from error
        if first is grpc.aio.EOF:
            raise _ended()
        if first.WhichOneof("message") != "welcome":
            raise Invalid(
                "NO_WELCOME",
                f"{self._target} answered without a welcome: is it the connect"
                " listener of a controller?",
            )
        self._interval_s = _interval(first.welcome.report_interval)
        self._reported_at = self._clock.monotonic()
        self._report_due = True

    async def _serve(self, call: _Call) -> Exception:
        """Send and receive until the stream ends; return why it did."""
        reader = self._tasks.spawn("reporter commands", self._read(call))
        reader.add_done_callback(lambda _: self._stir.set())
        try:
            while not reader.done():
                await self._send_all(call)
                await self._wait()
        finally:
            await finish(reader)
        return await _ending(call)

    async def _wait(self) -> None:
        """Wait for something to send, or for the next report to be due."""
        due_in_s = self._reported_at + self._interval_s - self._clock.monotonic()
        with suppress(TimeoutError):
            async with asyncio.timeout(max(due_in_s, 0.0)):
                await self._stir.wait()

    async def _send_all(self, call: _Call) -> None:
        """Send what waits: results before events before the report."""
        self._stir.clear()
        while self._results:
            await _write(call, result=self._results.popleft())
        while self._pending:
            # Taken off only once it is sent, so that a broken stream loses none;
            # meanwhile a newer event may have pushed it out.
            event = self._pending[0]
            await _write(call, event=event_to_proto(event))
            if self._pending and self._pending[0] is event:
                self._pending.popleft()
        now = self._clock.monotonic()
        if self._report_due or now - self._reported_at >= self._interval_s:
            await self._report(call, now)

    async def _report(self, call: _Call, now: float) -> None:
        self._report_due = False
        self._sequence += 1
        elapsed = Duration()
        elapsed.FromMicroseconds(round((now - self._reported_at) * 1_000_000))
        self._reported_at = now
        report = connect_service_pb2.LoadReport(
            sequence=self._sequence, elapsed=elapsed, agent=self._agent()
        )
        await _write(call, report=report)

    async def _read(self, call: _Call) -> None:
        """Take commands until the stream ends."""
        with suppress(grpc.RpcError):  # `_ending` says why
            while (message := await call.read()) is not grpc.aio.EOF:
                if message.WhichOneof("message") == "command":
                    self._command(message.command)

    def _command(self, command: connect_service_pb2.Command) -> None:
        """Begin a command, or answer it again if it was begun before."""
        if command.command_id in self._done:
            known = self._done[command.command_id]
            if known is not None:
                self._answer(known)
            return
        self._done[command.command_id] = None
        while len(self._done) > _MOST_RESULTS:
            self._done.popitem(last=False)
        _ = self._tasks.spawn(
            "controller command", self._do(command), subject=command.command_id
        )

    async def _do(self, command: connect_service_pb2.Command) -> None:
        try:
            agent = await self._act(command)
        except Exception as raised:  # noqa: BLE001 - the command's boundary
            error = as_outrigger(raised)
            self._events.publish(
                describe("controller command", raised, subject=command.command_id)
            )
            result = _refusal(command.command_id, error, self._agent())
        else:
            result = _Result(command_id=command.command_id, agent=agent)
        self._done[command.command_id] = result
        self._answer(result)

    async def _act(self, command: connect_service_pb2.Command) -> agent_pb2.Agent:
        act = self._acts.get(command.action)
        if act is None:
            raise Refused(
                "UNKNOWN_ACTION",
                f"this sidecar cannot do action {command.action}: it may be older"
                " than its controller",
            )
        return await act(command.seen_epoch, command.reason[:_REASON_CHARS])

    def _answer(self, result: _Result) -> None:
        self._results.append(result)
        self.poke()


def _refusal(command_id: str, error: OutriggerError, agent: agent_pb2.Agent) -> _Result:
    return _Result(
        command_id=command_id,
        status_code=code_number(status_code(error)),
        reason=error.reason,
        message=error.message,
        agent=agent,
    )


async def _write(call: _Call, **message: Any) -> None:  # noqa: ANN401 - one field of the message
    await call.write(connect_service_pb2.ConnectRequest(**message))


def _ended() -> Transient:
    return Transient("STREAM_ENDED", "the controller ended the stream")


async def _ending(call: _Call) -> OutriggerError:
    """Return why a stream that has ended did."""
    code = await call.code()
    if code is grpc.StatusCode.OK:
        return _ended()
    trailers = await call.trailing_metadata()
    details = await call.details()
    return from_rpc_error(
        grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)
    )


def _interval(given: Duration) -> float:
    """Return the controller's wish in seconds, if it is one to be followed."""
    seconds = float(given.seconds + given.nanos / 1e9)
    if _SHORTEST_INTERVAL_S <= seconds <= _LONGEST_INTERVAL_S:
        return seconds
    return _INTERVAL_S
