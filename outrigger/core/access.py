"""Who may call what: one table per server, deny by default."""

import enum
import hmac
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from outrigger.core.errors import Denied, Overloaded, Unauthenticated


class Role(enum.Enum):
    """What a token stands for."""

    AGENT = "agent"
    OPERATOR = "operator"
    SIDECAR = "sidecar"


ANYONE = frozenset(Role)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who calls."""

    role: Role | None
    """None means no token was given."""
    agent_id: str = ""
    """The agent, for Role.AGENT."""

    @property
    def name(self) -> str:
        """Return the name for audits."""
        if self.role is None:
            return "anonymous"
        return f"agent/{self.agent_id}" if self.agent_id else self.role.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may call a method and whether it counts against the rate limit."""

    roles: frozenset[Role] = frozenset()
    public: bool = False
    """Needs no token: health and reflection only."""
    mutating: bool = False
    """Changes something: audited, and bounded per principal."""


class Tokens:
    """The tokens one server accepts."""

    def __init__(self, known: Mapping[str, Principal]) -> None:
        self._known = dict(known)

    def principal(self, token: str | None) -> Principal:
        """Return who holds `token`.

        Compares every known token in constant time.

        Raises:
            Unauthenticated: BAD_TOKEN.
        """
        if token is None:
            return Principal(None)
        found: Principal | None = None
        for known, principal in self._known.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                found = principal
        if found is None:
            raise Unauthenticated(
                "BAD_TOKEN",
                "the token in metadata 'outrigger-token' is not known here: agents"
                " find theirs in OUTRIGGER_TOKEN, operators in the file"
                " 'admin-token' of the state directory, sidecars in the controller's"
                " 'join-token'",
            )
        return found


def authorise(table: Mapping[str, Rule], method: str, principal: Principal) -> Rule:
    """Return the rule that lets `principal` call `method`.

    Raises:
        Denied: NO_RULE when the table has no row, FORBIDDEN when the role is not
            in it.
        Unauthenticated: NO_TOKEN.
    """
    rule = table.get(method)
    if rule is None:
        raise Denied("NO_RULE", f"{method} is not offered by this server")
    if rule.public or principal.role in rule.roles:
        return rule
    if principal.role is None:
        raise Unauthenticated(
            "NO_TOKEN", f"{method} needs a token in metadata 'outrigger-token'"
        )
    roles = ", ".join(sorted(role.value for role in rule.roles))
    raise Denied(
        "FORBIDDEN", f"{principal.name} may not call {method}: it is for {roles}"
    )


class RateLimit:
    """A token bucket per principal: `rate_per_s` on, `burst` at most saved up."""

    def __init__(self, *, rate_per_s: float, burst: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, who: str, now: float) -> None:
        """Take one token.

        Raises:
            Overloaded: RATE_LIMITED with the time until the next token.
        """
        level, seen = self._buckets.get(who, (self._burst, now))
        level = min(self._burst, level + (now - seen) * self._rate_per_s)
        if level < 1:
            self._buckets[who] = (level, now)
            raise Overloaded(
                "RATE_LIMITED",
                f"{who} makes more than {self._rate_per_s:g} changes a second",
                retry_after_s=(1 - level) / self._rate_per_s,
            )
        self._buckets[who] = (level - 1, now)


_ANONYMOUS: Final = "calls without a token"
_LASTING: Final = "streams without a token"
_KNOWN: Final = "calls with a token"
_AGENTS: Final = "calls of agents"
_ANONYMOUS_PLACES: Final = 32
_SHARE: Final = 3 / 4
"""What part of the places those may take who must leave some for others."""


class Places:
    """The calls that may be in flight at once, so that nobody locks out others.

    Callers without a token have a few places of their own, and their streams leave
    some of those to their short calls: anybody's health checks go on. Of the other
    places, agents leave some to operators.
    """

    def __init__(self) -> None:
        self._taken: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Return how many calls are in flight."""
        return self._taken[_ANONYMOUS] + self._taken[_KNOWN]

    def take(self, who: Principal, most: int, *, lasts: bool) -> tuple[str, ...]:
        """Take a place; give back what is returned.

        Args:
            who: who calls.
            most: places for all callers with a token.
            lasts: the call is a stream, which may stay for ever.

        Raises:
            Overloaded: TOO_MANY_CALLS.
        """
        bounds = _bounds(who, most, lasts=lasts)
        for kind, bound in bounds.items():
            if self._taken[kind] >= bound:
                raise Overloaded(
                    "TOO_MANY_CALLS",
                    f"{bound} {kind} are in flight here, which is all that"
                    " may be: end some, or come back later",
                    retry_after_s=1.0,
                )
        self._taken.update(bounds.keys())
        return tuple(bounds)

    def give_back(self, kinds: Iterable[str]) -> None:
        """Give back what `take` returned."""
        self._taken.subtract(kinds)


def _bounds(who: Principal, most: int, *, lasts: bool) -> dict[str, int]:
    """Return what a call counts as, and the most there may be of that."""
    if who.role is None:
        bounds = {_ANONYMOUS: _ANONYMOUS_PLACES}
        return bounds | ({_LASTING: _part(_ANONYMOUS_PLACES)} if lasts else {})
    bounds = {_KNOWN: most}
    return bounds | ({_AGENTS: _part(most)} if who.role is Role.AGENT else {})


def _part(places: int) -> int:
    return max(1, int(places * _SHARE))
