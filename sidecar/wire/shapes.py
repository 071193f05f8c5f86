"""What requests of each method have looked like, as a hint how long to wait.

A request that is one message is sent upstream in one piece, which costs half as much
as a stream; but that it is one is known only when its half-close has come. Under load
that may take twenty milliseconds, and waiting so long would delay a method that talks
both ways. So it is remembered how the method's last request went.

It is a hint and nothing more: one message each way does not prove that a method is
unary, and a wrong guess costs one call some milliseconds, never its correctness.
"""

from typing import Final

_MOST_METHODS: Final = 1000
_KNOWN_S: Final = 0.02


class RequestShapes:
    """How the newest request of each method went."""

    __slots__ = ("_patience_s", "_unknown_s")

    def __init__(self, unknown_s: float) -> None:
        """Wait `unknown_s` seconds where nothing is known."""
        self._unknown_s = unknown_s
        self._patience_s: dict[str, float] = {}

    def patience_s(self, method: str) -> float:
        """Return how long to wait for the half-close of a request."""
        return self._patience_s.get(method, self._unknown_s)

    def learn(self, method: str, *, was_single: bool) -> None:
        """Take note whether a request was one message."""
        if method not in self._patience_s and len(self._patience_s) >= _MOST_METHODS:
            # The agent makes the names up: forget all rather than remember them.
            self._patience_s.clear()
        self._patience_s[method] = _KNOWN_S if was_single else 0.0
