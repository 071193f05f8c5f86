"""A sleeping agent as a process: calls wake it, once, and all are answered."""

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from outrigger.v1 import agent_pb2
from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import ROOT, Stack, operator, wait_for

AGENT = (sys.executable, "-P", str(ROOT / "examples" / "serving_agent.py"))
AWAKE = agent_pb2.Agent.STATE_AWAKE
ASLEEP = agent_pb2.Agent.STATE_ASLEEP


class Scene:
    """A sidecar with an agent that serves."""

    def __init__(self, stack, command=AGENT, *flags):
        self.sidecar = stack.sidecar(
            "a",
            "--inbound",
            "127.0.0.1:0",
            *flags,
            upstream="127.0.0.1:1",
            command=command,
        )
        self.api = SidecarServiceStub(stack.channel(self.sidecar.addresses["api_tcp"]))
        self.token = operator(self.sidecar.state)
        channel = stack.channel(self.sidecar.addresses["inbound"])
        self.echo = channel.unary_unary("/examples.Echo/Echo")
        self.nothing = channel.unary_unary("/examples.Echo/Nothing")

    def agent(self):
        request = sidecar_pb.GetSidecarRequest()
        return self.api.GetSidecar(request, metadata=self.token, timeout=3).agent

    def reached(self, state):
        return wait_for(
            lambda: self.agent() if self.agent().state == state else None,
            agent_pb2.Agent.State.Name(state),
        )

    def sleep(self):
        request = sidecar_pb.SidecarServiceSleepAgentRequest(reason="test")
        self.api.SleepAgent(request, metadata=self.token)
        return self.reached(ASLEEP)


@pytest.fixture
def scene(tmp_path):
    """An agent that is awake."""
    with Stack(tmp_path) as stack:
        scene = Scene(stack)
        scene.reached(AWAKE)
        yield scene


def test_many_calls_wake_it_once_and_all_are_answered(scene):
    """Twenty calls at once: one wake, twenty answers, the state goes on."""
    assert scene.echo(b"first", timeout=5) == b"first"
    asleep = scene.sleep()

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda n: scene.echo(b"%d" % n, timeout=20), range(20)))

    awake = scene.agent()
    assert answers == [b"%d" % number for number in range(20)]
    assert awake.wake_count == 1
    assert awake.woken_digest == asleep.state_digest
    assert scene.sleep().generation == asleep.generation + 1


def test_a_caller_without_patience_gets_its_deadline_and_the_agent_still_wakes(scene):
    """The hold ends with the caller's own deadline; the wake goes on."""
    scene.sleep()
    with pytest.raises(grpc.RpcError) as caught:
        scene.echo(b"x", timeout=0.01)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    scene.reached(AWAKE)
    assert scene.echo(b"y", timeout=5) == b"y"


def test_what_the_agent_does_not_serve_is_its_own_answer(scene):
    """UNIMPLEMENTED comes from the agent, unmarked, after the wake."""
    scene.sleep()
    with pytest.raises(grpc.RpcError) as caught:
        scene.nothing(b"x", timeout=20)

    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    trailers = dict(caught.value.trailing_metadata() or ())
    assert "outrigger-refused-by" not in trailers


def test_an_agent_that_serves_nowhere_is_named_to_its_callers(tmp_path):
    """A call for an agent without an address is refused with what to do."""
    command = (sys.executable, "-P", str(ROOT / "examples" / "echo_agent.py"))
    with Stack(tmp_path) as stack:
        scene = Scene(stack, command)
        scene.reached(AWAKE)
        with pytest.raises(grpc.RpcError) as caught:
            scene.echo(b"x", timeout=5)

    assert dict(caught.value.trailing_metadata())["outrigger-refused-by"] == "wake"
    assert "--app TARGET" in caught.value.details()
