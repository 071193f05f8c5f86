"""What a guard knows of each upstream and of each of its methods."""

from dataclasses import dataclass, field

from sidecar.call.limits import ConcurrencyLimit
from sidecar.call.routes import MethodRule, Route, Routes
from sidecar.policy.budget import BudgetSettings, RetryBudget
from sidecar.policy.circuit import Circuit, CircuitSettings
from sidecar.policy.classify import Repeat
from sidecar.policy.median import Median
from sidecar.policy.retry import RetrySettings


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """What a guard is told besides the routes."""

    concurrency: int = 1024
    """Most calls in flight per upstream."""
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    retry: RetrySettings = field(default_factory=RetrySettings)
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    methods_max: int = 1000
    """Methods known one by one; those beyond share a circuit, `UPSTREAM/*`. The
    agent makes up the names, so without a bound it could fill the memory."""
    parked_max: int = 4096
    """Calls that may wait for their letter at once."""
    margin_ratio: float = 0.1
    """Share of the caller's time kept back so that a letter's id still arrives."""
    margin_min_s: float = 0.05
    margin_max_s: float = 0.5


class UpstreamStanding:
    """How an upstream stands."""

    __slots__ = ("budget", "circuit", "limit", "name")

    def __init__(self, name: str, settings: GuardSettings, now: float) -> None:
        self.name = name
        self.circuit = Circuit(name, settings.circuit, now=now)
        self.limit = ConcurrencyLimit(name, settings.concurrency)
        self.budget = RetryBudget(settings.budget, now=now)


class MethodStanding:
    """How a method of an upstream stands."""

    __slots__ = ("circuit", "is_stamped", "median", "repeat", "rule", "upstream")

    def __init__(
        self,
        upstream: UpstreamStanding,
        rule: MethodRule,
        circuit: Circuit,
        median: Median,
    ) -> None:
        self.upstream = upstream
        self.rule = rule
        self.circuit = circuit
        self.median = median
        self.repeat = _repeat_of(rule)
        self.is_stamped = rule.idempotent or rule.letter != "off"
        """Its calls carry an idempotency key from the first attempt on."""


class Standings:
    """Every upstream, and the methods seen so far."""

    def __init__(self, routes: Routes, settings: GuardSettings, now: float) -> None:
        self._routes = routes
        self._settings = settings
        self._upstreams = {
            name: UpstreamStanding(name, settings, now) for name in routes.upstreams
        }
        self._methods: dict[str, MethodStanding] = {}
        self._unnamed: dict[str, MethodStanding] = {}
        self._named: dict[tuple[str, str], MethodStanding] = {}
        self._shared: dict[str, tuple[Circuit, Median]] = {}

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
        return shared[0] if shared and circuit_id.endswith("/*") else None

    def made_circuit(self, circuit_id: str, now: float) -> Circuit | None:
        """Return a circuit, made if its upstream is there; None if that is not."""
        found = self.circuit(circuit_id)
        upstream, _, method = circuit_id.partition("/")
        if found is not None or upstream not in self._upstreams:
            return found
        if method == "*":
            return self._overflow(self._upstreams[upstream], now)[0]
        return self._made(
            f"/{method}", self._routes.route(f"/{method}", upstream), now
        ).circuit

    def circuits(self) -> list[Circuit]:
        """Return all circuits, by id."""
        found = [standing.circuit for standing in self._upstreams.values()]
        found += [standing.circuit for standing in self._methods.values()]
        found += [circuit for circuit, _ in self._shared.values()]
        return sorted(found, key=lambda circuit: circuit.circuit_id)

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
            return MethodStanding(upstream, route.rule, *self._overflow(upstream, now))
        circuit = Circuit(circuit_id, self._settings.circuit, now=now)
        made = MethodStanding(upstream, route.rule, circuit, Median())
        self._methods[circuit_id] = made
        return made

    def _overflow(
        self, upstream: UpstreamStanding, now: float
    ) -> tuple[Circuit, Median]:
        """Return what the methods beyond the bound share."""
        if upstream.name not in self._shared:
            circuit = Circuit(f"{upstream.name}/*", self._settings.circuit, now=now)
            self._shared[upstream.name] = circuit, Median()
        return self._shared[upstream.name]


def _repeat_of(rule: MethodRule) -> Repeat:
    if rule.unsafe:
        return Repeat.UNSAFE
    return Repeat.IDEMPOTENT if rule.idempotent else Repeat.DEFAULT
