"""Events: everything that happens, typed.

Policies return them, the log keeps them, `Watch` streams them; metrics and log
lines are made from them.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSeen:
    """A failure that was caught and dealt with."""

    boundary: str
    """Name of the task, RPC or step that caught it."""
    reason: str
    """UPPER_SNAKE reason."""
    causes: tuple[str, ...]
    """One line per cause, outermost first."""
    subject: str = ""
    """Call, letter or checkpoint concerned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitMoved:
    """A circuit moved."""

    circuit: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterMoved:
    """A letter moved; `before` is empty when it was accepted just now."""

    letter_id: str
    before: str
    after: str
    reason: str
    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointMoved:
    """A checkpoint was saved, restored, verified, refused, fell_back or pruned."""

    generation: int
    action: str
    reason: str = ""
    raw_size_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitioned:
    """An agent moved between states of sleep and wake."""

    before: str
    after: str
    input: str
    reason: str
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Something that had failed works again."""

    subject: str
    elapsed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alerted:
    """Something an operator should look at."""

    name: str
    message: str


Payload = (
    ErrorSeen
    | CircuitMoved
    | LetterMoved
    | CheckpointMoved
    | Transitioned
    | Recovered
    | Alerted
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A payload with when, where and its place in the order."""

    sequence: int
    wall_s: float
    agent_id: str
    payload: Payload
