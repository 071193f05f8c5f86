"""What a failed gRPC call means, in the classes of `outrigger.core.errors`."""

from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from outrigger.core import errors, names

_DETAILS_KEY: Final = "grpc-status-details-bin"
_CLASSES: Final = {
    cls.status: cls
    for cls in (
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
    )
}


def error_of(error: grpc.RpcError) -> errors.OutriggerError:
    """Return the error that a failed call stands for.

    An answer of the sidecar keeps its reason. An answer of anybody else, an
    upstream's through the relay for instance, becomes the class of its status
    with the reason `PEER_<STATUS>`.
    """
    # One that was not made by a call has no status: a defect of somebody's.
    is_call = hasattr(error, "code")
    code = error.code() if is_call else grpc.StatusCode.UNKNOWN
    message = error.details() if is_call else str(error)
    cls = _CLASSES.get(code.name, errors.Bug)
    info = _info(error)
    if info is None:
        return cls(f"PEER_{code.name}", message or code.name)
    return cls(info.reason, message or "", metadata=dict(info.metadata))


def letter_id_of(error: grpc.RpcError) -> str | None:
    """Return the id of the letter that a failed call became, or None.

    With an id the call is on the sidecar's disk and will be delivered later: do
    not make it again.
    """
    value = _trailer(error, names.LETTER_ID_TRAILER)
    return value if isinstance(value, str) and value else None


def _info(error: grpc.RpcError) -> ErrorInfo | None:
    details = _trailer(error, _DETAILS_KEY)
    status = Status()
    try:
        status.ParseFromString(details if isinstance(details, bytes) else b"")
    except DecodeError:
        return None
    info = ErrorInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == names.ERROR_DOMAIN:
            return info
    return None


def _trailer(error: grpc.RpcError, key: str) -> str | bytes | None:
    has_trailers = hasattr(error, "trailing_metadata")
    trailers: Any = (error.trailing_metadata() if has_trailers else None) or ()
    return next((value for name, value in trailers if name == key), None)
