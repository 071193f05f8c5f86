"""The one mapper between our errors and gRPC statuses, both ways.

A status of ours carries google.rpc.ErrorInfo{reason, domain="outrigger"} in
`grpc-status-details-bin`; that is how it is told from an upstream's answer.
"""

from collections.abc import Sequence
from typing import Any, Final

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from outrigger.core import names
from outrigger.core.errors import (
    Bug,
    Conflict,
    Corrupt,
    Denied,
    Invalid,
    NotFound,
    OutriggerError,
    Overloaded,
    Refused,
    TimedOut,
    Transient,
    Unauthenticated,
)

DETAILS_KEY: Final = "grpc-status-details-bin"

_CLASSES: Final[tuple[type[OutriggerError], ...]] = (
    Transient,
    TimedOut,
    Overloaded,
    Refused,
    Invalid,
    NotFound,
    Denied,
    Unauthenticated,
    Conflict,
    Corrupt,
    Bug,
)
_BY_STATUS: Final = {cls.status: cls for cls in _CLASSES}
_CODE_NUMBERS: Final = {code: int(code.value[0]) for code in grpc.StatusCode}

Metadata = tuple[tuple[str, str | bytes], ...]


def code_number(code: grpc.StatusCode) -> int:
    """Return the wire number of a status code, 0 to 16."""
    return _CODE_NUMBERS[code]


def status_code(error: OutriggerError) -> grpc.StatusCode:
    """Return the status an error is answered with."""
    return grpc.StatusCode[error.status]


def as_outrigger(error: BaseException) -> OutriggerError:
    """Return the error itself if it is ours, else a Bug that hides its text."""
    if isinstance(error, OutriggerError):
        return error
    return Bug(
        "UNEXPECTED",
        f"a defect of ours ({type(error).__name__}); see the log of this process",
    )


def details_metadata(error: OutriggerError) -> Metadata:
    """Return the trailers that go with an error's status."""
    number = code_number(status_code(error))
    status = Status(code=number, message=error.message)
    info = AnyMessage()
    info.Pack(
        ErrorInfo(
            reason=error.reason,
            domain=names.ERROR_DOMAIN,
            metadata=dict(error.metadata),
        )
    )
    status.details.append(info)
    trailers: list[tuple[str, str | bytes]] = []
    if error.retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(max(int(error.retry_after_s * 1000), 0))
        packed = AnyMessage()
        packed.Pack(retry)
        status.details.append(packed)
    trailers.append((DETAILS_KEY, status.SerializeToString()))
    return tuple(trailers)


def error_info(details: bytes | None) -> ErrorInfo | None:
    """Return the ErrorInfo in a `grpc-status-details-bin` value, if any."""
    if not details:
        return None
    status = Status()
    try:
        status.ParseFromString(details)
    except DecodeError:
        return None
    info = ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info):
            return info
    return None


def retry_hint_s(trailers: Sequence[tuple[str, str | bytes]]) -> float | None:
    """Return the seconds of a google.rpc.RetryInfo in trailers, if there is one."""
    for key, value in trailers:
        if key != DETAILS_KEY or not isinstance(value, bytes):
            continue
        status = Status()
        try:
            status.ParseFromString(value)
        except DecodeError:
            return None
        retry = RetryInfo()
        for detail in status.details:
            if detail.Unpack(retry):
                return float(retry.retry_delay.ToNanoseconds() / 1e9)
    return None


def from_rpc_error(error: grpc.RpcError) -> OutriggerError:
    """Return the error a failed call of ours stands for.

    An answer that is not ours becomes the class of its status with the reason
    `PEER_<STATUS>`.
    """
    code, message, trailers = _parts(error)
    details = next((value for key, value in trailers if key == DETAILS_KEY), None)
    info = error_info(details if isinstance(details, bytes) else None)
    cls = _BY_STATUS.get(code.name, Bug)
    if info is not None and info.domain == names.ERROR_DOMAIN:
        return cls(info.reason, message, metadata=dict(info.metadata))
    return cls(f"PEER_{code.name}", message or code.name)


def _parts(
    error: grpc.RpcError,
) -> tuple[grpc.StatusCode, str, Metadata]:
    code = error.code() if hasattr(error, "code") else grpc.StatusCode.UNKNOWN
    message = error.details() if hasattr(error, "details") else str(error)
    trailers: Any = (
        error.trailing_metadata() if hasattr(error, "trailing_metadata") else ()
    )
    return code, message or "", tuple((k, v) for k, v in (trailers or ()))
