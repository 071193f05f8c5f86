"""The controller: composed, started and stopped here."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

import grpc.aio

import outrigger
from controller.commands import Commands
from controller.config import ControllerConfig, Listen
from controller.policy.agent import Report, State
from controller.policy.fleet import MOST_AGENTS, Fleet, Remembered
from controller.policy.schedule import Settings
from controller.reconcile import Reconciler
from controller.registry import Registry
from controller.rpc.answers import Answers
from controller.rpc.connect import ConnectServicer
from controller.rpc.dial import Dialer
from controller.rpc.fleet import FleetServicer
from controller.rpc.passthrough import Passthrough
from controller.rpc.servers import Edge, admin_server, connect_server
from controller.scheduler import Scheduler
from controller.store.protocol import Kept, KnownAgent, Store
from controller.store.sqlite import SqliteStore
from controller.trail import Trail
from outrigger.core import names
from outrigger.core.clock import Clock, SystemClock
from outrigger.core.errors import Transient
from outrigger.core.event_log import EventLog
from outrigger.core.events import Payload
from outrigger.core.rpc.health import Health
from outrigger.core.rpc.server import TlsFiles, bind
from outrigger.core.state_dir import StateDirectory
from outrigger.core.tasks import Tasks

_log = logging.getLogger("outrigger.controller")

_DATABASE: Final = "controller.db"
_REMEMBERED_S: Final = 30 * 86_400.0
"""Agents not seen for this long are forgotten at the next start, unless pinned."""
_STOP_GRACE_S: Final = 0.5

Announce = Callable[[dict[str, str]], None]


def _say(addresses: dict[str, str]) -> None:
    sys.stdout.write(
        "controller: operators at {admin}, sidecars at {connect},"
        " state in {state}\n".format(**addresses)
    )
    sys.stdout.flush()


class Controller:
    """One controller, composed over an open store."""

    def __init__(
        self,
        config: ControllerConfig,
        state: StateDirectory,
        store: Store,
        kept: Kept,
        clock: Clock,
    ) -> None:
        """Compose; needs a running loop, does no I/O but for its token files.

        Raises:
            Denied: TOKEN_NOT_PRIVATE.
            Refused: TOKEN_EMPTY.
            Transient: STATE_UNUSABLE.
        """
        self._config = config
        self._store = store
        self._clock = clock
        self.events = EventLog(agent_id="", clock=clock)
        self.fleet = _restored(kept, clock)
        self.registry = Registry()
        self._tasks = Tasks(self.events.publish, clock)
        self._trail = Trail(store, clock, self.events.publish)
        defaults = Settings(keep_alive_s=config.keep_alive_s)
        self._scheduler = Scheduler(store, kept.settings, defaults)
        self._commands = Commands(self.fleet, self.registry, clock)
        self._dialer = Dialer(config.tls, self._tasks)
        self._admin, self._health = self._admin_server(
            state.token(names.ADMIN_TOKEN_FILE)
        )
        self._connect = self._connect_server(state.token(names.JOIN_TOKEN_FILE))

    async def start(self) -> dict[str, str]:
        """Listen and begin to plan; return the addresses: admin and connect.

        Raises:
            Refused: PORT_TAKEN or SOCKET_TAKEN.
            Invalid: see `outrigger.core.rpc.server.bind`.
        """
        tls = self._config.tls
        admin = _bind(self._admin, self._config.listen, "--listen", tls)
        connect = _bind(self._connect, self._config.connect, "--connect", tls)
        await self._admin.start()
        await self._connect.start()
        reconciler = Reconciler(
            fleet=self.fleet,
            scheduler=self._scheduler,
            commands=self._commands,
            trail=self._trail,
            clock=self._clock,
            tasks=self._tasks,
            publish=self._publish,
        )
        _ = self._tasks.spawn_forever("reconcile", reconciler.run)
        _ = self._tasks.spawn_forever("store", self._keep_store_open)
        return {"admin": admin, "connect": connect}

    async def stop(self) -> None:
        """End the streams, then the servers, then the tasks."""
        self._health.stop()
        self.registry.end_all(
            Transient(
                "CONTROLLER_STOPPING",
                "the controller is stopping: connect again until it is back",
                retry_after_s=1.0,
            )
        )
        await self._connect.stop(_STOP_GRACE_S)
        await self._admin.stop(_STOP_GRACE_S)
        await self._tasks.close()
        await self._dialer.close()

    def _admin_server(self, token: str) -> tuple[grpc.aio.Server, Health]:
        return admin_server(
            Edge(token, self._clock, self.events.publish, self._trail),
            servicer=FleetServicer(
                fleet=self.fleet,
                commands=self._commands,
                scheduler=self._scheduler,
                store=self._store,
                trail=self._trail,
                events=self.events,
                answers=Answers(self._tasks),
                clock=self._clock,
            ),
            others=Passthrough(
                fleet=self.fleet,
                registry=self.registry,
                dialer=self._dialer,
                trail=self._trail,
            ),
        )

    def _connect_server(self, token: str) -> grpc.aio.Server:
        return connect_server(
            Edge(token, self._clock, self.events.publish, self._trail),
            servicer=ConnectServicer(
                fleet=self.fleet,
                registry=self.registry,
                store=self._store,
                events=self.events,
                clock=self._clock,
                tasks=self._tasks,
                version=outrigger.__version__,
                report_interval_s=self._config.report_interval_s,
            ),
        )

    async def _keep_store_open(self) -> None:
        await self._store.keep_open(clock=self._clock, publish=self.events.publish)

    def _publish(self, payload: Payload, agent_id: str) -> None:
        self.events.publish(payload, agent_id=agent_id)


@asynccontextmanager
async def serving(
    config: ControllerConfig, clock: Clock | None = None
) -> AsyncIterator[tuple[Controller, dict[str, str]]]:
    """Run a controller for the length of a block; give it and its addresses.

    The addresses are also in `address.json` of the state directory. It stays there
    at the end: whoever reads it compares the process id.

    Raises:
        Refused: STATE_IN_USE, and see `Controller`.
        Corrupt: STORE_CORRUPT or AUDIT_BROKEN.
        Transient: STATE_UNUSABLE or STORE_UNOPENABLE.
        Denied: STATE_NOT_PRIVATE or TOKEN_NOT_PRIVATE.
        Invalid: see `outrigger.core.rpc.server.bind`.
    """
    clock = clock or SystemClock()
    with StateDirectory(config.state) as state:
        async with AsyncExitStack() as closing:
            store = SqliteStore(state.path / _DATABASE)
            closing.push_async_callback(store.close)
            oldest = clock.wall() - _REMEMBERED_S
            kept = await store.load(seen_after_wall_s=oldest)
            controller = Controller(config, state, store, kept, clock)
            closing.push_async_callback(controller.stop)
            addresses = await controller.start()
            addresses["state"] = str(config.state)
            state.announce({**addresses, "pid": os.getpid()})
            yield controller, addresses


async def run(config: ControllerConfig, *, announce: Announce = _say) -> int:
    """Run a controller until SIGTERM or SIGINT; return 0.

    Args:
        config: what it was told.
        announce: called once with the addresses: admin, connect and state.

    Raises:
        OutriggerError: it could not start; see `serving`.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, stopping.set)
    try:
        async with serving(config) as (_, addresses):
            announce(addresses)
            await stopping.wait()
            _log.info("stopping")
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
    return 0


def _bind(
    server: grpc.aio.Server, listen: Listen, flag: str, tls: TlsFiles | None
) -> str:
    return bind(server, listen.address, flag, tls=tls, may_move=listen.may_move)


def _restored(kept: Kept, clock: Clock) -> Fleet:
    fleet = Fleet()
    for known in kept.agents[:MOST_AGENTS]:
        age_s = max(0.0, clock.wall() - known.seen_wall_s)
        remembered = Remembered(
            _last_report(known),
            kept.pins.get(known.agent_id),
            kept.transitions.get(known.agent_id, ()),
        )
        fleet.introduce(remembered, clock.monotonic() - age_s)
    return fleet


def _last_report(known: KnownAgent) -> Report:
    words = {state.value: state for state in State}
    return Report(
        agent_id=known.agent_id,
        state=words.get(known.state, State.UNKNOWN),
        epoch=known.epoch,
        generation=known.generation,
        group=known.group,
        sidecar_instance=known.sidecar_instance,
    )
