"""The agent as others see it: one message made of all that the sidecar knows."""

from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.duration_pb2 import Duration

from outrigger.core.clock import Clock
from outrigger.v1 import agent_pb2
from sidecar.agent.leases import KeepAwakeLeases
from sidecar.agent.traffic import Traffic
from sidecar.call.descriptor import CallCounts
from sidecar.load.meter import Meter
from sidecar.policy.agent import AgentSnapshot
from sidecar.rpc.wire import agent_to_proto, load_to_proto


@dataclass(slots=True, kw_only=True)
class Status:
    """Where each part of the message comes from."""

    snapshot: Callable[[], AgentSnapshot]
    outbound: CallCounts
    inbound: CallCounts
    traffic: Traffic
    leases: KeepAwakeLeases
    meter: Meter
    live_letters: Callable[[], int]
    clock: Clock
    group: str
    instance: str
    addresses: agent_pb2.SidecarAddresses = field(
        default_factory=agent_pb2.SidecarAddresses
    )

    def agent(self) -> agent_pb2.Agent:
        """Return the agent as it is now."""
        return agent_to_proto(
            self.snapshot(),
            group=self.group,
            instance=self.instance,
            addresses=self.addresses,
            load=self._load(),
        )

    def _load(self) -> agent_pb2.Load:
        load = load_to_proto(self.meter.latest)
        load.outbound_in_flight = self.traffic.outbound()
        load.inbound_in_flight = self.traffic.inbound()
        load.keep_awake_leases = self.leases.count(self.clock.monotonic())
        load.live_letters = self.live_letters()
        idle = Duration()
        idle.FromMilliseconds(int(self.meter.idle_s() * 1000))
        load.idle.CopyFrom(idle)
        return load
