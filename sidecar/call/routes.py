"""Where a call goes, and what holds for its method.

Routing reads names only: a request never names an address.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Final

from outrigger.core import names
from outrigger.core.errors import Invalid, NotFound
from outrigger.core.ids import check_method, check_upstream_name
from sidecar.call.descriptor import Metadata
from sidecar.policy.bounds import Mistake, above, at_least, at_most, ordered, refuse
from sidecar.policy.classify import Code

DEFAULT_UPSTREAM: Final = "default"
ANY_METHOD: Final = "*"
MAX_ATTEMPTS: Final = 5
"""gRFC A6 lets no client make more than five attempts of one call."""

LETTERS: Final = ("off", "on", "always")
_TIMES: Final = ("timeout_s", "backoff_s", "backoff_max_s", "hedge_s", "slow_s")
_STATUSES: Final = frozenset(code.name for code in Code if code is not Code.OK)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A callee the agent may reach."""

    name: str
    target: str = ""
    """A gRPC target; only the wire looks at it."""

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            Invalid: BAD_UPSTREAM_NAME.
        """
        check_upstream_name(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRule:
    """What the operator says about some methods."""

    match: str
    """`/package.Service/Method`, `/package.Service/*` or `*`."""
    idempotent: bool = False
    """Sending it twice does no harm: more statuses are retried."""
    unsafe: bool = False
    """Sending it twice may do harm: it is never sent again, nor made a letter."""
    letter: str = "off"
    """`on`: a call that failed for good becomes a letter; `always`: also after its
    caller's deadline, when no trailer can tell the caller so."""
    timeout_s: float | None = None
    """Time limit of one attempt; None means the caller's deadline only."""
    max_attempts: int = 3
    """1 to 5, the first one included."""
    retry_on: tuple[str, ...] | None = None
    """Statuses after which it is sent again; None means what `idempotent` says."""
    backoff_s: float | None = None
    """Upper bound of the first wait before a retry; None means the upstream's."""
    backoff_max_s: float | None = None
    """Upper bound of every wait of our own choice; None means the upstream's."""
    hedge_s: float | None = None
    """Without an answer after so long it is sent once more beside, and whichever
    answers first wins; None means never. For idempotent methods only."""
    slow_s: float | None = None
    """Without an answer after so long it is slow; infinite: it never is. None means
    the upstream's, and more where it is known to take long."""
    shadow: bool = False
    """Its circuit only tells what it would refuse."""

    def __post_init__(self) -> None:
        """Check the rule by itself.

        Raises:
            BadSettings: BAD_METHOD_RULE, naming every mistake.
        """
        lead = f"the rule for {self.match!r} is not valid"
        refuse("BAD_METHOD_RULE", lead, _mistakes(self))


@dataclass(frozen=True, slots=True)
class Route:
    """Where one method of one upstream goes."""

    upstream: str
    rule: MethodRule


@dataclass(slots=True)
class _Rules:
    """Rules by how exactly they match."""

    exact: dict[str, MethodRule] = field(default_factory=dict)
    service: dict[str, MethodRule] = field(default_factory=dict)
    fallback: MethodRule = field(default_factory=lambda: MethodRule(match=ANY_METHOD))

    def of(self, method: str) -> MethodRule:
        """Return the rule that matches most exactly."""
        found = self.exact.get(method) or self.service.get(service_of(method))
        return found or self.fallback


class Routes:
    """The upstreams and rules of one sidecar; never changes."""

    def __init__(
        self,
        upstreams: Iterable[Upstream],
        rules: Iterable[MethodRule] = (),
        prefixes: Mapping[str, str] | None = None,
    ) -> None:
        """Take the upstreams, rules, and service prefixes by upstream name.

        A prefix ends where a word of the service's name ends: `shop` covers
        `shop.Orders`, not `shopping.Cart`.

        Raises:
            Invalid: DOUBLE_UPSTREAM, DOUBLE_METHOD_RULE or UNKNOWN_UPSTREAM.
        """
        self._upstreams = _by_name(upstreams)
        self._rules = _by_exactness(rules)
        self._prefixes = {
            prefix.strip("/"): self._known(name, prefix)
            for prefix, name in (prefixes or {}).items()
        }
        self._default = _default_of(self._upstreams)

    @property
    def upstreams(self) -> tuple[str, ...]:
        """Names of the upstreams, sorted."""
        return tuple(sorted(self._upstreams))

    def resolve(self, method: str, metadata: Metadata = ()) -> Route:
        """Return where a call goes; of several upstreams named, the last.

        Raises:
            NotFound: UNKNOWN_UPSTREAM, the call names one that is not configured.
            Invalid: NO_UPSTREAM, it names none and there is no default.
        """
        named: str | None = None
        for key, value in metadata:
            if key == names.UPSTREAM_METADATA:
                named = str(value)
        return self.route(method, named)

    def route(self, method: str, named: str | None) -> Route:
        """Return where a call goes whose `outrigger-upstream` is already known.

        Raises:
            NotFound: UNKNOWN_UPSTREAM.
            Invalid: NO_UPSTREAM.
        """
        upstream = self._of_service(method) if named is None else self._named(named)
        return Route(upstream, self._rules.of(method))

    def _named(self, name: str) -> str:
        if name not in self._upstreams:
            raise NotFound(
                "UNKNOWN_UPSTREAM",
                f"there is no upstream {name!r}: {names.UPSTREAM_METADATA} must name"
                f" one of {self._listed()}",
            )
        return name

    def _of_service(self, method: str) -> str:
        prefix = service_of(method)
        while prefix:
            if prefix in self._prefixes:
                return self._prefixes[prefix]
            prefix = prefix.rpartition(".")[0]
        if self._default is None:
            raise Invalid(
                "NO_UPSTREAM",
                f"{method} belongs to no upstream: name one of {self._listed()} in"
                f" metadata {names.UPSTREAM_METADATA}, configure its service, or call"
                f" one upstream {DEFAULT_UPSTREAM!r}",
            )
        return self._default

    def _known(self, name: str, prefix: str) -> str:
        if name not in self._upstreams:
            raise Invalid(
                "UNKNOWN_UPSTREAM",
                f"service {prefix} names upstream {name!r}, which is not there:"
                f" expected one of {self._listed()}",
            )
        return name

    def _listed(self) -> str:
        return ", ".join(self.upstreams) or "(none is configured)"


def service_of(method: str) -> str:
    """Return `package.Service` of `/package.Service/Method`."""
    return method.rpartition("/")[0].lstrip("/")


def status_mistake(name: object) -> str:
    """Return what is wrong with a status to retry on; nothing if it is one."""
    if name in _STATUSES:
        return ""
    near = get_close_matches(str(name).upper(), sorted(_STATUSES), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"expected the name of a gRPC status, such as UNAVAILABLE{hint}"


def _by_name(upstreams: Iterable[Upstream]) -> dict[str, Upstream]:
    found: dict[str, Upstream] = {}
    for upstream in upstreams:
        if upstream.name in found:
            raise Invalid(
                "DOUBLE_UPSTREAM",
                f"upstream {upstream.name!r} is there twice: give each its own name",
            )
        found[upstream.name] = upstream
    return found


def _default_of(upstreams: Mapping[str, Upstream]) -> str | None:
    if DEFAULT_UPSTREAM in upstreams:
        return DEFAULT_UPSTREAM
    return next(iter(upstreams)) if len(upstreams) == 1 else None


def _by_exactness(rules: Iterable[MethodRule]) -> _Rules:
    found = _Rules()
    seen: set[str] = set()
    for rule in rules:
        if rule.match in seen:
            raise Invalid(
                "DOUBLE_METHOD_RULE",
                f"there are two rules for {rule.match!r}: make them one",
            )
        seen.add(rule.match)
        if rule.match == ANY_METHOD:
            found.fallback = rule
        elif rule.match.endswith("/*"):
            found.service[service_of(rule.match)] = rule
        else:
            found.exact[rule.match] = rule
    return found


def _mistakes(rule: MethodRule) -> Iterable[Mistake]:
    if rule.match != ANY_METHOD:
        # The star stands for a method's name, so put one there and look again.
        named = f"{rule.match[:-1]}Any" if rule.match.endswith("/*") else rule.match
        try:
            check_method(named)
        except Invalid:
            wanted = "must be /package.Service/Method, /package.Service/* or *"
            yield Mistake(("match",), f"{rule.match!r} {wanted}")
    if rule.letter not in LETTERS:
        yield Mistake(
            ("letter",), f"{rule.letter!r} must be one of {', '.join(LETTERS)}"
        )
    yield from above(rule, 0, *_TIMES)
    yield from at_least(rule, 1, "max_attempts")
    yield from at_most(rule, MAX_ATTEMPTS, "max_attempts")
    yield from ordered(rule, "backoff_s", "backoff_max_s")
    yield from _unsafe_mistakes(rule)
    yield from _status_mistakes(rule)
    if rule.hedge_s is not None:
        yield from _hedge_mistakes(rule)


def _unsafe_mistakes(rule: MethodRule) -> Iterable[Mistake]:
    if rule.unsafe and rule.idempotent:
        yield Mistake(("unsafe", "idempotent"), "it is unsafe or idempotent, not both")
    if rule.unsafe and rule.letter != "off":
        yield Mistake(
            ("letter", "unsafe"),
            "a letter is sent again, which unsafe forbids: choose one",
        )
    if rule.unsafe and rule.retry_on:
        yield Mistake(
            ("retry_on", "unsafe"), "it sends again, which unsafe forbids: choose one"
        )


def _status_mistakes(rule: MethodRule) -> Iterable[Mistake]:
    for name in dict.fromkeys(rule.retry_on or ()):
        mistake = status_mistake(name)
        if mistake:
            yield Mistake(("retry_on",), f"{name!r}: {mistake}")


def _hedge_mistakes(rule: MethodRule) -> Iterable[Mistake]:
    if not rule.idempotent:
        yield Mistake(
            ("hedge_s", "idempotent"),
            "it sends twice: say idempotent = true, if that does no harm",
        )
    if rule.max_attempts < 2:  # noqa: PLR2004 - the first and one beside it
        yield Mistake(("hedge_s", "max_attempts"), "it needs max_attempts of 2 or more")
