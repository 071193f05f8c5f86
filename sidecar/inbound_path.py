"""The inbound call path composed: calls for the agent, held while it is asleep.

A part of `app.py`, which composes everything, in a file of its own for its length.
"""

from outrigger.core.rpc.errors import details_metadata
from sidecar.agent.doorway import Doorway
from sidecar.agent.inbound import APP, InboundGuard
from sidecar.agent.supervisor import Supervisor
from sidecar.call.descriptor import Resolution
from sidecar.call_path import Shared
from sidecar.config import SidecarConfig
from sidecar.wire.grpcio import GrpcioWire, Listener
from sidecar.wire.upstreams import UpstreamChannels


class InboundPath:
    """The way in to the agent."""

    def __init__(
        self, config: SidecarConfig, shared: Shared, supervisor: Supervisor
    ) -> None:
        self._is_asked_for = config.inbound is not None
        self.doorway = Doorway(supervisor, connect=self._connect, tasks=shared.tasks)
        self.guard = InboundGuard(
            awake=lambda: self.doorway.is_open,
            wake=self.doorway.wake,
            on_call=supervisor.activity,
            resolve=self._resolve,
            details=details_metadata,
            hold_max_s=config.hold_max_s,
        )
        self.channels = UpstreamChannels({}, lambda _: None, tasks=shared.tasks)
        self.wire = GrpcioWire(
            self.guard,
            self.channels,
            letters=None,
            clock=shared.clock,
            rng=shared.rng,
            tasks=shared.tasks,
            listen=_listeners(config),
        )

    async def start(self) -> None:
        """Listen, if anybody is to be listened to.

        Raises:
            OutriggerError: the address cannot be listened on.
        """
        await self.channels.start()
        if self._is_asked_for:
            await self.wire.start()

    def agent_moved(self) -> None:
        """Open or close the door: the agent's state has changed."""
        self.doorway.agent_moved(self.guard)

    async def _connect(self, address: str | None) -> None:
        await self.wire.set_target(APP, address)

    def _resolve(self, token: int, result: Resolution) -> None:
        self.wire.resolve(token, result)


def _listeners(config: SidecarConfig) -> tuple[Listener, ...]:
    if config.inbound is None:
        return ()
    return (
        Listener(
            address=config.inbound.address,
            flag="--inbound",
            tls=config.tls,
            may_move=config.inbound.may_move,
        ),
    )
