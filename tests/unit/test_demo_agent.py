"""A demo agent's work, against a tool and a sidecar that the test plays."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from google.protobuf.wrappers_pb2 import StringValue

from outrigger.core.blocks import state_digest
from outrigger.core.errors import Refused, Transient
from outrigger.demo import agent as module
from outrigger.demo.agent import Lookups, deal_with, read, run
from outrigger.demo.contract import struct
from outrigger.demo.index import Index
from outrigger.demo.passages import Passage, share

PASSAGE = Passage(3, "opticks", "Light and light")


class _Failed(grpc.RpcError):
    def __init__(self, *trailers) -> None:
        self.trailers = trailers

    def trailing_metadata(self):
        return self.trailers


class _Sidecar:
    """Stands for the client's Agent."""

    agent_id = "reader-1"

    def __init__(self) -> None:
        self.saves = 0
        self.leases = []
        self.stopped = False

    def working(self):
        return nullcontext()

    def channel(self):
        return nullcontext(None)

    @contextmanager
    def keep_awake(self, ttl_s, reason):
        self.leases.append(reason)
        yield

    def save_checkpoint(self):
        self.saves += 1

    def wait_until_stopped(self):
        self.stopped = True


@pytest.fixture
def sidecar(monkeypatch):
    def pause(_clock, seconds):
        pauses.append(seconds)

    pauses: list[float] = []
    monkeypatch.setattr(module.SystemClock, "pause", pause)
    fake = _Sidecar()
    fake.pauses = pauses
    return fake


def _tool(monkeypatch, *answers):
    calls, left = [], list(answers)

    def analyze(request, **options):
        calls.append((request.value, dict(options["metadata"])))
        answer = left.pop(0) if left else struct(words=1)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(module, "ANALYZE", SimpleNamespace(on=lambda _: analyze))
    return calls, analyze


def test_answered_passage_is_indexed(sidecar, monkeypatch):
    """A passage goes out with its own key and the wish for a letter."""
    calls, analyze = _tool(monkeypatch, struct(words=3, top=["light"]))
    index = Index()
    assert deal_with(sidecar, index, PASSAGE, analyze)
    assert calls == [
        (
            PASSAGE.text,
            {"outrigger-letter": "on", "idempotency-key": "reader-1/opticks-0003"},
        )
    ]
    assert index.counts() == {"passages": 1, "words": 2, "letters": 0}


def test_letter_settles_a_passage(sidecar, monkeypatch):
    """A call that became a letter is noted and not made again."""
    _, analyze = _tool(monkeypatch, _Failed(("outrigger-letter-id", "l-1")))
    index = Index()
    assert deal_with(sidecar, index, PASSAGE, analyze)
    assert index.counts()["letters"] == 1


def test_failure_without_a_letter_settles_nothing(sidecar, monkeypatch):
    """A call that simply failed leaves the passage to be read again."""
    _, analyze = _tool(monkeypatch, _Failed())
    index = Index()
    assert not deal_with(sidecar, index, PASSAGE, analyze)
    assert not index.has(PASSAGE)


def test_reading_goes_on_until_all_is_settled(sidecar, monkeypatch):
    """A failed passage is tried again, one that is known is left out."""
    passages = share(1, 4)[:101]
    index = Index()
    index.answered(passages[0], {})
    calls, _ = _tool(monkeypatch, _Failed())
    read(sidecar, index, passages, 0.25)
    assert len(calls) == 101
    assert calls[0] == calls[1]
    assert sidecar.saves == 1
    assert sidecar.pauses.count(0.5) == 1
    assert sidecar.pauses.count(0.25) == 100


def test_nothing_left_takes_no_lease(sidecar, monkeypatch):
    """An agent that woke with everything read does not keep itself awake."""
    _tool(monkeypatch)
    index = Index()
    index.answered(PASSAGE, {})
    run(sidecar, index, [PASSAGE], 0)
    assert not sidecar.leases
    assert sidecar.stopped


def test_stop_in_the_middle_is_an_end(sidecar, monkeypatch):
    """Being stopped while reading ends the reading, not with an error."""

    def stopped():
        raise Refused("AGENT_STOPPED", "over")

    _tool(monkeypatch)
    sidecar.working = stopped
    run(sidecar, Index(), [PASSAGE], 0)
    assert sidecar.stopped


@pytest.mark.parametrize("error", [Refused("OTHER", "no"), Transient("AWAY", "no")])
def test_other_failures_end_the_agent(sidecar, monkeypatch, error):
    """What the agent cannot deal with ends it, for its sidecar to see."""

    def broken():
        raise error

    _tool(monkeypatch)
    sidecar.working = broken
    with pytest.raises(type(error)):
        run(sidecar, Index(), [PASSAGE], 0)


def test_index_is_served():
    """Lookup and Digest answer from the index as it is."""
    index = Index()
    index.buffered(PASSAGE, "l-1")
    lookups = Lookups(index)
    found = lookups.lookup(StringValue(value="light"), None)
    assert found["count"] == 2
    assert dict(found["passages"].items()) == {"opticks-0003": 2}
    digest = lookups.digest(Empty(), None)
    assert digest["digest"] == state_digest(index.save()).hex()
    assert digest["letters"] == 1
