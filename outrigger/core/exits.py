"""Exit codes: one table from the class of an error to what the shell sees."""

from typing import Final

from outrigger.core.errors import (
    Denied,
    Invalid,
    OutriggerError,
    Overloaded,
    TimedOut,
    Transient,
)

OK: Final = 0
FAILED: Final = 1
"""A check failed, or what was asked could not be done as things stand."""
USAGE: Final = 2
"""The command line, a file or a name given is wrong."""
UNAVAILABLE: Final = 3
"""Nobody answered, or not now; the same command may work later."""
DENIED: Final = 4
"""The token is missing, wrong, unsafe or not good for this."""

_BY_CLASS: Final[tuple[tuple[type[OutriggerError], int], ...]] = (
    (Invalid, USAGE),
    (Transient, UNAVAILABLE),
    (TimedOut, UNAVAILABLE),
    (Overloaded, UNAVAILABLE),
    (Denied, DENIED),
    (OutriggerError, FAILED),
)


def exit_code(error: OutriggerError) -> int:
    """Return the exit code an error ends a process with."""
    return next(code for cls, code in _BY_CLASS if isinstance(error, cls))
