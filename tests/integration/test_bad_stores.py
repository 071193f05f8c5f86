"""Damaged and full stores under real processes: refused, told, nothing lost."""

import socket
import sqlite3
import sys
from contextlib import closing

import grpc
import pytest

from outrigger.core.blocks import state_digest
from outrigger.core.rpc.errors import from_rpc_error
from outrigger.v1 import agent_pb2
from outrigger.v1 import checkpoint_service_pb2 as checkpoint_pb
from outrigger.v1 import fleet_service_pb2 as fleet_pb
from outrigger.v1 import letter_service_pb2 as letter_pb
from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import ROOT, Stack, operator, wait_for
from tests.support.refusals import (
    announced,
    limited,
    refused,
    serve,
    start_words,
    unchanged,
)

METHOD = "/test.Ledger/Call"
STUB = ROOT / "tests" / "support" / "stub_agent.py"
AWAKE = agent_pb2.Agent.STATE_AWAKE
ASLEEP = agent_pb2.Agent.STATE_ASLEEP
FAILED = agent_pb2.Agent.STATE_FAILED


@pytest.fixture
def stack(tmp_path):
    """A stack whose processes all end with the test."""
    with Stack(tmp_path) as stack:
        yield stack


def letters(stack, sidecar):
    return LetterServiceStub(stack.channel(sidecar.addresses["api_tcp"]))


def deliver(stack, sidecar, body, **more):
    request = letter_pb.DeliverCallRequest(method=METHOD, request=body, **more)
    answer = letters(stack, sidecar).DeliverCall(
        request, metadata=operator(sidecar.state), timeout=10
    )
    return answer.letter.letter_id


def ledger(stack, sidecar):
    request = letter_pb.GetLedgerRequest()
    metadata = operator(sidecar.state)
    return letters(stack, sidecar).GetLedger(request, metadata=metadata).ledger


# The databases.


def flip(path):
    """Spoil the head of every page but the first."""
    content = bytearray(path.read_bytes())
    for at in range(4096, len(content), 4096):
        content[at : at + 8] = bytes(byte ^ 0xFF for byte in content[at : at + 8])
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace(path):
    path.write_bytes(b"It was a dark and stormy night.\n" * 999)


DAMAGE = {"flipped": flip, "cut": cut, "another file": replace}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Databases of both servers as they were left, with something in them."""
    folder = tmp_path_factory.mktemp("kept")
    with Stack(folder) as stack:
        sidecar = stack.sidecar("a", upstream="127.0.0.1:1")
        deliver(stack, sidecar, b"keep me")
        controller = stack.controller()
        fleet = FleetServiceStub(stack.channel(controller.addresses["admin"]))
        for agent_id in ("one", "two"):
            request = fleet_pb.SleepAgentRequest(agent_id=agent_id)
            with pytest.raises(grpc.RpcError):
                fleet.SleepAgent(request, metadata=operator(controller.state))
        sidecar.kill(15)
        controller.kill(15)
        yield {
            "sidecar": (sidecar.state / "sidecar.db").read_bytes(),
            "controller": (controller.state / "controller.db").read_bytes(),
        }


def put(tmp_path, server, content):
    state = tmp_path / "s"
    state.mkdir(mode=0o700)
    (state / f"{server}.db").write_bytes(content)
    return state, state / f"{server}.db"


@pytest.mark.parametrize("server", ["controller", "sidecar"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_database_is_refused_and_left(tmp_path, kept, server, damage):
    """1 and STORE_CORRUPT; not one byte of it is changed, by the second try neither."""
    state, path = put(tmp_path, server, kept[server])
    DAMAGE[damage](path)
    spoiled = path.read_bytes()

    for _ in range(2):
        result = refused(server, state)
        assert (result.code, "[STORE_CORRUPT]" in result.err) == (1, True), result.err
        assert f"{path} is not a sound database" in result.err
        assert "move the state directory aside" in result.err
        assert path.read_bytes() == spoiled


def test_a_mended_journal_has_its_letters(tmp_path, stack, kept):
    """The refusal cost nothing: with the old bytes back the letter is there."""
    state, path = put(tmp_path, "sidecar", kept["sidecar"])
    flip(path)
    refused("sidecar", state)
    path.write_bytes(kept["sidecar"])

    sidecar = serve(stack, *start_words("sidecar", state))

    found = ledger(stack, sidecar)
    assert (found.accepted_count, found.live_count, found.lost_count) == (1, 1, 0)


TAMPERING = {
    "changed": "UPDATE audit SET principal = 'nobody' WHERE sequence = 1",
    "removed": "DELETE FROM audit WHERE sequence = (SELECT max(sequence) FROM audit)",
    "reordered": "UPDATE audit SET method = (SELECT max(subject) FROM audit)",
}


@pytest.mark.parametrize("how", TAMPERING)
def test_a_broken_audit_chain_is_refused_and_left(tmp_path, kept, how):
    """Evidence is neither mended nor written over."""
    state, path = put(tmp_path, "controller", kept["controller"])
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(TAMPERING[how]).rowcount > 0

    with unchanged(state):
        result = refused("controller", state)

    assert (result.code, "[AUDIT_BROKEN]" in result.err) == (1, True), result.err
    assert "keep the state directory as evidence" in result.err


# A disk that fills up.


@pytest.fixture
def cramped(tmp_path, stack):
    """A sidecar whose files may have at most 400 KiB, on a state that has begun."""
    words = start_words("sidecar", tmp_path / "s", "--upstream", "default=127.0.0.1:1")
    started = stack.start("cramped", *limited(400 << 10, *words))
    started.state = tmp_path / "s"
    started.addresses = wait_for(lambda: announced(started), "address.json")
    return started


def test_a_journal_that_is_full_refuses_and_keeps_what_it_took(stack, cramped):
    """Every acknowledged letter is delivered once there is room again."""
    accepted, refusals = set(), []
    for number in range(12):
        try:
            accepted.add(deliver(stack, cramped, b"%d" % number * 40_000))
        except grpc.RpcError as error:
            refusals.append(from_rpc_error(error))
    assert accepted
    assert refusals
    assert {error.status for error in refusals} <= {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    assert {error.reason for error in refusals} <= {"STORE_FAILED", "STORE_FULL"}
    assert len(accepted) + len(refusals) == 12
    assert "Traceback" not in cramped.text()
    assert cramped.kill(15) == 0

    upstream = stack.upstream()
    target = f"default={upstream.target}"
    words = start_words("sidecar", cramped.state, "--upstream", target)
    roomy = serve(stack, *words)

    wait_for(lambda: ledger(stack, roomy).live_count == 0, "the end of all letters")
    seen = {line.split()[0] for line in upstream.seen.read_text().splitlines()}
    assert seen == accepted
    found = ledger(stack, roomy)
    assert (found.accepted_count, found.lost_count) == (len(accepted), 0)


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(stack, cramped):
    """The save is refused by its reason and the older generation is still good."""
    stub = CheckpointServiceStub(stack.channel(cramped.addresses["api_tcp"]))
    token = (cramped.state / "token").read_text().strip()
    metadata = (("outrigger-token", token),)
    assert save(stub, b"small", metadata).generation == 1

    with pytest.raises(grpc.RpcError) as caught:
        save(stub, noise(900 << 10), metadata)

    assert from_rpc_error(caught.value).reason in {"DISK_FAILED", "DISK_FULL"}
    listed = stub.ListCheckpoints(
        checkpoint_pb.ListCheckpointsRequest(), metadata=metadata
    )
    assert [one.generation for one in listed.checkpoints] == [1]
    assert save(stub, b"small again", metadata).generation > 1
    assert "Traceback" not in cramped.text()


def save(stub, raw, metadata):
    request = checkpoint_pb.SaveCheckpointRequest
    commit = checkpoint_pb.SaveCommit(
        raw_size_bytes=len(raw), state_digest=state_digest(raw)
    )
    parts = [request(begin=checkpoint_pb.SaveBegin())]
    parts += [request(chunk=raw[at : at + 65536]) for at in range(0, len(raw), 65536)]
    parts.append(request(commit=commit))
    return stub.SaveCheckpoint(iter(parts), metadata=metadata, timeout=20).checkpoint


def noise(size):
    import hashlib

    return hashlib.shake_256(b"noise").digest(size)


# Checkpoints.


class Sleeper:
    """A sidecar with the stub agent, asleep after two saves: 1, then 2."""

    def __init__(self, stack):
        self.socket = stack.folder / "c.sock"
        self.sidecar = stack.sidecar(
            "a", command=(sys.executable, "-P", str(STUB), str(self.socket))
        )
        self.api = SidecarServiceStub(stack.channel(self.sidecar.addresses["api_tcp"]))
        self.metadata = operator(self.sidecar.state)
        self.reached(AWAKE)
        self.tell("add 1")
        self.sleep()
        self.wake()
        self.reached(AWAKE)
        self.tell("add 1")
        self.sleep()
        folder = self.sidecar.state / "checkpoints" / "a"
        self.files = {
            path: path.read_bytes() for path in folder.rglob("*0*") if path.is_file()
        }

    def agent(self):
        request = sidecar_pb.GetSidecarRequest()
        return self.api.GetSidecar(request, metadata=self.metadata, timeout=5).agent

    def reached(self, state):
        return wait_for(
            lambda: self.agent() if self.agent().state == state else None,
            agent_pb2.Agent.State.Name(state),
        )

    def sleep(self):
        request = sidecar_pb.SidecarServiceSleepAgentRequest()
        self.api.SleepAgent(request, metadata=self.metadata)
        return self.reached(ASLEEP)

    def wake(self):
        request = sidecar_pb.SidecarServiceWakeAgentRequest()
        self.api.WakeAgent(request, metadata=self.metadata)

    def tell(self, words):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.socket))
            control.sendall(f"{words}\n".encode())
            return int(control.makefile().readline())


def garble(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["packs", "manifests"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(stack, kind):
    """The agent wakes with the older state, and the log says which and why."""
    sleeper = Sleeper(stack)
    newest = [p for p in sleeper.files if p.parent.name == kind and "2" in p.name]
    for path in newest:
        garble(path)
    sleeper.wake()

    awake = sleeper.reached(AWAKE)
    assert newest
    assert (awake.generation, sleeper.tell("get")) == (1, 1)
    log = sleeper.sidecar.text()
    assert "outrigger: sidecar: checkpoint 1 fell back: " in log
    assert "Traceback" not in log


def test_with_no_good_checkpoint_the_agent_is_not_started(stack):
    """It fails and says what to do; with the files back it wakes as it was."""
    sleeper = Sleeper(stack)
    for path in sleeper.files:
        garble(path)
    sleeper.wake()

    failed = sleeper.reached(FAILED)
    assert (failed.pid, failed.generation) == (0, 2)
    assert "none of the 2 checkpoints of agent a is good" in failed.reason
    assert "[NO_GOOD_CHECKPOINT]" in sleeper.sidecar.text()
    for path, content in sleeper.files.items():
        path.write_bytes(content)
    sleeper.wake()

    sleeper.reached(AWAKE)
    assert sleeper.tell("get") == 2
