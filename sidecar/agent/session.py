"""AttachService: an agent's stream on one side, its supervisor on the other.

Race: the agent may attach again before the end of its former stream was seen.
The newer stream wins; the former ends with ABORTED REPLACED, and whoever reads
that must not attach a third time because of it.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Final, Protocol

import grpc.aio

from outrigger.core.access import Principal, Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.errors import (
    Denied,
    Invalid,
    OutriggerError,
    Overloaded,
    TimedOut,
)
from outrigger.core.rpc.chain import principal_of
from outrigger.core.rpc.errors import as_outrigger
from outrigger.core.tasks import Tasks, finish
from outrigger.v1 import attach_service_pb2 as pb
from outrigger.v1.attach_service_pb2_grpc import AttachServiceServicer
from sidecar.agent import messages
from sidecar.agent.leases import KeepAwakeLeases
from sidecar.agent.messages import Hello, Link, Message, Order

_SERVICE: Final = "/outrigger.v1.AttachService"
_AGENT_ONLY: Final = frozenset({Role.AGENT})

ACCESS: Final[dict[str, Rule]] = {
    f"{_SERVICE}/Attach": Rule(roles=_AGENT_ONLY),
    f"{_SERVICE}/KeepAwake": Rule(roles=_AGENT_ONLY, mutating=True),
    f"{_SERVICE}/ReleaseKeepAwake": Rule(roles=_AGENT_ONLY, mutating=True),
}
"""Who may call what, for the chain's table."""

HELLO_TIMEOUT_S: Final = 5.0
"""A stream without a hello ends after so long."""
_ORDERS_MAX: Final = 64

Context = grpc.aio.ServicerContext[Any, Any]


class AttachPort(Protocol):
    """The supervisor, as streams see it."""

    def attach(self, link: Link, hello: Hello) -> None:
        """Take a new stream."""
        ...

    def heard(self, link: Link, message: Message) -> None:
        """Take a message."""
        ...

    def detach(self, link: Link) -> None:
        """Take note that a stream has ended."""
        ...

    def activity(self, what: str = ...) -> None:
        """Take note that something began."""
        ...


class _Stream:
    """One Attach stream; what it still has to tell the agent, in order."""

    def __init__(self) -> None:
        self._orders: asyncio.Queue[Order | OutriggerError | None] = asyncio.Queue()

    def send(self, order: Order) -> None:
        """Queue an order; an agent that reads none of them is cut off."""
        if self._orders.qsize() < _ORDERS_MAX:
            self._orders.put_nowait(order)
            return
        self.close(
            Overloaded("AGENT_DOES_NOT_READ", "too many orders wait on this stream")
        )

    def close(self, error: OutriggerError) -> None:
        """End the stream with this error, now."""
        while not self._orders.empty():
            self._orders.get_nowait()
        self._orders.put_nowait(error)

    def end(self) -> None:
        """End the stream after what is queued: the agent has ended its side."""
        self._orders.put_nowait(None)

    async def orders(self) -> AsyncIterator[Order]:
        """Yield orders until the stream is to end; raise what it ends with."""
        while True:
            order = await self._orders.get()
            if order is None:
                return
            if isinstance(order, OutriggerError):
                raise order
            yield order


class AttachServicer(AttachServiceServicer):
    """Serves one agent; its supervisor decides."""

    def __init__(
        self,
        supervisor: AttachPort,
        leases: KeepAwakeLeases,
        *,
        agent_id: str,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._supervisor = supervisor
        self._leases = leases
        self._agent_id = agent_id
        self._clock = clock
        self._tasks = tasks

    async def Attach(
        self, request_iterator: AsyncIterator[pb.AttachRequest], context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        """Pass messages both ways until either side ends the stream."""
        self._check_agent(principal_of(context))
        hello = await _hello(request_iterator)
        stream = _Stream()
        self._supervisor.attach(stream, hello)
        reading = self._tasks.spawn("attach.read", self._read(request_iterator, stream))
        try:
            async for order in stream.orders():
                yield _response(order, self._agent_id)
        finally:
            await finish(reading)
            self._supervisor.detach(stream)

    async def _read(
        self, requests: AsyncIterator[pb.AttachRequest], stream: _Stream
    ) -> None:
        try:
            async for request in requests:
                self._supervisor.heard(stream, _message(request))
        except OutriggerError as error:
            stream.close(error)
        except Exception as error:
            stream.close(as_outrigger(error))
            raise
        else:
            stream.end()

    async def KeepAwake(
        self, request: pb.KeepAwakeRequest, context: Context
    ) -> pb.KeepAwakeResponse:
        """Take or renew a lease; ends a sleep that is under way."""
        self._check_agent(principal_of(context))
        lease = self._leases.take(
            request.lease_id,
            request.ttl.ToNanoseconds() / 1e9,
            request.reason,
            self._clock.monotonic(),
        )
        self._supervisor.activity("a keep-awake lease was taken")
        return pb.KeepAwakeResponse(lease_id=lease.lease_id)

    async def ReleaseKeepAwake(
        self, request: pb.ReleaseKeepAwakeRequest, context: Context
    ) -> pb.ReleaseKeepAwakeResponse:
        """End a lease early."""
        self._check_agent(principal_of(context))
        if not request.lease_id:
            raise Invalid("NO_LEASE_ID", "lease_id is empty: name the lease to end")
        self._leases.release(request.lease_id)
        return pb.ReleaseKeepAwakeResponse()

    def _check_agent(self, principal: Principal) -> None:
        if principal.agent_id != self._agent_id:
            raise Denied(
                "OTHER_AGENT",
                f"{principal.name} may not attach here: this is the sidecar of agent"
                f" {self._agent_id}",
            )


async def _hello(requests: AsyncIterator[pb.AttachRequest]) -> Hello:
    try:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(requests, None)
    except TimeoutError as error:
        raise TimedOut(
            "NO_HELLO",
            f"an Attach stream was opened and no 'hello' came within"
            f" {HELLO_TIMEOUT_S:g} s: send it as the first message",
        ) from error
    if first is None or first.WhichOneof("message") != "hello":
        raise Invalid(
            "NO_HELLO", "the first message of an Attach stream has to be 'hello'"
        )
    hello = first.hello
    return Hello(hello.pid, hello.client, hello.app_address, hello.resumed)


def _message(request: pb.AttachRequest) -> Message:
    match request.WhichOneof("message"):
        case "restored":
            restored = request.restored
            return messages.Restored(restored.generation, restored.state_digest)
        case "serving":
            return messages.Serving()
        case "quiesced":
            return messages.Quiesced(request.quiesced.epoch)
        case "veto":
            return messages.Veto(request.veto.epoch, request.veto.reason)
        case "saved":
            return messages.Saved(request.saved.epoch, request.saved.generation)
        case "failed":
            return messages.Failed(request.failed.epoch, request.failed.reason)
        case other:
            raise Invalid(
                "BAD_ATTACH_MESSAGE",
                f"{other or 'an empty message'} came on an Attach stream after its"
                " hello: send restored, serving, quiesced, veto, saved or failed",
            )


def _response(order: Order, agent_id: str) -> pb.AttachResponse:
    response = pb.AttachResponse()
    match order:
        case messages.Welcome(epoch, generation, digest):
            response.welcome.agent_id = agent_id
            response.welcome.epoch = epoch
            response.welcome.restore_generation = generation
            response.welcome.restore_digest = digest
        case messages.PrepareSleep(epoch, timeout_s):
            response.prepare_sleep.epoch = epoch
            response.prepare_sleep.timeout.FromMilliseconds(int(timeout_s * 1000))
        case messages.SaveState(epoch):
            response.save.epoch = epoch
        case messages.Resume(epoch, reason):
            response.resume.epoch = epoch
            response.resume.reason = reason
        case messages.Stop(epoch):
            response.stop.epoch = epoch
    return response
