"""kill -9 of a sidecar: what it acknowledged must come true all the same."""

import contextlib
import os
import signal
import sqlite3
import time

import grpc
import pytest

from outrigger.v1 import (
    agent_pb2,
    circuit_pb2,
    circuit_service_pb2,
    letter_service_pb2,
)
from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import PYTHON, START_S, Stack, operator, wait_for

ROUNDS = 50
METHOD = "/test.Ledger/Call"


@pytest.fixture
def stack(tmp_path):
    """A stack whose processes all end with the test."""
    with Stack(tmp_path) as stack:
        yield stack


def ledger(stack, sidecar):
    stub = LetterServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
    request = letter_service_pb2.GetLedgerRequest()
    return stub.GetLedger(request, metadata=operator(sidecar.state), timeout=5).ledger


def letter_of(error):
    return dict(error.trailing_metadata())["outrigger-letter-id"]


def call_into_letter(stack, sidecar, body):
    """Make a call that fails and return the id of its letter."""
    call = stack.channel(sidecar.addresses["outbound"]).unary_unary(METHOD)
    with pytest.raises(grpc.RpcError) as caught:
        call(body, metadata=(("outrigger-letter", "on"),), timeout=5)
    return letter_of(caught.value)


@pytest.mark.timeout(240)
def test_no_acknowledged_letter_is_lost_in_fifty_kills(stack):
    """Acknowledged, killed at once, fifty times: all are delivered at the end."""
    upstream = stack.upstream()
    port = upstream.port
    upstream.kill()
    accepted = []
    sidecar = stack.sidecar("a", upstream=f"127.0.0.1:{port}")
    for number in range(ROUNDS):
        accepted.append(call_into_letter(stack, sidecar, b"body %d" % number))
        sidecar.kill()
        sidecar = stack.sidecar("a", upstream=f"127.0.0.1:{port}")
    upstream = stack.upstream(port=port)

    wait_for(lambda: ledger(stack, sidecar).live_count == 0, "the end of all letters")

    found = ledger(stack, sidecar)
    seen = {line.split()[0] for line in upstream.seen.read_text().splitlines()}
    assert seen == set(accepted)
    assert (found.accepted_count, found.delivered_count) == (ROUNDS, ROUNDS)
    assert found.lost_count == 0


def test_killed_while_it_delivers_the_sidecar_delivers_again(stack):
    """Letters in flight at the kill come again with the same key; none is lost."""
    upstream = stack.upstream()
    port = upstream.port
    upstream.kill()
    sidecar = stack.sidecar("a", upstream=f"127.0.0.1:{port}")
    accepted = {
        call_into_letter(stack, sidecar, b"body %d" % number) for number in range(60)
    }
    upstream = stack.upstream(port=port)
    wait_for(lambda: upstream.seen.read_text().count("\n") >= 5, "a first delivery")
    sidecar.kill()
    sidecar = stack.sidecar("a", upstream=upstream.target)

    wait_for(lambda: ledger(stack, sidecar).live_count == 0, "the end of all letters")

    keys = [line.split()[0] for line in upstream.seen.read_text().splitlines()]
    assert set(keys) == accepted
    assert ledger(stack, sidecar).delivered_count == len(accepted)


def test_an_open_circuit_is_half_open_after_a_kill(stack):
    """The outage is remembered, with its reason, and probed."""
    sidecar = stack.sidecar("a", upstream="127.0.0.1:1")
    for number in range(8):
        call_into_letter(stack, sidecar, b"%d" % number)
    time.sleep(0.3)
    sidecar.kill()
    sidecar = stack.sidecar("a", upstream="127.0.0.1:1")

    stub = CircuitServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
    found = stub.ListCircuits(
        circuit_service_pb2.ListCircuitsRequest(), metadata=operator(sidecar.state)
    )
    states = {one.circuit_id: one.state for one in found.circuits}
    assert states["default"] in (
        circuit_pb2.Circuit.STATE_HALF_OPEN,
        circuit_pb2.Circuit.STATE_OPEN,
    )


def test_what_an_operator_was_answered_about_a_circuit_outlives_a_kill(stack):
    """Isolated, killed at once: isolated. Restored, killed at once: it is not."""
    sidecar = stack.sidecar("a", upstream="127.0.0.1:1")

    def circuits():
        return CircuitServiceStub(stack.channel(sidecar.addresses["api_tcp"]))

    def state_after_a_kill():
        nonlocal sidecar
        sidecar.kill()
        sidecar = stack.sidecar("a", upstream="127.0.0.1:1")
        request = circuit_service_pb2.GetCircuitRequest(circuit_id="default")
        found = circuits().GetCircuit(request, metadata=operator(sidecar.state))
        return circuit_pb2.Circuit.State.Name(found.circuit.state)

    for number in range(5):
        isolate = circuit_service_pb2.IsolateCircuitRequest(
            circuit_id="default", reason=f"by hand {number}"
        )
        circuits().IsolateCircuit(isolate, metadata=operator(sidecar.state))
        assert state_after_a_kill() == "STATE_ISOLATED"
        restore = circuit_service_pb2.RestoreCircuitRequest(circuit_id="default")
        circuits().RestoreCircuit(restore, metadata=operator(sidecar.state))
        assert state_after_a_kill() != "STATE_ISOLATED"


def test_a_sidecar_killed_as_soon_as_it_has_a_record_starts_its_agent_again(stack):
    """No moment of a first start leaves a record of an agent that is to sleep."""
    state = stack.folder / "a"
    args = ("--agent-id", "a", "--state", str(state), "--upstream", "default=x:1")
    listen = ("--outbound", "127.0.0.1:0", "--api", "127.0.0.1:0")
    words = (*PYTHON, "outrigger.cli.main", "sidecar", *args, *listen)
    cut = stack.start("cut", *words, "--", "sleep", "1000")
    until = time.monotonic() + START_S
    while not recorded(state):  # without a pause: the next record comes at once
        assert time.monotonic() < until
    cut.kill()
    assert recorded(state)[0] != "asleep"

    sidecar = stack.sidecar("a", upstream="x:1", command=("sleep", "1000"))
    assert wait_for(lambda: recorded(state)[1], "a process on record")
    assert sidecar.process.poll() is None


def recorded(state):
    """Return the state and pid on record; nothing while there is none."""
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{state}/sidecar.db?mode=ro", uri=True)
        ) as connection:
            return connection.execute(
                "SELECT state, pid FROM agent_lifecycle"
            ).fetchone()
    except sqlite3.Error:
        return None


def test_the_agent_dies_with_its_sidecar_even_when_frozen(stack):
    """No orphan: a killed sidecar leaves no agent behind."""
    sidecar = stack.sidecar(
        "a",
        "--sleep-mode",
        "freeze",
        upstream="127.0.0.1:1",
        command=("sleep", "1000"),
    )
    stub = SidecarServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
    token = operator(sidecar.state)

    def agent():
        return stub.GetSidecar(sidecar_pb.GetSidecarRequest(), metadata=token).agent

    wait_for(
        lambda: agent().state == agent_pb2.Agent.STATE_AWAKE, "awake", timeout_s=15
    )
    pid = agent().pid
    stub.SleepAgent(sidecar_pb.SidecarServiceSleepAgentRequest(), metadata=token)
    wait_for(lambda: agent().state == agent_pb2.Agent.STATE_FROZEN, "frozen")
    sidecar.kill()

    def gone():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone, "the end of the frozen agent", timeout_s=5)


def test_sigterm_ends_it_cleanly_and_the_childs_code_is_its_own(stack):
    """SIGTERM is exit 0; an agent that ends by itself hands its code on."""
    quiet = stack.sidecar("a", upstream="127.0.0.1:1")
    assert quiet.kill(signal.SIGTERM) == 0

    ending = stack.start(
        "b",
        *(*PYTHON, "outrigger.cli.main", "sidecar"),
        *("--agent-id", "b", "--state", str(stack.folder / "b")),
        *("--outbound", "127.0.0.1:0", "--api", "127.0.0.1:0"),
        *("--", "sh", "-c", "exit 7"),
    )
    assert ending.process.wait(60) == 7


def test_the_agent_inherits_what_it_needs_to_find_its_sidecar(stack):
    """Id, API, outbound relay and token are in its environment."""
    inherited = stack.folder / "env"
    sidecar = stack.sidecar(
        "a",
        upstream="127.0.0.1:1",
        command=("sh", "-c", f"env >{inherited}.new; mv {inherited}.new {inherited}"),
    )
    found = dict(
        line.partition("=")[::2]
        for line in wait_for(inherited.read_text, "the environment").splitlines()
    )

    assert found["OUTRIGGER_AGENT_ID"] == "a"
    assert found["OUTRIGGER_API"] == sidecar.addresses["api"]
    assert found["OUTRIGGER_OUTBOUND"] == sidecar.addresses["outbound"]
    assert found["OUTRIGGER_TOKEN"] == (sidecar.state / "token").read_text().strip()
