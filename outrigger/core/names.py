"""Names that more than one part must spell alike."""

from typing import Final

ERROR_DOMAIN: Final = "outrigger"
"""`domain` of every google.rpc.ErrorInfo that we make."""

TOKEN_METADATA: Final = "outrigger-token"  # noqa: S105 - a key, not a secret
UPSTREAM_METADATA: Final = "outrigger-upstream"
AGENT_METADATA: Final = "outrigger-agent"
LETTER_METADATA: Final = "outrigger-letter"
REQUEST_ID_METADATA: Final = "outrigger-request-id"
IDEMPOTENCY_KEY_METADATA: Final = "idempotency-key"
OWN_METADATA_PREFIX: Final = "outrigger-"
"""Request metadata with this prefix is for us and is not passed upstream."""

LETTER_ID_TRAILER: Final = "outrigger-letter-id"
LETTER_REFUSED_TRAILER: Final = "outrigger-letter-refused"
ATTEMPTS_TRAILER: Final = "outrigger-attempts"
REFUSED_BY_TRAILER: Final = "outrigger-refused-by"
FAULT_TRAILER: Final = "outrigger-fault"
PUSHBACK_TRAILER: Final = "grpc-retry-pushback-ms"
PREVIOUS_ATTEMPTS_METADATA: Final = "grpc-previous-rpc-attempts"

ENV_PREFIX: Final = "OUTRIGGER_"
ENV_AGENT_ID: Final = "OUTRIGGER_AGENT_ID"
ENV_API: Final = "OUTRIGGER_API"
ENV_OUTBOUND: Final = "OUTRIGGER_OUTBOUND"
ENV_TOKEN: Final = "OUTRIGGER_TOKEN"  # noqa: S105 - a variable's name, not a secret

DEFAULT_OUTBOUND: Final = "127.0.0.1:7700"
DEFAULT_API_TCP: Final = "127.0.0.1:7701"
DEFAULT_INBOUND: Final = "127.0.0.1:7702"
DEFAULT_CONTROLLER_ADMIN: Final = "127.0.0.1:7600"
DEFAULT_CONTROLLER_CONNECT: Final = "127.0.0.1:7601"

TOKEN_FILE: Final = "token"  # noqa: S105 - a file's name, not a secret
ADMIN_TOKEN_FILE: Final = "admin-token"  # noqa: S105 - a file's name, not a secret
JOIN_TOKEN_FILE: Final = "join-token"  # noqa: S105 - a file's name, not a secret
API_SOCKET: Final = "api.sock"
OUTBOUND_SOCKET: Final = "outbound.sock"

CHUNK_BYTES: Final = 1024 * 1024
"""Largest piece of state in one message, bytes."""
