"""A sidecar's end of the Connect stream by stubs, and its API, driven by the test."""

import asyncio
import contextlib

import grpc
import grpc.aio

from outrigger.core.rpc.server import channel
from outrigger.v1 import (
    agent_pb2,
    checkpoint_service_pb2,
    checkpoint_service_pb2_grpc,
    circuit_service_pb2_grpc,
    connect_service_pb2,
    connect_service_pb2_grpc,
    event_pb2,
    letter_service_pb2,
    letter_service_pb2_grpc,
    sidecar_service_pb2,
    sidecar_service_pb2_grpc,
)

Agent = agent_pb2.Agent


class StreamSidecar:
    """One sidecar: what it says is in `agent`, what it is told in `commands`."""

    def __init__(self, target, token, agent_id="otter", *, instance="i-1"):
        self.target = target
        self.token = token
        self.agent = Agent(
            agent_id=agent_id,
            state=Agent.STATE_AWAKE,
            epoch=1,
            sidecar_instance=instance,
        )
        self.idle_for(0)
        self.commands = []
        self.refusal = None
        self.answering = True
        self.sequence = 0
        self._stack = contextlib.AsyncExitStack()

    def idle_for(self, seconds):
        """Say so from the next report on, with a fresh sample."""
        self.agent.load.idle.FromMilliseconds(int(seconds * 1000))
        self.agent.load.sample_time.FromMilliseconds(
            self.agent.load.sample_time.ToMilliseconds() + 1000
        )

    async def __aenter__(self):
        connection = await self._stack.enter_async_context(channel(self.target))
        stub = connect_service_pb2_grpc.ConnectServiceStub(connection)
        self.call = stub.Connect(metadata=(("outrigger-token", self.token),))
        return self

    async def __aexit__(self, *_):
        self.call.cancel()
        await self._stack.aclose()

    async def send(self, **message):
        await self.call.write(connect_service_pb2.ConnectRequest(**message))

    async def hello(self, **changes):
        """Say hello, take the welcome and begin to answer commands."""
        hello = {"agent": self.agent, "version": "1", "operator_token": "op"}
        await self.send(hello=connect_service_pb2.ConnectHello(**(hello | changes)))
        first = await self.call.read()
        if first is grpc.aio.EOF:
            return await self.call.code()
        task = asyncio.create_task(self._obey())
        self._stack.push_async_callback(_ended, task)
        return first.welcome

    async def report(self, *, sequence=None, elapsed_s=1.0):
        """Report once; the next number unless another is given."""
        self.sequence = self.sequence + 1 if sequence is None else sequence
        report = connect_service_pb2.LoadReport(
            sequence=self.sequence, agent=self.agent
        )
        report.elapsed.FromMilliseconds(int(elapsed_s * 1000))
        await self.send(report=report)

    async def tell(self, sequence, **payload):
        """Send an event."""
        await self.send(event=event_pb2.Event(sequence=sequence, **payload))

    async def _obey(self):
        """Move as told, or refuse if told to."""
        while (message := await self.call.read()) is not grpc.aio.EOF:
            command = message.command
            self.commands.append(command)
            if not self.answering:
                continue
            result = connect_service_pb2.CommandResult(command_id=command.command_id)
            if self.refusal is not None:
                code, result.reason = self.refusal
                result.status_code = code.value[0]
                result.message = "because"
            elif command.action == connect_service_pb2.Command.ACTION_SLEEP:
                self.move(Agent.STATE_ASLEEP)
            else:
                self.move(Agent.STATE_AWAKE)
            result.agent.CopyFrom(self.agent)
            await self.send(result=result)

    def move(self, state):
        if self.agent.state != state:
            self.agent.state = state
            self.agent.epoch += 1


async def _ended(task):
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, grpc.RpcError):
        await task


class SidecarApi(
    letter_service_pb2_grpc.LetterServiceServicer,
    checkpoint_service_pb2_grpc.CheckpointServiceServicer,
    sidecar_service_pb2_grpc.SidecarServiceServicer,
    circuit_service_pb2_grpc.CircuitServiceServicer,
):
    """A sidecar's API that remembers its metadata; one method of each arity."""

    def __init__(self):
        self.metadata = []
        self.deadlines = []
        self.watched = asyncio.Event()
        self.left = asyncio.Event()

    def _seen(self, context):
        self.metadata.append(dict(context.invocation_metadata()))
        self.deadlines.append(context.time_remaining())

    async def GetLetter(self, request, context):
        self._seen(context)
        await context.send_initial_metadata((("x-first", "one"),))
        context.set_trailing_metadata((("x-last", "two"), ("x-last-bin", b"\x00\xff")))
        answer = letter_service_pb2.GetLetterResponse()
        answer.letter.letter_id = request.letter_id
        return answer

    async def RedriveLetters(self, request, context):
        self._seen(context)
        await context.abort(grpc.StatusCode.ABORTED, "try anew", (("x-why", "stale"),))

    async def ListLetters(self, request, context):
        self.watched.set()
        await asyncio.Event().wait()

    async def DiscardLetters(self, request, context):
        return letter_service_pb2.DiscardLettersResponse()

    async def ImportLetters(self, request_iterator, context):
        self._seen(context)
        count = 0
        async for _ in request_iterator:
            count += 1
        return letter_service_pb2.ImportLettersResponse(imported_count=count)

    async def RestoreCheckpoint(self, request, context):
        self._seen(context)
        for number in range(3):
            yield checkpoint_service_pb2.RestoreCheckpointResponse(
                chunk=bytes([number]) * 1000
            )
        context.set_trailing_metadata((("x-last", "end"),))

    async def Watch(self, request, context):
        self.watched.set()
        try:
            yield sidecar_service_pb2.SidecarServiceWatchResponse()
            await asyncio.Event().wait()
        finally:
            self.left.set()

    async def GetSidecar(self, request, context):
        await context.abort(grpc.StatusCode.UNAVAILABLE, "overwhelmed")


@contextlib.asynccontextmanager
async def sidecar_api(address, credentials=None):
    """Serve an API, with TLS if credentials are given; give it and its address."""
    servicer = SidecarApi()
    server = grpc.aio.server()
    letter_service_pb2_grpc.add_LetterServiceServicer_to_server(servicer, server)
    checkpoint_service_pb2_grpc.add_CheckpointServiceServicer_to_server(
        servicer, server
    )
    sidecar_service_pb2_grpc.add_SidecarServiceServicer_to_server(servicer, server)
    port = (
        server.add_secure_port(address, credentials)
        if credentials
        else server.add_insecure_port(address)
    )
    await server.start()
    try:
        yield servicer, address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.stop(0)
