"""How calls are treated, as a TOML file says it: for all upstreams, and for one.

The tables `[circuit]`, `[retry]`, `[budget]` and so on are the settings that an
`UpstreamPolicy` is made of, and their keys the fields of those: what is added there
can be configured, by the unit in its name, without a line here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sidecar.call.standing import GuardSettings, UpstreamPolicy
from sidecar.policy.outlier import OutlierSettings
from sidecar.toml_table import Given, as_table, build, read
from sidecar.toml_value import TIME, Kind, Listing, choice, fields_of, kinds_of, off

FIXED: Final = "fixed"
ADAPTIVE: Final = "adaptive"
"""Both what `limit` may be and the table with the bounds of one that is learnt."""

_SPECIAL: Final = {"slow_s": off(TIME, float("inf"))}
"""Where type and name of a field do not say all."""

TABLES: Final[Mapping[str, type]] = fields_of(UpstreamPolicy)
"""Settings class by table of a policy."""
OUTLIER: Final = "outlier"
"""A table beside these: not the guard's, but of who chooses among addresses."""
ALL_TABLES: Final[Mapping[str, type]] = {**TABLES, OUTLIER: OutlierSettings}
KEYS: Final[Mapping[str, Kind | Listing]] = {
    **kinds_of(UpstreamPolicy, _SPECIAL),
    "limit": choice((FIXED, ADAPTIVE)),
}
"""Keys of an upstream that are no tables. `limit` says whether the adaptive table is
in force, which for a policy is whether it has one."""
TABLE_KEYS: Final[Mapping[str, Mapping[str, Kind | Listing]]] = {
    name: kinds_of(settings, _SPECIAL) for name, settings in ALL_TABLES.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGiven:
    """What was said about the calls of one upstream, or of all."""

    plain: Given = field(default_factory=Given)
    """Keys that are no tables."""
    tables: Mapping[str, Given] = field(default_factory=dict)

    def of(self, table: str) -> Given:
        """Return what a table says; nothing if it is not there."""
        return self.tables.get(table, Given())


def read_tables(
    prefix: str, raw: Mapping[str, object], mistakes: list[str]
) -> Mapping[str, Given]:
    """Return what the tables in `raw` say; `prefix` is put before their names."""
    found = {}
    for name in ALL_TABLES:
        if name in raw:
            place = prefix + name
            table = as_table(place, raw[name], mistakes)
            found[name] = read(place, table, TABLE_KEYS[name], mistakes)
    return found


def policy(
    place: str, given: PolicyGiven, defaults: PolicyGiven, mistakes: list[str]
) -> UpstreamPolicy | None:
    """Return the policy of one upstream; None if there is none of its own."""
    arguments = _tables(f"{place}.", given, defaults, mistakes)
    plain = given.plain.over(defaults.plain)
    mistakes.extend(_of_no_use(place, given, plain))
    made = build(
        UpstreamPolicy, _fields(given.plain), _fields(defaults.plain), place, mistakes
    )
    if made is None or not (given.plain.values or TABLES.keys() & given.tables):
        return None
    return replace(made, **_in_force(arguments, plain))


def guard_settings(given: PolicyGiven, mistakes: list[str]) -> GuardSettings:
    """Return what holds for every upstream that has no policy of its own.

    Args:
        given: its plain keys come from options, which are checked already.
        mistakes: one line each; more are added.
    """
    arguments = _tables("", given, PolicyGiven(), mistakes)
    plain: dict[str, Any] = dict(_fields(given.plain).values)
    return GuardSettings(**plain, **_in_force(arguments, given.plain))


def _tables(
    prefix: str, given: PolicyGiven, defaults: PolicyGiven, mistakes: list[str]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, settings in TABLES.items():
        made: Any = build(
            settings, given.of(name), defaults.of(name), prefix + name, mistakes
        )
        found[name] = settings() if made is None else made
    return found


def _fields(plain: Given) -> Given:
    """Return what becomes fields of the policy as it is."""
    values = {key: value for key, value in plain.values.items() if key != "limit"}
    return Given(values, plain.wrong)


def _in_force(tables: dict[str, Any], plain: Given) -> dict[str, Any]:
    """Return the tables, the adaptive one only if it is asked for."""
    if plain.values.get("limit") == ADAPTIVE:
        return tables
    return {**tables, ADAPTIVE: None}


def _of_no_use(place: str, given: PolicyGiven, plain: Given) -> Iterator[str]:
    """Yield what a limit of the other kind makes useless."""
    if "limit" in plain.wrong:
        return
    is_adaptive = plain.values.get("limit") == ADAPTIVE
    if not is_adaptive and ADAPTIVE in given.tables:
        yield f'{place}.{ADAPTIVE}: is of no use without limit = "{ADAPTIVE}"'
    if is_adaptive and "concurrency" in given.plain.values:
        yield (
            f'{place}.concurrency: is of no use with limit = "{ADAPTIVE}"; give'
            f" {ADAPTIVE}.most"
        )
