"""Faults on purpose, for people who try how well their agents bear them.

A rule waits, answers in place of the callee, or swallows the call, for a share of
the calls it matches and for a limited time. The share is exact and not by chance:
10 % is every tenth call, so that a trial of twenty calls shows what it should.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from outrigger.core.errors import Invalid, NotFound, Overloaded
from outrigger.core.ids import check_method, check_upstream_name

MOST_RULES: Final = 32
LONGEST_TTL_S: Final = 3600.0
LONGEST_DELAY_S: Final = 300.0
LONGEST_MESSAGE: Final = 1024
"""Characters; it travels in a header."""

_ANY: Final = "*"
_CODES: Final = range(1, 17)
_KINDS: Final = ("delay", "abort", "drop")
"""In the order in which they are tried."""
_MOST_OWED: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultRule:
    """One fault, as an operator asks for it."""

    match: str
    """`/package.Service/Method`, `/package.Service/*` or `*`."""
    kind: str
    """`delay`: it goes on after `delay_s`; `abort`: it ends at once with `code`;
    `drop`: it never reaches the callee and nothing answers."""
    ttl_s: float
    """It ends by itself after so long, at most an hour."""
    upstream: str | None = None
    """None means any."""
    share: float = 1.0
    """Of the calls it matches, in (0, 1]."""
    delay_s: float = 0.0
    code: int = 0
    """gRPC status of an abort, 1 to 16."""
    message: str = ""

    def __post_init__(self) -> None:
        """Check the rule.

        Raises:
            Invalid: BAD_FAULT, naming every mistake.
        """
        mistakes = list(_mistakes(self))
        if mistakes:
            raise Invalid(
                "BAD_FAULT",
                f"the fault for {self.match!r} is not valid: {'; '.join(mistakes)}",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultView:
    """A rule in force, as an operator sees it."""

    fault_id: str
    rule: FaultRule
    expires: float
    """Monotonic seconds."""
    matched: int
    """Calls so far that it was asked about."""
    hit: int
    """Those of them it was inflicted on."""


class _Live:
    """A rule in force and how much of its share it is owed."""

    __slots__ = (
        "_owed",
        "_part",
        "_prefix",
        "_whole",
        "expires",
        "fault_id",
        "hit",
        "matched",
        "rule",
    )

    def __init__(self, fault_id: str, rule: FaultRule, expires: float) -> None:
        self.fault_id = fault_id
        self.rule = rule
        self.expires = expires
        self.matched = self.hit = self._owed = 0
        # As it was written: a float has no exact tenth, and ten of them are not one.
        share = Fraction(repr(float(rule.share)))
        self._part, self._whole = share.numerator, share.denominator
        star = rule.match.endswith(_ANY)
        self._prefix = rule.match.removesuffix(_ANY) if star else None

    def matches(self, upstream: str, method: str) -> bool:
        if self.rule.upstream is not None and self.rule.upstream != upstream:
            return False
        if self._prefix is None:
            return method == self.rule.match
        return method.startswith(self._prefix)

    def is_due(self) -> bool:
        """Count a call; return whether the rule is owed one.

        What another rule took stays owed, up to a bound: so each gets its share of
        all calls, as long as the shares together are no more than the whole.
        """
        self.matched += 1
        self._owed = min(self._owed + self._part, _MOST_OWED * self._whole)
        return self._owed >= self._whole

    def take(self) -> FaultRule:
        """Inflict it."""
        self._owed -= self._whole
        self.hit += 1
        return self.rule

    def view(self) -> FaultView:
        return FaultView(
            fault_id=self.fault_id,
            rule=self.rule,
            expires=self.expires,
            matched=self.matched,
            hit=self.hit,
        )


class Faults:
    """The rules in force; the guard asks only while it `is_empty` no more."""

    __slots__ = ("_live", "_next_end", "_number", "is_empty")

    def __init__(self) -> None:
        self._live: list[_Live] = []
        self._number = 0
        self._next_end = math.inf
        self.is_empty = True

    def inject(self, rule: FaultRule, now: float) -> str:
        """Put a rule in force and return its id.

        Raises:
            Overloaded: TOO_MANY_FAULTS.
        """
        self._expire(now)
        if len(self._live) >= MOST_RULES:
            raise Overloaded(
                "TOO_MANY_FAULTS",
                f"{MOST_RULES} faults are in force, which is the most: clear some"
                " before injecting another",
                retry_after_s=self._next_end - now,
            )
        self._number += 1
        live = _Live(f"fault-{self._number}", rule, now + rule.ttl_s)
        # Stable: among equals the older one is tried first.
        self._set(sorted([*self._live, live], key=_order))
        return live.fault_id

    def clear(self, fault_id: str) -> None:
        """End a rule.

        Raises:
            NotFound: UNKNOWN_FAULT.
        """
        kept = [live for live in self._live if live.fault_id != fault_id]
        if len(kept) == len(self._live):
            raise NotFound(
                "UNKNOWN_FAULT",
                f"there is no fault {fault_id!r}, or no longer: list those in force",
                metadata={"fault": fault_id},
            )
        self._set(kept)

    def clear_all(self) -> None:
        """End every rule."""
        self._set([])

    def rules(self, now: float) -> tuple[FaultView, ...]:
        """Return the rules in force in the order in which they are tried."""
        self._expire(now)
        return tuple(live.view() for live in self._live)

    def pick(self, upstream: str, method: str, now: float) -> FaultRule | None:
        """Return the fault to inflict on a call, if any.

        Delays first, then aborts, then drops. One call gets one fault.
        """
        self._expire(now)
        chosen: _Live | None = None
        for live in self._live:
            if live.matches(upstream, method) and live.is_due() and chosen is None:
                chosen = live
        return None if chosen is None else chosen.take()

    def _expire(self, now: float) -> None:
        if now >= self._next_end:
            self._set([live for live in self._live if now < live.expires])

    def _set(self, live: list[_Live]) -> None:
        self._live = live
        self._next_end = min((one.expires for one in live), default=math.inf)
        self.is_empty = not live


def _order(live: _Live) -> int:
    return _KINDS.index(live.rule.kind)


def _mistakes(rule: FaultRule) -> Iterator[str]:
    yield from _where(rule)
    yield from _how(rule)
    if not 0 < rule.share <= 1:
        yield "share must be in (0, 1]"
    if not 0 < rule.ttl_s <= LONGEST_TTL_S:
        yield f"ttl_s must be more than 0 and at most {LONGEST_TTL_S:g} seconds"


def _where(rule: FaultRule) -> Iterator[str]:
    if rule.match != _ANY:
        # The star stands for a method's name, so put one there and look again.
        named = f"{rule.match[:-1]}Any" if rule.match.endswith("/*") else rule.match
        try:
            check_method(named)
        except Invalid:
            yield "match must be /package.Service/Method, /package.Service/* or *"
    if rule.upstream is not None:
        try:
            check_upstream_name(rule.upstream)
        except Invalid as error:
            yield error.message


def _how(rule: FaultRule) -> Iterator[str]:
    if rule.kind not in _KINDS:
        yield f"kind must be one of {', '.join(_KINDS)}"
    if rule.kind == "delay" and not 0 < rule.delay_s <= LONGEST_DELAY_S:
        yield f"delay_s must be more than 0 and at most {LONGEST_DELAY_S:g} seconds"
    if rule.kind != "delay" and rule.delay_s != 0:
        yield "delay_s is for a delay only"
    if rule.kind == "abort" and rule.code not in _CODES:
        yield "code must be a gRPC status from 1 to 16"
    if rule.kind != "abort" and (rule.code or rule.message):
        yield "code and message are for an abort only"
    if len(rule.message) > LONGEST_MESSAGE:
        yield f"message must be at most {LONGEST_MESSAGE} characters"
