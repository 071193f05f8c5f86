"""The audit's chain: each record is sealed with the digest of the one before.

`chain_digest = SHA-256(previous chain_digest || record)`; the record is its fields
as a JSON array, so that every implementation can check the chain. An edited,
removed or inserted record breaks it from there on.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from outrigger.core.errors import Corrupt

GENESIS: Final = b""
"""What stands before the first record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """What was asked, by whom, and how it was answered."""

    wall_us: int
    """Microseconds since 1970: whole numbers survive every store unchanged."""
    principal: str
    method: str
    subject: str
    status_code: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """An entry in its place in the chain."""

    sequence: int
    entry: AuditEntry
    chain_digest: bytes


def seal(previous: bytes, sequence: int, entry: AuditEntry) -> AuditRecord:
    """Return the record that follows the digest `previous`."""
    fields = [
        sequence,
        entry.wall_us,
        entry.principal,
        entry.method,
        entry.subject,
        entry.status_code,
        entry.reason,
    ]
    body = json.dumps(fields, separators=(",", ":")).encode()
    digest = hashlib.sha256(previous + body).digest()
    return AuditRecord(sequence=sequence, entry=entry, chain_digest=digest)


def verify(
    records: Iterable[AuditRecord], after: int, digest: bytes
) -> tuple[int, bytes]:
    """Return sequence and digest of the last record, once every one is checked.

    Args:
        records: oldest first.
        after: sequence that stands before the first of them.
        digest: chain digest of that one.

    Raises:
        Corrupt: AUDIT_BROKEN, naming the first record that does not fit.
    """
    for record in records:
        sealed = seal(digest, after + 1, record.entry)
        if sealed != record:
            raise Corrupt(
                "AUDIT_BROKEN",
                f"audit record {after + 1} is missing or was changed: keep the state"
                " directory as evidence, and start with another one or a backup",
            )
        after, digest = sealed.sequence, sealed.chain_digest
    return after, digest
