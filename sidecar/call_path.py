"""The outbound call path composed: guard, circuits, upstreams, wire, tap and faults.

A part of `app.py`, which composes everything, in a file of its own for its length.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from outrigger.core import names
from outrigger.core.clock import Clock
from outrigger.core.database import Database
from outrigger.core.events import Payload
from outrigger.core.rng import Rng
from outrigger.core.rpc.errors import details_metadata, retry_hint_s
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Answer, LetterPort
from sidecar.call.faults import FaultLayer
from sidecar.call.guard import CallGuard
from sidecar.call.records import CircuitKeeper, CircuitRecords
from sidecar.call.routes import Routes, Upstream
from sidecar.call.tap import TapHub
from sidecar.config import SidecarConfig
from sidecar.policy.letter import Letter, delivery_metadata
from sidecar.wire.grpcio import GrpcioWire, Listener, WireOptions
from sidecar.wire.protocol import Sent
from sidecar.wire.surroundings import Surroundings
from sidecar.wire.upstreams import UpstreamChannels


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What all parts of a sidecar use."""

    clock: Clock
    rng: Rng
    tasks: Tasks
    publish: Callable[[Payload], object]


class CallPath:
    """The agent's way out."""

    def __init__(
        self,
        config: SidecarConfig,
        shared: Shared,
        *,
        database: Database,
        letters: LetterPort,
        token: str,
        on_ready: Callable[[str], None],
    ) -> None:
        """Compose it; nothing is connected or bound yet.

        Args:
            config: of the sidecar.
            shared: clock, chance, tasks, and somebody to tell.
            database: keeps circuits over a restart.
            letters: take calls that failed for good.
            token: the agent's, asked for where the configuration says so.
            on_ready: told the name of each upstream that is connected.

        Raises:
            Invalid: the routes contradict one another, or an upstream is unusable.
        """
        self._clock = shared.clock
        self._on_ready = on_ready
        self.routes = Routes(
            [Upstream(name) for name in config.upstreams],
            config.rules,
            prefixes=config.services,
        )
        self.guard = CallGuard(
            self.routes,
            dataclasses.replace(
                config.guard, token=token if config.outbound_token else None
            ),
            publish=shared.publish,
            now=shared.clock.monotonic(),
            details=details_metadata,
            retry_hint=retry_hint_s,
            resolve=lambda parked, result: self.wire.resolve(parked, result),  # noqa: PLW0108 - made later
        )
        self.circuits = CircuitKeeper(
            CircuitRecords(database), self.guard, shared.clock
        )
        self.tap = TapHub(self.guard.watch)
        self.faults = FaultLayer(
            self.guard, clock=shared.clock, tasks=shared.tasks, publish=shared.publish
        )
        self.channels = UpstreamChannels(
            config.upstreams,
            self._ready,
            tasks=shared.tasks,
            surroundings=Surroundings(
                clock=shared.clock, rng=shared.rng, publish=shared.publish
            ),
        )
        self.wire = GrpcioWire(
            self.guard,
            self.channels,
            letters=letters,
            clock=shared.clock,
            rng=shared.rng,
            tasks=shared.tasks,
            listen=_listeners(config, config.state),
            options=WireOptions(replay_bytes=config.replay_bytes),
        )

    async def start(self) -> None:
        """Connect to the upstreams and listen.

        Raises:
            OutriggerError: an address cannot be listened on.
        """
        await self.channels.start()
        await self.wire.start()

    async def send(self, letter: Letter, timeout_s: float) -> Sent | Answer:
        """Deliver a letter; an Answer means that it was refused here."""
        return await self.wire.send(
            letter.upstream,
            letter.method,
            delivery_metadata(letter),
            letter.request or b"",
            timeout_s,
        )

    def route(self, method: str, upstream: str) -> str:
        """Return the upstream of a method; empty leaves it to the configuration.

        Raises:
            Invalid: there is none.
        """
        return self.routes.route(method, upstream or None).upstream

    def is_unsafe(self, upstream: str, method: str) -> bool:
        """Say whether a method must not be sent twice."""
        return self.routes.route(method, upstream).rule.unsafe

    def retry_after_s(self, upstream: str, method: str) -> float | None:
        """Return for how long a letter would be refused; None if it would not be."""
        return self.guard.circuit_retry_after_s(
            upstream, method, self._clock.monotonic()
        )

    def _ready(self, name: str) -> None:
        self.guard.connection_ready(name, self._clock.monotonic())
        self._on_ready(name)


def _listeners(config: SidecarConfig, folder: Path) -> tuple[Listener, ...]:
    return (
        Listener(
            address=config.outbound.address,
            flag="--outbound",
            tls=config.tls,
            may_move=config.outbound.may_move,
        ),
        Listener(address=f"unix:{folder / names.OUTBOUND_SOCKET}", flag="--state"),
    )
