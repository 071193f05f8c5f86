import grpc
import pytest

from outrigger.core import errors
from outrigger.core.rpc.errors import (
    as_outrigger,
    details_metadata,
    error_info,
    from_rpc_error,
    retry_hint_s,
    status_code,
)

CLASSES = [
    errors.Transient,
    errors.TimedOut,
    errors.Overloaded,
    errors.Refused,
    errors.Invalid,
    errors.NotFound,
    errors.Denied,
    errors.Unauthenticated,
    errors.Conflict,
    errors.Corrupt,
    errors.Bug,
]


class Failed(grpc.RpcError):
    """A failed call with chosen parts."""

    def __init__(self, code, details, trailers):
        super().__init__()
        self._parts = (code, details, trailers)

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_survives_the_way_there_and_back(cls):
    """An error of ours comes back as the same class, reason and metadata."""
    error = cls("A_REASON", "What is wrong.", metadata={"agent": "a-1"})
    code = status_code(error)

    back = from_rpc_error(Failed(code, error.message, details_metadata(error)))

    assert type(back) is cls
    assert (back.reason, back.message) == ("A_REASON", "What is wrong.")
    assert dict(back.metadata) == {"agent": "a-1"}


def test_each_class_has_a_status_of_its_own():
    """No two classes share a status, or the way back would be ambiguous."""
    statuses = [cls.status for cls in CLASSES]

    assert len(set(statuses)) == len(statuses)


def test_an_answer_that_is_not_ours_says_so():
    """A status without our ErrorInfo becomes PEER_<STATUS>."""
    back = from_rpc_error(Failed(grpc.StatusCode.UNAVAILABLE, "gone", ()))

    assert isinstance(back, errors.Transient)
    assert back.reason == "PEER_UNAVAILABLE"


def test_a_foreign_domain_is_not_taken_for_ours():
    """ErrorInfo of somebody else's domain does not lend us its reason."""
    from google.protobuf.any_pb2 import Any
    from google.rpc.error_details_pb2 import ErrorInfo
    from google.rpc.status_pb2 import Status

    packed = Any()
    packed.Pack(ErrorInfo(reason="THEIRS", domain="elsewhere"))
    status = Status(code=14, details=[packed])
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)

    back = from_rpc_error(Failed(grpc.StatusCode.UNAVAILABLE, "gone", trailers))

    assert back.reason == "PEER_UNAVAILABLE"


def test_a_bare_rpc_error_is_a_bug_with_its_text():
    """An RpcError without code or trailers does not break the mapper."""
    back = from_rpc_error(grpc.RpcError("odd"))

    assert isinstance(back, errors.Bug)
    assert "odd" in back.message


def test_garbled_details_are_no_error_info():
    """Bytes that are no Status are ignored, not raised."""
    assert error_info(b"\xff\xff\xff") is None
    assert error_info(b"") is None


def test_retry_after_becomes_retry_info():
    """The pause is told in google.rpc.RetryInfo."""
    from google.rpc.error_details_pb2 import RetryInfo
    from google.rpc.status_pb2 import Status

    error = errors.Overloaded("FULL", "Full.", retry_after_s=1.5)
    status = Status.FromString(dict(details_metadata(error))["grpc-status-details-bin"])
    retry = RetryInfo()

    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() == 1500


def test_an_unexpected_error_does_not_leak_its_text():
    """A defect's own words stay in the log."""
    shown = as_outrigger(ValueError("password=hunter2"))

    assert isinstance(shown, errors.Bug)
    assert "hunter2" not in shown.message


def test_cause_chain_names_every_cause_once():
    """The chain goes outermost first and ends at a cycle."""
    inner = ValueError("disk")
    outer = errors.Transient("X", "upload")
    outer.__cause__ = inner
    inner.__context__ = outer

    assert errors.cause_chain(outer) == ("Transient: upload", "ValueError: disk")
    assert repr(outer) == "Transient(X: upload)"


def test_a_retry_hint_is_read_from_trailers():
    """RetryInfo counts; other trailers, other details and garbage do not."""
    full = errors.Overloaded("FULL", "Full.", retry_after_s=1.5)
    plain = errors.Overloaded("FULL", "Full.")

    assert retry_hint_s((("a", "b"), *details_metadata(full))) == 1.5
    assert retry_hint_s(details_metadata(plain)) is None
    assert retry_hint_s((("grpc-status-details-bin", b"\xff\xff"),)) is None
    assert retry_hint_s(()) is None
