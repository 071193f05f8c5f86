"""The client on a real network: a sidecar that is killed, calls that name upstreams."""

import os
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from outrigger.client import attach, letter_id_of
from outrigger.client.addressing import to_upstream
from outrigger.core.blocks import BLOCK_BYTES
from outrigger.core.clock import SystemClock
from outrigger.core.errors import Transient, Unauthenticated
from outrigger.demo.peers import SidecarPeer
from outrigger.demo.processes import Processes
from tests.support.processes import wait_for


class Beside:
    """A sidecar that starts nobody; the test itself is its agent."""

    def __init__(self, folder) -> None:
        self.folder = folder
        self.processes = Processes(folder, os.environ, SystemClock())
        self.start()

    def start(self) -> None:
        (self.folder / "s" / "address.json").unlink(missing_ok=True)
        self.processes.start(
            "s", "outrigger.cli.main", "sidecar", "--agent-id", "otter",
            "--state", str(self.folder / "s"), "--upstream", "tools=127.0.0.1:1",
            "--outbound", "127.0.0.1:0", "--api", "127.0.0.1:0",
        )  # fmt: skip
        self.addresses = self.processes.addresses("s", 30)

    def environ(self, **changes: str) -> dict[str, str]:
        token = (self.folder / "s" / "token").read_text().strip()
        return {
            "OUTRIGGER_AGENT_ID": "otter",
            "OUTRIGGER_API": self.addresses["api"],
            "OUTRIGGER_OUTBOUND": self.addresses["outbound"],
            "OUTRIGGER_TOKEN": token,
            **changes,
        }

    def peer(self) -> SidecarPeer:
        return SidecarPeer(self.folder / "s", self.addresses)


@pytest.fixture
def beside(tmp_path):
    made = Beside(tmp_path)
    yield made
    made.processes.stop()


def test_agent_outlives_its_sidecar(beside):
    """After SIGKILL of the sidecar the agent attaches again and saves go on."""
    state = [bytes([n]) * BLOCK_BYTES for n in range(6)]
    restored = []
    with attach(
        lambda: b"".join(state), restored.append, environ=beside.environ()
    ) as me:
        me.serving(timeout_s=20)
        first = me.save_checkpoint()
        beside.processes.kill("s")
        with pytest.raises(Transient):
            me.save_checkpoint()
        beside.start()
        me.wait_until_serving(timeout_s=20)
        state.append(b"appended")
        second = wait_for(lambda: _saved(me), "save")
        assert me.restore_checkpoint() == b"".join(state)
        assert me.restore_checkpoint(first.generation) == b"".join(state[:-1])
    assert (first.block_count, second.block_count) == (6, 7)
    assert second.reused_block_count == 6
    assert not restored


def _saved(me):
    try:
        return me.save_checkpoint()
    except Transient:
        return None


def test_sidecar_sees_leases_and_letters(beside):
    """A lease counts while its block lasts; calls and hand-overs become letters."""
    with (
        attach(bytes, lambda _: None, environ=beside.environ()) as me,
        beside.peer() as peer,
    ):
        me.serving(timeout_s=20)
        with me.keep_awake(30, "testing"):
            assert peer.status().agent.load.keep_awake_leases == 1
        wait_for(lambda: not peer.status().agent.load.keep_awake_leases, "no lease")
        assert me.deliver_later("/p.S/M", b"x", idempotency_key="k")
        call = me.channel("tools").unary_unary("/p.S/M")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"y", timeout=5, metadata=(("outrigger-letter", "on"),))
        assert letter_id_of(caught.value)
        assert peer.ledger().accepted_count == 2


def test_wrong_token_is_said_at_once(beside):
    """With a token the sidecar does not know serving fails instead of waiting."""
    environ = beside.environ(OUTRIGGER_TOKEN="guess")
    with (
        attach(bytes, lambda _: None, environ=environ) as me,
        pytest.raises(Unauthenticated),
    ):
        me.serving()


def _echo(_request, context) -> bytes:
    return dict(context.invocation_metadata()).get("outrigger-upstream", "").encode()


def _echo_twice(request, context):
    for _ in range(2):
        yield _echo(request, context)


@pytest.fixture
def channel():
    """A channel to a server that answers with the upstream a call names."""
    handlers = {
        "UU": grpc.unary_unary_rpc_method_handler(_echo),
        "US": grpc.unary_stream_rpc_method_handler(_echo_twice),
        "SU": grpc.stream_unary_rpc_method_handler(_echo),
        "SS": grpc.stream_stream_rpc_method_handler(_echo_twice),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("e.E", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as made:
        yield made
    server.stop(None).wait()


def test_every_arity_names_its_upstream(channel):
    """Calls of all four arities carry the upstream, beside their own metadata."""
    addressed = to_upstream(channel, "tools")
    own = (("k", "v"),)
    assert addressed.unary_unary("/e.E/UU")(b"", metadata=own) == b"tools"
    assert list(addressed.unary_stream("/e.E/US")(b"")) == [b"tools"] * 2
    assert addressed.stream_unary("/e.E/SU")(iter([b""]), metadata=own) == b"tools"
    assert list(addressed.stream_stream("/e.E/SS")(iter([b""]))) == [b"tools"] * 2
    assert channel.unary_unary("/e.E/UU")(b"") == b""
