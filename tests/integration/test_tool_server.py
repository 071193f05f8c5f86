"""The demo's tool server as a process: calls counted across SIGKILL, reflection."""

import os

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

from outrigger.core.clock import SystemClock
from outrigger.demo.contract import ANALYZE, SEEN, TERMS
from outrigger.demo.processes import Processes
from outrigger.demo.tool_server import Ledger


class Tool:
    """One tool server that can be killed and started on the same port."""

    def __init__(self, folder, environ) -> None:
        self.folder = folder
        self.processes = Processes(folder, environ, SystemClock())
        self.listen = "127.0.0.1:0"
        self.channels = []

    def start(self) -> grpc.Channel:
        port_file = self.folder / "port"
        port_file.unlink(missing_ok=True)
        self.processes.start(
            "tools",
            "outrigger.demo.tool_server",
            "--listen",
            self.listen,
            "--port-file",
            str(port_file),
            "--seen",
            str(self.folder / "seen"),
        )
        port = self.processes.wait_for(
            "tools",
            "port",
            lambda: port_file.read_text() if port_file.exists() else None,
            30,
        )
        self.listen = f"127.0.0.1:{int(port)}"
        channel = grpc.insecure_channel(self.listen)
        self.channels.append(channel)
        return channel

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        self.processes.stop()


@pytest.fixture
def tool(tmp_path):
    made = Tool(tmp_path, dict(os.environ))
    yield made
    made.close()


def _analyze(channel, key, text="light of light"):
    return ANALYZE.on(channel)(
        StringValue(value=text), metadata=(("idempotency-key", key),), timeout=10
    )


def test_calls_are_counted_across_sigkill(tool):
    """What was answered before SIGKILL is counted after it, a repeat only once."""
    channel = tool.start()
    answer = _analyze(channel, "a")
    assert (answer["words"], list(answer["top"])) == (2, ["light"])
    _analyze(channel, "b")
    tool.processes.kill("tools")
    channel = tool.start()
    _analyze(channel, "b")
    seen = SEEN.on(channel)(Empty(), timeout=10)
    assert dict(seen.items()) == {"distinct": 2, "calls": 3, "duplicates": 1}


def test_terms_come_one_by_one(tool):
    """The streaming method sends each word with its count, commonest first."""
    stream = TERMS.on(tool.start())(
        StringValue(value="ray light ray ray light sun"), timeout=10
    )
    assert [(each["term"], each["count"]) for each in stream] == [
        ("ray", 3),
        ("light", 2),
        ("sun", 1),
    ]


def test_reflection_describes_the_tools(tool):
    """A client that knows nothing finds the methods and their types."""
    database = ProtoReflectionDescriptorDatabase(tool.start())
    assert "outrigger.demo.Tools" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("outrigger.demo.Tools")
    methods = {
        method.name: (method.input_type.full_name, method.server_streaming)
        for method in service.methods
    }
    assert methods == {
        "Analyze": ("google.protobuf.StringValue", False),
        "Terms": ("google.protobuf.StringValue", True),
        "Seen": ("google.protobuf.Empty", False),
    }


def test_torn_line_is_dropped(tmp_path):
    """A line without its end was never answered, and the next call is whole."""
    path = tmp_path / "seen"
    path.write_bytes(b"a\nb\nc")
    ledger = Ledger(path)
    assert ledger.counts() == (2, 2)
    ledger.note("d")
    ledger.close()
    assert path.read_bytes() == b"a\nb\nd\n"


def test_file_of_one_torn_line_is_empty(tmp_path):
    """A file that holds nothing whole counts nothing."""
    path = tmp_path / "seen"
    path.write_bytes(b"torn")
    ledger = Ledger(path)
    assert ledger.counts() == (0, 0)
    ledger.close()
    assert path.read_bytes() == b""
