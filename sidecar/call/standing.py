"""What a guard knows of each upstream and of each of its methods."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from sidecar.call.descriptor import Permit
from sidecar.call.limits import ConcurrencyLimit
from sidecar.call.routes import MethodRule, Route, Routes
from sidecar.call.tries import Try
from sidecar.policy.baseline import Baseline, BaselineSettings
from sidecar.policy.bounds import Mistake, above, at_least, refuse
from sidecar.policy.budget import BudgetSettings, RetryBudget
from sidecar.policy.circuit import Circuit, CircuitSettings
from sidecar.policy.classify import Code, Repeat, retryable_codes
from sidecar.policy.fair_queue import FairQueue
from sidecar.policy.gradient import Gradient, GradientSettings
from sidecar.policy.median import Median
from sidecar.policy.retry import RetrySettings

_NEVER: Final = 1 << 30
_BASELINE: Final = BaselineSettings()
_SLOW_FACTOR: Final = 3.0
"""A call that takes so many times what the method usually does is slow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamPolicy:
    """What holds for the calls to one upstream."""

    concurrency: int = 1024
    """Most calls in flight; under an adaptive limit that limit's own bounds hold."""
    adaptive: GradientSettings | None = None
    """How to learn the limit from how long calls take; None means that it is fixed."""
    queue: int = 0
    """Most calls that wait for a place."""
    queue_max_s: float = 1.0
    """Longest that one waits."""
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)

    def __post_init__(self) -> None:
        """Check what the parts do not check themselves.

        Raises:
            BadSettings: BAD_UPSTREAM_POLICY, naming every mistake.
        """
        refuse(
            "BAD_UPSTREAM_POLICY",
            "the policy of an upstream is not possible",
            _mistakes(self),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings(UpstreamPolicy):
    """What a guard is told besides the routes.

    It is itself the policy of every upstream that has none of its own.
    """

    upstreams: Mapping[str, UpstreamPolicy] = field(default_factory=dict)
    """Policies by upstream."""
    token: str | None = field(default=None, repr=False)
    """What the agent's calls must bring as `outrigger-token`; None asks for none."""
    methods_max: int = 1000
    """Methods known one by one; those beyond share a circuit, `UPSTREAM/*`. The
    agent makes up the names, so without a bound it could fill the memory."""
    parked_max: int = 4096
    """Calls that may wait for their letter at once."""
    margin_ratio: float = 0.1
    """Share of the caller's time kept back so that a letter's id still arrives."""
    margin_min_s: float = 0.05
    margin_max_s: float = 0.5

    def of(self, upstream: str) -> UpstreamPolicy:
        """Return the policy of an upstream."""
        return self.upstreams.get(upstream, self)


class UpstreamStanding:
    """How an upstream stands."""

    __slots__ = ("budget", "circuit", "gradient", "limit", "name", "policy", "queue")

    def __init__(self, name: str, policy: UpstreamPolicy, now: float) -> None:
        self.name = name
        self.policy = policy
        # One slow method must not shut out the others: what is slow counts against
        # the upstream only while nothing at all gets an answer from it.
        settings = dataclasses.replace(
            policy.circuit, slow_ratio=1.0, slow_in_a_row=_NEVER
        )
        self.circuit = Circuit(name, settings, now=now)
        self.gradient: Gradient | None = None
        most = policy.concurrency
        if policy.adaptive is not None:
            self.gradient = Gradient(policy.adaptive, now=now)
            most = self.gradient.limit
        self.limit = ConcurrencyLimit(name, most)
        self.queue: FairQueue[Permit] | None = None
        if policy.queue:
            self.queue = FairQueue(policy.queue)
        self.budget = RetryBudget(policy.budget, now=now)

    def timed(self, elapsed_s: float, now: float, *, dropped: bool = False) -> None:
        """Let an adaptive limit learn from a call that was answered, or was not."""
        gradient, limit = self.gradient, self.limit
        if gradient is not None and gradient.sample(
            elapsed_s, limit.in_flight, now, dropped=dropped
        ):
            limit.most = gradient.limit


class Pulse:
    """What the calls of a method leave behind: its circuit, and how long they take."""

    __slots__ = ("circuit", "flying", "median")

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit
        self.median = Median()
        self.flying: dict[Try, Permit] = {}
        """Attempts without an answer that are not known to be slow, with their
        calls, oldest first."""


class MethodStanding:
    """How a method of an upstream stands."""

    __slots__ = (
        "circuit",
        "codes",
        "flying",
        "is_stamped",
        "median",
        "repeat",
        "retry",
        "rule",
        "slow_floor_s",
        "upstream",
    )

    def __init__(
        self, upstream: UpstreamStanding, rule: MethodRule, pulse: Pulse
    ) -> None:
        self.upstream = upstream
        self.rule = rule
        self.circuit = pulse.circuit
        self.median = pulse.median
        self.flying = pulse.flying
        self.repeat = _repeat_of(rule)
        self.codes = _codes_of(rule, self.repeat)
        """Statuses after which it is sent again."""
        self.retry = _retry_of(rule, upstream.policy.retry)
        self.is_stamped = rule.idempotent or rule.letter != "off"
        """Its calls carry an idempotency key from the first attempt on."""
        self.slow_floor_s = _slow_floor_s(rule, upstream.policy.circuit)
        """No call that took less is slow."""

    def slow_after_s(self) -> float:
        """Return after how long a call is slow."""
        if self.rule.slow_s is not None:
            return self.rule.slow_s
        baseline = self.circuit.baseline
        learned_s = None if baseline is None else baseline.slow_s()
        if learned_s is not None:
            return learned_s
        usual_s = _SLOW_FACTOR * self.median.usual_s()
        return max(self.upstream.policy.circuit.slow_s, usual_s)


class Standings:
    """Every upstream, and the methods seen so far."""

    def __init__(self, routes: Routes, settings: GuardSettings, now: float) -> None:
        self._routes = routes
        self._settings = settings
        self._upstreams = {
            name: UpstreamStanding(name, settings.of(name), now)
            for name in routes.upstreams
        }
        self._methods: dict[str, MethodStanding] = {}
        self._unnamed: dict[str, MethodStanding] = {}
        self._named: dict[tuple[str, str], MethodStanding] = {}
        self._shared: dict[str, MethodStanding] = {}

    def find(self, method: str, named: str | None, now: float) -> MethodStanding:
        """Return the method's standing.

        Raises:
            NotFound: UNKNOWN_UPSTREAM.
            Invalid: NO_UPSTREAM.
        """
        if named is None:
            found = self._unnamed.get(method)
        else:
            found = self._named.get((named, method))
        return found or self._found_slowly(method, named, now)

    def circuit(self, circuit_id: str) -> Circuit | None:
        """Return a circuit by id; None if there is none yet."""
        upstream = self._upstreams.get(circuit_id)
        if upstream is not None:
            return upstream.circuit
        if circuit_id in self._methods:
            return self._methods[circuit_id].circuit
        shared = self._shared.get(circuit_id.removesuffix("/*"))
        return shared.circuit if shared and circuit_id.endswith("/*") else None

    def made_circuit(self, circuit_id: str, now: float) -> Circuit | None:
        """Return a circuit, made if its upstream is there; None if that is not."""
        found = self.circuit(circuit_id)
        upstream, _, method = circuit_id.partition("/")
        if found is not None or upstream not in self._upstreams:
            return found
        if method == "*":
            return self._overflow(self._upstreams[upstream], now).circuit
        return self._made(
            f"/{method}", self._routes.route(f"/{method}", upstream), now
        ).circuit

    def circuits(self) -> list[Circuit]:
        """Return all circuits, by id."""
        found = [standing.circuit for standing in self._upstreams.values()]
        found += [standing.circuit for standing in self.methods()]
        return sorted(found, key=lambda circuit: circuit.circuit_id)

    def upstream(self, name: str) -> UpstreamStanding:
        """Return one upstream.

        Raises:
            KeyError: it is not configured.
        """
        return self._upstreams[name]

    def upstreams(self) -> Iterable[UpstreamStanding]:
        """Return every upstream."""
        return self._upstreams.values()

    def methods(self) -> Iterator[MethodStanding]:
        """Return the methods seen so far; those beyond the bound are one each."""
        yield from self._methods.values()
        yield from self._shared.values()

    def _found_slowly(
        self, method: str, named: str | None, now: float
    ) -> MethodStanding:
        standing = self._made(method, self._routes.route(method, named), now)
        if standing.circuit.circuit_id in self._methods:
            if named is None:
                self._unnamed[method] = standing
            else:
                self._named[named, method] = standing
        return standing

    def _made(self, method: str, route: Route, now: float) -> MethodStanding:
        circuit_id = route.upstream + method
        known = self._methods.get(circuit_id)
        if known is not None:
            return known
        upstream = self._upstreams[route.upstream]
        if len(self._methods) >= self._settings.methods_max:
            shared = self._overflow(upstream, now)
            pulse = Pulse(shared.circuit)
            pulse.median, pulse.flying = shared.median, shared.flying
            return MethodStanding(upstream, route.rule, pulse)
        made = MethodStanding(
            upstream, route.rule, _pulse(circuit_id, upstream, route.rule, now)
        )
        self._methods[circuit_id] = made
        return made

    def _overflow(self, upstream: UpstreamStanding, now: float) -> MethodStanding:
        """Return what the methods beyond the bound share."""
        if upstream.name not in self._shared:
            rule = MethodRule(match="*")
            pulse = _pulse(f"{upstream.name}/*", upstream, rule, now)
            self._shared[upstream.name] = MethodStanding(upstream, rule, pulse)
        return self._shared[upstream.name]


def _pulse(
    circuit_id: str, upstream: UpstreamStanding, rule: MethodRule, now: float
) -> Pulse:
    settings = upstream.policy.circuit
    if rule.shadow:
        settings = dataclasses.replace(settings, shadow=True)
    circuit = Circuit(circuit_id, settings, now=now)
    if settings.learn:
        circuit.baseline = Baseline(_BASELINE, now=now)
    return Pulse(circuit)


def _slow_floor_s(rule: MethodRule, settings: CircuitSettings) -> float:
    if rule.slow_s is not None:
        return rule.slow_s
    least_s = _BASELINE.slow_least_s
    return min(settings.slow_s, least_s) if settings.learn else settings.slow_s


def _repeat_of(rule: MethodRule) -> Repeat:
    if rule.unsafe:
        return Repeat.UNSAFE
    return Repeat.IDEMPOTENT if rule.idempotent else Repeat.DEFAULT


def _codes_of(rule: MethodRule, repeat: Repeat) -> frozenset[int]:
    if rule.retry_on is None or repeat is Repeat.UNSAFE:
        return retryable_codes(repeat)
    return frozenset(int(Code[name]) for name in rule.retry_on)


def _retry_of(rule: MethodRule, usual: RetrySettings) -> RetrySettings:
    if rule.backoff_s is None and rule.backoff_max_s is None:
        return usual
    base_s = rule.backoff_s or min(usual.base_s, rule.backoff_max_s or usual.base_s)
    cap_s = rule.backoff_max_s or max(usual.cap_s, base_s)
    return dataclasses.replace(usual, base_s=base_s, cap_s=cap_s)


def _mistakes(policy: UpstreamPolicy) -> Iterator[Mistake]:
    yield from at_least(policy, 1, "concurrency")
    yield from at_least(policy, 0, "queue")
    yield from above(policy, 0, "queue_max_s")
