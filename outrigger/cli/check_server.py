"""Checks of a running server, by way of its API."""

from collections.abc import AsyncIterator

from outrigger.cli import cells
from outrigger.cli.agents import state_of
from outrigger.cli.connect import Server
from outrigger.cli.finding import Finding, bad, doubtful, good
from outrigger.cli.session import Session, connected
from outrigger.core.errors import Corrupt, NotFound, OutriggerError
from outrigger.v1.agent_pb2 import Agent
from outrigger.v1.checkpoint_service_pb2 import VerifyCheckpointRequest
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from outrigger.v1.fleet_service_pb2 import ListAgentsRequest
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.letter_service_pb2 import GetLedgerRequest
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from outrigger.v1.sidecar_service_pb2 import GetSidecarRequest
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub


async def running(server: Server, *, expected: bool) -> AsyncIterator[Finding]:
    """Yield how a server is.

    Args:
        server: where it is.
        expected: it was named on the command line, so that silence is a failure;
            else its state directory may be left from an earlier run.
    """
    check = f"{server.kind} at {server.address}"
    direct = server.kind == "sidecar" or server.agent_id
    look = _sidecar if direct else _controller
    async with connected(server) as session:
        try:
            async for finding in look(check, session):
                yield finding
        except OutriggerError as error:
            if expected:
                yield bad(check, error.message, "start it, or name the right one")
            else:
                yield doubtful(check, error.message, "start it if it should be running")


async def _controller(check: str, session: Session) -> AsyncIterator[Finding]:
    stub = FleetServiceStub(session.channel)
    total = 0
    async for agent in session.pages(stub.ListAgents, ListAgentsRequest(), "agents"):
        total += 1
        if agent.state in {Agent.STATE_UNKNOWN, Agent.STATE_FAILED}:
            yield doubtful(
                f"{check}, agent {agent.agent_id}",
                f"{state_of(agent)}: {cells.words(agent.reason)}",
                f"see its sidecar; 'outrigger agents explain {agent.agent_id}'",
            )
    yield good(check, f"answers; {total} agents")


async def _sidecar(check: str, session: Session) -> AsyncIterator[Finding]:
    sidecar = SidecarServiceStub(session.channel)
    found = await session.call(sidecar.GetSidecar, GetSidecarRequest())
    agent = found.agent
    yield good(check, f"answers; agent {agent.agent_id} is {state_of(agent)}")
    yield await _ledger(check, session)
    yield await _checkpoint(check, session, agent.agent_id)


async def _ledger(check: str, session: Session) -> Finding:
    stub = LetterServiceStub(session.channel)
    ledger = (await session.call(stub.GetLedger, GetLedgerRequest())).ledger
    if ledger.lost_count:
        return bad(
            f"{check}, letters",
            f"{ledger.lost_count} are accounted for nowhere",
            "a defect of ours: keep the state directory and report it",
        )
    detail = f"none lost of {ledger.accepted_count}; {ledger.live_count} live"
    if ledger.parked_count:
        return doubtful(
            f"{check}, letters",
            f"{detail}, {ledger.parked_count} parked",
            "see 'outrigger letters list --state parked', then redrive or discard",
        )
    return good(f"{check}, letters", detail)


async def _checkpoint(check: str, session: Session, agent_id: str) -> Finding:
    name = f"{check}, newest checkpoint"
    stub = CheckpointServiceStub(session.channel)
    request = VerifyCheckpointRequest(agent_id=agent_id)
    try:
        answer = await session.call(stub.VerifyCheckpoint, request, long=True)
    except NotFound:
        return good(name, "there is none yet")
    except Corrupt as error:
        return bad(
            name,
            error.message,
            "waking falls back to the generation before; save a new one",
        )
    generation = answer.checkpoint.generation
    size = cells.size(answer.checkpoint.raw_size_bytes)
    return good(name, f"generation {generation}, every byte verified ({size})")
