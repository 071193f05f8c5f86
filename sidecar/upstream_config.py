"""Where upstreams are and how to reach them, as a TOML file says it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from outrigger.core.errors import Invalid
from outrigger.core.ids import check_upstream_name
from sidecar.call.standing import UpstreamPolicy
from sidecar.policy.bounds import Mistake, above, at_least, refuse
from sidecar.policy.outlier import OutlierSettings
from sidecar.policy_config import ALL_TABLES, OUTLIER, PolicyGiven, policy, read_tables
from sidecar.policy_config import KEYS as POLICY_KEYS
from sidecar.toml_table import Given, as_table, build, place_of, read, salvage
from sidecar.toml_value import TARGET, TEXT, TIME, Kind, Listing, kinds_of, off
from sidecar.wire.upstream_spec import UpstreamSpec

_KEEPALIVE_MIN_S: Final = 10.0
_RESOLVE_MIN_S: Final = 1.0
_WHERE: Final = ("target", "addresses")
_TLS_KEYS: Final = ("tls_ca", "tls_cert", "tls_key", "tls_name")


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamTable:
    """The keys of `[upstreams.NAME]` that say where it is and how to reach it."""

    target: str | None = None
    """Any gRPC target: `HOST:PORT`, `dns:///...`, `unix:...`; the same as
    `--upstream NAME=TARGET`, which wins."""
    addresses: tuple[str, ...] = ()
    """Several targets to choose from, in place of one."""
    services: tuple[str, ...] = ()
    """Calls to these services go here; `shop` covers `shop.Orders` too."""
    balance: Literal["pick_first", "round_robin"] | None = None
    """`pick_first`: the first address that can be reached, in this order;
    `round_robin`: all in turn. By default the first for one target, else the second."""
    tls: bool = False
    """Whether to speak TLS."""
    tls_ca: Path | None = None
    """PEM file with who signed its certificate; else the authorities gRPC knows."""
    tls_cert: Path | None = None
    """PEM file with our certificate, for an upstream that asks who we are."""
    tls_key: Path | None = None
    """Its key, without a passphrase."""
    tls_name: str | None = None
    """Name its certificate must carry, if not the one that is dialled."""
    keepalive_s: float | None = 330.0
    """How long a connection with calls in flight may be silent before it is pinged;
    servers close the connections of those who ping more often than they like."""
    keepalive_timeout_s: float = 20.0
    """How long to wait for the answer to a ping."""
    warm_up: int = 1
    """How many addresses to wait for at the start, for a second at most."""
    resolve_s: float = 30.0
    """How often names are looked up, beside each time that an address fails."""

    def __post_init__(self) -> None:
        """Check what can be checked without the files and the flags.

        Raises:
            BadSettings: BAD_UPSTREAM, naming every mistake.
        """
        refuse("BAD_UPSTREAM", "the upstream is not possible", _mistakes(self))

    def spec(self, flag: str | None, outlier: OutlierSettings) -> UpstreamSpec:
        """Return what the wire is told; a target given by a flag wins."""
        target = flag or self.target
        return UpstreamSpec(
            targets=self.addresses if target is None else (target,),
            balance=self.balance,
            tls=self.tls,
            ca=self.tls_ca,
            cert=self.tls_cert,
            key=self.tls_key,
            authority=self.tls_name or "",
            keepalive_s=self.keepalive_s,
            keepalive_timeout_s=self.keepalive_timeout_s,
            warm_up=self.warm_up,
            resolve_s=self.resolve_s,
            outlier=outlier,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstreams:
    """Everything that was said about upstreams."""

    specs: Mapping[str, UpstreamSpec] = field(default_factory=dict)
    """How to reach each, flags included."""
    policies: Mapping[str, UpstreamPolicy] = field(default_factory=dict)
    """Of those that have one of their own."""
    services: Mapping[str, str] = field(default_factory=dict)
    """Service prefix to upstream name."""


KEYS: Final[Mapping[str, Kind | Listing]] = kinds_of(
    UpstreamTable,
    {
        "target": TARGET,
        "addresses": Listing(TARGET, 'a list such as ["10.0.0.1:50051", ...]'),
        "services": Listing(TEXT, 'a list such as ["package.Service", ...]'),
        "keepalive_s": off(TIME, None),
    },
)


def read_upstreams(
    raw: object,
    flags: Mapping[str, str],
    defaults: PolicyGiven,
    mistakes: list[str],
) -> Upstreams:
    """Return what the file says about upstreams, with the targets of flags.

    Args:
        raw: what tomllib made of `[upstreams]`.
        flags: targets by name; they win.
        defaults: what was said about the calls of all upstreams.
        mistakes: one line each; more are added.
    """
    usual = _outlier("", defaults, PolicyGiven(), mistakes)
    specs = {
        name: UpstreamTable().spec(target, usual) for name, target in flags.items()
    }
    policies: dict[str, UpstreamPolicy] = {}
    services: dict[str, str] = {}
    for name, entry in as_table("upstreams", raw, mistakes).items():
        place = place_of("upstreams", name)
        mistakes.extend(_bad_name(place, name))
        if not isinstance(entry, dict):
            as_table(place, entry, mistakes)
            continue
        given, calls = _read(place, entry, mistakes)
        own = policy(place, calls, defaults, mistakes)
        if own is not None:
            policies[name] = own
        outlier = _outlier(f"{place}.", calls, defaults, mistakes)
        build(UpstreamTable, given, Given(), place, mistakes)
        made = salvage(UpstreamTable, given.values)
        specs[name] = made.spec(flags.get(name), outlier)
        mistakes.extend(_unreachable(place, specs[name], given))
        mistakes.extend(_double_services(place, name, made, services))
    return Upstreams(specs=specs, policies=policies, services=services)


def _outlier(
    prefix: str, given: PolicyGiven, defaults: PolicyGiven, mistakes: list[str]
) -> OutlierSettings:
    own, usual = given.of(OUTLIER), defaults.of(OUTLIER)
    made = build(OutlierSettings, own, usual, prefix + OUTLIER, mistakes)
    return OutlierSettings() if made is None else made


def _read(
    place: str, table: Mapping[str, object], mistakes: list[str]
) -> tuple[Given, PolicyGiven]:
    """Return what one upstream's table says of the way there, and of its calls."""
    kinds = {**KEYS, **POLICY_KEYS}
    given = read(place, table, kinds, mistakes, tables=ALL_TABLES)
    return (
        _part(given, KEYS),
        PolicyGiven(
            plain=_part(given, POLICY_KEYS),
            tables=read_tables(f"{place}.", table, mistakes),
        ),
    )


def _part(given: Given, keys: Mapping[str, Kind | Listing]) -> Given:
    return Given(
        {key: value for key, value in given.values.items() if key in keys},
        given.wrong & keys.keys(),
    )


def _bad_name(place: str, name: str) -> Iterator[str]:
    try:
        check_upstream_name(name)
    except Invalid as error:
        yield f"{place}: {error.message}"


def _unreachable(place: str, spec: UpstreamSpec, given: Given) -> Iterator[str]:
    """Yield why it could not be reached; reads its TLS files."""
    if spec.targets:
        yield from (f"{place}: {line}" for line in spec.mistakes())
    elif not any(key in given.wrong or given.values.get(key) for key in _WHERE):
        yield (
            f"{place}: has no target; give target, addresses, or --upstream"
            f" {place.partition('.')[2]}=TARGET"
        )


def _double_services(
    place: str, name: str, table: UpstreamTable, seen: dict[str, str]
) -> Iterator[str]:
    for service in table.services:
        if seen.setdefault(service, name) != name:
            yield f"{place}.services: {service} belongs to {seen[service]} already"


def _mistakes(table: UpstreamTable) -> Iterator[Mistake]:
    if table.target is not None and table.addresses:
        yield Mistake(
            ("addresses", "target"), "there is a target as well: give one of them"
        )
    double = {one for one in table.addresses if table.addresses.count(one) > 1}
    for one in sorted(double):
        yield Mistake(("addresses",), f"{one} is listed twice")
    yield from _tls_mistakes(table)
    yield from at_least(table, _KEEPALIVE_MIN_S, "keepalive_s")
    yield from above(table, 0, "keepalive_timeout_s")
    yield from at_least(table, 0, "warm_up")
    yield from at_least(table, _RESOLVE_MIN_S, "resolve_s")


def _tls_mistakes(table: UpstreamTable) -> Iterator[Mistake]:
    for name, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if getattr(table, name) is not None and getattr(table, other) is None:
            yield Mistake(
                (name, other),
                f"is of no use without {other}: give both, for mutual TLS",
            )
    if not table.tls:
        for name in _TLS_KEYS:
            if getattr(table, name) is not None:
                yield Mistake((name, "tls"), "is of no use without tls = true")
