"""The sidecar composed: the one place where its objects meet.

Order of the start: the state directory's lock, the database, the letters, the
checkpoints, the listeners, the agent. The agent comes last, because it calls all
the others. The end goes the other way round.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Final

from outrigger import __version__
from outrigger.core import names
from outrigger.core.clock import Clock, SystemClock
from outrigger.core.database import Database
from outrigger.core.event_log import EventLog
from outrigger.core.events import CircuitMoved, LetterMoved, Payload
from outrigger.core.reopening import keep_open
from outrigger.core.rng import SystemRng, new_instance_id
from outrigger.core.rpc.server import bind
from outrigger.core.state_dir import StateDirectory
from outrigger.core.tasks import Tasks
from outrigger.v1 import agent_pb2
from sidecar import credentials
from sidecar.agent.actuators import Command, OnExit, ProcessActuator
from sidecar.agent.app_port import accepts
from sidecar.agent.leases import KeepAwakeLeases
from sidecar.agent.ports import SleepMode, SupervisorPorts, SupervisorSettings
from sidecar.agent.records import LifecycleRecords
from sidecar.agent.session import AttachServicer
from sidecar.agent.supervisor import Supervisor
from sidecar.agent.traffic import Side, Traffic
from sidecar.call.metadata import storable
from sidecar.call_path import CallPath, Shared
from sidecar.checkpoints.heap import bound_arenas
from sidecar.checkpoints.limits import Limits
from sidecar.checkpoints.store import CheckpointStore
from sidecar.checkpoints.transfer import CheckpointServicer
from sidecar.config import SidecarConfig
from sidecar.ending import Step, end_all
from sidecar.inbound_path import InboundPath
from sidecar.letters.census import LetterCensus
from sidecar.letters.delivery import Delivery
from sidecar.letters.journal import Journal
from sidecar.load.meter import Meter
from sidecar.load.reporter import Reporter
from sidecar.load.sampler import Sampler
from sidecar.policy.activity import Evidence
from sidecar.policy.letter import LetterLimits
from sidecar.rpc.circuits import CircuitServicer
from sidecar.rpc.faults import FaultServicer
from sidecar.rpc.letters import LetterServicer
from sidecar.rpc.server import Keys, Servicers, api_server
from sidecar.rpc.sidecar import SidecarServicer
from sidecar.rpc.status import Status
from sidecar.rpc.tap import TapServicer
from sidecar.rpc.upstreams import UpstreamServicer
from sidecar.schema import schema

_log = logging.getLogger("outrigger.sidecar")

_DATABASE: Final = "sidecar.db"
_CHECKPOINTS: Final = "checkpoints"
_GRACE_S: Final = 2.0

Announce = Callable[[Mapping[str, object]], None]


class Sidecar:
    """One sidecar, composed over an open database."""

    def __init__(
        self,
        config: SidecarConfig,
        state: StateDirectory,
        database: Database,
        clock: Clock,
    ) -> None:
        """Compose; needs the running loop of the main thread.

        Raises:
            Denied: TOKEN_NOT_PRIVATE.
            Invalid: the routes contradict one another.
            Transient: STATE_UNUSABLE.
        """
        self._config = config
        self._state = state
        self._clock = clock
        self._has_recovered = False
        self._rng = SystemRng()
        self._database = database
        self._events = EventLog(agent_id=config.agent_id, clock=clock)
        self._tasks = Tasks(self._publish, clock)
        self._shared = Shared(
            clock=clock, rng=self._rng, tasks=self._tasks, publish=self._publish
        )
        self._admin_token = state.token(names.ADMIN_TOKEN_FILE)
        self._agent_token = credentials.agent_token(config, state)
        self._journal = self._make_journal()
        self._checkpoints = self._make_checkpoints()
        self._census = LetterCensus(self._journal, clock)
        self._calls = CallPath(
            config,
            self._shared,
            database=database,
            letters=self._journal,
            token=self._agent_token,
            on_ready=lambda name: self._delivery.nudge(name),  # noqa: PLW0108 - made later
        )
        self._delivery = self._make_delivery()
        self._leases = KeepAwakeLeases(new_instance_id)
        self._addresses = agent_pb2.SidecarAddresses()
        self._agent_environment = {
            **config.environment,
            names.ENV_AGENT_ID: config.agent_id,
            names.ENV_API: f"unix:{state.path / names.API_SOCKET}",
            names.ENV_TOKEN: self._agent_token,
        }
        """Read at each start of the agent; the outbound address joins when bound."""
        self._supervisor = self._make_supervisor()
        self._inbound = InboundPath(config, self._shared, self._supervisor)
        self._traffic = Traffic(
            Side(self._calls.guard.counts, self._calls.wire.open_streams),
            Side(self._inbound.guard.counts, self._inbound.wire.open_streams),
            clock=clock,
        )
        self._meter = self._make_meter()
        self._status = self._make_status()
        self._reporter = self._make_reporter()
        keys = Keys(
            agent_id=config.agent_id,
            agent_token=self._agent_token,
            admin_token=self._admin_token,
        )
        self._api, self._health = api_server(
            self._make_servicers(), keys, clock=clock, report=self._publish
        )

    # Composition.

    def _make_journal(self) -> Journal:
        config = self._config
        return Journal(
            self._database,
            agent_id=config.agent_id,
            clock=self._clock,
            rng=self._rng,
            limits=LetterLimits(
                max_letters=config.letters_live_max,
                max_bytes=config.letters_bytes_max,
            ),
            publish=self._publish,
        )

    def _make_checkpoints(self) -> CheckpointStore:
        return CheckpointStore(
            self._state.folder(_CHECKPOINTS),
            clock=self._clock,
            limits=Limits(quota_bytes=self._config.checkpoint_quota_bytes),
            publish=self._publish,
        )

    def _make_delivery(self) -> Delivery:
        return Delivery(
            self._journal,
            self._calls.send,
            clock=self._clock,
            rng=self._rng,
            tasks=self._tasks,
            publish=self._publish,
            upstreams=self._calls.routes.upstreams,
            unsafe=self._calls.is_unsafe,
            retry_after=self._calls.retry_after_s,
        )

    def _make_supervisor(self) -> Supervisor:
        config = self._config
        supervisor = Supervisor(
            config.agent_id,
            settings=SupervisorSettings(
                sleep_mode=SleepMode(config.sleep_mode),
                frozen_keep_s=config.frozen_keep_s,
                wake_timeout_s=config.wake_timeout_s,
            ),
            ports=SupervisorPorts(
                checkpoints=self._checkpoints,
                leases=self._leases,
                publish=self._publish,
                clock=self._clock,
                rng=self._rng,
                tasks=self._tasks,
                busy=lambda: self._traffic.busy(),  # noqa: PLW0108 - made later
                begun=lambda: self._traffic.begun(),  # noqa: PLW0108 - made later
                accepts=accepts,
            ),
            records=LifecycleRecords(self._database, config.agent_id),
            make_actuator=self._make_actuator if config.command else None,
            app_address=config.app or "",
        )
        supervisor.on_change.append(self._agent_moved)
        return supervisor

    def _make_actuator(self, on_exit: OnExit) -> ProcessActuator:
        command = Command(
            words=self._config.command, environment=self._agent_environment
        )
        return ProcessActuator(command, clock=self._clock, on_exit=on_exit)

    def _make_meter(self) -> Meter:
        return Meter(
            Sampler(self._clock),
            pid=lambda: self._supervisor.snapshot().pid,
            evidence=self._evidence,
            clock=self._clock,
            interval_s=self._config.report_interval_s,
        )

    def _make_status(self) -> Status:
        return Status(
            snapshot=self._supervisor.snapshot,
            outbound=self._calls.guard.counts,
            inbound=self._inbound.guard.counts,
            traffic=self._traffic,
            leases=self._leases,
            meter=self._meter,
            live_letters=lambda: self._census.live,
            clock=self._clock,
            group=self._config.group,
            instance=new_instance_id(),
            addresses=self._addresses,
        )

    def _make_reporter(self) -> Reporter | None:
        config = self._config
        if config.controller is None or config.join_token_file is None:
            return None
        return Reporter(
            config.controller,
            credentials.join_token(config),
            agent=self._status.agent,
            sleep=self._commanded_sleep,
            wake=self._commanded_wake,
            events=self._events,
            clock=self._clock,
            rng=self._rng,
            tasks=self._tasks,
            operator_token=self._admin_token,
            version=__version__,
            credentials=credentials.towards_controller(config),
        )

    def _make_servicers(self) -> Servicers:
        agent_id, clock, calls = self._config.agent_id, self._clock, self._calls
        return Servicers(
            attach=AttachServicer(
                self._supervisor,
                self._leases,
                agent_id=agent_id,
                clock=clock,
                tasks=self._tasks,
            ),
            checkpoints=CheckpointServicer(
                self._checkpoints,
                agent_id=agent_id,
                on_saved=self._supervisor.checkpoint_saved,
            ),
            circuits=CircuitServicer(
                calls.guard, clock, self._events, stored=calls.circuits.store
            ),
            faults=FaultServicer(
                calls.faults,
                clock,
                allowed=self._config.allow_faults,
                upstreams=calls.routes.upstreams,
            ),
            letters=LetterServicer(
                self._journal,
                route=calls.route,
                unsafe=calls.is_unsafe,
                redact=storable,
                clock=clock,
                rng=self._rng,
            ),
            sidecar=SidecarServicer(
                self._status,
                self._supervisor,
                self._events,
                upstreams={
                    name: ", ".join(spec.targets)
                    for name, spec in self._config.upstreams.items()
                },
                pid=os.getpid(),
            ),
            tap=TapServicer(calls.tap, clock),
            upstreams=UpstreamServicer(calls.channels.views, calls.guard.places),
        )

    # Life.

    async def start(self) -> Mapping[str, object]:
        """Recover what is on disk, listen, and start the agent.

        Returns:
            Where it listens, as in address.json.

        Raises:
            OutriggerError: it cannot start; the message says why.
        """
        await self._journal.recover()
        await self._calls.circuits.recover()
        self._has_recovered = True
        await self._census.count()
        await self._calls.start()
        await self._inbound.start()
        addresses = self._bind_api()
        # Whoever asks the API, and the controller, must not hear of the agent before
        # its record was read; the agent's first call waits in the socket's backlog.
        await self._supervisor.start()
        await self._api.start()
        self._spawn_loops()
        return addresses

    async def run(self, stopped: asyncio.Event) -> int:
        """Wait for a signal or the agent's end; return the exit code."""
        signalled = self._tasks.spawn("wait for a signal", stopped.wait())
        await asyncio.wait(
            (signalled, self._supervisor.child_exited),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if self._supervisor.child_exited.done():
            return self._supervisor.child_exited.result()
        return 0

    async def stop(self) -> None:
        """End the listeners, the agent, the deliveries and the tasks.

        A step that fails is recorded and holds up none of the others. What a start
        that failed had not read yet is not written: the record on disk is newer.
        """
        self._health.stop()
        await end_all(self._endings(), self._publish)

    def _endings(self) -> Iterator[Step]:
        yield "wire.stop", lambda: self._calls.wire.stop(_GRACE_S)
        yield "inbound.stop", lambda: self._inbound.wire.stop(_GRACE_S)
        yield "agent.stop", self._supervisor.stop
        if self._has_recovered:
            yield "delivery.stop", lambda: self._delivery.stop(_GRACE_S)
            yield "circuits.store", self._calls.circuits.store
        yield "api.stop", lambda: self._api.stop(_GRACE_S / 2)
        yield "channels.close", self._calls.channels.close
        yield "inbound.close", self._inbound.channels.close
        yield "tasks.close", self._tasks.close
        yield "checkpoints.close", self._checkpoints.close

    def _bind_api(self) -> Mapping[str, object]:
        config, folder = self._config, self._state.path
        api = bind(self._api, f"unix:{folder / names.API_SOCKET}", "--state")
        api_tcp = bind(
            self._api,
            config.api.address,
            "--api",
            tls=config.tls,
            may_move=config.api.may_move,
        )
        self._addresses.api = api
        self._addresses.api_tcp = api_tcp
        self._addresses.outbound = self._calls.wire.addresses[0]
        # Under TLS the agent takes the socket: it has no certificate, and an address
        # such as 0.0.0.0 is none to call.
        self._agent_environment[names.ENV_OUTBOUND] = self._calls.wire.addresses[
            0 if config.tls is None else 1
        ]
        if config.inbound is not None:
            self._addresses.inbound = self._inbound.wire.addresses[0]
        return {
            "agent_id": config.agent_id,
            "pid": os.getpid(),
            "outbound": self._addresses.outbound,
            "outbound_socket": self._calls.wire.addresses[1],
            "api": api,
            "api_tcp": api_tcp,
            "inbound": self._addresses.inbound,
        }

    def _spawn_loops(self) -> None:
        tasks = self._tasks
        _ = tasks.spawn_forever("delivery", self._delivery.run)
        _ = tasks.spawn_forever("circuits on disk", self._calls.circuits.run)
        _ = tasks.spawn_forever("live letters", self._census.run)
        _ = tasks.spawn_forever(
            "database",
            lambda: keep_open(self._database, clock=self._clock, publish=self._publish),
        )
        if self._config.measure:
            _ = tasks.spawn_forever("meter", self._meter.run)
        if self._reporter is not None:
            _ = tasks.spawn_forever("reporter", self._reporter.run)
        if self._config.redis is not None:
            self._spawn_shared_tier(self._config.redis)

    def _spawn_shared_tier(self, url: str) -> None:
        # Imported only here: redis costs 10 MiB that most sidecars need not pay.
        from sidecar.letters.shared_tier import SharedTier  # noqa: PLC0415

        tier = SharedTier(
            url,
            self._journal,
            self._database,
            clock=self._clock,
            rng=self._rng,
            publish=self._publish,
        )
        _ = self._tasks.spawn_forever("shared tier", tier.run)

    # What happens.

    def _publish(self, payload: Payload) -> object:
        if isinstance(payload, CircuitMoved):
            self._calls.circuits.moved()
            if payload.after == "closed":
                self._delivery.nudge(payload.circuit.partition("/")[0])
        elif isinstance(payload, LetterMoved):
            self._census.moved()
        return self._events.publish(payload)

    def _agent_moved(self) -> None:
        self._inbound.agent_moved()
        if self._reporter is not None:
            self._reporter.poke()

    async def _commanded_sleep(self, seen_epoch: int, reason: str) -> agent_pb2.Agent:
        self._supervisor.request_sleep(seen_epoch, reason)
        return self._status.agent()

    async def _commanded_wake(self, seen_epoch: int, reason: str) -> agent_pb2.Agent:
        self._supervisor.request_wake(seen_epoch, reason)
        return self._status.agent()

    def _evidence(self, cpu_ratio: float | None) -> Evidence:
        return Evidence(
            calls_in_flight=self._traffic.calls(),
            leases=self._leases.count(self._clock.monotonic()),
            last_call=max(
                self._calls.guard.last_activity, self._inbound.guard.last_activity
            ),
            stream_messages=self._traffic.streams(),
            cpu_ratio=cpu_ratio,
        )


@asynccontextmanager
async def serving(
    config: SidecarConfig, clock: Clock | None = None
) -> AsyncIterator[tuple[Sidecar, Mapping[str, object]]]:
    """Run a sidecar for the length of a block; give it and its addresses.

    Raises:
        OutriggerError: it cannot start; the message says why.
    """
    with StateDirectory(config.state) as state:
        database = Database(config.state / _DATABASE, schema(config))
        try:
            sidecar = Sidecar(config, state, database, clock or SystemClock())
            try:
                addresses = await sidecar.start()
                state.announce(addresses)
                yield sidecar, addresses
            finally:
                await sidecar.stop()
        finally:
            await database.close()


def _say(addresses: Mapping[str, object]) -> None:
    shown = ", ".join(
        f"{name} at {addresses[name]}"
        for name in ("outbound", "api_tcp", "inbound")
        if addresses[name]
    )
    sys.stdout.write(f"sidecar of {addresses['agent_id']}: {shown}\n")
    sys.stdout.flush()


async def run(config: SidecarConfig, *, announce: Announce = _say) -> int:
    """Run until SIGTERM, SIGINT or the agent's end; return the exit code.

    Raises:
        OutriggerError: it cannot start; the message says why.
    """
    bound_arenas()
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with serving(config) as (sidecar, addresses):
        announce(addresses)
        return await sidecar.run(stopped)
