"""A right configuration of a sidecar, and mistakes to plant in it one by one.

The mistakes are made from the lists of keys themselves: a new key brings its own.
Two that `claims` the same key at the same place exclude one another.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar import method_config, policy_config, upstream_config

RIGHT: dict[str, Any] = {
    "agent_id": "a-1",
    "upstreams": {
        "shop": {"target": "127.0.0.1:1", "limit": "adaptive", "tls": True},
        "mail": {"target": "127.0.0.1:2"},
    },
    "methods": [
        {"match": "/shop.Orders/Place"},
        {"match": "/shop.Orders/*"},
        {"match": "*"},
    ],
}

WRONG_VALUES: dict[str, list[object]] = {
    "time": ["soon", True, [1], -1, float("nan")],
    "whole number": [1.5, "3", True, -1],
    "number": ["0.5", True, -1, float("nan"), float("inf")],
    "true or false": [1, "true"],
    "text": [3, True, ""],
    "file": [3, ""],
    "target": [3, "nowhere", "a:99999", "http://a:1"],
    "list: target": ["a:1", ["nowhere"], 3],
    "list: text": ["one", [""], [3]],
    "list: gRPC status": ["UNAVAILABLE", ["UNAVALABLE"], [14], ["OK"]],
    'time, or "off"': ["of", True, -1],
    '"pick_first" or "round_robin"': ["first", 1],
    '"fixed" or "adaptive"': ["learnt", True],
    'true, false or "always"': ["maybe", 1],
}


@dataclass(frozen=True)
class Mistake:
    """Something wrong to write into the right configuration."""

    path: tuple[str | int, ...]
    """Of the table it goes into."""
    given: Mapping[str, object]
    """Keys and values that are put there."""
    told: str
    """How the one complaint about it begins."""
    others: tuple[str, ...] = ()
    """Keys it needs to be as they are."""

    @property
    def claims(self) -> set[tuple[object, ...]]:
        """Places that no other mistake may touch."""
        return {(*self.path, key) for key in (*self.given, *self.others)}

    def plant(self, document: dict[str, Any]) -> None:
        """Write it."""
        table: Any = document
        for key in self.path:
            table = table[key] if isinstance(key, int) else table.setdefault(key, {})
        table.update(self.given)


def place_of(path: tuple[str | int, ...]) -> str:
    """Return a path as complaints name it."""
    if path and path[0] == "methods":
        return f"methods[{int(path[1]) + 1}]"
    return ".".join(str(key) for key in path)


def tables() -> Iterator[tuple[tuple[str | int, ...], Mapping[str, Any]]]:
    """Yield every place of a table, and the keys that may stand there."""
    for name, keys in policy_config.TABLE_KEYS.items():
        yield (name,), keys
        yield ("upstreams", "shop", name), keys
        if name != policy_config.ADAPTIVE:
            yield ("upstreams", "mail", name), keys
    upstream = {**upstream_config.KEYS, **policy_config.KEYS}
    yield ("upstreams", "mail"), upstream
    # Those of shop's that are there to make its other tables right stay as they are.
    kept = ("target", "addresses", "limit", "concurrency", "tls")
    yield (
        ("upstreams", "shop"),
        {key: kind for key, kind in upstream.items() if key not in kept},
    )
    for number in range(3):
        yield ("methods", number), method_config.KEYS


def _single() -> Iterator[Mistake]:
    for path, keys in tables():
        place = place_of(path)
        for key, kind in keys.items():
            for value in WRONG_VALUES[kind.unit]:
                yield Mistake(path, {key: value}, f"{place}.{key}: ", _others(key))
            yield Mistake(
                path,
                {f"{key}x": 1},
                f"{place}.{key}x: is not known here; did you mean ",
                (key,),
            )


def _others(key: str) -> tuple[str, ...]:
    # What is wrong with a certificate without its key is told once only.
    return ("tls_cert", "tls_key") if key in ("tls_cert", "tls_key") else ()


def _of_settings() -> Iterator[Mistake]:
    tops: list[tuple[str | int, ...]] = [
        (),
        ("upstreams", "shop"),
        ("upstreams", "mail"),
    ]
    for path in tops:
        for table, given, key in (
            ("circuit", {"open_s": 20, "open_max_s": "10s"}, "open_max_s"),
            ("circuit", {"failure_ratio": 7}, "failure_ratio"),
            ("circuit", {"jitter_ratio": 1.0}, "jitter_ratio"),
            ("retry", {"base_s": 2, "cap_s": "500ms"}, "cap_s"),
            ("budget", {"ratio": 1.5}, "ratio"),
            ("outlier", {"base_s": 9, "max_s": "3s"}, "max_s"),
        ):
            place = place_of((*path, table))
            yield Mistake((*path, table), given, f"{place}.{key}: ")


def _of_upstreams() -> Iterator[Mistake]:
    for path, given, key, others in (
        ("mail", {"addresses": ["a:1", "b:1"]}, ".addresses", ("target",)),
        ("shop", {"tls_cert": "c.pem"}, ".tls_cert", ("tls_key",)),
        ("shop", {"tls_key": "k.pem"}, ".tls_key", ("tls_cert",)),
        ("mail", {"tls_name": "n"}, ".tls_name", ("tls",)),
        ("mail", {"adaptive": {"least": 1}}, ".adaptive", ("limit",)),
        ("shop", {"concurrency": 3}, ".concurrency", ()),
        ("lost", {"queue": 3}, "", ()),
        ("shop", {"tls_ca": "/no/ca.pem"}, "", ("tls_cert", "tls_key")),
        ("shop", {"circit": {}}, ".circit", ()),
    ):
        yield Mistake(("upstreams", path), given, f"upstreams.{path}{key}: ", others)


def _of_methods() -> Iterator[Mistake]:
    for number in range(3):
        path = ("methods", number)
        for given, key, others in (
            ({"hedge_s": 1}, "hedge_s", ("idempotent", "max_attempts")),
            ({"unsafe": True, "idempotent": True}, "unsafe", ("letter", "retry_on")),
            ({"unsafe": True, "letter": "on"}, "letter", ("idempotent", "retry_on")),
            ({"backoff_s": 2, "backoff_max_s": 1}, "backoff_max_s", ()),
            ({"max_attempts": 6}, "max_attempts", ("hedge_s",)),
        ):
            yield Mistake(path, given, f"{place_of(path)}.{key}: ", others)


def _of_the_top() -> Iterator[Mistake]:
    for given, told in (
        ({"circut": {"open_s": 1}}, "key circut: did you mean circuit?"),
        ({"hold_max": 3}, "key hold_max: did you mean hold_max_s?"),
        ({"concurrency": 0}, "key concurrency 0: "),
        ({"queue": "many"}, "key queue 'many': "),
        ({"limit": "x"}, "key limit 'x': "),
        ({"replay_bytes": "1GiB"}, "key replay_bytes '1GiB': "),
        ({"allow_faults": "maybe"}, "key allow_faults 'maybe': "),
        ({"outbound_token": 7}, "key outbound_token 7: "),
    ):
        yield Mistake((), given, told)


MISTAKES = (
    *_single(),
    *_of_settings(),
    *_of_upstreams(),
    *_of_methods(),
    *_of_the_top(),
)


def apart(mistakes: list[Mistake]) -> list[Mistake]:
    """Return those that have nothing to do with one listed before."""
    taken: set[tuple[object, ...]] = set()
    found = []
    for one in mistakes:
        if taken.isdisjoint(one.claims):
            taken |= one.claims
            found.append(one)
    return found


def planted(mistakes: list[Mistake]) -> bytes:
    """Return the configuration with mistakes, as TOML."""
    document = copy.deepcopy(RIGHT)
    for one in mistakes:
        one.plant(document)
    return toml(document).encode()


def toml(document: Mapping[str, Any]) -> str:
    """Return a document as TOML; its tables are written in line."""
    return "".join(
        f"{json.dumps(key)} = {_value(value)}\n" for key, value in document.items()
    )


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        inner = ", ".join(f"{json.dumps(k)} = {_value(v)}" for k, v in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return repr(value)  # which writes nan and inf as TOML does
    return json.dumps(value)
