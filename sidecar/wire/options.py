"""How a wire listens and relays."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from outrigger.core.rpc.server import SERVER_OPTIONS, TlsFiles

_UNLIMITED: Final = -1
_PENDING: Final = 1 << 14
"""Some 14 KiB each: a hundred thousand streams at once take 300 MiB and not 1 GiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listener:
    """Where calls arrive."""

    address: str
    """HOST:PORT or unix:PATH."""
    flag: str
    """Named in errors."""
    may_move: bool = False
    """It is a default: take a free port when this one is taken."""
    tls: TlsFiles | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WireOptions:
    """Times and sizes; the defaults suit everybody but tests."""

    replay_bytes: int = 256 * 1024
    """Most of a request that is kept for a retry or a letter, up to the letter
    limit of 3.75 MiB."""
    join_s: float = 0.001
    """How long to wait for the half-close of a request, to send it as one piece."""
    commit_s: float = 0.003
    """How long after empty response headers a failure may still follow; then they
    are passed on, for a caller that waits for them."""
    settle_s: float = 0.005
    """How long a half-close that came by itself may turn out to be a cancellation."""
    letter_wait_s: float = 1.0
    """How long to wait for the rest of a request that is to be a letter."""
    tick_s: float = 0.25
    """How often the guard is told the time."""


_SERVER: Final[Mapping[str, int]] = MappingProxyType(
    dict(SERVER_OPTIONS)
    | {
        # No narrower than the peers: what is too large is theirs to say.
        "grpc.max_receive_message_length": _UNLIMITED,
        "grpc.max_send_message_length": _UNLIMITED,
        # The guard's concurrency limit answers with a push-back; a limit of the
        # connection would make callers queue where nobody sees them.
        "grpc.max_concurrent_streams": (1 << 31) - 1,
        # The library's queue of calls that were not asked for yet is one for all
        # callers, drops at random from 1,000 on, and tells the dropped CANCELLED:
        # one caller's burst would end the calls of others.
        "grpc.server.max_pending_requests": _PENDING,
        "grpc.server.max_pending_requests_hard_limit": _PENDING,
    }
)

RELAY_SERVER_OPTIONS: Final[tuple[tuple[str, int], ...]] = tuple(_SERVER.items())
"""For listeners that relay. No keepalive, as for every server of ours."""
