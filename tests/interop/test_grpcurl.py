"""A client that is not Python and has no proto files: grpcurl, by reflection only.

Run by `make interop`, which finds grpcurl or builds it; not part of `make test`,
because a fresh machine has neither.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.support.processes import PYTHON, ROOT, Stack, operator, wait_for

GRPCURL = os.environ.get("GRPCURL") or shutil.which("grpcurl") or "grpcurl"
AGENT = (sys.executable, "-P", str(ROOT / "examples" / "echo_agent.py"))


def grpcurl(address, *words, token=None, data=None, metadata=()):
    """Call, and return the answers as JSON documents."""
    headers = [*(f"{key}: {value}" for key, value in metadata)]
    if token:
        headers.append(f"outrigger-token: {token}")
    flags = [word for header in headers for word in ("-H", header)]
    body = ["-d", json.dumps(data)] if data is not None else []
    result = subprocess.run(
        [GRPCURL, "-plaintext", "-max-time", "10", *flags, *body, address, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def documents(text):
    """Split concatenated JSON documents."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text.rstrip()):
        document, end = decoder.raw_decode(text, at)
        found.append(document)
        at = end + 1
    return found


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """A controller, the demo's tool server, and a sidecar with an agent."""
    with Stack(tmp_path_factory.mktemp("interop")) as stack:
        tools = stack.start(
            "tools",
            *PYTHON,
            "outrigger.demo.tool_server",
            "--listen",
            "127.0.0.1:0",
            "--port-file",
            str(stack.folder / "tools.port"),
            "--seen",
            str(stack.folder / "tools.seen"),
        )
        port = wait_for((stack.folder / "tools.port").read_text, "the tool server")
        stack.tools = tools
        stack.control = stack.controller()
        stack.side = stack.sidecar(
            "curled",
            "--controller",
            stack.control.addresses["connect"],
            "--join-token-file",
            str(stack.control.state / "join-token"),
            upstream=f"127.0.0.1:{port.strip()}",
            command=AGENT,
        )
        stack.admin = stack.control.addresses["admin"]
        stack.token = operator(stack.control.state)[0][1]
        yield stack


def test_a_unary_and_a_streaming_method_through_the_relay(stack):
    """The upstream's own reflection passes the relay, and so do its methods."""
    relay = stack.side.addresses["outbound"]
    assert "outrigger.demo.Tools" in grpcurl(relay, "list")

    (unary,) = documents(
        grpcurl(relay, "outrigger.demo.Tools/Analyze", data="light and colours")
    )
    streamed = documents(
        grpcurl(relay, "outrigger.demo.Tools/Terms", data="light and colours")
    )

    assert unary["words"] == 3
    assert len(streamed) >= 3


def test_letters_are_listed_through_the_controller(stack):
    """One admin address is enough: the call is passed on to the agent's sidecar."""
    found = documents(
        grpcurl(
            stack.admin,
            "outrigger.v1.LetterService/ListLetters",
            token=stack.token,
            data={},
            metadata=(("outrigger-agent", "curled"),),
        )
    )

    assert found == [{}]


@pytest.mark.parametrize("through_controller", [True, False])
def test_calls_are_explained(stack, through_controller):
    """Circuits, upstreams and a refusal of faults, both ways to a sidecar."""
    way = {"token": stack.token, "metadata": (("outrigger-agent", "curled"),)}
    address = stack.admin
    if not through_controller:
        address = stack.side.addresses["api_tcp"]
        way = {"token": operator(stack.side.state)[0][1]}
    offered = grpcurl(address, "list", token=way["token"])
    service = "outrigger.v1."
    assert {service + "TapService", service + "FaultService"} <= set(offered.split())

    shown = grpcurl(
        address,
        service + "CircuitService/GetCircuit",
        data={"circuit_id": "default"},
        **way,
    )
    (upstreams,) = documents(
        grpcurl(address, service + "UpstreamService/ListUpstreams", data={}, **way)
    )
    with pytest.raises(AssertionError, match="allow-faults"):
        grpcurl(address, service + "FaultService/ListFaults", data={}, **way)

    assert documents(shown)[0]["circuit"]["name"] == "circuits/default"
    assert set(upstreams) <= {"upstreams"}


def test_an_agent_is_put_to_sleep_and_seen_asleep(stack):
    """SleepAgent on the admin API, by reflection only."""

    def state():
        text = grpcurl(
            stack.admin,
            "outrigger.v1.FleetService/GetAgent",
            token=stack.token,
            data={"agent_id": "curled"},
        )
        return documents(text)[0]["agent"]["state"]

    wait_for(lambda: state() == "STATE_AWAKE", "awake")
    grpcurl(
        stack.admin,
        "outrigger.v1.FleetService/SleepAgent",
        token=stack.token,
        data={"agent_id": "curled", "reason": "interop"},
    )

    wait_for(lambda: state() == "STATE_ASLEEP", "asleep")
