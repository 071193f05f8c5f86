"""A relay that asks for the agent's token."""

import grpc
import pytest

from tests.support.processes import Stack, wait_for

METHOD = "/test.Ledger/Call"


@pytest.fixture
def scene(tmp_path):
    """A sidecar that was told to ask, and a call through it."""
    with Stack(tmp_path) as stack:
        upstream = stack.upstream()
        sidecar = stack.sidecar("agent", "--outbound-token", upstream=upstream.target)
        channel = stack.channel(sidecar.addresses["outbound"])
        yield sidecar, channel.unary_unary(METHOD)


def test_a_stranger_reaches_no_upstream(scene):
    """Whoever has no token is turned away by the sidecar, not by the callee."""
    _, call = scene
    with pytest.raises(grpc.RpcError) as error:
        call(b"x", timeout=20, wait_for_ready=True)

    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert dict(error.value.trailing_metadata())["outrigger-refused-by"] == "token"


def test_the_agent_reaches_its_upstreams(scene):
    """Its token is in its environment, and in the state directory for who looks."""
    sidecar, call = scene
    token = (sidecar.state / "token").read_text().strip()
    metadata = (("outrigger-token", token),)

    assert wait_for(lambda: call(b"x", timeout=20, metadata=metadata), "an answer")
