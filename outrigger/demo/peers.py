"""What the demo asks its processes, over the same RPCs an operator has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.wrappers_pb2 import StringValue

from outrigger.client.surroundings import CHANNEL_OPTIONS
from outrigger.core.names import ADMIN_TOKEN_FILE, TOKEN_METADATA
from outrigger.demo.contract import DIGEST, LOOKUP, SEEN
from outrigger.v1 import (
    agent_pb2,
    circuit_service_pb2,
    fleet_service_pb2,
    letter_pb2,
    letter_service_pb2,
    sidecar_service_pb2,
)
from outrigger.v1.circuit_pb2 import Circuit
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub

_TIMEOUT_S: Final = 5.0
_WAKE_TIMEOUT_S: Final = 20.0
"""A call for a sleeping agent waits for its new process."""


class Peer:
    """Channels to one process, and the metadata that opens its doors."""

    def __init__(self, state: Path | None = None) -> None:
        self._channels: dict[str, grpc.Channel] = {}
        self.metadata: tuple[tuple[str, str], ...] = ()
        if state is not None:
            token = (state / ADMIN_TOKEN_FILE).read_text().strip()
            self.metadata = ((TOKEN_METADATA, token),)

    def channel(self, target: str) -> grpc.Channel:
        """Return the channel to a target, made at the first time."""
        if target not in self._channels:
            self._channels[target] = grpc.insecure_channel(
                target, options=CHANNEL_OPTIONS
            )
        return self._channels[target]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for channel in self._channels.values():
            channel.close()


class ToolPeer(Peer):
    """The tool server; None where it does not answer."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self._target = target

    def seen(self) -> Mapping[str, int] | None:
        """Return its counts."""
        try:
            answer = SEEN.on(self.channel(self._target))(Empty(), timeout=1.0)
        except grpc.RpcError:
            return None
        return {name: int(value) for name, value in answer.items()}


class SidecarPeer(Peer):
    """One sidecar, and the agent behind its inbound listener."""

    def __init__(self, state: Path, addresses: Mapping[str, Any]) -> None:
        super().__init__(state)
        self.api = str(addresses["api_tcp"])
        self.inbound = str(addresses["inbound"])
        self.outbound = str(addresses["outbound"])
        self.name = str(addresses["agent_id"])

    def status(self) -> sidecar_service_pb2.GetSidecarResponse:
        """Return what the sidecar knows and counted."""
        stub = SidecarServiceStub(self.channel(self.api))
        request = sidecar_service_pb2.GetSidecarRequest()
        return stub.GetSidecar(request, timeout=_TIMEOUT_S, metadata=self.metadata)

    def ledger(self) -> letter_pb2.Ledger:
        """Return where its letters are."""
        stub = LetterServiceStub(self.channel(self.api))
        request = letter_service_pb2.GetLedgerRequest()
        answer = stub.GetLedger(request, timeout=_TIMEOUT_S, metadata=self.metadata)
        return answer.ledger

    def circuits(self) -> tuple[int, str]:
        """Return how often its circuits have opened, and which are not closed."""
        stub = CircuitServiceStub(self.channel(self.api))
        request = circuit_service_pb2.ListCircuitsRequest()
        answer = stub.ListCircuits(request, timeout=_TIMEOUT_S, metadata=self.metadata)
        opened = sum(circuit.open_count for circuit in answer.circuits)
        states = {
            Circuit.State.Name(circuit.state).removeprefix("STATE_").lower()
            for circuit in answer.circuits
        }
        return opened, ", ".join(sorted(states - {"closed"})) or "closed"

    def digest(self) -> Mapping[str, Any]:
        """Ask the agent what its index holds; wakes it if it sleeps."""
        answer = DIGEST.on(self.channel(self.inbound))(Empty(), timeout=_WAKE_TIMEOUT_S)
        return dict(MessageToDict(answer))

    def lookup(self, word: str) -> int:
        """Ask the agent how often a word occurs; wakes it if it sleeps."""
        answer = LOOKUP.on(self.channel(self.inbound))(
            StringValue(value=word), timeout=_WAKE_TIMEOUT_S
        )
        return int(answer["count"])


class ControllerPeer(Peer):
    """The controller."""

    def __init__(self, state: Path, addresses: Mapping[str, Any]) -> None:
        super().__init__(state)
        self.admin = str(addresses["admin"])
        self.connect = str(addresses["connect"])
        self._fleet = FleetServiceStub(self.channel(self.admin))

    def agents(self) -> Mapping[str, agent_pb2.Agent]:
        """Return every agent it knows, by id."""
        request = fleet_service_pb2.ListAgentsRequest()
        answer = self._fleet.ListAgents(
            request, timeout=_TIMEOUT_S, metadata=self.metadata
        )
        return {agent.agent_id: agent for agent in answer.agents}

    def sleep(self, agent_id: str) -> None:
        """Have an agent put to sleep; returns once that has begun."""
        request = fleet_service_pb2.SleepAgentRequest(agent_id=agent_id, reason="demo")
        self._fleet.SleepAgent(request, timeout=_TIMEOUT_S, metadata=self.metadata)

    def wake(self, agent_id: str) -> None:
        """Have an agent woken; returns once that has begun."""
        request = fleet_service_pb2.WakeAgentRequest(agent_id=agent_id, reason="demo")
        self._fleet.WakeAgent(request, timeout=_TIMEOUT_S, metadata=self.metadata)
