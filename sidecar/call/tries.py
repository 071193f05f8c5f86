"""Attempts of one call, as the guard keeps them while they are on their way."""

from typing import Protocol


class Try(Protocol):
    """One attempt that is on its way."""

    number: int
    """Its token towards the wire."""
    started: float
    """Active seconds."""
    sent: float | None
    """When its whole request was on its way, active seconds; None until then."""
    upstream_ticket: int
    method_ticket: int
    has_answered: bool
    """Something of its response was passed on."""
    is_slow: bool
    """It was counted as slow."""
    stops: int
    """How often this process had been stopped when it began."""


class Hedge:
    """An attempt beside the first one; see `Try`."""

    __slots__ = (
        "has_answered",
        "is_slow",
        "method_ticket",
        "number",
        "sent",
        "started",
        "stops",
        "upstream_ticket",
    )

    def __init__(self) -> None:
        self.sent: float | None = None
        self.number = self.upstream_ticket = self.method_ticket = self.stops = 0
        self.started = 0.0
        self.has_answered = self.is_slow = False
