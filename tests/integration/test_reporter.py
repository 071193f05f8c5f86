import asyncio
import contextlib

import grpc
import grpc.aio
import pytest

from controller.app import serving
from controller.config import ControllerConfig, Listen
from outrigger.core.clock import SystemClock
from outrigger.core.errors import Refused
from outrigger.core.event_log import EventLog
from outrigger.core.events import Alerted, ErrorSeen, Recovered, Transitioned
from outrigger.core.rpc.server import SERVER_OPTIONS
from outrigger.core.tasks import Tasks
from outrigger.v1 import agent_pb2, connect_service_pb2, connect_service_pb2_grpc
from sidecar.load import reporter as reporter_module
from sidecar.load.reporter import Reporter

Agent = agent_pb2.Agent
Command = connect_service_pb2.Command
FREE = Listen(address="127.0.0.1:0")


class FixedRng:
    """No jitter."""

    def draw(self):
        return 0.0


class FakeController(connect_service_pb2_grpc.ConnectServiceServicer):
    """Takes one stream at a time and says what the test says."""

    def __init__(self):
        self.hellos = []
        self.reports = []
        self.results = []
        self.events = []
        self.say = asyncio.Queue()
        self.interval_ms = 20
        self.first = None

    async def Connect(self, request_iterator, context):
        hello = await anext(request_iterator)
        self.hellos.append(hello.hello)
        if self.first is not None:
            if isinstance(self.first, grpc.StatusCode):
                await context.abort(self.first, "no")
            yield self.first
        else:
            response = connect_service_pb2.ConnectResponse()
            response.welcome.report_interval.FromMilliseconds(self.interval_ms)
            yield response
        reading = asyncio.create_task(self._read(request_iterator))
        try:
            while (said := await self.say.get()) is not None:
                if isinstance(said, grpc.StatusCode):
                    await context.abort(said, "enough")
                yield said
        finally:
            reading.cancel()

    async def _read(self, requests):
        async for message in requests:
            kind = message.WhichOneof("message")
            getattr(self, kind + "s").append(getattr(message, kind))

    def command(self, command_id, action, **fields):
        self.say.put_nowait(
            connect_service_pb2.ConnectResponse(
                command=Command(command_id=command_id, action=action, **fields)
            )
        )


class World:
    """A reporter with its agent, and a fake controller that may come and go."""

    def __init__(self, folder):
        self.clock = SystemClock()
        self.events = EventLog(agent_id="otter", clock=self.clock)
        self.published = []
        self.tasks = Tasks(self._publish, self.clock)
        self.agent = Agent(
            agent_id="otter",
            state=Agent.STATE_AWAKE,
            epoch=1,
            sidecar_instance="i-1",
        )
        self.acts = []
        self.error = None
        self.controller = FakeController()
        self.address = f"unix:{folder}/c.sock"
        self.server = None

    def _publish(self, payload):
        return self.events.publish(payload)

    async def act(self, seen_epoch, reason):
        self.acts.append((seen_epoch, reason))
        if self.error is not None:
            raise self.error
        self.agent.epoch += 1
        return self.agent

    def reporter(self, target=None, token=None, **changes):
        given = {
            "agent": lambda: self.agent,
            "sleep": self.act,
            "wake": self.act,
            "events": self.events,
            "clock": self.clock,
            "rng": FixedRng(),
            "tasks": self.tasks,
            "operator_token": "op",
            "version": "1",
        }
        made = Reporter(target or self.address, token or "join", **(given | changes))
        self.tasks.spawn("reporter", made.run())
        return made

    async def serve(self):
        self.server = grpc.aio.server(options=SERVER_OPTIONS)
        connect_service_pb2_grpc.add_ConnectServiceServicer_to_server(
            self.controller, self.server
        )
        self.server.add_insecure_port(self.address)
        await self.server.start()

    async def vanish(self):
        await self.server.stop(0)


async def until(check):
    """Wait for something to be so."""
    async with asyncio.timeout(10):
        while not check():
            await asyncio.sleep(0.005)


@pytest.fixture
async def world(tmp_path):
    """A fake controller that serves, and what a reporter needs."""
    made = World(tmp_path)
    watching = asyncio.create_task(_collect(made))
    await made.serve()
    yield made
    watching.cancel()
    await made.tasks.close()
    await made.vanish()


async def _collect(world):
    async for event in world.events.watch():
        world.published.append(event.payload)


def kinds(world, kind):
    return [payload for payload in world.published if isinstance(payload, kind)]


async def test_a_stream_begins_with_a_hello_and_reports_from_one(world):
    """Numbers rise by one; the elapsed time is our own."""
    reporter = world.reporter()
    await until(lambda: len(world.controller.reports) >= 3)

    (hello,) = world.controller.hellos
    assert (hello.agent, hello.version, hello.operator_token) == (
        world.agent,
        "1",
        "op",
    )
    reports = world.controller.reports
    assert [report.sequence for report in reports[:3]] == [1, 2, 3]
    assert all(report.agent == world.agent for report in reports)
    assert all(report.elapsed.ToMicroseconds() >= 0 for report in reports)
    assert reporter.connected


@pytest.mark.parametrize("interval_ms", [0, -5, 10**9])
async def test_an_interval_nobody_can_follow_is_left_out(world, interval_ms):
    """One second it is then."""
    world.controller.interval_ms = interval_ms
    reporter = world.reporter()
    await until(lambda: world.controller.reports)

    assert reporter._interval_s == 1.0


async def test_a_transition_is_forwarded_and_reported_at_once(world):
    """Not at the next interval; other events are forwarded alone."""
    world.controller.interval_ms = 60_000
    reporter = world.reporter()
    await until(lambda: world.controller.reports)
    moved = Transitioned(before="a", after="b", input="i", reason="r", epoch=1)

    world.events.publish(Alerted(name="X", message="x"))
    await until(lambda: world.controller.events)
    assert len(world.controller.reports) == 1
    world.events.publish(moved)
    await until(lambda: len(world.controller.reports) == 2)
    reporter.poke()
    await until(lambda: len(world.controller.reports) == 3)

    first, second = world.controller.events
    assert (first.alert.name, second.transition.after) == ("X", "b")
    assert second.agent_id == "otter"


async def test_commands_are_done_and_answered(world):
    """With the agent as it is then."""
    world.reporter()
    world.controller.command("c-1", Command.ACTION_SLEEP, seen_epoch=1, reason="why")
    await until(lambda: world.controller.results)

    (result,) = world.controller.results
    assert (result.command_id, result.status_code) == ("c-1", 0)
    assert result.agent.epoch == 2
    assert world.acts == [(1, "why")]


async def test_a_command_that_comes_twice_is_answered_from_memory(world):
    """Also on another stream, after its result was lost with the first."""
    world.reporter()
    world.controller.command("c-1", Command.ACTION_WAKE)
    await until(lambda: world.controller.results)
    world.controller.say.put_nowait(None)
    await until(lambda: len(world.controller.hellos) == 2)

    world.controller.command("c-1", Command.ACTION_WAKE)
    await until(lambda: len(world.controller.results) == 2)

    assert len(world.acts) == 1
    assert world.controller.results[0] == world.controller.results[1]


async def test_a_command_that_is_under_way_is_not_begun_again(world):
    """It is answered once, when it is done."""
    gate = asyncio.Event()

    async def slow(seen_epoch, reason):
        world.acts.append((seen_epoch, reason))
        await gate.wait()
        return world.agent

    world.reporter(sleep=slow)
    for _ in range(2):
        world.controller.command("c-1", Command.ACTION_SLEEP)
    world.controller.command("c-2", Command.ACTION_WAKE)
    await until(lambda: len(world.controller.results) == 1)  # the wake got through
    gate.set()
    await until(lambda: len(world.controller.results) == 2)

    assert [r.command_id for r in world.controller.results] == ["c-2", "c-1"]
    assert len(world.acts) == 2


async def test_the_memory_of_commands_is_bounded(world, monkeypatch):
    """The oldest are forgotten."""
    monkeypatch.setattr(reporter_module, "_MOST_RESULTS", 2)
    reporter = world.reporter()
    for number in range(4):
        world.controller.command(f"c-{number}", Command.ACTION_WAKE)
    await until(lambda: len(world.controller.results) == 4)

    assert list(reporter._done) == ["c-2", "c-3"]


REFUSALS = {
    "of ours": (
        Refused("LEASES_HELD", "leases"),
        Command.ACTION_SLEEP,
        9,
        "LEASES_HELD",
    ),
    "a defect": (ValueError("secret"), Command.ACTION_SLEEP, 13, "UNEXPECTED"),
    "an action of tomorrow": (None, 42, 9, "UNKNOWN_ACTION"),
}


@pytest.mark.parametrize("case", REFUSALS)
async def test_a_refusal_carries_its_status_and_reason(world, case):
    """And is seen in the event log; the agent stays as it is."""
    world.error, action, code, reason = REFUSALS[case]
    world.reporter()
    world.controller.command("c-1", action)
    await until(lambda: world.controller.results)

    (result,) = world.controller.results
    assert (result.status_code, result.reason) == (code, reason)
    assert result.agent.epoch == 1
    assert "secret" not in result.message
    (seen,) = kinds(world, ErrorSeen)
    assert (seen.boundary, seen.subject) == ("controller command", "c-1")


async def test_a_lost_controller_is_told_once_and_its_return_measured(world):
    """Nothing is asked of the agent meanwhile; what happened is sent later."""
    reporter = world.reporter()
    await until(lambda: world.controller.reports)
    await world.vanish()
    await until(lambda: kinds(world, ErrorSeen))
    assert not reporter.connected
    world.events.publish(Alerted(name="MEANWHILE", message="x"))
    await asyncio.sleep(0.5)  # some more tries

    await world.serve()
    await until(lambda: kinds(world, Recovered))
    await until(lambda: "MEANWHILE" in [e.alert.name for e in world.controller.events])

    (lost,) = kinds(world, ErrorSeen)
    (found,) = kinds(world, Recovered)
    assert lost.boundary == "controller"
    assert found.subject == "controller"
    assert found.elapsed_s > 0
    assert world.acts == []
    assert len(world.controller.hellos) == 2


@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        (None, "STREAM_ENDED"),
        (grpc.StatusCode.ABORTED, "PEER_ABORTED"),
        (grpc.StatusCode.CANCELLED, "PEER_CANCELLED"),
    ],
)
async def test_however_a_stream_ends_another_is_made(world, ending, reason):
    """Also by CANCELLED, which is not taken for our own cancellation."""
    world.reporter()
    await until(lambda: world.controller.reports)
    world.controller.say.put_nowait(ending)

    await until(lambda: len(world.controller.hellos) == 2)

    (lost,) = kinds(world, ErrorSeen)
    assert lost.reason == reason
    before = len(world.controller.reports)
    await until(lambda: len(world.controller.reports) > before)
    sequences = [report.sequence for report in world.controller.reports]
    assert sequences.count(1) == 2


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "PEER_UNAUTHENTICATED"),
        (grpc.StatusCode.CANCELLED, "PEER_CANCELLED"),
    ],
)
async def test_a_refused_hello_is_tried_again(world, status, reason):
    """With the controller's reason in the event log."""
    world.controller.first = status
    reporter = world.reporter()
    await until(lambda: len(world.controller.hellos) >= 2)
    assert not reporter.connected
    world.controller.first = None

    await until(lambda: reporter.connected)

    assert kinds(world, ErrorSeen)[0].reason == reason


async def test_a_write_on_a_stream_that_has_just_ended_is_no_defect(world, monkeypatch):
    """Its status is what is told, not grpc's complaint about the write."""

    async def late(call, **message):
        await call.code()
        raise asyncio.InvalidStateError("RPC already finished.")

    reporter = world.reporter()
    await until(lambda: world.controller.reports)
    with monkeypatch.context() as patch:
        patch.setattr(reporter_module, "_write", late)
        await until(lambda: reporter._sequence >= 2)
        world.controller.say.put_nowait(grpc.StatusCode.ABORTED)
        await until(lambda: kinds(world, ErrorSeen))

    assert kinds(world, ErrorSeen)[0].reason == "PEER_ABORTED"
    await until(lambda: len(world.controller.hellos) == 2)


async def test_somebody_who_is_no_controller_is_not_reported_to(world):
    """A first answer that is no welcome ends the stream."""
    world.controller.first = connect_service_pb2.ConnectResponse(
        command=Command(command_id="c-1", action=Command.ACTION_SLEEP)
    )
    world.reporter()
    await until(lambda: len(world.controller.hellos) == 2)

    assert kinds(world, ErrorSeen)[0].reason == "NO_WELCOME"
    assert world.acts == []


async def test_a_controller_that_does_not_answer_is_left(world, monkeypatch):
    """A stream without a welcome is given up."""
    monkeypatch.setattr(reporter_module, "WELCOME_TIMEOUT_S", 0.05)

    async def silent(request_iterator, context):
        world.controller.hellos.append(await anext(request_iterator))
        await asyncio.Event().wait()
        yield

    world.controller.Connect = silent
    await world.vanish()
    await world.serve()
    world.reporter()
    await until(lambda: len(world.controller.hellos) == 2)

    assert kinds(world, ErrorSeen)[0].reason == "NO_WELCOME"


async def test_a_stream_that_ends_before_the_welcome_is_made_again(world):
    """Without a word from the controller."""

    async def short(request_iterator, context):
        world.controller.hellos.append(await anext(request_iterator))
        return
        yield

    world.controller.Connect = short
    await world.vanish()
    await world.serve()
    world.reporter()
    await until(lambda: len(world.controller.hellos) == 2)

    assert kinds(world, ErrorSeen)[0].reason == "STREAM_ENDED"


async def test_a_defect_of_the_agents_view_ends_one_stream_only(world):
    """The next one is tried as after any other failure."""
    views = iter([ValueError("broken view")])

    def agent():
        for error in views:
            raise error
        return world.agent

    world.reporter(agent=agent)
    await until(lambda: world.controller.reports)

    assert "broken view" in kinds(world, ErrorSeen)[0].causes[0]


async def test_events_kept_for_later_are_bounded(world):
    """The newest stay."""
    await world.vanish()
    reporter = world.reporter()
    await until(lambda: kinds(world, ErrorSeen))
    for number in range(300):
        world.events.publish(Alerted(name=str(number), message="x"))
        await asyncio.sleep(0)
    await until(lambda: len(reporter._pending) == 256)
    await world.serve()

    await until(lambda: len(world.controller.events) >= 256)
    names = [event.alert.name for event in world.controller.events]
    assert names[:256][-1] == "299"


@contextlib.asynccontextmanager
async def real_controller(state):
    """The real one, in this process."""
    config = ControllerConfig(
        state=state, listen=FREE, connect=FREE, report_interval_s=0.05
    )
    async with serving(config) as (controller, addresses):
        yield controller, addresses


async def test_it_gets_on_with_the_real_controller(world, tmp_path):
    """Reports are believed, commands come back, a wrong token is told."""
    async with real_controller(tmp_path / "state") as (controller, addresses):
        token = (tmp_path / "state" / "join-token").read_text().strip()
        wrong = world.reporter(addresses["connect"], "wrong")
        await until(lambda: kinds(world, ErrorSeen))
        assert kinds(world, ErrorSeen)[0].reason == "BAD_TOKEN"
        assert not wrong.connected

        world.reporter(addresses["connect"], token)
        await until(lambda: "otter" in controller.fleet)
        await until(lambda: controller.fleet.agent("otter").sequence >= 3)
        world.events.publish(
            Transitioned(before="a", after="b", input="i", reason="r", epoch=1)
        )
        await until(lambda: controller.fleet.agent("otter").transitions)
        result = await controller.registry.command(
            "otter", sleep=True, seen_epoch=1, reason="why"
        )
        assert result.error is None
        agent = controller.fleet.agent("otter")
        assert agent.doubt == ""
        assert agent.transitions[0].after == "b"
    assert world.acts == [(1, "why")]
