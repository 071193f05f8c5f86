"""What holds for some methods, as a TOML file says it: `[[methods]]`."""

from collections.abc import Mapping
from typing import Final

from outrigger.core.values import Wrong
from sidecar.call.routes import LETTERS, MethodRule, status_mistake
from sidecar.toml_table import Given, as_table, build, read
from sidecar.toml_value import TIME, Kind, Listing, choice, described, kinds_of, off


def _letter(given: object) -> object:
    """Take the plain words true and false for on and off."""
    if isinstance(given, bool):
        return "on" if given else "off"
    try:
        return choice(LETTERS).parse(given)
    except Wrong as error:
        raise Wrong(f"{error}, or true or false") from error


def _status(given: object) -> object:
    mistake = status_mistake(given)
    if mistake:
        raise Wrong(mistake)
    return given


KEYS: Final[Mapping[str, Kind | Listing]] = kinds_of(
    MethodRule,
    {
        "letter": Kind('true, false or "always"', _letter),
        "retry_on": Listing(
            Kind("gRPC status", _status), 'a list such as ["UNAVAILABLE", "ABORTED"]'
        ),
        "slow_s": off(TIME, float("inf")),
    },
)


def method_rules(raw: object, mistakes: list[str]) -> tuple[MethodRule, ...]:
    """Return the rules; in mistakes they are counted from 1.

    Args:
        raw: what tomllib made of `[[methods]]`.
        mistakes: one line each; more are added.
    """
    if not isinstance(raw, list):
        mistakes.append(f"methods: got {described(raw)}; expected [[methods]] entries")
        return ()
    first: dict[object, str] = {}
    found = []
    for number, entry in enumerate(raw, 1):
        place = f"methods[{number}]"
        given = read(place, as_table(place, entry, mistakes), KEYS, mistakes)
        rule = _rule(place, given, is_table=isinstance(entry, dict), told=mistakes)
        match = given.values.get("match")
        if match in first:
            mistakes.append(f"{place}.match: {match!r} has a rule in {first[match]}")
        elif match is not None:
            first[match] = place
        if rule is not None:
            found.append(rule)
    return tuple(found)


def _rule(
    place: str, given: Given, *, is_table: bool, told: list[str]
) -> MethodRule | None:
    if "match" in given.values:
        return build(MethodRule, given, Given(), place, told)
    # What else is wrong with it is told all the same.
    build(MethodRule, given, Given({"match": "*"}), place, told)
    if is_table and "match" not in given.wrong:
        told.append(
            f'{place}.match: is missing; give match = "/package.Service/Method",'
            ' "/package.Service/*" or "*"'
        )
    return None
