"""Bad calls to real servers: each refused by its status and reason, none disturbs."""

import sys

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.core.rpc.errors import from_rpc_error
from outrigger.v1 import agent_pb2, letter_pb2
from outrigger.v1 import checkpoint_service_pb2 as checkpoint_pb
from outrigger.v1 import circuit_service_pb2 as circuit_pb
from outrigger.v1 import fleet_service_pb2 as fleet_pb
from outrigger.v1 import letter_service_pb2 as letter_pb
from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.checkpoint_service_pb2_grpc import CheckpointServiceStub
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import ROOT, Stack, operator, wait_for
from tests.support.refusals import refusal

METHOD = "/test.Ledger/Call"
STUB = ROOT / "tests" / "support" / "stub_agent.py"
MIB = 1 << 20


class Site:
    """A controller, a sidecar with a frozen-sleep agent, and a dead upstream."""

    def __init__(self, stack):
        self.controller = stack.controller()
        wrong = stack.folder / "join"
        wrong.write_text("not-the-token")
        wrong.chmod(0o600)
        self.sidecar = stack.sidecar(
            "a",
            *("--sleep-mode", "freeze", "--letters-bytes-max", "20MiB"),
            *("--controller", self.controller.addresses["connect"]),
            *("--join-token-file", str(wrong)),
            upstream="127.0.0.1:1",
            command=(sys.executable, "-P", str(STUB), str(stack.folder / "c.sock")),
        )
        channel = stack.channel(self.sidecar.addresses["api_tcp"])
        self.api = channel
        self.sidecars = SidecarServiceStub(channel)
        self.letters = LetterServiceStub(channel)
        self.checkpoints = CheckpointServiceStub(channel)
        self.circuits = CircuitServiceStub(channel)
        admin = stack.channel(self.controller.addresses["admin"])
        self.fleet = FleetServiceStub(admin)
        self.far_letters = LetterServiceStub(admin)
        self.outbound = stack.channel(self.sidecar.addresses["outbound"])
        self.admin = operator(self.controller.state)
        self.operator = operator(self.sidecar.state)
        token = (self.sidecar.state / "token").read_text().strip()
        self.agent_token = (("outrigger-token", token),)
        wait_for(lambda: self.agent().state == agent_pb2.Agent.STATE_AWAKE, "the agent")

    def agent(self):
        request = sidecar_pb.GetSidecarRequest()
        return self.sidecars.GetSidecar(request, metadata=self.operator).agent

    def ledger(self):
        request = letter_pb.GetLedgerRequest()
        return self.letters.GetLedger(request, metadata=self.operator).ledger


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One of everything, for all tests here."""
    with Stack(tmp_path_factory.mktemp("site")) as stack:
        yield Site(stack)


@pytest.fixture(autouse=True)
def undisturbed(site):
    """After each test the same agent is awake and no letter is lost."""
    before = site.agent()
    yield
    after = site.agent()
    assert (after.pid, after.state) == (before.pid, agent_pb2.Agent.STATE_AWAKE)
    assert site.ledger().lost_count == 0
    assert site.controller.process.poll() is None
    for log in (site.sidecar.text(), site.controller.text()):
        assert "Traceback" not in log


# Who calls.


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ((), "NO_TOKEN"),
        ((("outrigger-token", "wrong"),), "BAD_TOKEN"),
        ((("outrigger-token", ""),), "BAD_TOKEN"),
    ],
)
def test_without_a_good_token_nothing_answers(site, metadata, reason):
    """Neither server tells anything to a stranger, nor does it tell apart more."""
    expected = {("UNAUTHENTICATED", reason), ("UNAUTHENTICATED", "NO_TOKEN")}
    found = {
        refusal(
            site.sidecars.GetSidecar, sidecar_pb.GetSidecarRequest(), metadata=metadata
        ),
        refusal(
            site.letters.ListLetters, letter_pb.ListLettersRequest(), metadata=metadata
        ),
        refusal(site.fleet.ListAgents, fleet_pb.ListAgentsRequest(), metadata=metadata),
    }
    assert found <= expected
    assert len(found) == 1


def test_a_token_is_good_at_its_own_server_only(site):
    """The controller's is nobody at the sidecar, and the agent's at the controller."""
    found = [
        refusal(
            site.sidecars.GetSidecar,
            sidecar_pb.GetSidecarRequest(),
            metadata=site.admin,
        ),
        refusal(
            site.fleet.ListAgents,
            fleet_pb.ListAgentsRequest(),
            metadata=site.agent_token,
        ),
    ]
    assert found == [("UNAUTHENTICATED", "BAD_TOKEN")] * 2


def test_an_agent_may_not_do_what_operators_do(site):
    """Denied, whatever the arguments."""
    calls = [
        (site.sidecars.SleepAgent, sidecar_pb.SidecarServiceSleepAgentRequest()),
        (site.sidecars.Watch, sidecar_pb.SidecarServiceWatchRequest()),
        (site.letters.RedriveLetters, letter_pb.RedriveLettersRequest(all=True)),
        (site.letters.DiscardLetters, letter_pb.DiscardLettersRequest(all=True)),
        (site.letters.ExportLetters, letter_pb.ExportLettersRequest()),
        (
            site.circuits.IsolateCircuit,
            circuit_pb.IsolateCircuitRequest(circuit_id="default"),
        ),
        (site.checkpoints.PruneCheckpoints, checkpoint_pb.PruneCheckpointsRequest()),
    ]
    found = {refusal(*call, metadata=site.agent_token)[0] for call in calls}
    assert found == {"PERMISSION_DENIED"}


def test_an_agent_reaches_no_checkpoints_but_its_own(site):
    """Another agent's name is refused, and one that is a path too."""
    request = checkpoint_pb.ListCheckpointsRequest
    for name in ("b", "../a"):
        status, _ = refusal(
            site.checkpoints.ListCheckpoints,
            request(agent_id=name),
            metadata=site.agent_token,
        )
        assert status in {"PERMISSION_DENIED", "INVALID_ARGUMENT"}


def test_a_wrong_join_token_is_told_and_tried_again(site):
    """The sidecar runs on, its log says why, and the controller knows nobody."""
    wait_for(lambda: "[BAD_TOKEN]" in site.sidecar.text(), "the line in the log")
    told = [x for x in site.sidecar.text().splitlines() if "[BAD_TOKEN]" in x]
    assert len(told) == 1
    assert told[0].startswith("outrigger: sidecar: controller: ")
    agents = site.fleet.ListAgents(fleet_pb.ListAgentsRequest(), metadata=site.admin)
    assert not agents.agents


# What is too large, and what is not there.


def test_an_oversized_message_is_refused(site):
    """More than 4 MiB never reaches a handler; the next call is answered."""
    request = letter_pb.DeliverCallRequest(method=METHOD, request=bytes(5 * MIB))
    status, _ = refusal(site.letters.DeliverCall, request, metadata=site.operator)
    assert status == "RESOURCE_EXHAUSTED"
    entries = [fleet_pb.SleepAgentRequest(agent_id="a", reason="x" * 5 * MIB)]
    status, _ = refusal(site.fleet.SleepAgent, entries[0], metadata=site.admin)
    assert status == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("where", ["api", "admin", "outbound"])
def test_oversized_metadata_is_refused(site, where):
    """Far more than 64 KiB of metadata is too much on every listener."""
    metadata = tuple((f"x-{number}", "x" * 4000) for number in range(64))
    calls = {
        "api": (site.sidecars.GetSidecar, sidecar_pb.GetSidecarRequest()),
        "admin": (site.fleet.ListAgents, fleet_pb.ListAgentsRequest()),
        "outbound": (site.outbound.unary_unary(METHOD), b"x"),
    }
    status, _ = refusal(*calls[where], metadata=metadata)
    assert status == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("method", ["/outrigger.v1.SidecarService/Sneeze", "/x.Y/Z"])
def test_a_method_that_is_not_there_is_unimplemented(site, method):
    """On the API; the relay hands every method on."""
    call = site.api.unary_unary(method)
    assert refusal(call, b"", metadata=site.operator)[0] == "UNIMPLEMENTED"


def test_bytes_that_are_no_message_are_refused(site):
    """They end with a status, not with the connection."""
    call = site.api.unary_unary("/outrigger.v1.LetterService/GetLetter")
    found = refusal(call, b"\xff\xff\xff", metadata=site.operator)
    assert found == ("INVALID_ARGUMENT", "BAD_MESSAGE")
    stranger = refusal(call, b"\xff\xff\xff")
    assert stranger == ("UNAUTHENTICATED", "NO_TOKEN")
    call = site.api.stream_unary("/outrigger.v1.LetterService/ImportLetters")
    found = refusal(call, iter([b"", b"\xff\xff"]), metadata=site.operator)
    assert found[0] == "INVALID_ARGUMENT"


@pytest.mark.parametrize("order", ["Sleep", "Wake"])
def test_a_stale_epoch_moves_nobody(site, order):
    """The refusal carries the present one."""
    request = getattr(sidecar_pb, f"SidecarService{order}AgentRequest")
    call = getattr(site.sidecars, f"{order}Agent")
    with pytest.raises(grpc.RpcError) as caught:
        call(request(seen_epoch=987654), metadata=site.operator)

    error = from_rpc_error(caught.value)
    assert (error.status, error.reason) == ("ABORTED", "STALE_EPOCH")
    assert error.metadata["epoch"] == str(site.agent().epoch)


def test_an_agent_nobody_knows_is_not_found(site):
    """By name at the controller, by metadata through it."""
    known = (*site.admin, ("outrigger-agent", "nobody"))
    found = [
        refusal(
            site.fleet.GetAgent,
            fleet_pb.GetAgentRequest(agent_id="nobody"),
            metadata=site.admin,
        ),
        refusal(
            site.fleet.SleepAgent,
            fleet_pb.SleepAgentRequest(agent_id="nobody"),
            metadata=site.admin,
        ),
        refusal(
            site.far_letters.GetLedger, letter_pb.GetLedgerRequest(), metadata=known
        ),
    ]
    assert found == [("NOT_FOUND", "UNKNOWN_AGENT")] * 3


def test_a_call_through_the_controller_names_its_agent(site):
    """Without the metadata nobody is guessed."""
    status, reason = refusal(
        site.far_letters.GetLedger, letter_pb.GetLedgerRequest(), metadata=site.admin
    )
    assert status == "INVALID_ARGUMENT"
    assert reason == "NO_AGENT"


def test_things_that_are_not_there_are_not_found(site):
    """A letter, a circuit, a generation."""
    calls = [
        (site.letters.GetLetter, letter_pb.GetLetterRequest(letter_id="none")),
        (
            site.circuits.IsolateCircuit,
            circuit_pb.IsolateCircuitRequest(circuit_id="none", reason="test"),
        ),
        (
            site.checkpoints.RestoreCheckpoint,
            checkpoint_pb.RestoreCheckpointRequest(agent_id="a", generation=99),
        ),
    ]
    found = [refusal(*call, metadata=site.operator)[0] for call in calls]
    assert found == ["NOT_FOUND"] * 3


# Calls to deliver later.

METADATA = letter_pb2.MetadataEntry


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ({"method": ""}, "INVALID_ARGUMENT", "BAD_METHOD"),
        ({"method": "Call"}, "INVALID_ARGUMENT", "BAD_METHOD"),
        ({"method": "/a/b/c"}, "INVALID_ARGUMENT", "BAD_METHOD"),
        ({"upstream": "none"}, "NOT_FOUND", "UNKNOWN_UPSTREAM"),
        ({"upstream": "No!"}, "NOT_FOUND", "UNKNOWN_UPSTREAM"),
        ({"ttl": Duration(seconds=-1)}, "INVALID_ARGUMENT", "BAD_TTL"),
        ({"ttl": Duration()}, "INVALID_ARGUMENT", "BAD_TTL"),
        (
            {"earliest_time": Timestamp(seconds=1 << 61)},
            "INVALID_ARGUMENT",
            "BAD_TIME",
        ),
        ({"idempotency_key": "x" * 5000}, "INVALID_ARGUMENT", "BAD_IDEMPOTENCY_KEY"),
        ({"idempotency_key": "a\nb"}, "INVALID_ARGUMENT", "BAD_IDEMPOTENCY_KEY"),
        (
            {"metadata": [METADATA(key="x", value=b"\xff")]},
            "INVALID_ARGUMENT",
            "BAD_METADATA",
        ),
        (
            {"metadata": [METADATA(key="Not A Key", value=b"x")]},
            "INVALID_ARGUMENT",
            "BAD_METADATA",
        ),
        (
            {"metadata": [METADATA(key="x", value=b"a\nb")]},
            "INVALID_ARGUMENT",
            "BAD_METADATA",
        ),
    ],
)
def test_a_call_that_could_never_be_delivered_is_refused(site, given, status, reason):
    """No letter comes of it: it is wrong now, and would be wrong then."""
    before = site.ledger().accepted_count
    request = letter_pb.DeliverCallRequest(**{"method": METHOD, **given})

    found = refusal(site.letters.DeliverCall, request, metadata=site.agent_token)

    assert found == (status, reason)
    assert site.ledger().accepted_count == before


def test_a_key_used_for_another_call_is_a_conflict(site):
    """The first letter stays what it was."""

    def request(body):
        return letter_pb.DeliverCallRequest(
            method=METHOD, request=body, idempotency_key="once"
        )

    first = site.letters.DeliverCall(request(b"1"), metadata=site.agent_token).letter
    again = site.letters.DeliverCall(request(b"1"), metadata=site.agent_token).letter
    found = refusal(site.letters.DeliverCall, request(b"2"), metadata=site.agent_token)

    assert again.letter_id == first.letter_id
    assert found == ("ABORTED", "IDEMPOTENCY_KEY_REUSED")


def test_letters_over_the_limit_are_refused_and_counted(site):
    """What was acknowledged before stays; refusals are in the ledger by reason."""
    before = site.ledger().accepted_count
    request = letter_pb.DeliverCallRequest(method=METHOD, request=bytes(3 * MIB))
    refusals = []
    for _ in range(8):
        try:
            site.letters.DeliverCall(request, metadata=site.agent_token)
        except grpc.RpcError as error:
            refusals.append((error.code().name, from_rpc_error(error).reason))

    assert 0 < len(refusals) < 8
    assert set(refusals) == {("RESOURCE_EXHAUSTED", "JOURNAL_FULL")}
    after = site.ledger()
    assert after.accepted_count == before + 8 - len(refusals)
    assert after.refused_counts["JOURNAL_FULL"] == len(refusals)


# The relay.


def trailers(site, body=b"x", **metadata):
    """Make a call that fails; return its status, reason and trailers."""
    call = site.outbound.unary_unary(METHOD)
    pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
    with pytest.raises(grpc.RpcError) as caught:
        call(body, metadata=pairs, timeout=10)
    error = from_rpc_error(caught.value)
    found = dict(caught.value.trailing_metadata())
    return caught.value.code().name, error.reason, found


def test_an_unknown_upstream_is_refused_by_the_relay(site):
    """It says who refused, so that no upstream is blamed."""
    status, reason, found = trailers(site, outrigger_upstream="none")

    assert (status, reason) == ("NOT_FOUND", "UNKNOWN_UPSTREAM")
    assert found["outrigger-refused-by"] == "route"


def test_a_request_too_large_for_a_letter_says_so(site):
    """The call fails as it would have; the trailer says why there is no letter."""
    before = site.ledger().accepted_count
    status, _, found = trailers(site, bytes(5 * MIB), outrigger_letter="on")

    assert status == "UNAVAILABLE"
    # Refused by an open circuit nothing of it was sent; else it went past the buffer.
    assert found["outrigger-letter-refused"] in {"REQUEST_TOO_LARGE", "COMMITTED"}
    assert "outrigger-letter-id" not in found
    assert site.ledger().accepted_count == before
