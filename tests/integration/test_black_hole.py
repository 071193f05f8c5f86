"""Processes that are stopped in the middle of their work: the callee, and ourselves."""

import signal
import time

import grpc
import pytest

from outrigger.v1 import circuit_service_pb2 as pb
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub
from tests.support.processes import Stack, operator, wait_for

METHOD = "/test.Ledger/Call"


class Scene:
    """A sidecar and its upstream, each a process."""

    def __init__(self, stack):
        self.upstream = stack.upstream()
        self.sidecar = stack.sidecar("agent", upstream=self.upstream.target)
        self.call = stack.channel(self.sidecar.addresses["outbound"]).unary_unary(
            METHOD
        )
        self._api = CircuitServiceStub(stack.channel(self.sidecar.addresses["api_tcp"]))
        self._token = operator(self.sidecar.state)
        wait_for(lambda: self.call(b"x", timeout=10), "a good call")

    def circuit(self, circuit_id="default" + METHOD):
        """Return a circuit as an operator sees it."""
        request = pb.GetCircuitRequest(circuit_id=circuit_id)
        return self._api.GetCircuit(request, metadata=self._token, timeout=20).circuit

    def opened(self):
        """Say whether the method's circuit has opened."""
        return self.circuit().open_count > 0


@pytest.fixture
def scene(tmp_path):
    """A healthy pair."""
    with Stack(tmp_path) as stack:
        yield Scene(stack)


def test_a_stopped_callee_opens_the_circuit_whatever_its_callers_wait(scene):
    """Five calls with a minute each; nothing fails, and still it opens.

    When the callee goes on, calls succeed again by themselves.
    """
    scene.upstream.process.send_signal(signal.SIGSTOP)
    hanging = [scene.call.future(b"x", timeout=60) for _ in range(5)]

    wait_for(scene.opened, "the circuit to open")
    assert not any(call.done() for call in hanging)

    scene.upstream.process.send_signal(signal.SIGCONT)
    assert [call.result(timeout=30) for call in hanging] != []
    wait_for(lambda: answered(scene.call), "a call that succeeds again")


def test_a_stopped_sidecar_blames_nobody(scene):
    """It slept for some seconds with calls on their way; afterwards all is well."""
    before = scene.circuit().open_count
    hanging = [scene.call.future(b"x", timeout=60) for _ in range(20)]
    scene.sidecar.process.send_signal(signal.SIGSTOP)
    hanging += [scene.call.future(b"x", timeout=60) for _ in range(20)]
    time.sleep(4)  # longer than any threshold; what is asserted needs no clock
    scene.sidecar.process.send_signal(signal.SIGCONT)

    for call in hanging:
        call.result(timeout=30)

    assert scene.circuit().open_count == before
    assert scene.circuit("default").open_count == 0


def answered(call):
    """Make a call; say whether it was answered."""
    try:
        call(b"x", timeout=5)
    except grpc.RpcError:
        return False
    return True
