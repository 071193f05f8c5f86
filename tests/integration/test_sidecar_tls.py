"""TLS on the sidecar's listeners: what containers need beyond loopback."""

import grpc
import pytest

from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.certificates import make_certificates
from tests.support.processes import Stack, operator, wait_for


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A sidecar that listens on all addresses, and its certificates."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key, ca = make_certificates(folder)
    with Stack(folder) as stack:
        upstream = stack.upstream()
        inherited = folder / "env"
        state = folder / "a"
        state.mkdir(mode=0o700)
        (state / "address.json").write_text(
            '{"outbound": "0.0.0.0:0", "api_tcp": "0.0.0.0:0"}'
        )
        sidecar = stack.sidecar(
            "a",
            *("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(ca)),
            upstream=upstream.target,
            command=(
                "sh",
                "-c",
                f"env >{inherited}.new; mv {inherited}.new {inherited}; sleep 600",
            ),
        )
        sidecar.inherited = inherited
        yield sidecar, (cert, key, ca)


def port(address):
    return "127.0.0.1:" + address.rpartition(":")[2]


def credentials(files, *, with_certificate=True):
    cert, key, ca = (path.read_bytes() for path in files)
    if not with_certificate:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, key, cert)


def test_calls_and_the_api_work_over_mutual_tls(scene):
    """The relay and the API both answer a client with a certificate."""
    sidecar, files = scene
    with grpc.secure_channel(
        port(sidecar.addresses["outbound"]), credentials(files)
    ) as relay:
        assert relay.unary_unary("/test.Ledger/Call")(b"x", timeout=5) == b"x"
    with grpc.secure_channel(
        port(sidecar.addresses["api_tcp"]), credentials(files)
    ) as api:
        found = SidecarServiceStub(api).GetSidecar(
            sidecar_pb.GetSidecarRequest(), metadata=operator(sidecar.state), timeout=5
        )
        assert found.agent.agent_id == "a"


def test_the_agent_itself_takes_the_socket(scene):
    """Its own sidecar asks it for no certificate."""
    sidecar, _ = scene
    lines = wait_for(sidecar.inherited.read_text, "the environment").splitlines()
    outbound = dict(line.partition("=")[::2] for line in lines)["OUTRIGGER_OUTBOUND"]

    assert outbound == sidecar.addresses["outbound_socket"]
    with grpc.insecure_channel(outbound) as relay:
        assert relay.unary_unary("/test.Ledger/Call")(b"x", timeout=5) == b"x"


@pytest.mark.parametrize("kind", ["plaintext", "no certificate"])
def test_who_does_not_bring_a_certificate_gets_nowhere(scene, kind):
    """Plaintext and unsigned clients are refused in the handshake."""
    sidecar, files = scene
    target = port(sidecar.addresses["outbound"])
    channel = (
        grpc.insecure_channel(target)
        if kind == "plaintext"
        else grpc.secure_channel(target, credentials(files, with_certificate=False))
    )
    with channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test.Ledger/Call")(b"x", timeout=2)

    assert caught.value.code() in (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    )
