"""What a command is given by the shell: environment and streams."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Terminal:
    """The environment and the streams of one run."""

    environ: Mapping[str, str]
    stdout: TextIO
    stderr: TextIO

    @property
    def interactive(self) -> bool:
        """Say whether a person reads stdout."""
        return self.stdout.isatty()


def one_line(text: str) -> str:
    """Return text without line breaks and control characters.

    Reasons and messages come from other processes: an escape sequence among them
    would otherwise act on the terminal of whoever reads it.
    """
    flat = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "?" for letter in flat)
