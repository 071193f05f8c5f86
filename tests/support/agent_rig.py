"""A supervisor with everything around it, and a stub agent as its child."""

import asyncio
import itertools
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import grpc.aio

from outrigger.core.access import Principal, Role, Rule, Tokens
from outrigger.core.clock import SystemClock
from outrigger.core.database import Database
from outrigger.core.event_log import EventLog
from outrigger.core.rng import SystemRng
from outrigger.core.rpc.chain import Chain, Policy
from outrigger.core.tasks import Tasks
from outrigger.v1.attach_service_pb2_grpc import add_AttachServiceServicer_to_server
from outrigger.v1.checkpoint_service_pb2_grpc import (
    add_CheckpointServiceServicer_to_server,
)
from sidecar.agent import app_port, session
from sidecar.agent.actuators import Command, ProcessActuator
from sidecar.agent.leases import KeepAwakeLeases
from sidecar.agent.ports import SupervisorPorts, SupervisorSettings
from sidecar.agent.processes import read_stat
from sidecar.agent.records import SCHEMA, LifecycleRecords
from sidecar.agent.session import AttachServicer
from sidecar.agent.supervisor import Supervisor
from sidecar.checkpoints.store import CheckpointStore
from sidecar.checkpoints.transfer import CheckpointServicer
from sidecar.policy.agent import AgentState
from sidecar.policy.lifecycle import RestartLimits
from tests.support.checkpoint_shelf import CheckpointShelf

ROOT = Path(__file__).parents[2]
STUB = ROOT / "tests/support/stub_agent.py"
TOKEN = "agent-token"
OTHER_TOKEN = "other-token"
ACCESS = session.ACCESS | {
    f"/outrigger.v1.CheckpointService/{method}": Rule(roles=frozenset({Role.AGENT}))
    for method in ("SaveCheckpoint", "RestoreCheckpoint")
}
QUICK = {
    "quiesce_timeout_s": 3.0,
    "save_timeout_s": 5.0,
    "wake_timeout_s": 10.0,
    "unattached_after_s": 10.0,
    "stop_grace_s": 2.0,
    "restart": RestartLimits(
        first_pause_s=0.01, longest_pause_s=0.02, failed_starts_max=2
    ),
    "poll_s": 0.01,
}


class Rig:
    """One sidecar's agent side; use as an async context manager."""

    def __init__(self, folder, *habits, words=None, managed=True, app="", **settings):
        self.folder = folder
        self.api = f"unix:{folder}/a.sock"
        self.control = folder / "c.sock"
        self.shelf = CheckpointShelf()
        self.clock = SystemClock()
        self.events = EventLog(agent_id="a1", clock=self.clock)
        self.seen = []
        self.tasks = Tasks(self.publish, self.clock)
        self.in_flight = 0
        self.begun = 0
        numbers = itertools.count(1)
        self.leases = KeepAwakeLeases(lambda: str(next(numbers)))
        self.words = words or (
            *(sys.executable, "-P", str(STUB), str(self.control)),
            *habits,
        )
        self.managed = managed
        self.app = app
        self.settings = SupervisorSettings(**(QUICK | settings))

    def publish(self, payload):
        self.seen.append(payload)
        return self.events.publish(payload)

    async def __aenter__(self):
        await self.make_store()
        self.database = Database(self.folder / "sidecar.db", SCHEMA)
        self.supervisor = Supervisor(
            "a1",
            settings=self.settings,
            ports=self.ports(),
            records=LifecycleRecords(self.database, "a1"),
            make_actuator=self.make_actuator if self.managed else None,
            app_address=self.app,
        )
        self.shelf.current_epoch = lambda: self.snapshot.epoch
        self.shelf.on_saved = self.supervisor.checkpoint_saved
        self.server = await self.serve()
        return self

    async def make_store(self):
        self.store = self.shelf

    def checkpoint_servicer(self):
        return self.shelf

    async def close_store(self):
        pass

    def ports(self):
        return SupervisorPorts(
            checkpoints=self.store,
            leases=self.leases,
            publish=self.publish,
            clock=self.clock,
            rng=SystemRng(),
            tasks=self.tasks,
            busy=lambda: self.in_flight,
            begun=lambda: self.begun,
            accepts=app_port.accepts,
        )

    def make_actuator(self, on_exit):
        environment = dict(os.environ) | {
            "OUTRIGGER_AGENT_ID": "a1",
            "OUTRIGGER_API": self.api,
            "OUTRIGGER_TOKEN": TOKEN,
        }
        command = Command(words=tuple(self.words), environment=environment)
        self.actuator = ProcessActuator(command, clock=self.clock, on_exit=on_exit)
        return self.actuator

    async def serve(self):
        tokens = Tokens(
            {
                TOKEN: Principal(Role.AGENT, "a1"),
                OTHER_TOKEN: Principal(Role.AGENT, "b2"),
            }
        )
        policy = Policy(
            table=ACCESS, tokens=tokens, clock=self.clock, report=self.publish
        )
        server = grpc.aio.server(interceptors=[Chain(policy)])
        servicer = AttachServicer(
            self.supervisor,
            self.leases,
            agent_id="a1",
            clock=self.clock,
            tasks=self.tasks,
        )
        add_AttachServiceServicer_to_server(servicer, server)
        add_CheckpointServiceServicer_to_server(self.checkpoint_servicer(), server)
        server.add_insecure_port(self.api)
        await server.start()
        return server

    async def __aexit__(self, *_):
        await self.supervisor.stop()
        await self.server.stop(0)
        await self.tasks.close()
        await self.close_store()
        await self.database.close()
        assert "NO_SUCH_MOVE" not in self.errors()

    @property
    def snapshot(self):
        return self.supervisor.snapshot()

    @property
    def state(self):
        return self.snapshot.state

    async def until(self, state, *, within_s=15.0):
        """Wait for a state; return the snapshot."""
        try:
            await wait_for(lambda: self.state is state, within_s)
        except TimeoutError as error:
            moved = [getattr(p, "after", p) for p in self.seen]
            message = f"{self.state} and not {state} after {moved}"
            raise AssertionError(message) from error
        return self.snapshot

    async def begin(self):
        """Start and wait until the agent is awake."""
        await self.supervisor.start()
        await self.until(AgentState.AWAKE)

    async def attached(self):
        """Wait until the agent has attached and was welcomed."""
        await wait_for(lambda: self.supervisor._life.welcomed)

    async def say(self, line):
        """Tell the stub agent; return its answer, or None if it ended of it."""
        reader, writer = await asyncio.open_unix_connection(self.control)
        writer.write(f"{line}\n".encode())
        answer = await reader.readline()
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return int(answer) if answer else None

    def moves(self):
        """Return the states entered, in order."""
        return [
            payload.after
            for payload in self.seen
            if type(payload).__name__ == "Transitioned"
        ]

    def errors(self):
        """Return the reasons of the errors seen, in order."""
        return [
            payload.reason
            for payload in self.seen
            if type(payload).__name__ == "ErrorSeen"
        ]


class DiskRig(Rig):
    """The same with the real checkpoint store, on disk."""

    async def make_store(self):
        self.store = CheckpointStore(
            self.folder / "checkpoints", clock=self.clock, publish=self.publish
        )

    def checkpoint_servicer(self):
        return CheckpointServicer(
            self.store, agent_id="a1", on_saved=self.supervisor.checkpoint_saved
        )

    async def close_store(self):
        await self.store.close()


async def wait_for(condition, within_s=15.0):
    """Poll until something holds."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


def is_alive(pid):
    """Say whether a process runs or is stopped."""
    stat = read_stat(pid)
    return stat is not None and not stat.is_dead


def kill(pid):
    """End one process."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
