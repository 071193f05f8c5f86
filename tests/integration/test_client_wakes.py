"""Many sleeps and wakes of one agent: no acknowledged state is ever thrown away."""

import signal
import sys
import threading

import grpc
import pytest

from outrigger.v1 import agent_pb2
from outrigger.v1 import sidecar_service_pb2 as pb
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import ROOT, Stack, operator, wait_for

AGENT = ROOT / "tests" / "support" / "waking_agent.py"
CYCLES = 15
AWAKE = agent_pb2.Agent.STATE_AWAKE
ASLEEP = agent_pb2.Agent.STATE_ASLEEP
FAILED = agent_pb2.Agent.STATE_FAILED


class Sleeper:
    """One agent beside its sidecar, and all that the sidecar tells of it."""

    def __init__(self, stack, *command):
        self.sidecar = stack.sidecar(
            "a",
            upstream="127.0.0.1:1",
            command=(sys.executable, "-P", *command),
        )
        channel = stack.channel(self.sidecar.addresses["api_tcp"])
        self.stub = SidecarServiceStub(channel)
        self.token = operator(self.sidecar.state)
        self.events = []
        watching = self.stub.Watch(pb.SidecarServiceWatchRequest(), metadata=self.token)
        self._watcher = threading.Thread(target=self._watch, args=(watching,))
        self._watcher.start()

    def _watch(self, watching):
        try:
            self.events.extend(answer.event for answer in watching)
        except grpc.RpcError:
            return

    def agent(self):
        request = pb.GetSidecarRequest()
        return self.stub.GetSidecar(request, metadata=self.token, timeout=5).agent

    def reaches(self, state):
        def look():
            agent = self.agent()
            return agent if agent.state in (state, FAILED) else None

        agent = wait_for(look, agent_pb2.Agent.State.Name(state))
        assert agent.state == state, agent.reason
        return agent

    def sleep(self):
        """Put it to sleep, again and again while it is not ready for that."""
        request = pb.SidecarServiceSleepAgentRequest()

        def asleep():
            if self.agent().state == AWAKE:
                self.stub.SleepAgent(request, metadata=self.token, timeout=5)
            return self.agent().state in (ASLEEP, FAILED)

        wait_for(asleep, "a sleep")
        return self.reaches(ASLEEP)

    def wake(self):
        request = pb.SidecarServiceWakeAgentRequest()
        self.stub.WakeAgent(request, metadata=self.token, timeout=5)
        return self.reaches(AWAKE)

    def end(self, sign):
        self.sidecar.kill(sign)
        self._watcher.join(10)

    def restored_and_saved(self, wakes):
        """Say whether each life began with what the one before had saved last."""
        saved, restored = "0", 0
        for line in self.sidecar.text().splitlines():
            match line.split():
                case ["saved", count]:
                    saved = count
                case ["restored", count]:
                    restored += 1
                    assert count == saved, f"{line} after {saved} were saved"
        return restored == wakes


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_every_wake_has_the_newest_state(tmp_path, seed):
    """Whatever breaks while the agent wakes, it wakes with what it saved last."""
    with Stack(tmp_path) as stack:
        sleeper = Sleeper(stack, str(AGENT), str(seed))
        sleeper.reaches(AWAKE)
        for cycle in range(1, CYCLES + 1):
            asleep = sleeper.sleep()
            awake = sleeper.wake()
            assert (asleep.sleep_count, awake.wake_count) == (cycle, cycle)
            assert awake.generation == asleep.generation >= cycle
            assert awake.woken_digest == asleep.state_digest != b""
        sleeper.end(signal.SIGTERM)

    assert sleeper.restored_and_saved(CYCLES)
    kinds = [event.WhichOneof("payload") for event in sleeper.events]
    assert "transition" in kinds
    assert "error" not in kinds
    assert "fell_back" not in {event.checkpoint.action for event in sleeper.events}
