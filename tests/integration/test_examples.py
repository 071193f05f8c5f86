"""The examples as processes beside a real sidecar: they sleep and go on."""

import importlib.util
import os
import sys
import threading
from pathlib import Path

import grpc
import pytest

from outrigger.core.clock import SystemClock
from outrigger.demo.peers import SidecarPeer
from outrigger.demo.processes import Processes
from outrigger.v1 import (
    attach_service_pb2,
    checkpoint_service_pb2,
    sidecar_service_pb2,
)
from outrigger.v1.agent_pb2 import Agent
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub

ROOT = Path(__file__).resolve().parents[2]


class Beside:
    """One example beside its sidecar."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.processes = Processes(folder, os.environ, SystemClock())
        self.log = folder / "agent.log"
        self.processes.start(
            "agent", "outrigger.cli.main", "sidecar", "--agent-id", "example",
            "--state", str(folder / "agent"), "--upstream", "tools=127.0.0.1:1",
            "--outbound", "127.0.0.1:0", "--api", "127.0.0.1:0", *command,
        )  # fmt: skip
        self.state = folder / "agent"
        self.addresses = addresses = self.processes.addresses("agent", 30)
        self.peer = SidecarPeer(folder / "agent", addresses)
        self.stub = SidecarServiceStub(self.peer.channel(self.peer.api))

    def close(self) -> None:
        self.peer.__exit__()
        self.processes.stop()

    def wait(self, what, ask):
        return self.processes.wait_for("agent", what, lambda: ask() or None, 30)

    def reaches(self, state) -> Agent:
        return self.wait(
            Agent.State.Name(state),
            lambda: (
                agent if (agent := self.peer.status().agent).state == state else None
            ),
        )

    def lines(self) -> list[str]:
        said = self.log.read_text().splitlines()
        return [line for line in said if line.startswith("line ")]

    def ask(self, verb: str) -> None:
        message = getattr(sidecar_service_pb2, f"SidecarService{verb}AgentRequest")
        call = getattr(self.stub, f"{verb}Agent")
        call(message(reason="test"), metadata=self.peer.metadata, timeout=5)

    def saved(self) -> bytes:
        """The newest checkpoint, as an operator reads it."""
        stub = CheckpointServiceStub(self.peer.channel(self.peer.api))
        request = checkpoint_service_pb2.RestoreCheckpointRequest(agent_id="example")
        answers = stub.RestoreCheckpoint(
            request, metadata=self.peer.metadata, timeout=10
        )
        return b"".join(answer.chunk for answer in answers)


@pytest.fixture(params=["echo_agent.py", "bare_stubs.py"])
def beside(request, tmp_path):
    example = str(ROOT / "examples" / request.param)
    made = Beside(tmp_path, "--", sys.executable, example)
    yield made
    made.close()


def test_example_sleeps_and_goes_on(beside):
    """Put to sleep and woken, an example goes on with the line it had come to."""
    beside.reaches(Agent.STATE_AWAKE)
    beside.wait("two lines", lambda: len(beside.lines()) >= 2)
    beside.ask("Sleep")
    asleep = beside.reaches(Agent.STATE_ASLEEP)
    said = beside.lines()
    assert beside.saved().decode().splitlines() == said
    beside.ask("Wake")
    awake = beside.reaches(Agent.STATE_AWAKE)
    assert awake.woken_digest == asleep.state_digest
    beside.wait("another line", lambda: len(beside.lines()) > len(said))
    assert beside.lines() == [f"line {n + 1}" for n in range(len(beside.lines()))]


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    """examples/bare_stubs.py as a module, beside a sidecar that started nobody."""
    made = Beside(tmp_path)
    monkeypatch.setenv("OUTRIGGER_AGENT_ID", "example")
    monkeypatch.setenv("OUTRIGGER_API", made.addresses["api"])
    monkeypatch.setenv("OUTRIGGER_OUTBOUND", made.addresses["outbound"])
    monkeypatch.setenv("OUTRIGGER_TOKEN", (made.state / "token").read_text().strip())
    path = ROOT / "examples" / "bare_stubs.py"
    spec = importlib.util.spec_from_file_location("bare_stubs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield made, module
    module.api.close()
    made.close()


def test_bare_stubs_do_what_the_client_does(stubs, capsys):
    """A lease, a call that becomes a letter and one handed over, without the client."""
    beside, module = stubs
    assert module.keep_awake(30, "testing")
    assert module.call_a_tool("/p.Service/Method", b"request") is None
    assert "buffered as letter" in capsys.readouterr().out
    assert module.hand_over("/p.Service/Method", b"request")
    assert beside.peer.ledger().accepted_count == 2


def test_bare_stubs_repeat_the_proof(stubs):
    """Welcomed with the checkpoint it holds, it says so again and restores nothing."""
    _, module = stubs
    module.lines[:] = ["line 1"]
    digest = module.state_digest(b"line 1")
    welcome = attach_service_pb2.Welcome(
        restore_generation=module.save(), restore_digest=digest
    )
    message = attach_service_pb2.AttachResponse(welcome=welcome)
    conversation = module.Conversation()
    first = list(conversation.answers(message))
    module.lines.append("line 2")
    again = list(conversation.answers(message))
    assert [said.WhichOneof("message") for said in first] == ["restored", "serving"]
    assert (first[0].restored.generation, first[0].restored.state_digest) == (1, digest)
    assert again == first
    assert module.lines == ["line 1", "line 2"]


def test_bare_stubs_that_were_replaced_stay_away(stubs, capsys):
    """Told that another stream took over, it attaches no more and goes on."""
    beside, module = stubs
    conversation = module.Conversation()
    thread = threading.Thread(target=conversation.run, daemon=True)
    thread.start()
    try:
        beside.wait("welcome", lambda: conversation.has_state)
        conversation.hold_still()
        hello = attach_service_pb2.Hello(pid=1, resumed=True)
        more = threading.Event()

        def say():
            yield attach_service_pb2.AttachRequest(hello=hello)
            more.wait()

        other = module.attach_service.Attach(say(), metadata=module.TOKEN)
        assert next(other).HasField("welcome")
        thread.join(10)
        assert not thread.is_alive()
        assert not conversation.is_quiet
        assert "attach: ABORTED REPLACED" in capsys.readouterr().out
        more.set()
        other.cancel()
    finally:
        module.stopped.set()


def test_bare_stubs_without_a_state_stay_quiet_when_replaced(stubs):
    """What was never restored does not begin to change; a plain error has no reason."""
    _, module = stubs
    conversation = module.Conversation()
    conversation.left_alone()
    assert conversation.is_quiet
    with pytest.raises(grpc.RpcError) as refused:
        module.checkpoints.RestoreCheckpoint(
            checkpoint_service_pb2.RestoreCheckpointRequest(), timeout=5
        ).next()
    assert module.reason_of(refused.value)
    nobody = grpc.insecure_channel("127.0.0.1:1")
    with nobody, pytest.raises(grpc.RpcError) as failed:
        nobody.unary_unary("/p.Service/Method")(b"", timeout=5)
    assert module.reason_of(failed.value) == ""
