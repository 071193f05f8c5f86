"""The commands that explain calls, against real processes, both ways to a sidecar."""

import json
import select
import signal
import subprocess

import grpc
import pytest

from outrigger.core.rpc.errors import from_rpc_error
from outrigger.v1 import (
    circuit_service_pb2,
    fault_service_pb2,
    tap_service_pb2,
    upstream_service_pb2,
)
from outrigger.v1.circuit_pb2 import Circuit
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub
from outrigger.v1.fault_service_pb2_grpc import FaultServiceStub
from outrigger.v1.tap_service_pb2_grpc import TapServiceStub
from outrigger.v1.upstream_pb2 import Upstream, UpstreamAddress
from outrigger.v1.upstream_service_pb2_grpc import UpstreamServiceStub
from tests.support.command import command_line, run_here
from tests.support.processes import Stack, operator, wait_for

METHOD = "/test.Ledger/Call"
SECRET = "hunter2hunter2"
METADATA = (("authorization", f"Bearer {SECRET}"), ("x-plain", "hello"))


class Site:
    """A controller, a sidecar and an upstream that comes and goes."""

    def __init__(self, stack):
        self.stack = stack
        self.upstream = stack.upstream()
        self.controller = stack.controller()
        self.sidecar = stack.sidecar(
            "a",
            *("--controller", self.controller.addresses["connect"]),
            *("--join-token-file", str(self.controller.state / "join-token")),
            upstream=self.upstream.target,
        )
        self.outbound = stack.channel(self.sidecar.addresses["outbound"])
        self.ways = {
            "direct": (
                stack.channel(self.sidecar.addresses["api_tcp"]),
                operator(self.sidecar.state),
                ("--api", self.sidecar.addresses["api"]),
            ),
            "controller": (
                stack.channel(self.controller.addresses["admin"]),
                (*operator(self.controller.state), ("outrigger-agent", "a")),
                ("--agent", "a", "--state-dir", str(self.controller.state)),
            ),
        }
        wait_for(self._is_connected, "the sidecar at the controller")

    def _is_connected(self):
        channel, metadata, _ = self.ways["controller"]
        request = circuit_service_pb2.ListCircuitsRequest()
        return CircuitServiceStub(channel).ListCircuits(request, metadata=metadata)

    def is_well(self):
        """Make a call; say whether the circuit is closed after it."""
        self.call()
        channel, metadata, _ = self.ways["direct"]
        request = circuit_service_pb2.GetCircuitRequest(circuit_id="default")
        found = CircuitServiceStub(channel).GetCircuit(request, metadata=metadata)
        return found.circuit.state == Circuit.STATE_CLOSED

    def call(self):
        """Make a call through the relay; return the status it ended with."""
        try:
            self.outbound.unary_unary(METHOD)(b"x", metadata=METADATA, timeout=10)
        except grpc.RpcError as error:
            return error.code()
        return grpc.StatusCode.OK


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """One of everything, for all tests here."""
    with Stack(tmp_path_factory.mktemp("site")) as stack:
        yield Site(stack)


@pytest.fixture(params=["direct", "controller"])
def way(site, request):
    """Straight to the sidecar's API, and by way of the controller."""
    return site.ways[request.param]


def lines_of(words):
    """Start the real command; its output is read line by line."""
    return subprocess.Popen(
        command_line(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def interrupted(child):
    """End a command as a person does; return what else it printed."""
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert (child.returncode, err) == (130, "")
    return out


def test_a_tap_shows_a_call_and_not_its_secret(site, way):
    """One line of JSON per call that ends while somebody taps."""
    _, _, flags = way
    with lines_of(("tap", "--method", METHOD, "-o", "jsonl", *flags)) as child:
        try:
            wait_for(
                lambda: site.call() is grpc.StatusCode.OK and _readable(child),
                "a call on the tap",
            )
            line = child.stdout.readline()
        finally:
            rest = interrupted(child)
    call = json.loads(line)["call"]

    assert (call["method"], call["upstream"], call["status_code"]) == (
        METHOD,
        "default",
        0,
    )
    shown = {entry["key"]: entry["value"] for entry in call["metadata"]}
    assert (shown["authorization"], shown["x-plain"]) == ("(redacted)", "hello")
    assert SECRET not in line + rest


def _readable(child):
    return select.select([child.stdout], [], [], 0.1)[0]


def test_a_watch_tells_what_an_operator_does_and_show_says_why(site, way):
    """The same story in the stream, in the answer and on the screen."""
    channel, metadata, flags = way
    stub = CircuitServiceStub(channel)
    watch = stub.WatchCircuits(
        circuit_service_pb2.WatchCircuitsRequest(), metadata=metadata, timeout=60
    )
    present = []
    for answer in watch:
        if answer.HasField("shown"):
            break
        present.append(answer.present.circuit_id)
    told = run_here("circuits", "isolate", "default", "--reason", "a trial", *flags)
    moved = next(watch).move
    shown = run_here("circuits", "show", "default", *flags)
    listed = run_here("circuits", "list", "--state", "isolated", "-o", "json", *flags)
    run_here("circuits", "restore", "default", *flags)
    restored = next(watch).move
    watch.cancel()

    assert "default" in present
    assert told.code == 0
    assert (moved.circuit_id, moved.after) == ("default", Circuit.STATE_ISOLATED)
    assert moved.reason == "a trial"
    assert restored.before == Circuit.STATE_ISOLATED
    assert "isolated since" in shown.out
    assert "a trial" in shown.out
    assert [one["circuit_id"] for one in json.loads(listed.out)] == ["default"]


def test_an_outage_is_told_line_by_line(site):
    """The command prints the move as the circuit makes it, and which calls made it."""
    _, _, flags = site.ways["controller"]
    port = site.upstream.port
    wait_for(site.is_well, "a closed circuit")
    with lines_of(("circuits", "watch", "--upstream", "default", *flags)) as child:
        for line in child.stdout:
            if line.startswith("--"):
                break
        site.upstream.kill()
        for _ in range(12):
            site.call()
        try:
            moves = [child.stdout.readline()]
            while "-> open" not in moves[-1]:
                moves.append(child.stdout.readline())
        finally:
            interrupted(child)
    shown = json.loads(
        run_here("circuits", "show", "default", "-o", "json", *flags).out
    )
    site.upstream = site.stack.upstream(port=port)
    wait_for(site.is_well, "the upstream's return")

    assert "closed -> open" in moves[-1]
    assert {one["method"] for one in shown["failed_calls"]} == {METHOD}
    assert any(one["after"] == "STATE_OPEN" for one in shown["history"])


def test_what_was_not_allowed_at_the_start_is_refused(site, way):
    """Faults need a flag of the sidecar's, whoever asks."""
    channel, metadata, flags = way
    with pytest.raises(grpc.RpcError) as caught:
        FaultServiceStub(channel).InjectFault(
            fault_service_pb2.InjectFaultRequest(), metadata=metadata
        )
    words = ("--match", "*", "--kind", "drop", "--ttl", "60s")
    result = run_here("faults", "inject", *words, *flags)

    assert from_rpc_error(caught.value).reason == "FAULTS_NOT_ALLOWED"
    assert (result.code, "[FAULTS_NOT_ALLOWED]" in result.err) == (1, True)
    wait_for(site.is_well, "calls that go on as before")


def test_what_was_allowed_goes_wrong_and_ends(tmp_path):
    """Every second call is aborted and marked, until the fault is cleared."""
    with Stack(tmp_path) as stack:
        upstream = stack.upstream()
        sidecar = stack.sidecar("b", "--allow-faults", upstream=upstream.target)
        flags = ("--api", sidecar.addresses["api"])
        call = stack.channel(sidecar.addresses["outbound"]).unary_unary(METHOD)
        wait_for(lambda: call(b"x", timeout=5), "a healthy call")
        words = ("--match", METHOD, "--kind", "abort", "--code", "ABORTED")
        more = ("--share", "0.5", "--ttl", "60s")
        injected = run_here("faults", "inject", *words, *more, *flags)
        marks = []
        for _ in range(6):
            try:
                call(b"x", timeout=5)
            except grpc.RpcError as error:
                mark = dict(error.trailing_metadata())["outrigger-fault"]
                marks.append((error.code().name, mark))
        (listed,) = json.loads(run_here("faults", "list", "-o", "json", *flags).out)
        cleared = run_here("faults", "clear", *flags)
        assert [call(b"x", timeout=5) for _ in range(4)] == [b"x"] * 4
        log = sidecar.text()

    assert (injected.code, cleared.out) == (0, "cleared  1\n")
    assert marks == [("ABORTED", "abort")] * 3
    assert (listed["matched_count"], listed["hit_count"]) == ("6", "3")
    assert "[FAULT_INJECTED]" in log
    assert "[FAULT_ENDED]" in log


def test_upstreams_are_listed(site, way):
    """Each with its addresses and their state, by the RPC and by the command."""
    wait_for(site.is_well, "a healthy call")
    channel, metadata, flags = way
    (upstream,) = (
        UpstreamServiceStub(channel)
        .ListUpstreams(upstream_service_pb2.ListUpstreamsRequest(), metadata=metadata)
        .upstreams
    )
    table = run_here("upstreams", "list", *flags).out.splitlines()

    assert (upstream.upstream_id, upstream.tls) == ("default", Upstream.TLS_OFF)
    assert (upstream.in_flight_count, upstream.in_flight_limit) == (0, 1024)
    (address,) = upstream.addresses
    assert address.address == site.upstream.target
    assert (address.state, address.ejected) == (UpstreamAddress.STATE_READY, False)
    assert table[1].split()[:4] == ["default", site.upstream.target, "ready", "off"]


def test_an_agents_token_explains_nothing(site):
    """It reaches none of these services."""
    channel, _, _ = site.ways["direct"]
    token = (site.sidecar.state / "token").read_text().strip()
    metadata = (("outrigger-token", token),)
    calls = [
        lambda: next(
            TapServiceStub(channel).Tap(tap_service_pb2.TapRequest(), metadata=metadata)
        ),
        lambda: next(
            CircuitServiceStub(channel).WatchCircuits(
                circuit_service_pb2.WatchCircuitsRequest(), metadata=metadata
            )
        ),
        lambda: FaultServiceStub(channel).ListFaults(
            fault_service_pb2.ListFaultsRequest(), metadata=metadata
        ),
        lambda: UpstreamServiceStub(channel).ListUpstreams(
            upstream_service_pb2.ListUpstreamsRequest(), metadata=metadata
        ),
    ]
    for call in calls:
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert from_rpc_error(caught.value).reason == "FORBIDDEN"


def test_both_servers_offer_the_services_by_reflection(site):
    """So that grpcurl needs no proto files."""
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    for channel, _, _ in site.ways.values():
        database = ProtoReflectionDescriptorDatabase(channel)
        offered = set(database.get_services())
        assert {
            "outrigger.v1.CircuitService",
            "outrigger.v1.FaultService",
            "outrigger.v1.TapService",
            "outrigger.v1.UpstreamService",
        } <= offered
        file = database.FindFileContainingSymbol("outrigger.v1.TapService")
        assert [method.name for method in file.service[0].method] == ["Tap"]
