"""Leases, letters, channels and errors of the client, without a network."""

import threading
from concurrent.futures import Future

import grpc
import pytest

from outrigger.client import attach, error_of, letter_id_of
from outrigger.core import errors
from outrigger.v1 import attach_service_pb2, letter_pb2, letter_service_pb2
from tests.support.fake_sidecar import FakeSidecar, ours


@pytest.fixture
def sidecar():
    with FakeSidecar() as fake:
        yield fake


_LEASE = attach_service_pb2.KeepAwakeResponse(lease_id="lease-1")
_RELEASED = attach_service_pb2.ReleaseKeepAwakeResponse()


def _hold(agent, held: threading.Event, let_go: threading.Event) -> None:
    with agent.keep_awake(30, "counting"):
        held.set()
        assert let_go.wait(10)


@pytest.fixture
def lease(sidecar):
    """A lease taken on another thread: how to let go of it, and its future."""
    agent, _ = sidecar.serve()
    held, let_go = threading.Event(), threading.Event()
    holding: Future[None] = sidecar.elsewhere(_hold, agent, held, let_go)
    request = sidecar.answer("attach", "KeepAwake", _LEASE)
    assert (request.ttl.ToMilliseconds(), request.reason) == (30_000, "counting")
    assert held.wait(10)
    return let_go.set, holding


def test_lease_is_renewed_and_released(sidecar, lease):
    """A lease is renewed every third of its time and ended with the block."""
    let_go, holding = lease
    for _ in range(2):
        sidecar.timers.pass_next(10)
        assert sidecar.answer("attach", "KeepAwake", _LEASE).lease_id == "lease-1"
    let_go()
    released = sidecar.answer("attach", "ReleaseKeepAwake", _RELEASED)
    holding.result(10)
    assert released.lease_id == "lease-1"
    sidecar.timers.time.sleep_for(100)


def test_forgotten_lease_is_taken_anew(sidecar, lease):
    """A sidecar that lost the lease is asked for a new one; a silent one is not."""
    let_go, holding = lease
    for status, asked in [
        (ours(grpc.StatusCode.UNAVAILABLE, "AWAY"), "lease-1"),
        (ours(grpc.StatusCode.NOT_FOUND, "NO_SUCH_LEASE"), "lease-1"),
        (ours(grpc.StatusCode.UNAVAILABLE, "AWAY"), ""),
    ]:
        sidecar.timers.pass_next(10)
        assert sidecar.refuse("attach", "KeepAwake", status).lease_id == asked
    let_go()
    sidecar.answer("attach", "ReleaseKeepAwake", _RELEASED)
    holding.result(10)


def test_lease_that_cannot_be_released_ends_by_itself(sidecar, lease, caplog):
    """A failing release is logged; the block's own outcome stands."""
    let_go, holding = lease
    let_go()
    away = ours(grpc.StatusCode.UNAVAILABLE, "AWAY", "gone")
    sidecar.refuse("attach", "ReleaseKeepAwake", away)
    holding.result(10)
    assert "was not released" in caplog.text


def test_lease_renewed_while_released_is_released_again(sidecar, lease):
    """A renewal that overtakes the release does not leave a lease behind."""
    let_go, holding = lease
    sidecar.timers.pass_next(10)
    _, _, renewal = sidecar.unary("attach", "KeepAwake")
    let_go()
    sidecar.answer("attach", "ReleaseKeepAwake", _RELEASED)
    holding.result(10)
    anew = attach_service_pb2.KeepAwakeResponse(lease_id="lease-2")
    renewal.terminate(anew, (), grpc.StatusCode.OK, "")
    released = sidecar.answer("attach", "ReleaseKeepAwake", _RELEASED)
    assert released.lease_id == "lease-2"


def test_refused_lease_keeps_the_block_out(sidecar):
    """Where no lease was given the block is not entered."""
    agent, _ = sidecar.serve()
    holding = sidecar.elsewhere(_hold, agent, threading.Event(), threading.Event())
    full = ours(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_LEASES")
    sidecar.refuse("attach", "KeepAwake", full)
    with pytest.raises(errors.Overloaded):
        holding.result(10)


def test_call_is_handed_over(sidecar):
    """deliver_later sends the whole call and returns the letter's id."""
    agent, _ = sidecar.serve()
    handing = sidecar.elsewhere(
        agent.deliver_later,
        "/p.S/M",
        b"payload",
        upstream="tools",
        metadata=[("a", "b"), ("c-bin", b"\xff")],
        idempotency_key="k",
    )
    letter = letter_pb2.Letter(letter_id="l-1")
    answer = letter_service_pb2.DeliverCallResponse(letter=letter)
    request = sidecar.answer("letters", "DeliverCall", answer)
    assert handing.result(10) == "l-1"
    assert (request.upstream, request.method) == ("tools", "/p.S/M")
    assert (request.request, request.idempotency_key) == (b"payload", "k")
    pairs = [(entry.key, entry.value) for entry in request.metadata]
    assert pairs == [("a", b"b"), ("c-bin", b"\xff")]


def test_refused_letter_is_an_error(sidecar):
    """A call that was not taken is raised, never answered with an id."""
    agent, _ = sidecar.serve()
    handing = sidecar.elsewhere(agent.deliver_later, "/p.S/M", b"")
    full = ours(grpc.StatusCode.RESOURCE_EXHAUSTED, "JOURNAL_FULL")
    sidecar.refuse("letters", "DeliverCall", full)
    with pytest.raises(errors.Overloaded) as caught:
        handing.result(10)
    assert caught.value.reason == "JOURNAL_FULL"


def test_unnamed_upstream_is_left_to_the_routes(sidecar):
    """A channel without a name is the relay's channel and nothing more."""
    agent, _ = sidecar.serve()
    assert agent.channel() is sidecar.channels["outbound"]


def test_agent_closes_twice(sidecar):
    """Closing an agent a second time is fine, in a with block too."""
    agent, _ = sidecar.serve()
    with agent:
        agent.close()


def test_missing_variables_are_named():
    """Outside a sidecar attach says which variables are missing."""
    with pytest.raises(errors.Invalid) as caught:
        attach(bytes, lambda _: None, environ={"OUTRIGGER_API": "x"})
    assert caught.value.reason == "NOT_BESIDE_A_SIDECAR"
    assert "OUTRIGGER_TOKEN" in caught.value.message
    assert "OUTRIGGER_API" not in caught.value.message.split(" not set")[0]


def test_process_environment_is_the_default(monkeypatch):
    """Without a mapping attach looks into the process environment."""
    monkeypatch.delenv("OUTRIGGER_TOKEN", raising=False)
    with pytest.raises(errors.Invalid, match="OUTRIGGER_TOKEN"):
        attach(bytes, lambda _: None)


class _Failed(grpc.RpcError):
    def __init__(self, code, details, trailers) -> None:
        self._parts = code, details, trailers

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


@pytest.mark.parametrize(
    "trailers",
    [None, (), (("grpc-status-details-bin", b"\xff\xff"),), (("other", "x"),)],
)
def test_foreign_answer_keeps_its_status(trailers):
    """An answer that is not the sidecar's own is named after its status."""
    error = error_of(_Failed(grpc.StatusCode.ABORTED, None, trailers))
    assert isinstance(error, errors.Conflict)
    assert (error.reason, error.message) == ("PEER_ABORTED", "ABORTED")


def test_error_without_a_call_is_a_bug():
    """An error that no call made has no status and is nobody's answer."""
    error = error_of(grpc.RpcError("torn"))
    assert isinstance(error, errors.Bug)
    assert error.message == "torn"


@pytest.mark.parametrize(
    ("trailers", "letter"),
    [
        ((("outrigger-letter-id", "l-1"),), "l-1"),
        ((("outrigger-letter-id", ""),), None),
        ((), None),
    ],
)
def test_failed_call_tells_its_letter(trailers, letter):
    """The letter's id is read from the trailers of the failed call."""
    error = _Failed(grpc.StatusCode.UNAVAILABLE, "", trailers)
    assert letter_id_of(error) == letter
