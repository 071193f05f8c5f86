"""What the guard and a wire say to each other about one call.

None of these classes is frozen: a frozen one costs twice as much to make, and a
healthy call makes four of them (see docs/adr). Treat them as read-only.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

Metadata = Sequence[tuple[str, str | bytes]]
Trailers = tuple[tuple[str, str | bytes], ...]


class Kind(enum.Enum):
    """Whose call it is."""

    CALL = "call"
    """The agent's own."""
    DELIVERY = "delivery"
    """A letter on its way; never retried here and never a letter again."""


class Origin(enum.Enum):
    """Who made an outcome. Judged from channel state, never from message text."""

    LOCAL = "local"
    """The relay itself: limits, deadlines, malformed metadata."""
    TRANSPORT = "transport"
    """No connection, or it broke."""
    UPSTREAM = "upstream"
    """The callee answered."""
    UNKNOWN = "unknown"


@dataclass(slots=True)
class Call:
    """A call as it arrives."""

    call_id: str
    """UUIDv7; becomes the letter's id and, absent a caller's, the idempotency key."""
    method: str
    """Full name, "/package.Service/Method"."""
    metadata: Metadata
    """As received, keys in lower case."""
    deadline: float | None = None
    """Monotonic seconds; None means none."""
    kind: Kind = Kind.CALL
    agent: str = ""
    """Whose call it is, where several agents share a sidecar."""


@dataclass(slots=True, eq=False)
class Permit:
    """One admitted call; a wire carries it, the guard keeps what it likes on it."""

    call: Call
    upstream: str
    state: object = None


@dataclass(slots=True)
class Answer:
    """A status made by the sidecar, marked as its own."""

    code: int
    """gRPC status number."""
    message: str
    trailers: Trailers = ()


@dataclass(slots=True)
class Fault:
    """What an operator wants to go wrong with an attempt; see `policy.fault`."""

    delay_s: float = 0.0
    """Wait so long first."""
    code: int = 0
    """Then end with this status instead of sending; 0 means send."""
    message: str = ""
    is_dropped: bool = False
    """Send nothing and never answer; the time limit ends it."""


@dataclass(slots=True)
class Go:
    """Make this attempt now."""

    permit: Permit
    attempt: int
    """Token of the attempt, from 0."""
    metadata: Metadata
    """To send upstream."""
    timeout_s: float | None
    """Time limit of this attempt; None means none."""
    answer_s: float | None = None
    """Time limit from the end of the request until something of the response has
    come; None means none. It is there for probes: what hangs is cut, as
    DEADLINE_EXCEEDED of the relay's own."""
    fault: Fault | None = None
    """To be made to go wrong; nearly always None."""


@dataclass(slots=True)
class Wait:
    """Park the call; `Wire.resolve(token, ...)` comes later."""

    permit: Permit
    token: int


@dataclass(slots=True)
class Refuse:
    """Answer this now; nothing was or will be sent."""

    answer: Answer


@dataclass(slots=True)
class Finish:
    """The call is over."""

    answer: Answer | None
    """None means: pass the upstream's own status and trailers on."""
    trailers: Trailers = ()
    """To add to the upstream's own."""


@dataclass(slots=True)
class Retry:
    """Ask `attempt` again after this pause."""

    after_s: float


@dataclass(slots=True)
class Await:
    """Do nothing: another attempt of the call is on its way and will decide.

    Ask `due` again: when to hedge may have changed.
    """


@dataclass(slots=True)
class Letter:
    """Hand the call to the letters, then tell `resolved` how that went.

    Only for a call of one request that is wholly in the replay buffer; else the
    wire resolves with LetterRefused at once.
    """

    permit: Permit
    token: int
    upstream: str
    idempotency_key: str
    metadata: Metadata
    """To be stored: ours and credentials already removed."""
    code: int
    """Status the call failed with; also the answer's."""
    message: str


@dataclass(slots=True)
class LetterTaken:
    """The letter is on disk."""

    letter_id: str


@dataclass(slots=True)
class LetterRefused:
    """No letter was taken."""

    reason: str
    """UPPER_SNAKE, sent as trailer `outrigger-letter-refused`."""


@dataclass(slots=True)
class Resumed:
    """What the parked call waited for has come."""


@dataclass(slots=True)
class GivenUp:
    """What the parked call waited for will not come."""

    answer: Answer


Resolution = LetterTaken | LetterRefused | Resumed | GivenUp


@dataclass(slots=True)
class Outcome:
    """How one attempt ended."""

    code: int
    """gRPC status number."""
    message: str
    origin: Origin
    committed: bool
    """Something of the response was passed on, or the replay buffer overflowed."""
    trailers: Trailers = ()
    """The upstream's trailing metadata."""
    is_cut: bool = False
    """It had no answer within `Go.answer_s`."""


@dataclass(slots=True)
class LetterDraft:
    """A call on its way to the journal."""

    letter_id: str
    upstream: str
    method: str
    metadata: tuple[tuple[str, str | bytes], ...]
    request: bytes
    idempotency_key: str
    code: int
    """Status number it failed with; 0 when handed over outright."""
    message: str
    earliest_wall_s: float | None = None
    """Not before; None means at once."""
    ttl_s: float | None = None
    """None means the journal's limit."""


class LetterPort(Protocol):
    """Where a wire hands calls to the letters."""

    async def accept(self, draft: LetterDraft) -> str:
        """Return the letter's id once it is on disk.

        Raises:
            OutriggerError: no letter was taken; `reason` says why.
        """
        ...


class Guard(Protocol):
    """Every decision about a call; never waits, never reads a clock.

    Touched only by the thread its wire calls from.
    """

    def begin(self, call: Call, now: float) -> Go | Wait | Refuse | Letter:
        """Admit a call, park it, or refuse it."""
        ...

    def attempt(self, permit: Permit, now: float) -> Go | Refuse | Letter | Await:
        """Ask again before every retry and, once `due`, before every hedge.

        Await means that no hedge is made; attempts already out go on.
        """
        ...

    def due(self, permit: Permit, now: float) -> float | None:
        """Return when to hedge, as monotonic seconds; None means never.

        Asked after each Go and each Await of a call whose request is one message.
        """
        ...

    def sent(self, permit: Permit, attempt: int, now: float) -> None:
        """The whole request is on its way: from now on an answer is waited for.

        Said once per attempt; never, while the caller goes on sending.
        """
        ...

    def answered(self, permit: Permit, attempt: int, now: float) -> None:
        """Something of the response was passed on, and the call goes on.

        Not needed for an attempt that ends at once. Of several attempts this one
        has won: the wire cancels the others and says no more of them.
        """
        ...

    def ended(
        self, permit: Permit, attempt: int, outcome: Outcome, now: float, draw: float
    ) -> Finish | Retry | Letter | Await:
        """Take an attempt's outcome; called at most once per attempt.

        After any verdict but Await the wire cancels the call's other attempts and
        says no more of them.
        """
        ...

    def cancelled(self, permit: Permit, now: float) -> None:
        """The caller went away; every permit and lease of the call is released."""
        ...

    def resolved(
        self, token: int, result: Resolution, now: float
    ) -> Go | Refuse | Finish | Letter:
        """Go on with a parked call."""
        ...

    def tick(self, now: float, draw: float) -> None:
        """Expire leases and the like; at least every 250 ms.

        Args:
            now: monotonic seconds.
            draw: a number in [0, 1), for rests that begin now.
        """
        ...


@dataclass(slots=True)
class CallCounts:
    """What a guard counted since its start."""

    begun: int = 0
    ok: int = 0
    failed: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    """By what refused: deadline, limit, circuit, route, kill_switch."""
    retries: int = 0
    hedges: int = 0
    letters: int = 0
    cancelled: int = 0
    in_flight: int = 0
    held: int = 0
    """Parked and in flight: for a place at the upstream, or for a wake."""


@dataclass(slots=True)
class SeenCall:
    """A call that is over, for whoever watches."""

    call: Call
    upstream: str
    began: float
    """Monotonic seconds."""
    elapsed_s: float
    attempts: int
    code: int
    """gRPC status number the caller got; 1 if it went away."""
    refused_by: str = ""
    """Layer that refused it; empty if none did."""
    letter_id: str = ""
    """Of the letter it became; empty if none."""
