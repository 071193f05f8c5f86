import pytest

from outrigger.core.clock import SystemClock
from outrigger.core.errors import Refused
from outrigger.core.tasks import Tasks
from sidecar.agent.doorway import Doorway
from sidecar.policy.agent import AgentSnapshot, AgentState


class Agent:
    """An agent that is as the test says."""

    def __init__(self):
        self.state = AgentState.ASLEEP
        self.pid = 0
        self.app_address = "127.0.0.1:1"
        self.asked = []

    @property
    def awake(self):
        return self.state is AgentState.AWAKE

    def snapshot(self):
        return AgentSnapshot(
            agent_id="a",
            state=self.state,
            reason="because",
            since_wall_s=0.0,
            epoch=1,
            pid=self.pid,
        )

    def request_wake(self, seen_epoch, reason):
        self.asked.append((seen_epoch, reason))
        return self.snapshot()

    def up(self, pid):
        self.state, self.pid = AgentState.AWAKE, pid


class Held:
    """Held calls that write down what they are told."""

    def __init__(self):
        self.told = []

    def agent_is_awake(self):
        self.told.append("awake")

    def agent_failed(self, reason):
        self.told.append(reason)


class Scene:
    """A doorway and all around it."""

    def __init__(self):
        self.agent, self.held, self.connected = Agent(), Held(), []
        self.tasks = Tasks(lambda _: None, SystemClock())
        self.while_connecting = lambda: None
        self.doorway = Doorway(self.agent, connect=self.connect, tasks=self.tasks)

    async def connect(self, address):
        self.connected.append(address)
        self.while_connecting()

    async def moved(self):
        self.doorway.agent_moved(self.held)
        for task in tuple(self.tasks._tasks):
            await task


async def test_it_opens_after_a_fresh_channel_is_there():
    """Held calls go on only once there is a channel to the process that is up."""
    scene = Scene()
    scene.agent.up(7)
    assert not scene.doorway.is_open

    await scene.moved()

    assert (scene.connected, scene.held.told) == (["127.0.0.1:1"], ["awake"])
    assert scene.doorway.is_open


async def test_a_thawed_process_keeps_its_channel_and_a_new_one_gets_its_own():
    """The channel is the process's: same pid same channel, new pid a new one."""
    scene = Scene()
    for pid in (7, 7, 8):
        scene.agent.up(pid)
        await scene.moved()
        scene.agent.state = AgentState.FROZEN
        await scene.moved()
        assert not scene.doorway.is_open

    assert len(scene.connected) == 2


async def test_the_channel_is_dropped_when_the_process_is_gone():
    """Nobody dials a port where nobody listens; the next wake connects afresh."""
    scene = Scene()
    scene.agent.up(7)
    await scene.moved()
    scene.agent.state = AgentState.ASLEEP
    await scene.moved()
    await scene.moved()
    scene.agent.up(8)
    await scene.moved()

    assert scene.connected == ["127.0.0.1:1", None, "127.0.0.1:1"]
    assert scene.doorway.is_open


async def test_it_stays_shut_if_the_agent_falls_asleep_while_it_connects():
    """Nobody is handed to an agent that is on its way out."""
    scene = Scene()
    scene.agent.up(7)

    def asleep():
        scene.agent.state = AgentState.QUIESCING

    scene.while_connecting = asleep
    await scene.moved()

    assert not scene.doorway.is_open
    assert scene.held.told == []


async def test_an_agent_that_serves_elsewhere_is_followed():
    """Awake and open, a new address shuts the doorway until it leads there."""
    scene = Scene()
    scene.agent.up(7)
    await scene.moved()
    scene.agent.app_address = "127.0.0.1:2"
    open_meanwhile = []
    scene.while_connecting = lambda: open_meanwhile.append(scene.doorway.is_open)
    await scene.moved()

    assert scene.connected == ["127.0.0.1:1", "127.0.0.1:2"]
    assert open_meanwhile == [False]
    assert scene.doorway.is_open
    assert scene.held.told == ["awake", "awake"]


async def test_the_newest_address_wins():
    """An address said while an older one is connected to is connected to last."""
    scene = Scene()
    scene.agent.up(7)

    def elsewhere():
        scene.while_connecting = lambda: None
        scene.agent.app_address = "127.0.0.1:2"
        scene.doorway.agent_moved(scene.held)

    scene.while_connecting = elsewhere
    await scene.moved()

    assert scene.connected == ["127.0.0.1:1", "127.0.0.1:2"]
    assert scene.held.told == ["awake"]


async def test_a_process_that_ends_while_it_is_connected_to_leaves_no_channel():
    """Nobody dials for ever where the process died before the channel was made."""
    scene = Scene()
    scene.agent.up(7)

    def asleep():
        scene.agent.state = AgentState.ASLEEP

    scene.while_connecting = asleep
    await scene.moved()

    assert scene.connected == ["127.0.0.1:1", None]
    assert not scene.doorway.is_open


@pytest.mark.parametrize(("pid", "connects"), [(7, 1), (8, 2)])
async def test_a_broken_stream_leaves_the_channel_alone(pid, connects):
    """Without a pid nothing is known to have changed; another pid is a new process."""
    scene = Scene()
    for now in (7, 0, pid):
        scene.agent.up(now)
        await scene.moved()

    assert len(scene.connected) == connects
    assert scene.doorway.is_open


async def test_a_pid_told_late_is_remembered():
    """Opened before anybody attached, it still notices the process after that one."""
    scene = Scene()
    for now in (0, 7, 8):
        scene.agent.up(now)
        await scene.moved()

    assert len(scene.connected) == 2


async def test_a_call_waits_for_an_awake_agent_without_waking_it():
    """While the channel is made nobody is asked to wake an agent that is awake."""
    scene = Scene()
    scene.agent.up(7)
    scene.doorway.wake("a call to /s/M")

    assert scene.agent.asked == []


async def test_a_failed_agent_gives_the_held_calls_up():
    """They are told why."""
    scene = Scene()
    scene.agent.state = AgentState.FAILED
    await scene.moved()

    assert scene.held.told == ["because"]


async def test_an_agent_without_an_address_is_named():
    """Held calls are given up, and new ones refused, with what to do."""
    scene = Scene()
    scene.agent.app_address = ""
    scene.agent.up(7)
    await scene.moved()

    assert "--app TARGET" in scene.held.told[0]
    with pytest.raises(Refused, match="--app TARGET"):
        scene.doorway.wake("a call")


async def test_a_call_wakes_the_agent_whatever_its_epoch():
    """Waking for a call never names an epoch, so it is never stale."""
    scene = Scene()
    scene.doorway.wake("a call to /s/M")

    assert scene.agent.asked == [(0, "a call to /s/M")]
