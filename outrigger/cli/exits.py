"""Exit codes of the command: those of every process of ours, and the shell's own."""

from typing import Final

from outrigger.core.exits import DENIED, FAILED, OK, UNAVAILABLE, USAGE, exit_code

__all__ = [
    "DENIED",
    "FAILED",
    "INTERRUPTED",
    "OK",
    "PIPE_CLOSED",
    "UNAVAILABLE",
    "USAGE",
    "exit_code",
]

INTERRUPTED: Final = 130
"""Ctrl-C, as shells count it: 128 + SIGINT."""
PIPE_CLOSED: Final = 141
"""Who read our output went away, as shells count it: 128 + SIGPIPE."""
