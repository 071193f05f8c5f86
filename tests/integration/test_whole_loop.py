"""Controller, sidecar and agent as processes: asleep, awake, killed, the same."""

import os
import signal
import socket
import sys

import grpc
import pytest

from outrigger.core.rpc.errors import from_rpc_error
from outrigger.v1 import agent_pb2
from outrigger.v1 import fleet_service_pb2 as fleet_pb
from outrigger.v1 import letter_service_pb2 as letter_pb
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from tests.support.processes import ROOT, Stack, operator, wait_for

STUB = ROOT / "tests" / "support" / "stub_agent.py"
AWAKE = agent_pb2.Agent.STATE_AWAKE
ASLEEP = agent_pb2.Agent.STATE_ASLEEP


class Loop:
    """One agent with everything around it."""

    def __init__(self, stack):
        self.stack = stack
        self.socket = stack.folder / "c.sock"
        self.upstream = stack.upstream()
        self.controller = stack.controller()
        self.sidecar = None
        self.fleet = FleetServiceStub(stack.channel(self.controller.addresses["admin"]))
        self.start_sidecar()
        self.reached(AWAKE)

    def start_sidecar(self):
        self.sidecar = self.stack.sidecar(
            "a",
            "--controller",
            self.controller.addresses["connect"],
            "--join-token-file",
            str(self.controller.state / "join-token"),
            "--report-interval-s",
            "0.2",
            upstream=self.upstream.target,
            command=(sys.executable, "-P", str(STUB), str(self.socket)),
        )

    @property
    def admin(self):
        return operator(self.controller.state)

    def agent(self):
        request = fleet_pb.GetAgentRequest(agent_id="a")
        return self.fleet.GetAgent(request, metadata=self.admin, timeout=3).agent

    def reached(self, state):
        return wait_for(
            lambda: self.agent() if self.agent().state == state else None,
            agent_pb2.Agent.State.Name(state),
        )

    def tell(self, words):
        """Give the stub agent an order; return its number."""
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self.socket))
            control.sendall(f"{words}\n".encode())
            return int(control.makefile().readline())

    def sleep(self):
        self.fleet.SleepAgent(
            fleet_pb.SleepAgentRequest(agent_id="a", reason="test"),
            metadata=self.admin,
        )
        return self.reached(ASLEEP)

    def wake(self):
        self.fleet.WakeAgent(
            fleet_pb.WakeAgentRequest(agent_id="a", reason="test"), metadata=self.admin
        )
        return self.reached(AWAKE)


@pytest.fixture
def loop(tmp_path):
    """The whole loop, awake."""
    with Stack(tmp_path) as stack:
        yield Loop(stack)


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_three_sleeps_in_a_row_keep_a_changing_state(loop):
    """Each time the process is gone, and each time the number is the last one."""
    for number in (1, 2, 3):
        assert loop.tell("add 1") == number
        pid = loop.agent().pid
        asleep = loop.sleep()

        assert not is_there(pid)
        assert (asleep.pid, asleep.generation) == (0, number)
        awake = loop.wake()
        assert loop.tell("get") == number
        assert awake.woken_digest == asleep.state_digest
        assert (awake.sleep_count, awake.wake_count) == (number, number)
        assert awake.epoch > asleep.epoch


def test_a_killed_sidecar_leaves_a_sleeper_asleep_and_wakes_it_the_same(loop):
    """The epoch goes on rising and the state is the one that was put to sleep."""
    loop.tell("add 41")
    before = loop.sleep()
    loop.sidecar.kill()
    loop.start_sidecar()

    found = loop.reached(ASLEEP)
    assert found.state_digest == before.state_digest
    awake = loop.wake()
    assert loop.tell("get") == 41
    assert awake.epoch > before.epoch


def test_a_killed_agent_comes_back_with_its_last_saved_state(loop):
    """What was acknowledged survives the agent; what was not is gone."""
    loop.tell("add 5")
    loop.sleep()
    loop.wake()
    loop.tell("add 100")
    pid = loop.agent().pid
    os.kill(pid, signal.SIGKILL)

    def back():
        found = loop.agent()
        return found.state == AWAKE and found.pid not in (0, pid)

    wait_for(back, "the agent's return")
    assert loop.tell("get") == 5


def test_a_killed_controller_finds_its_fleet_again(loop):
    """Pins and audit stay, the agent never stopped, commands work again."""
    loop.fleet.PinAgent(
        fleet_pb.PinAgentRequest(agent_id="a", reason="test"), metadata=loop.admin
    )
    pid = loop.agent().pid
    loop.controller.kill()
    loop.controller = loop.stack.controller()

    found = loop.reached(AWAKE)
    assert (found.pinned, found.pid) == (True, pid)
    loop.fleet.UnpinAgent(fleet_pb.UnpinAgentRequest(agent_id="a"), metadata=loop.admin)
    loop.sleep()
    loop.wake()
    records = loop.fleet.ListAuditRecords(
        fleet_pb.ListAuditRecordsRequest(), metadata=loop.admin
    ).records
    methods = [record.method.rpartition("/")[2] for record in records]
    assert [name for name in methods if name in ("PinAgent", "UnpinAgent")] == [
        "PinAgent",
        "UnpinAgent",
    ]


def test_a_killed_upstream_costs_no_accepted_call(loop):
    """Calls become letters while it is away and arrive when it is back."""
    call = loop.stack.channel(loop.sidecar.addresses["outbound"]).unary_unary(
        "/test.Ledger/Call"
    )
    loop.upstream.kill()
    letters = set()
    for number in range(20):
        with pytest.raises(grpc.RpcError) as caught:
            call(b"%d" % number, metadata=(("outrigger-letter", "on"),), timeout=5)
        trailers = dict(caught.value.trailing_metadata())
        letters.add(trailers["outrigger-letter-id"])
        assert trailers["grpc-retry-pushback-ms"] == "-1"
    loop.upstream = loop.stack.upstream(port=loop.upstream.port)
    letters_api = LetterServiceStub(
        loop.stack.channel(loop.controller.addresses["admin"])
    )
    metadata = (*loop.admin, ("outrigger-agent", "a"))

    def ledger():
        request = letter_pb.GetLedgerRequest()
        return letters_api.GetLedger(request, metadata=metadata, timeout=3).ledger

    wait_for(lambda: ledger().live_count == 0, "the end of all letters")
    keys = {line.split()[0] for line in loop.upstream.seen.read_text().splitlines()}
    assert keys == letters
    assert call(b"again", timeout=5) == b"again"


def test_the_scheduler_puts_an_idle_agent_to_sleep_only_when_enabled(loop):
    """Off by default; enabled, it acts after the keep-alive and says why."""
    from google.protobuf.duration_pb2 import Duration

    found = loop.fleet.GetScheduler(
        fleet_pb.GetSchedulerRequest(), metadata=loop.admin
    ).scheduler
    assert not found.enabled
    loop.fleet.EnableScheduler(
        fleet_pb.EnableSchedulerRequest(keep_alive=Duration(seconds=1)),
        metadata=loop.admin,
    )

    loop.reached(ASLEEP)
    told = loop.fleet.ExplainAgent(
        fleet_pb.ExplainAgentRequest(agent_id="a"), metadata=loop.admin
    )
    assert any("idle" in one.transition.reason for one in told.transitions)


@pytest.mark.parametrize(
    ("metadata", "epoch", "agent_id", "reason"),
    [
        ((), 0, "a", "NO_TOKEN"),
        ((("outrigger-token", "x"),), 0, "a", "BAD_TOKEN"),
        (None, 0, "nobody", "UNKNOWN_AGENT"),
        (None, 987654, "a", "STALE_EPOCH"),
    ],
)
def test_bad_commands_disturb_nobody(loop, metadata, epoch, agent_id, reason):
    """Each is refused by its reason, and the agent goes on."""
    request = fleet_pb.SleepAgentRequest(agent_id=agent_id, seen_epoch=epoch)
    with pytest.raises(grpc.RpcError) as caught:
        loop.fleet.SleepAgent(
            request, metadata=loop.admin if metadata is None else metadata
        )

    assert from_rpc_error(caught.value).reason == reason
    assert loop.agent().state == AWAKE
