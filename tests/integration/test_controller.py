import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import stat
import sys
import uuid
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from controller.app import run, serving
from controller.config import ControllerConfig, Listen
from controller.policy.audit import GENESIS, AuditEntry, AuditRecord, verify
from controller.rpc.servers import ADMIN_SERVICES, ADMIN_TABLE, CONNECT_TABLE
from outrigger.core.clock import SystemClock
from outrigger.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    OutriggerError,
    Refused,
    Transient,
)
from outrigger.core.event_log import EventLog
from outrigger.core.rng import SystemRng
from outrigger.core.rpc.errors import from_rpc_error
from outrigger.core.rpc.server import TlsFiles, channel
from outrigger.core.tasks import Tasks
from outrigger.v1 import (
    agent_pb2,
    checkpoint_service_pb2,
    checkpoint_service_pb2_grpc,
    event_pb2,
    letter_service_pb2,
    letter_service_pb2_grpc,
    sidecar_service_pb2,
    sidecar_service_pb2_grpc,
)
from outrigger.v1 import fleet_service_pb2 as pb
from outrigger.v1 import fleet_service_pb2_grpc as pb_grpc
from sidecar.load.reporter import Reporter
from tests.support.certificates import make_certificates
from tests.support.connect_stream import StreamSidecar, sidecar_api

ROOT = Path(__file__).parents[2]
PUBLIC = {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
FREE = Listen(address="127.0.0.1:0")
Agent = agent_pb2.Agent


class Console:
    """An operator's view of a controller, and a way for sidecars into it."""

    def __init__(self, state, addresses, connection):
        self.state = state
        self.addresses = addresses
        self.connection = connection
        self.fleet = pb_grpc.FleetServiceStub(connection)
        self.operator = (("outrigger-token", self.token("admin-token")),)
        self.controller = None

    def token(self, name):
        return (self.state / name).read_text().strip()

    def sidecar(self, agent_id="otter", **changes):
        return StreamSidecar(
            self.addresses["connect"], self.token("join-token"), agent_id, **changes
        )

    async def call(self, method, **fields):
        """Call FleetService by name as an operator; errors come as ours."""
        request = getattr(pb, method + "Request")(**fields)
        try:
            return await getattr(self.fleet, method)(request, metadata=self.operator)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def agent(self, agent_id="otter"):
        return (await self.call("GetAgent", agent_id=agent_id)).agent

    async def until(self, check, agent_id="otter"):
        """Look at an agent until it is as wished."""
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(NotFound, Transient):
                    found = await self.agent(agent_id)
                    if check(found):
                        return found
                await asyncio.sleep(0.01)

    async def audit(self):
        return list((await self.call("ListAuditRecords", page_size=1000)).records)


def config(state, **changes):
    given = {"state": state, "listen": FREE, "connect": FREE}
    return ControllerConfig(**(given | changes))


@contextlib.asynccontextmanager
async def controlled(state, **changes):
    """A controller in this process, and its console."""
    async with contextlib.AsyncExitStack() as stack:
        controller, addresses = await stack.enter_async_context(
            serving(config(state, **changes))
        )
        connection = await stack.enter_async_context(channel(addresses["admin"]))
        console = Console(state, addresses, connection)
        console.controller = controller
        yield console


@pytest.fixture
async def console(tmp_path):
    """A fresh controller."""
    async with controlled(tmp_path / "state") as made:
        yield made


@pytest.fixture
async def otter(console):
    """A sidecar that is connected and idle."""
    async with console.sidecar() as sidecar:
        await sidecar.hello()
        sidecar.idle_for(3600)
        await sidecar.report()
        await console.until(lambda agent: agent.load.idle.seconds == 3600)
        yield sidecar


async def watching(console):
    """Wait until a Watch stands: it shows what happens from then on."""
    while not console.controller.events._watchers:
        await asyncio.sleep(0.01)


async def error_of(awaitable):
    """What a call was refused with."""
    with pytest.raises((OutriggerError, grpc.aio.AioRpcError)) as caught:
        await awaitable
    if isinstance(caught.value, grpc.aio.AioRpcError):
        return from_rpc_error(caught.value)
    return caught.value


async def test_an_agent_is_shown_as_its_sidecar_reports_it(console, otter):
    """With everything the report said, and the age of it."""
    otter.agent.group = "demo"
    otter.agent.state_digest = b"d" * 32
    otter.agent.load.pss_bytes = 7
    otter.agent.state_time.FromSeconds(1_700_000_000)
    otter.agent.addresses.inbound = "127.0.0.1:9"
    await otter.report()

    agent = await console.until(lambda agent: agent.group == "demo")

    assert agent.state == Agent.STATE_AWAKE
    assert agent.name == "agents/otter"
    assert agent.report_age.ToMilliseconds() >= 0
    agent.ClearField("report_age")
    agent.ClearField("name")
    assert agent == otter.agent


async def test_agents_are_listed_in_pages_by_id(console):
    """A token leads to the next page, and the last page has none."""
    async with contextlib.AsyncExitStack() as stack:
        for agent_id in ("c", "a", "b"):
            sidecar = await stack.enter_async_context(console.sidecar(agent_id))
            await sidecar.hello()
        first = await console.call("ListAgents", page_size=2)
        rest = await console.call("ListAgents", page_token=first.next_page_token)

    assert [agent.agent_id for agent in first.agents] == ["a", "b"]
    assert [agent.agent_id for agent in rest.agents] == ["c"]
    assert rest.next_page_token == ""


@pytest.mark.parametrize("method", ["ListAgents", "ListAuditRecords"])
@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"page_size": -1}, "BAD_PAGE_SIZE"),
        ({"page_token": "%%%"}, "BAD_PAGE_TOKEN"),
        ({"page_token": "gICA"}, "BAD_PAGE_TOKEN"),
    ],
)
async def test_a_bad_page_is_refused(console, method, fields, reason):
    """By name, with what to do."""
    assert (await error_of(console.call(method, **fields))).reason == reason


async def test_a_token_of_another_list_is_refused(console, otter):
    """The audit's pages are numbers."""
    token = "b3R0ZXI="
    error = await error_of(console.call("ListAuditRecords", page_token=token))

    assert error.reason == "BAD_PAGE_TOKEN"


async def test_sleep_and_wake_reach_the_sidecar_and_show_at_once(console, otter):
    """The answer is the agent as its sidecar answered."""
    slept = (await console.call("SleepAgent", agent_id="otter", reason="night")).agent
    woken = (await console.call("WakeAgent", agent_id="otter", seen_epoch=2)).agent

    assert (slept.state, slept.epoch) == (Agent.STATE_ASLEEP, 2)
    assert (woken.state, woken.epoch) == (Agent.STATE_AWAKE, 3)
    sleep, wake = otter.commands
    assert (sleep.seen_epoch, sleep.reason) == (1, "night")
    assert (wake.seen_epoch, wake.reason) == (2, "asked by an operator")


async def test_validate_only_changes_nothing(console, otter):
    """Yet finds what would be refused."""
    for method in ("SleepAgent", "WakeAgent", "UnpinAgent"):
        await console.call(method, agent_id="otter", validate_only=True)
    await console.call("PinAgent", agent_id="otter", reason="r", validate_only=True)
    await console.call("EnableScheduler", validate_only=True)

    assert otter.commands == []
    assert not (await console.agent()).pinned
    assert not (await console.call("GetScheduler")).scheduler.enabled
    await console.call("EnableScheduler")
    await console.call("DisableScheduler", validate_only=True)
    assert (await console.call("GetScheduler")).scheduler.enabled
    stale = console.call("SleepAgent", agent_id="otter", seen_epoch=9, validate_only=1)
    assert (await error_of(stale)).reason == "STALE_EPOCH"


async def test_a_request_sent_again_is_not_done_again(console, otter):
    """The first answer comes back, whatever happened since."""
    request = {"agent_id": "otter", "request_id": str(uuid.uuid4())}
    first = await console.call("SleepAgent", **request)
    await console.call("WakeAgent", agent_id="otter")

    second = await console.call("SleepAgent", **request)

    assert second == first
    assert len(otter.commands) == 2


REFUSED = {
    "a stale epoch": ("SleepAgent", {"agent_id": "otter", "seen_epoch": 9}, Conflict),
    "an unknown agent": ("WakeAgent", {"agent_id": "heron"}, NotFound),
    "an unknown agent to pin": (
        "PinAgent",
        {"agent_id": "heron", "reason": "r"},
        NotFound,
    ),
    "an unknown agent to explain": ("ExplainAgent", {"agent_id": "heron"}, NotFound),
    "no agent": ("GetAgent", {}, Invalid),
    "a path for an agent": ("GetAgent", {"agent_id": "../x"}, Invalid),
    "a negative epoch": ("WakeAgent", {"agent_id": "otter", "seen_epoch": -1}, Invalid),
    "no reason to pin": ("PinAgent", {"agent_id": "otter"}, Invalid),
    "a short keep-alive": (
        "EnableScheduler",
        {"keep_alive": {"seconds": 0}},
        Invalid,
    ),
    "an id that is no UUID": (
        "SleepAgent",
        {"agent_id": "otter", "request_id": "x"},
        Invalid,
    ),
    "such an id, checked only": (
        "WakeAgent",
        {"agent_id": "otter", "request_id": "x", "validate_only": True},
        Invalid,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_what_cannot_be_is_refused_by_class(console, otter, case):
    """Nothing reaches the sidecar."""
    method, fields, kind = REFUSED[case]

    assert type(await error_of(console.call(method, **fields))) is kind
    assert otter.commands == []


async def test_a_sidecars_refusal_reaches_the_operator_unchanged(console, otter):
    """Status, reason and message are the sidecar's."""
    otter.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "LEASES_HELD")

    error = await error_of(console.call("SleepAgent", agent_id="otter"))

    assert type(error) is Refused
    assert (error.reason, error.message) == ("LEASES_HELD", "because")


async def test_a_status_nobody_knows_is_a_defect_of_its_sender(console, otter):
    """It is not passed on as a success."""
    otter.answering = False
    asked = asyncio.create_task(error_of(console.call("WakeAgent", agent_id="otter")))
    while not otter.commands:
        await asyncio.sleep(0.01)
    await otter.send(
        result={"command_id": otter.commands[0].command_id, "status_code": 99}
    )

    assert (await asked).reason == "NO_REASON"


async def test_a_sidecar_that_left_is_away_and_its_agent_unknown(console):
    """Commands are refused at once."""
    async with console.sidecar() as sidecar:
        await sidecar.hello()
        await console.until(lambda agent: agent.state == Agent.STATE_AWAKE)

    agent = await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)
    error = await error_of(console.call("WakeAgent", agent_id="otter"))

    assert "not connected" in agent.reason
    assert (type(error), error.reason) == (Transient, "SIDECAR_AWAY")


async def test_a_pin_wakes_and_holds_until_it_ends(console, otter):
    """Also against an operator's own sleep; pinning twice is the same as once."""
    await console.call("SleepAgent", agent_id="otter")
    pinned = (await console.call("PinAgent", agent_id="otter", reason="demo")).agent
    await console.call("PinAgent", agent_id="otter", reason="demo")
    assert (pinned.state, pinned.pinned) == (Agent.STATE_AWAKE, True)
    assert len(otter.commands) == 2
    error = await error_of(console.call("SleepAgent", agent_id="otter"))
    assert error.reason == "AGENT_PINNED"

    for _ in range(2):
        unpinned = (await console.call("UnpinAgent", agent_id="otter")).agent

    assert not unpinned.pinned
    await console.call("SleepAgent", agent_id="otter")


async def test_a_pin_holds_even_if_the_wake_fails(console, otter):
    """The scheduler's loop wakes the agent as soon as it can."""
    await console.call("SleepAgent", agent_id="otter")
    otter.refusal = (grpc.StatusCode.UNAVAILABLE, "NOT_NOW")
    pinned = (await console.call("PinAgent", agent_id="otter", reason="demo")).agent
    assert (pinned.state, pinned.pinned) == (Agent.STATE_ASLEEP, True)

    otter.refusal = None

    await console.until(lambda agent: agent.state == Agent.STATE_AWAKE)


async def test_the_scheduler_puts_an_idle_agent_to_sleep(console, otter):
    """Once it is enabled, with its reason; the count and the audit tell."""
    before = await console.call("ExplainAgent", agent_id="otter")
    assert (before.decision, before.reason) == ("nothing", "The scheduler is off.")

    await console.call("EnableScheduler", keep_alive={"seconds": 1})
    agent = await console.until(lambda agent: agent.state == Agent.STATE_ASLEEP)

    assert agent.epoch == 2
    assert otter.commands[0].reason.startswith("It has been idle for 3600 s")
    scheduler = (await console.call("DisableScheduler")).scheduler
    assert (scheduler.enabled, scheduler.sleep_count) == (False, 1)
    assert scheduler.keep_alive.seconds == 1
    (record,) = [r for r in await console.audit() if r.principal == "scheduler"]
    assert (record.method, record.subject, record.status_code) == ("sleep", "otter", 0)


async def test_a_sleep_the_sidecar_refuses_is_told_and_not_repeated(console, otter):
    """The scheduler leaves the agent alone for a while."""
    otter.refusal = (grpc.StatusCode.FAILED_PRECONDITION, "LEASES_HELD")
    watch = console.fleet.Watch(
        pb.FleetServiceWatchRequest(), metadata=console.operator
    )
    await console.call("EnableScheduler", keep_alive={"seconds": 1})

    async with asyncio.timeout(10):
        while (event := (await watch.read()).event).error.reason != "LEASES_HELD":
            pass
    watch.cancel()

    assert (event.agent_id, event.error.boundary) == ("otter", "scheduler sleep")
    explained = await console.call("ExplainAgent", agent_id="otter")
    assert explained.decision == "nothing"
    assert len(otter.commands) == 1


async def test_a_gap_in_the_reports_makes_the_agent_unknown(console, otter):
    """Until the next good one."""
    await otter.report(sequence=5)
    agent = await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)
    assert "report 2 is missing" in agent.reason

    await otter.report(sequence=6)

    await console.until(lambda agent: agent.state == Agent.STATE_AWAKE)


async def test_numbers_that_cannot_be_are_shown_as_unknown(console, otter):
    """Nothing a sidecar sends makes the admin API fail."""
    otter.agent.load.cpu_ratio = float("nan")
    otter.agent.load.idle.seconds = -(2**60)
    otter.agent.load.sample_time.seconds = 2**60
    otter.agent.state_time.seconds = -(2**60)
    await otter.report()

    agent = await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)
    explained = await console.call("ExplainAgent", agent_id="otter")

    assert "impossible" in agent.reason
    assert explained.decision == "nothing"


async def test_a_hello_of_nonsense_is_shown_as_unknown(console):
    """The first report is checked like the others."""
    async with console.sidecar() as sidecar:
        sidecar.agent.load.idle.seconds = -(2**60)
        sidecar.agent.load.sample_time.seconds = 2**60
        sidecar.agent.state_time.seconds = 2**60
        await sidecar.hello()

        agent = await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)

    assert agent.load.idle.seconds == 0


async def test_transitions_are_kept_once_and_watched(console, otter):
    """An event sent again after a reconnect counts once; other kinds pass too."""
    watch = console.fleet.Watch(
        pb.FleetServiceWatchRequest(), metadata=console.operator
    )
    await watching(console)
    moved = event_pb2.TransitionEvent(
        before="awake", after="quiescing", input="sleep", reason="night", epoch=2
    )
    for _ in range(2):
        await otter.tell(1, transition=moved)
    await otter.send()  # of a kind nobody here knows
    await otter.tell(2)  # the same
    await otter.tell(3, alert={"name": "X", "message": "x"})

    async with asyncio.timeout(10):
        first = (await watch.read()).event
        second = (await watch.read()).event
    watch.cancel()

    assert (first.agent_id, first.transition) == ("otter", moved)
    assert second.alert.name == "X"
    explained = await console.call("ExplainAgent", agent_id="otter")
    assert [record.transition for record in explained.transitions] == [moved]


async def test_an_agent_lost_and_found_is_told(console):
    """One alert when it becomes unknown, one recovery when it is back."""
    watch = console.fleet.Watch(
        pb.FleetServiceWatchRequest(), metadata=console.operator
    )
    seen = []

    async def next_event():
        async with asyncio.timeout(10):
            event = (await watch.read()).event
        assert event.agent_id == "otter"
        seen.append(event.alert.name or event.recovery.subject)

    async with console.sidecar() as sidecar:
        await sidecar.hello()
        await watching(console)
        await asyncio.sleep(0.4)  # a beat of the loop, that sees it known
    await next_event()
    async with console.sidecar() as sidecar:
        await sidecar.hello()
        await next_event()
    watch.cancel()

    assert seen == ["AGENT_UNKNOWN", "agent"]


BAD_HELLOS = {
    "a bad agent id": ({"agent": Agent(agent_id="../x")}, "BAD_AGENT_ID"),
    "no incarnation": ({"agent": Agent(agent_id="otter")}, "NO_INSTANCE"),
    "no operator token": ({"operator_token": ""}, "NO_OPERATOR_TOKEN"),
    "an endless operator token": ({"operator_token": "x" * 600}, "NO_OPERATOR_TOKEN"),
}


@pytest.mark.parametrize("case", BAD_HELLOS)
async def test_a_bad_hello_is_refused(console, case):
    """And no agent appears."""
    changes, reason = BAD_HELLOS[case]
    async with console.sidecar() as sidecar:
        assert (await error_of(sidecar.hello(**changes))).reason == reason
    assert not (await console.call("ListAgents")).agents


async def test_a_stream_begins_with_its_only_hello(console, otter):
    """Anything else first, or a second one, ends it."""
    async with console.sidecar("heron") as sidecar:
        await sidecar.report()
        error = await error_of(sidecar.call.read())
        assert error.reason == "NO_HELLO"
    async with console.sidecar("heron") as sidecar:
        await sidecar.call.done_writing()
        assert (await error_of(sidecar.call.read())).reason == "NO_HELLO"

    await otter.send(hello={"agent": otter.agent})

    assert await otter.call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_stream_without_a_hello_is_ended(console, monkeypatch):
    """It does not hold a place for ever."""
    monkeypatch.setattr("controller.rpc.connect.HELLO_TIMEOUT_S", 0.05)
    async with console.sidecar() as sidecar:
        error = await error_of(sidecar.call.read())

    assert error.reason == "NO_HELLO"


async def test_a_silent_stream_is_ended(console, otter):
    """So that a dead peer is noticed without keepalives."""
    servicer = console.controller
    assert len(servicer.registry) == 1
    connection = servicer.registry.connection("otter")
    connection.end(Transient("SIDECAR_SILENT", "nothing came"))

    assert await otter.call.code() is grpc.StatusCode.UNAVAILABLE
    await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)
    assert len(servicer.registry) == 0


async def test_silence_ends_a_stream(tmp_path, monkeypatch):
    """After its time, with a name."""
    monkeypatch.setattr(
        "controller.rpc.connect.ConnectServicer.__init__.__kwdefaults__",
        {"silence_s": 0.1},
    )
    async with controlled(tmp_path / "state") as console, console.sidecar() as sidecar:
        await sidecar.hello()
        assert await sidecar.call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_one_agent_has_one_sidecar(console, otter):
    """A second incarnation waits until the first is gone; its own stream replaces."""
    async with console.sidecar(instance="i-2") as other:
        assert (await error_of(other.hello())).reason == "AGENT_TAKEN"

    async with console.sidecar() as again:
        await again.hello()
        assert await otter.call.code() is grpc.StatusCode.ABORTED
        agent = await console.until(lambda agent: agent.state == Agent.STATE_AWAKE)
        assert agent.sidecar_instance == "i-1"

    await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)
    async with console.sidecar(instance="i-2") as other:
        await other.hello()
        await console.until(lambda agent: agent.sidecar_instance == "i-2")


async def test_a_fleet_that_is_full_takes_no_more(console, monkeypatch, otter):
    """And keeps no half-open connection."""
    monkeypatch.setattr("controller.policy.fleet.MOST_AGENTS", 1)
    async with console.sidecar("heron") as sidecar:
        assert (await error_of(sidecar.hello())).reason == "TOO_MANY_AGENTS"

    assert len(console.controller.registry) == 1


async def test_a_stream_that_ends_while_it_is_taken_in_leaves_nothing(
    console, monkeypatch
):
    """Its connection does not keep the agent's place."""
    begun = asyncio.Event()

    async def slow(agent):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(console.controller._store, "remember", slow)
    async with console.sidecar() as sidecar:
        taking_in = asyncio.create_task(sidecar.hello())
        await begun.wait()
        assert len(console.controller.registry) == 1
        sidecar.call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking_in

    async with asyncio.timeout(10):
        while len(console.controller.registry):
            await asyncio.sleep(0.01)


async def test_nobody_comes_in_without_the_right_token(console):
    """Each listener has its own; refusals are in the audit."""
    request = pb.ListAgentsRequest()
    for token, reason in ((None, "NO_TOKEN"), ("x", "BAD_TOKEN")):
        metadata = () if token is None else (("outrigger-token", token),)
        error = await error_of(console.fleet.ListAgents(request, metadata=metadata))
        assert error.reason == reason
    for token in ("x", console.token("admin-token")):
        console_sidecar = StreamSidecar(console.addresses["connect"], token)
        async with console_sidecar as sidecar:
            assert (await error_of(sidecar.hello())).reason == "BAD_TOKEN"
    async with channel(console.addresses["connect"]) as connection:
        stub = pb_grpc.FleetServiceStub(connection)
        metadata = (("outrigger-token", console.token("join-token")),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ListAgents(request, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    records = await console.audit()
    assert [r.reason for r in records] == ["NO_TOKEN"] + ["BAD_TOKEN"] * 3
    assert {record.principal for record in records} == {"anonymous"}


def chained(records):
    """Check the chain as a reader of the API can."""
    return verify(
        (
            AuditRecord(
                sequence=record.sequence,
                entry=AuditEntry(
                    wall_us=record.event_time.ToMicroseconds(),
                    principal=record.principal,
                    method=record.method,
                    subject=record.subject,
                    status_code=record.status_code,
                    reason=record.reason,
                ),
                chain_digest=record.chain_digest,
            )
            for record in records
        ),
        0,
        GENESIS,
    )


async def test_changes_are_audited_with_reason_and_chained(console, otter):
    """Who, what, about whom, why, how it was answered; in pages too."""
    await console.call("SleepAgent", agent_id="otter", reason="night")
    await error_of(console.call("WakeAgent", agent_id="heron"))
    await console.call("EnableScheduler", keep_alive={"seconds": 60})
    await console.call("GetScheduler")

    records = await console.audit()

    assert [
        (r.principal, r.method.rpartition("/")[2], r.subject, r.status_code, r.reason)
        for r in records
    ] == [
        ("operator", "SleepAgent", "otter", 0, "night"),
        ("operator", "WakeAgent", "heron", 5, "UNKNOWN_AGENT"),
        ("operator", "EnableScheduler", "scheduler", 0, "keep-alive 60 s"),
    ]
    chained(records)
    page = await console.call("ListAuditRecords", page_size=2)
    rest = await console.call("ListAuditRecords", page_token=page.next_page_token)
    assert [*page.records, *rest.records] == records


async def test_while_the_audit_cannot_be_written_only_wakes_pass(console, otter):
    """The file is gone from its place; a new one takes over by itself."""
    database = console.state / "controller.db"
    database.rename(console.state / "gone.db")
    await otter.tell(1, transition={"after": "awake"})
    await console.call("WakeAgent", agent_id="otter")

    error = await error_of(console.call("SleepAgent", agent_id="otter"))
    assert error.reason in {"AUDIT_FAILED", "NOT_AWAKE"}
    await console.call("WakeAgent", agent_id="otter")

    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(Transient):
                await console.call("PinAgent", agent_id="otter", reason="r")
                break
            await asyncio.sleep(0.05)


async def test_health_is_public_and_ends_with_the_controller(tmp_path):
    """No token; unknown services are told apart."""
    async with contextlib.AsyncExitStack() as stack:
        console = await stack.enter_async_context(controlled(tmp_path / "state"))
        health = health_pb2_grpc.HealthStub(console.connection)
        asked = health_pb2.HealthCheckRequest(service="outrigger.v1.FleetService")
        assert (await health.Check(asked)).status == 1
        listed = await health.List(health_pb2.HealthListRequest())
        assert set(listed.statuses) == ADMIN_SERVICES | {""}
        unknown = health_pb2.HealthCheckRequest(service="x")
        assert (await error_of(health.Check(unknown))).reason == "UNKNOWN_SERVICE"
        nobody = health.Watch(unknown)
        assert (await nobody.read()).status == 3
        nobody.cancel()
        watch = health.Watch(asked)
        assert (await watch.read()).status == 1
        ending = asyncio.create_task(watch.read())
        stopping = asyncio.create_task(console.controller.stop())

        assert (await ending).status == 2
        await stopping


async def test_reflection_lets_a_client_call_without_proto_files(console, otter):
    """It lists every service and gives what is needed to make a call."""
    plain = grpc.insecure_channel(console.addresses["admin"])

    def explore():
        database = ProtoReflectionDescriptorDatabase(plain)
        listed = set(database.get_services())
        pool = DescriptorPool(database)
        for name in listed:
            pool.FindServiceByName(name)
        method = pool.FindServiceByName("outrigger.v1.FleetService").methods_by_name[
            "GetAgent"
        ]
        call = plain.unary_unary(
            "/outrigger.v1.FleetService/GetAgent",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        request = GetMessageClass(method.input_type)(agent_id="otter")
        return listed, call(request, metadata=console.operator)

    listed, answer = await asyncio.to_thread(explore)
    plain.close()

    assert listed == ADMIN_SERVICES | PUBLIC
    assert answer.agent.agent_id == "otter"


async def test_channelz_tells_operators_of_the_servers_and_nobody_else(console):
    """Both listeners are named; without a token nothing is."""
    stub = channelz_pb2_grpc.ChannelzStub(console.connection)
    request = channelz_pb2.GetServersRequest()

    found = await stub.GetServers(request, metadata=console.operator)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetServers(request)

    assert len(found.server) >= 2
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_every_method_served_has_a_row_and_every_row_is_served():
    """Deny by default needs a table without holes."""
    pool = pb.DESCRIPTOR.pool
    for table, names in (
        (ADMIN_TABLE, ADMIN_SERVICES | PUBLIC),
        (CONNECT_TABLE, {"outrigger.v1.ConnectService"}),
    ):
        served = {
            f"/{name}/{method.name}"
            for name in names
            for method in pool.FindServiceByName(name).methods
        }
        assert served == set(table)


@pytest.fixture
async def api(otter, console):
    """The sidecar's API on TCP, told to the controller."""
    async with sidecar_api("127.0.0.1:0") as (servicer, address):
        otter.agent.addresses.api_tcp = address
        otter.call.cancel()
        await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)
        async with console.sidecar() as again:
            again.agent.CopyFrom(otter.agent)
            await again.hello()
            yield servicer


def about(console, agent_id="otter", *more):
    return (*console.operator, ("outrigger-agent", agent_id), *more)


async def test_a_unary_call_is_passed_on_with_headers_and_trailers(console, api):
    """Under the sidecar's operator token; the deadline and other metadata go along."""
    stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)
    call = stub.GetLetter(
        letter_service_pb2.GetLetterRequest(letter_id="l-1"),
        metadata=about(console, "otter", ("x-mine", "yes")),
        timeout=20,
    )

    assert (await call).letter.letter_id == "l-1"
    assert ("x-first", "one") in tuple(await call.initial_metadata())
    trailers = dict(await call.trailing_metadata())
    assert trailers["x-last"] == "two"
    assert trailers["x-last-bin"] == b"\x00\xff"
    (seen,) = api.metadata
    assert (seen["outrigger-token"], seen["x-mine"]) == ("op", "yes")
    assert "outrigger-agent" not in seen
    assert 0 < api.deadlines[0] < 30


async def test_a_failure_is_passed_on_unchanged_and_audited(console, api):
    """Status, message and trailers are the sidecar's."""
    stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)
    call = stub.RedriveLetters(
        letter_service_pb2.RedriveLettersRequest(), metadata=about(console)
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call

    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert caught.value.details() == "try anew"
    assert ("x-why", "stale") in tuple(caught.value.trailing_metadata())
    record = (await console.audit())[-1]
    assert (record.method, record.subject) == (
        "/outrigger.v1.LetterService/RedriveLetters",
        "otter",
    )
    assert (record.principal, record.status_code) == ("operator", 10)


async def test_a_change_that_was_passed_on_is_audited(console, api):
    """With its agent; reads are not."""
    stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)
    await stub.GetLetter(letter_service_pb2.GetLetterRequest(), metadata=about(console))
    await stub.DiscardLetters(
        letter_service_pb2.DiscardLettersRequest(), metadata=about(console)
    )

    (record,) = await console.audit()
    assert (record.method.rpartition("/")[2], record.subject, record.status_code) == (
        "DiscardLetters",
        "otter",
        0,
    )


async def test_streams_are_passed_on_both_ways(console, api):
    """An upload and a download, with the trailers of their end."""
    letters = letter_service_pb2_grpc.LetterServiceStub(console.connection)

    async def uploads():
        for _ in range(3):
            yield letter_service_pb2.ImportLettersRequest()

    imported = await letters.ImportLetters(uploads(), metadata=about(console))
    assert imported.imported_count == 3

    checkpoints = checkpoint_service_pb2_grpc.CheckpointServiceStub(console.connection)
    call = checkpoints.RestoreCheckpoint(
        checkpoint_service_pb2.RestoreCheckpointRequest(), metadata=about(console)
    )
    chunks = [message.chunk[:1] async for message in call]

    assert chunks == [b"\x00", b"\x01", b"\x02"]
    assert dict(await call.trailing_metadata())["x-last"] == "end"


async def test_a_caller_that_goes_away_ends_the_call_at_the_sidecar(console, api):
    """Nothing is left watching."""
    stub = sidecar_service_pb2_grpc.SidecarServiceStub(console.connection)
    watch = stub.Watch(
        sidecar_service_pb2.SidecarServiceWatchRequest(), metadata=about(console)
    )
    await watch.read()
    await api.watched.wait()

    watch.cancel()

    await asyncio.wait_for(api.left.wait(), 10)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_channel_that_closes_under_a_call_is_told(console, api, streaming):
    """It is not taken for the caller's own cancellation."""
    if streaming:
        sidecars = sidecar_service_pb2_grpc.SidecarServiceStub(console.connection)
        watch = sidecars.Watch(
            sidecar_service_pb2.SidecarServiceWatchRequest(), metadata=about(console)
        )
        await watch.read()
        call = asyncio.create_task(watch.read())
    else:
        letters = letter_service_pb2_grpc.LetterServiceStub(console.connection)
        request = letter_service_pb2.ListLettersRequest()
        call = asyncio.ensure_future(
            letters.ListLetters(request, metadata=about(console))
        )
    await api.watched.wait()

    await console.controller._dialer.close()

    error = await error_of(call)
    assert (type(error), error.reason) == (Transient, "SIDECAR_AWAY")


async def test_a_caller_that_cancels_ends_a_unary_call(console, api):
    """The sidecar's answer is not waited for any more."""
    letters = letter_service_pb2_grpc.LetterServiceStub(console.connection)
    request = letter_service_pb2.ListLettersRequest()
    call = letters.ListLetters(request, metadata=about(console))
    waiting = asyncio.ensure_future(call)
    await api.watched.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert call.cancelled()


async def test_a_method_of_nobody_is_unimplemented(console):
    """Neither ours nor a sidecar's."""
    call = console.connection.unary_unary("/x.Y/Z")(b"", metadata=about(console))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_answer_without_our_details_is_no_answer_of_a_sidecar(console, api):
    """UNAVAILABLE from below says that the sidecar was not reached."""
    stub = sidecar_service_pb2_grpc.SidecarServiceStub(console.connection)
    request = sidecar_service_pb2.GetSidecarRequest()

    error = await error_of(stub.GetSidecar(request, metadata=about(console)))

    assert error.reason == "SIDECAR_AWAY"


PASSED_TO_NOBODY = {
    "no agent": ((), "NO_AGENT"),
    "two agents": (
        (("outrigger-agent", "otter"), ("outrigger-agent", "heron")),
        "NO_AGENT",
    ),
    "a bad id": ((("outrigger-agent", "../x"),), "BAD_AGENT_ID"),
    "an unknown agent": ((("outrigger-agent", "heron"),), "UNKNOWN_AGENT"),
    "no API": ((("outrigger-agent", "otter"),), "NO_SIDECAR_API"),
}


@pytest.mark.parametrize("case", PASSED_TO_NOBODY)
async def test_a_call_for_no_sidecar_is_refused(console, otter, case):
    """Before anything is sent."""
    metadata, reason = PASSED_TO_NOBODY[case]
    stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)
    request = letter_service_pb2.GetLetterRequest()

    call = stub.GetLetter(request, metadata=(*console.operator, *metadata))

    assert (await error_of(call)).reason == reason


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [((), "NO_TOKEN"), ((("outrigger-token", "op"),), "BAD_TOKEN")],
)
async def test_the_passthrough_needs_the_admin_token(console, api, metadata, reason):
    """Not even the sidecar's own operator token opens it, for any arity."""
    named = (*metadata, ("outrigger-agent", "otter"))
    letters = letter_service_pb2_grpc.LetterServiceStub(console.connection)
    sidecars = sidecar_service_pb2_grpc.SidecarServiceStub(console.connection)
    unary = letters.GetLetter(letter_service_pb2.GetLetterRequest(), metadata=named)
    stream = sidecars.Watch(
        sidecar_service_pb2.SidecarServiceWatchRequest(), metadata=named
    )

    assert (await error_of(unary)).reason == reason
    assert (await error_of(stream.read())).reason == reason
    assert api.metadata == []


async def test_a_sidecar_that_left_is_away_for_the_passthrough(console):
    """Known, but not connected."""
    async with console.sidecar() as sidecar:
        await sidecar.hello()
    await console.until(lambda agent: agent.state == Agent.STATE_UNKNOWN)
    stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)

    error = await error_of(
        stub.GetLetter(letter_service_pb2.GetLetterRequest(), metadata=about(console))
    )

    assert error.reason == "SIDECAR_AWAY"


async def test_a_sidecar_on_another_machine_needs_tls(console):
    """Its operator token never crosses a network in the clear."""
    async with console.sidecar() as sidecar:
        sidecar.agent.addresses.api_tcp = "192.0.2.1:7701"
        await sidecar.hello()
        stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)
        request = letter_service_pb2.GetLetterRequest()
        error = await error_of(stub.GetLetter(request, metadata=about(console)))

    assert error.reason == "SIDECAR_NEEDS_TLS"


async def test_a_sidecars_socket_is_preferred(console, tmp_path):
    """If it is on this machine."""
    socket = f"unix:{tmp_path}/api.sock"
    async with sidecar_api(socket) as (servicer, _), console.sidecar() as sidecar:
        sidecar.agent.addresses.api = socket
        sidecar.agent.addresses.api_tcp = "192.0.2.1:7701"
        await sidecar.hello()
        stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)
        request = letter_service_pb2.GetLetterRequest()
        await stub.GetLetter(request, metadata=about(console))

    assert len(servicer.metadata) == 1


async def test_the_oldest_channels_give_way(console, api, monkeypatch):
    """Channels are bounded; one that closed is opened again."""
    monkeypatch.setattr("controller.rpc.dial._MOST_CHANNELS", 0)
    stub = letter_service_pb2_grpc.LetterServiceStub(console.connection)
    dialer = console.controller._dialer
    with pytest.raises(KeyError):
        dialer.channel(console.controller.registry.connection("otter"))
    monkeypatch.setattr("controller.rpc.dial._MOST_CHANNELS", 1)

    await stub.GetLetter(letter_service_pb2.GetLetterRequest(), metadata=about(console))

    assert len(dialer._open) == 1


async def test_a_second_controller_on_the_same_state_is_refused(console):
    """The lock is the kernel's; the first is not disturbed."""
    with pytest.raises(Refused) as caught:
        async with serving(config(console.state)):
            pass

    assert caught.value.reason == "STATE_IN_USE"
    await console.call("ListAgents")


async def test_a_given_port_that_is_taken_is_refused_and_a_default_moves(
    console, tmp_path
):
    """Nothing is left behind by the refused start."""
    taken = console.addresses["admin"]
    state = tmp_path / "other"
    with pytest.raises(Refused) as caught:
        async with serving(config(state, listen=Listen(address=taken))):
            pass
    assert caught.value.reason == "PORT_TAKEN"

    moving = Listen(address=taken, may_move=True)
    async with serving(config(state, listen=moving)) as (_, addresses):
        assert addresses["admin"] != taken
        assert json.loads((state / "address.json").read_text()) == {
            **addresses,
            "pid": os.getpid(),
        }


async def test_a_state_that_is_broken_stops_the_start(tmp_path):
    """A file that is no database, an audit that was changed."""
    state = tmp_path / "state"
    async with controlled(state) as console:
        await console.call("EnableScheduler")
    with sqlite3.connect(state / "controller.db") as connection:
        connection.execute("UPDATE audit SET subject = 'nobody'")
    connection.close()
    for reason in ("AUDIT_BROKEN", "STORE_CORRUPT"):
        with pytest.raises(Corrupt) as caught:
            async with serving(config(state)):
                pass
        assert caught.value.reason == reason
        for path in state.glob("controller.db*"):
            path.write_bytes(b"rotten" * 4096)


async def test_a_token_file_others_may_read_stops_the_start(tmp_path):
    """It is no secret any more."""
    state = tmp_path / "state"
    async with controlled(state):
        pass
    for name in ("admin-token", "join-token"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
        (state / name).chmod(0o640)
        with pytest.raises(Denied) as caught:
            async with serving(config(state)):
                pass
        assert caught.value.reason == "TOKEN_NOT_PRIVATE"
        (state / name).chmod(0o600)
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_a_listener_beyond_loopback_needs_tls(tmp_path):
    """For operators and sidecars alike."""
    open_to_all = Listen(address="0.0.0.0:0")
    for which in ("listen", "connect"):
        with pytest.raises(Invalid) as caught:
            config(tmp_path, **{which: open_to_all})
        assert caught.value.reason == "NEEDS_TLS"


async def test_a_stop_tells_the_sidecars_to_come_back(tmp_path):
    """Their streams end with a reason, not with a broken connection."""
    async with contextlib.AsyncExitStack() as stack:
        console = await stack.enter_async_context(controlled(tmp_path / "state"))
        sidecar = await stack.enter_async_context(console.sidecar())
        await sidecar.hello()
        await console.controller.stop()

        assert await sidecar.call.code() is grpc.StatusCode.UNAVAILABLE
        assert "stopping" in await sidecar.call.details()


async def test_agents_are_remembered_by_the_next_controller(tmp_path):
    """As unknown, with what was last heard of them."""
    state = tmp_path / "state"
    async with controlled(state) as console, console.sidecar() as sidecar:
        sidecar.agent.group = "demo"
        await sidecar.hello()
        await console.call("SleepAgent", agent_id="otter")
        await sidecar.report()
        await console.until(lambda agent: agent.state == Agent.STATE_ASLEEP)

    async with controlled(state) as console:
        agent = await console.agent()

    assert agent.state == Agent.STATE_UNKNOWN
    assert (agent.group, agent.epoch, agent.sidecar_instance) == ("demo", 2, "i-1")


async def test_run_serves_until_it_is_told_to_stop(tmp_path, capsys):
    """And says where it listens."""
    state = tmp_path / "state"
    running = asyncio.create_task(run(config(state)))
    while not (state / "address.json").exists():
        await asyncio.sleep(0.01)
    addresses = json.loads((state / "address.json").read_text())

    os.kill(os.getpid(), signal.SIGTERM)

    assert await running == 0
    assert f"operators at {addresses['admin']}" in capsys.readouterr().out


async def test_tls_protects_every_way(tmp_path, monkeypatch):
    """Operators, sidecars and the controller's own calls bring certificates."""
    cert, key, ca = make_certificates(tmp_path)
    tls = TlsFiles(cert=cert, key=key, ca=ca)
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(), key.read_bytes(), cert.read_bytes()
    )
    monkeypatch.setattr("controller.rpc.dial.is_loopback", lambda _: False)
    async with contextlib.AsyncExitStack() as stack:
        served = serving(config(tmp_path / "state", tls=tls))
        controller, addresses = await stack.enter_async_context(served)
        api, address = await stack.enter_async_context(
            sidecar_api("127.0.0.1:0", tls.server_credentials())
        )
        admin = grpc.aio.secure_channel(addresses["admin"], credentials)
        console = Console(tmp_path / "state", addresses, admin)
        await stack.enter_async_context(admin)
        tasks = Tasks(controller.events.publish, SystemClock())
        stack.push_async_callback(tasks.close)
        agent = Agent(agent_id="otter", state=1, sidecar_instance="i-1")
        agent.addresses.api_tcp = address
        reporter = Reporter(
            addresses["connect"],
            console.token("join-token"),
            agent=lambda: agent,
            sleep=None,
            wake=None,
            events=EventLog(agent_id="otter", clock=SystemClock()),
            clock=SystemClock(),
            rng=SystemRng(),
            tasks=tasks,
            operator_token="op",
            version="1",
            credentials=credentials,
        )
        tasks.spawn("reporter", reporter.run())
        await console.until(lambda agent: agent.state == Agent.STATE_AWAKE)
        stub = letter_service_pb2_grpc.LetterServiceStub(admin)
        request = letter_service_pb2.GetLetterRequest()
        await stub.GetLetter(request, metadata=about(console))
    assert api.metadata[0]["outrigger-token"] == "op"


@contextlib.asynccontextmanager
async def process(*argv):
    """`python -m controller`; give the process and what it announced."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "controller",
        *argv,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        line = await asyncio.wait_for(started.stdout.readline(), 20)
        yield started, json.loads(line or b"null")
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()


async def test_what_was_set_outlives_a_kill(tmp_path):
    """Pins, settings, transitions and the audit; the sidecar comes back by itself."""
    state = tmp_path / "state"
    argv = ["--state", str(state), "--listen", "127.0.0.1:0"]
    async with contextlib.AsyncExitStack() as stack:
        first, addresses = await stack.enter_async_context(
            process(*argv, "--connect", "127.0.0.1:0")
        )
        connection = await stack.enter_async_context(channel(addresses["admin"]))
        console = Console(state, addresses, connection)
        async with console.sidecar() as sidecar:
            await sidecar.hello()
            moved = event_pb2.TransitionEvent(after="awake", reason="started")
            await sidecar.tell(1, transition=moved)
            await console.call("PinAgent", agent_id="otter", reason="demo")
            await console.call("EnableScheduler", keep_alive={"seconds": 77})
            before = await console.audit()
            first.send_signal(signal.SIGKILL)
            await first.wait()
            assert await sidecar.call.code() is grpc.StatusCode.UNAVAILABLE

        second, addresses = await stack.enter_async_context(
            process(*argv, "--connect", addresses["connect"])
        )
        connection = await stack.enter_async_context(channel(addresses["admin"]))
        console = Console(state, addresses, connection)
        agent = await console.agent()
        assert (agent.state, agent.pinned) == (Agent.STATE_UNKNOWN, True)
        scheduler = (await console.call("GetScheduler")).scheduler
        assert (scheduler.enabled, scheduler.keep_alive.seconds) == (True, 77)
        assert (await console.audit())[: len(before)] == before
        async with console.sidecar() as sidecar:
            await sidecar.hello()
            await console.until(lambda agent: agent.state == Agent.STATE_AWAKE)
            explained = await console.call("ExplainAgent", agent_id="otter")
            assert explained.reason == "It is pinned awake: demo."
            assert [r.transition for r in explained.transitions] == [moved]
            await console.call("UnpinAgent", agent_id="otter")
            chained(await console.audit())
        second.send_signal(signal.SIGTERM)
        assert await second.wait() == 0


@pytest.mark.parametrize(
    ("argv", "code", "what"),
    [
        (["--listen", "0.0.0.0:0"], 2, b"NEEDS_TLS: --listen"),
        (["--keep-alive", "never"], 2, b"BAD_CONFIG: the configuration"),
        (["--state", "/dev/null/x"], 3, b"STATE_UNUSABLE: cannot use"),
    ],
)
async def test_a_start_that_fails_says_why_in_one_line(tmp_path, argv, code, what):
    """And ends with the code of its kind."""
    argv = ["--state", str(tmp_path / "s"), *argv]
    async with process(*argv) as (started, announced):
        _, errors = await started.communicate()

    assert announced is None
    assert started.returncode == code
    assert errors.startswith(what)
    assert errors.count(b"\n") == 1
