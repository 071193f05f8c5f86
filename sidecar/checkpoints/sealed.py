"""Sealed documents: JSON that carries its own SHA-256 in its last line."""

import hashlib
import hmac
import json
from typing import Any, Final

from outrigger.core.errors import Corrupt

_SEAL_BYTES: Final = 65
"""64 hex digits and a line end."""


def seal(document: dict[str, Any]) -> bytes:
    """Return a document as bytes that show every change made to them."""
    body = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    return body + _line(body)


def unseal(data: bytes, subject: str) -> dict[str, Any]:
    """Return the document in sealed bytes.

    Raises:
        Corrupt: BROKEN_SEAL.
    """
    body, line = data[:-_SEAL_BYTES], data[-_SEAL_BYTES:]
    if not hmac.compare_digest(line, _line(body)):
        raise _broken(subject, f"its {len(data)} bytes do not end with their SHA-256")
    try:
        document = json.loads(body)
    except ValueError as error:
        raise _broken(subject, "it is no JSON") from error
    if not isinstance(document, dict):
        raise _broken(subject, "it is no JSON object")
    return document


def _broken(subject: str, detail: str) -> Corrupt:
    return Corrupt(
        "BROKEN_SEAL", f"{subject} is damaged: {detail}; restore an older generation"
    )


def _line(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode() + b"\n"
