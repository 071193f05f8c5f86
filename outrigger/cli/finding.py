"""What a check found."""

from dataclasses import dataclass
from typing import Final

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check."""

    check: str
    """What was examined."""
    verdict: str
    """ok, warn or fail."""
    detail: str
    """What was found."""
    advice: str = ""
    """What to do; empty when all is well."""


def good(check: str, detail: str) -> Finding:
    """Return that all is well."""
    return Finding(check, OK, detail)


def doubtful(check: str, detail: str, advice: str) -> Finding:
    """Return that it works, but not as well as it might."""
    return Finding(check, WARN, detail, advice)


def bad(check: str, detail: str, advice: str) -> Finding:
    """Return that it does not work."""
    return Finding(check, FAIL, detail, advice)
