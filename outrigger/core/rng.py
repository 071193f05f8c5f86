"""The one place that draws."""

import random
import secrets
import uuid
from typing import Protocol


class Rng(Protocol):
    """Chance as adapters see it; policies take the drawn number instead."""

    def draw(self) -> float:
        """Return a number in [0, 1)."""
        ...

    def token_bytes(self, count: int) -> bytes:
        """Return that many bytes nobody can guess."""
        ...


class SystemRng:
    """The machine's chance."""

    def draw(self) -> float:
        """Return a number in [0, 1)."""
        return random.random()

    def token_bytes(self, count: int) -> bytes:
        """Return that many bytes nobody can guess."""
        return secrets.token_bytes(count)


def new_token() -> str:
    """Return a secret of 256 bits in hex."""
    return secrets.token_hex(32)


def new_instance_id() -> str:
    """Return a name for one incarnation of a process."""
    return uuid.uuid4().hex
