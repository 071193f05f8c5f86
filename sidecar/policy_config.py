"""How calls are treated, as a TOML file says it: for all upstreams, and for one.

The tables `[circuit]`, `[retry]`, `[budget]` and so on are the settings that an
`UpstreamPolicy` is made of, and their keys the fields of those: what is added there
can be configured, by the unit in its name, without a line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sidecar.call.standing import GuardSettings, UpstreamPolicy
from sidecar.toml_table import Given, as_table, build, read
from sidecar.toml_value import (
    COUNT,
    TIME,
    Kind,
    bounded,
    choice,
    fields_of,
    kinds_of,
    off,
)

_SPECIAL: Final = {
    "concurrency": bounded(COUNT, 1),
    "limit": choice(("fixed", "adaptive")),
    "queue": bounded(COUNT, 0),
    "queue_max_s": bounded(TIME, 0),
    "slow_s": off(TIME, float("inf")),
}
"""Where type and name of a field do not say all."""

TABLES: Final[Mapping[str, type]] = fields_of(UpstreamPolicy)
"""Settings class by table."""
KEYS: Final[Mapping[str, Kind]] = kinds_of(UpstreamPolicy, _SPECIAL)
"""Keys of an upstream that are no tables."""
TABLE_KEYS: Final[Mapping[str, Mapping[str, Kind]]] = {
    name: kinds_of(settings, _SPECIAL) for name, settings in TABLES.items()
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGiven:
    """What was said about the calls of one upstream, or of all."""

    plain: Given = Given()
    """Keys that are no tables."""
    tables: Mapping[str, Given] = field(default_factory=dict)

    def of(self, table: str) -> Given:
        """Return what a table says; nothing if it is not there."""
        return self.tables.get(table, Given())

    def over(self, other: "PolicyGiven") -> "PolicyGiven":
        """Return this, and the other where this says nothing."""
        tables = {name: self.of(name).over(other.of(name)) for name in TABLES}
        return PolicyGiven(plain=self.plain.over(other.plain), tables=tables)


def read_tables(
    prefix: str, raw: Mapping[str, object], mistakes: list[str]
) -> Mapping[str, Given]:
    """Return what the policy's tables in `raw` say; `prefix` is put before them."""
    found = {}
    for name in TABLES:
        if name in raw:
            place = prefix + name
            table = as_table(place, raw[name], mistakes)
            found[name] = read(place, table, TABLE_KEYS[name], mistakes)
    return found


def policy(
    prefix: str, given: PolicyGiven, defaults: PolicyGiven, mistakes: list[str]
) -> UpstreamPolicy | None:
    """Return the policy of one upstream; None if there is none of its own."""
    arguments = _arguments(prefix, given, defaults, mistakes)
    if not given.plain.values and not given.tables:
        return None
    return UpstreamPolicy(**arguments)


def guard_settings(given: PolicyGiven, mistakes: list[str]) -> GuardSettings:
    """Return what holds for every upstream that has no policy of its own."""
    return GuardSettings(**_arguments("", given, PolicyGiven(), mistakes))


def _arguments(
    prefix: str, given: PolicyGiven, defaults: PolicyGiven, mistakes: list[str]
) -> dict[str, Any]:
    found: dict[str, Any] = dict(given.plain.over(defaults.plain).values)
    for name, settings in TABLES.items():
        made = build(
            settings, given.of(name), defaults.of(name), prefix + name, mistakes
        )
        found[name] = settings() if made is None else made
    return found
