"""Bad agents, a sidecar that dies, and a Redis that refuses: the rest goes on."""

import signal
import socket

import pytest

from outrigger.v1 import agent_pb2
from outrigger.v1 import letter_service_pb2 as letter_pb
from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.command import run_apart
from tests.support.processes import Stack, operator, wait_for
from tests.support.redis_server import RedisServer, free_port
from tests.support.refusals import refused, serve, start_words

METHOD = "/test.Ledger/Call"


@pytest.fixture
def stack(tmp_path):
    """A stack whose processes all end with the test."""
    with Stack(tmp_path) as stack:
        yield stack


def ends(state, *command):
    """Run a sidecar whose agent ends by itself; return code and lines of stderr."""
    result = run_apart(*start_words("sidecar", state, "--", *command))
    assert "Traceback" not in result.err
    return result.code, result.err.splitlines()


def agent(stack, sidecar):
    stub = SidecarServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
    request = sidecar_pb.GetSidecarRequest()
    return stub.GetSidecar(request, metadata=operator(sidecar.state), timeout=5).agent


# The agent.


def test_a_command_that_does_not_exist_is_told_in_one_line(tmp_path):
    """127, as shells say it, at the first try and at the next one."""
    for _ in range(2):
        code, lines = ends(tmp_path / "s", "/nonexistent/agent", "--flag")
        assert code == 127
        assert lines == [
            "outrigger: cannot run '/nonexistent/agent': No such file or directory"
        ]


def test_a_command_that_may_not_run_is_told_in_one_line(tmp_path):
    """126, as shells say it: a folder, and a file without the permission."""
    (tmp_path / "plain").touch(mode=0o600)
    for command in (tmp_path, tmp_path / "plain"):
        code, lines = ends(tmp_path / "s", command)
        assert code == 126
        assert lines == [f"outrigger: cannot run '{command}': Permission denied"]


def test_an_agent_that_is_done_hands_its_code_on(tmp_path):
    """Exit 0 is no crash, and nothing is said about it."""
    assert ends(tmp_path / "s", "true") == (0, [])


def test_an_agent_that_crashes_again_and_again_hands_its_code_on(tmp_path):
    """One line per crash, the last one says that it is given up."""
    code, lines = ends(tmp_path / "s", "sh", "-c", "exit 9")

    assert code == 9
    assert [line.endswith("[CRASHED]") for line in lines[:-1]] == [True] * 5
    assert lines[-1].endswith("its process ended with exit code 9 [CRASH_LOOPED]")
    assert all(line.startswith("outrigger: sidecar: agent.") for line in lines)


def test_a_start_that_failed_costs_no_agent_its_first_start(tmp_path):
    """A port that was taken is no reason to believe that the agent sleeps."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        taken = "{}:{}".format(*holder.getsockname())
        refused("sidecar", tmp_path / "s", "--api", taken, "--", "true")

    assert ends(tmp_path / "s", "sh", "-c", "exit 0") == (0, [])


def test_a_killed_sidecar_starts_again_on_the_same_state(stack, tmp_path):
    """The lock, the sockets and the agent that was left behind are no obstacle."""
    words = start_words("sidecar", tmp_path / "s", "--sleep-mode", "freeze")
    first = serve(stack, *words, "--", "sleep", "1000")
    pid = wait_for(lambda: agent(stack, first).pid, "the first agent")
    refused("sidecar", tmp_path / "s")
    first.kill(signal.SIGKILL)
    assert (tmp_path / "s" / "api.sock").exists()

    second = serve(stack, *words, "--", "sleep", "1000")

    def another():
        found = agent(stack, second)
        return found if found.pid not in (0, pid) else None

    found = wait_for(another, "the second agent")
    assert found.state in (
        agent_pb2.Agent.STATE_WAKING,
        agent_pb2.Agent.STATE_AWAKE,
    )
    assert "Traceback" not in second.text()


# The controller.


def test_a_wrong_join_token_is_told_even_when_it_is_found_out_late(stack, tmp_path):
    """First the controller is away, then it refuses: one line for each."""
    controller = stack.controller()
    controller.kill()
    join = tmp_path / "join"
    join.write_text("wrong")
    join.chmod(0o600)
    sidecar = stack.sidecar(
        "a",
        *("--controller", controller.addresses["connect"]),
        *("--join-token-file", str(join)),
    )
    wait_for(lambda: "[PEER_UNAVAILABLE]" in sidecar.text(), "the first line")
    stack.controller()

    wait_for(lambda: "[BAD_TOKEN]" in sidecar.text(), "the second line")
    assert sidecar.text().count("outrigger: sidecar: controller: ") == 2
    assert "'join-token'" in sidecar.text()


# Redis.


@pytest.mark.parametrize(
    "url",
    ["bogus", "http://127.0.0.1", "redis://127.0.0.1:port", "redis://127.0.0.1/x"],
)
def test_a_url_that_is_none_is_refused_at_the_start(tmp_path, url):
    """2, with what a URL of Redis looks like."""
    result = refused("sidecar", tmp_path / "s", "--redis", url)

    assert (result.code, "redis" in result.err) == (2, True), result.err
    assert "HOST:PORT" in result.err or "database" in result.err


def test_a_password_in_a_bad_url_is_not_shown(tmp_path):
    """The line may end in a log that others read."""
    url = "redys://:hush-hush@127.0.0.1:1"
    result = refused("sidecar", tmp_path / "s", "--redis", url)

    assert "hush-hush" not in result.err


def delivered_without(stack, tmp_path, url):
    """Deliver a call with a Redis that is no use; return the sidecar."""
    upstream = stack.upstream()
    target = f"default={upstream.target}"
    words = start_words("sidecar", tmp_path / "s", "--upstream", target)
    sidecar = serve(stack, *words, "--redis", url)
    stub = LetterServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
    metadata = operator(sidecar.state)
    stub.DeliverCall(
        letter_pb.DeliverCallRequest(method=METHOD, request=b"x"), metadata=metadata
    )

    def ledger():
        request = letter_pb.GetLedgerRequest()
        return stub.GetLedger(request, metadata=metadata, timeout=5).ledger

    wait_for(lambda: ledger().delivered_count == 1, "the delivery")
    assert ledger().lost_count == 0
    return sidecar


def alert(sidecar):
    """Return the one line about Redis in a sidecar's log."""
    log = wait_for(
        lambda: "REDIS" in sidecar.text().upper() and sidecar.text(), "an alert"
    )
    assert "Traceback" not in log
    lines = [line for line in log.splitlines() if "redis" in line.lower()]
    assert len(lines) == 1
    return lines[0]


def test_a_redis_that_is_absent_is_told_and_done_without(stack, tmp_path):
    """The journal is the record: letters are taken and delivered all the same."""
    url = f"redis://:hush-hush@127.0.0.1:{free_port()}/0"
    sidecar = delivered_without(stack, tmp_path, url)

    assert "hush-hush" not in alert(sidecar)


def test_a_redis_that_refuses_is_told_and_done_without(stack, tmp_path):
    """A wrong password is the operator's to mend, not the agent's to suffer."""
    server = RedisServer(tmp_path, requirepass="other").start()
    try:
        url = f"redis://:hush-hush@127.0.0.1:{server.port}/0"
        sidecar = delivered_without(stack, tmp_path, url)
        assert "hush-hush" not in alert(sidecar)
    finally:
        server.kill()
