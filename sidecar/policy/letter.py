"""The life of a letter: its states, its moves, its limits.

pending --claim--> in_flight --deliver--> delivered
   ^  |               | | |---park------> parked
   |  |---hold        | | |---expire----> expired
   |      v           | |---retry, crash--> pending
   `-release- held <--'
parked, expired, held --redrive--> pending
pending, held, parked, expired --discard--> discarded
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from outrigger.core.errors import Bug
from outrigger.core.names import IDEMPOTENCY_KEY_METADATA

NO_UPSTREAM: Final = "NO_UPSTREAM"
"""Reason of a letter held because its upstream is not configured any more."""
UNSAFE_METHOD: Final = "UNSAFE_METHOD"
"""Reason of a letter held, or refused, because its method must not be sent twice."""
_MESSAGE_CHARS: Final = 500


def never_unsafe(_upstream: str, _method: str) -> bool:
    """Say that a method may be sent twice, where there are no rules."""
    return False


class LetterState(enum.Enum):
    """Where a letter is; the words of the proto."""

    PENDING = "pending"
    HELD = "held"
    IN_FLIGHT = "in_flight"
    DELIVERED = "delivered"
    PARKED = "parked"
    EXPIRED = "expired"
    DISCARDED = "discarded"


LIVE: Final = frozenset({LetterState.PENDING, LetterState.HELD, LetterState.IN_FLIGHT})
REDRIVABLE: Final = frozenset(
    {LetterState.HELD, LetterState.PARKED, LetterState.EXPIRED}
)
GONE: Final = frozenset({LetterState.DELIVERED, LetterState.DISCARDED})
"""Nothing will be done with these any more; retention may remove their records."""


class LetterInput(enum.Enum):
    """What happens to a letter."""

    CLAIM = "claim"
    DELIVER = "deliver"
    RETRY = "retry"
    HOLD = "hold"
    RELEASE = "release"
    PARK = "park"
    EXPIRE = "expire"
    CRASH = "crash"
    """The process died while it was in flight."""
    REDRIVE = "redrive"
    DISCARD = "discard"


def _table() -> Mapping[tuple[LetterState, LetterInput], LetterState]:
    state, act = LetterState, LetterInput
    return MappingProxyType(
        {
            (state.PENDING, act.CLAIM): state.IN_FLIGHT,
            (state.PENDING, act.HOLD): state.HELD,
            (state.PENDING, act.PARK): state.PARKED,
            (state.PENDING, act.EXPIRE): state.EXPIRED,
            (state.PENDING, act.DISCARD): state.DISCARDED,
            (state.HELD, act.RELEASE): state.PENDING,
            (state.HELD, act.PARK): state.PARKED,
            (state.HELD, act.EXPIRE): state.EXPIRED,
            (state.HELD, act.REDRIVE): state.PENDING,
            (state.HELD, act.DISCARD): state.DISCARDED,
            (state.IN_FLIGHT, act.DELIVER): state.DELIVERED,
            (state.IN_FLIGHT, act.RETRY): state.PENDING,
            (state.IN_FLIGHT, act.HOLD): state.HELD,
            (state.IN_FLIGHT, act.PARK): state.PARKED,
            (state.IN_FLIGHT, act.EXPIRE): state.EXPIRED,
            (state.IN_FLIGHT, act.CRASH): state.PENDING,
            (state.PARKED, act.REDRIVE): state.PENDING,
            (state.PARKED, act.DISCARD): state.DISCARDED,
            (state.EXPIRED, act.REDRIVE): state.PENDING,
            (state.EXPIRED, act.DISCARD): state.DISCARDED,
        }
    )


TRANSITIONS: Final = _table()


def moved(state: LetterState, what: LetterInput) -> LetterState:
    """Return the state after `what`.

    Raises:
        Bug: ILLEGAL_LETTER_MOVE for a pair that is not in the table.
    """
    after = TRANSITIONS.get((state, what))
    if after is None:
        raise Bug(
            "ILLEGAL_LETTER_MOVE",
            f"a letter that is {state.value} cannot take {what.value!r}; nothing was"
            " changed",
        )
    return after


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt that ended without delivery, or with it."""

    end_wall_s: float
    code: int
    """gRPC status number."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A call that failed for good, or was handed over; mirrors the proto."""

    letter_id: str
    agent_id: str
    upstream: str
    method: str
    idempotency_key: str
    metadata: tuple[tuple[str, str | bytes], ...]
    request: bytes | None
    """None where only the record was read."""
    request_size_bytes: int
    request_digest: bytes
    """SHA-256 of the request."""
    accept_wall_s: float
    ttl_s: float | None
    """Age limit; counted anew from each redrive. None means none."""
    state: LetterState = LetterState.PENDING
    reason: str = ""
    attempt_count: int = 0
    """Attempts that count against the limit."""
    failure_count: int = 0
    """All sends that failed since accepted or redriven; drives the backoff."""
    redrive_count: int = 0
    crash_count: int = 0
    """Times in a row that the process died with it in flight."""
    next_attempt_wall_s: float | None = None
    end_wall_s: float | None = None
    expire_wall_s: float | None = None
    last_code: int = 0
    last_message: str = ""
    attempts: tuple[Attempt, ...] = ()
    """Newest attempts, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterLimits:
    """Bounds of one agent's letters."""

    max_attempts: int = 25
    max_age_s: float = 7 * 86_400.0
    crash_limit: int = 3
    """Crashes in a row with it in flight that make a letter poison."""
    backoff_base_s: float = 0.5
    backoff_max_s: float = 300.0
    outage_backoff_max_s: float = 10.0
    """Short: the circuit, not the letter, waits out an outage."""
    throttle_max_s: float = 3_600.0
    max_letters: int = 100_000
    """Kept: live, parked and expired; more are refused."""
    max_bytes: int = 1024 * 1024 * 1024
    """Of requests and metadata of those kept."""
    max_request_bytes: int = 4 * 1024 * 1024 - 256 * 1024
    """A letter fits whole, with its metadata and attempts, into a message of 4 MiB."""
    attempts_kept: int = 30
    gone_kept: int = 10_000
    """Records of delivered and discarded letters that stay for a while."""
    gone_kept_bytes: int = 64 * 1024 * 1024
    gone_kept_s: float = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Where all letters ever accepted are now."""

    accepted: int = 0
    delivered: int = 0
    parked: int = 0
    expired: int = 0
    discarded: int = 0
    live: int = 0
    """Counted row by row, so that a row that vanished shows as lost."""
    in_doubt: int = 0
    """Found after a failed commit and held since; counted for ever."""
    handed_over: int = 0
    """To the shared tier."""
    refused: Mapping[str, int] = field(default_factory=dict)
    """Since the start of the process, by reason."""

    @property
    def lost(self) -> int:
        """Return accepted minus all others; anything but 0 is a defect."""
        ended = self.delivered + self.parked + self.expired + self.discarded
        return self.accepted - ended - self.live


def delivery_metadata(letter: Letter) -> tuple[tuple[str, str | bytes], ...]:
    """Return the metadata to deliver with: as stored, and the idempotency key."""
    key = IDEMPOTENCY_KEY_METADATA
    kept = tuple(pair for pair in letter.metadata if pair[0] != key)
    return (*kept, (key, letter.idempotency_key))


def short(message: str) -> str:
    """Return a status message cut to what a record keeps, and storable."""
    return message[:_MESSAGE_CHARS].encode("utf-8", "replace").decode("utf-8")
