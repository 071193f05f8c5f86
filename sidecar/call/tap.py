"""Calls as they end, for whoever taps them: what was called and how it went.

Metadata only, never messages, and its secrets are gone before anybody has it: a
queue of raw metadata would keep credentials in memory that the call itself had let
go. While nobody taps, the guard tells nobody, which costs nothing.

The races:

- A reader that is too slow, or has stopped: it loses the oldest calls and is told
  how many. No call waits for it.
- The last reader leaves while a call ends: either comes first, both are whole. All of
  it happens on the thread that the guard is called from.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from outrigger.core.backlog import Backlog
from outrigger.core.errors import Overloaded
from sidecar.call.descriptor import Kind, Metadata, SeenCall
from sidecar.call.endings import Watch
from sidecar.call.metadata import is_secret

MOST_TAPS: Final = 8
MOST_WAITING: Final = 1000
"""Calls that one reader may be behind."""
REDACTED: Final = "(redacted)"

_METADATA_CHARS: Final = 4096
"""Of one call. With the other bounds a reader never keeps more than about 6 MiB."""
_VALUE_CHARS: Final = 256
_METHOD_CHARS: Final = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TapFilter:
    """Which calls a reader wants; what is empty does not narrow."""

    method_prefix: str = ""
    upstream: str = ""
    failures_only: bool = False

    def wants(self, seen: SeenCall) -> bool:
        """Say whether a call is one of them."""
        return (
            seen.call.method.startswith(self.method_prefix)
            and self.upstream in {"", seen.upstream}
            and not (self.failures_only and seen.code == 0)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TappedCall:
    """A call that is over, without its secrets."""

    call_id: str
    method: str
    """At most 1,024 characters of it."""
    upstream: str
    """Empty if it had no route."""
    ended: float
    """Monotonic seconds."""
    elapsed_s: float
    code: int
    """gRPC status number the caller got; 1 if it went away."""
    attempts: int
    refused_by: str
    letter_id: str
    is_delivery: bool
    agent: str
    metadata: tuple[tuple[str, str], ...]
    """As it arrived, in order; fit to be looked at."""
    omitted: int
    """Entries of metadata beyond what is kept."""


class TapHub:
    """Hands the calls of one guard to those who tap them."""

    def __init__(self, watch: Callable[[Watch | None], object]) -> None:
        """Prepare; `watch` is the guard's, called with None after the last reader."""
        self._watch = watch
        self._readers: dict[Backlog[TappedCall], TapFilter] = {}

    @contextmanager
    def tapped(self, wanted: TapFilter) -> Iterator[Backlog[TappedCall]]:
        """Collect the wanted calls from now on, for the length of a block.

        Raises:
            Overloaded: TOO_MANY_TAPS.
        """
        if len(self._readers) >= MOST_TAPS:
            raise Overloaded(
                "TOO_MANY_TAPS",
                f"{MOST_TAPS} taps are open here, which is all that may be: end one",
            )
        backlog: Backlog[TappedCall] = Backlog(MOST_WAITING)
        self._readers[backlog] = wanted
        self._watch(self._seen)
        try:
            yield backlog
        finally:
            del self._readers[backlog]
            if not self._readers:
                self._watch(None)

    def _seen(self, seen: SeenCall) -> None:
        tapped: TappedCall | None = None
        for backlog, wanted in self._readers.items():
            if wanted.wants(seen):
                tapped = tapped or _tapped(seen)
                backlog.put(tapped)


def _tapped(seen: SeenCall) -> TappedCall:
    call = seen.call
    metadata = _shown(call.metadata)
    return TappedCall(
        call_id=call.call_id,
        method=_cut(call.method, _METHOD_CHARS),
        upstream=seen.upstream,
        ended=seen.began + seen.elapsed_s,
        elapsed_s=seen.elapsed_s,
        code=seen.code,
        attempts=seen.attempts,
        refused_by=seen.refused_by,
        letter_id=seen.letter_id,
        is_delivery=call.kind is Kind.DELIVERY,
        agent=call.agent,
        metadata=metadata,
        omitted=len(call.metadata) - len(metadata),
    )


def _shown(metadata: Metadata) -> tuple[tuple[str, str], ...]:
    shown: list[tuple[str, str]] = []
    room = _METADATA_CHARS
    for key, value in metadata:
        entry = _cut(key, _VALUE_CHARS), _shown_value(key, value)
        room -= len(entry[0]) + len(entry[1])
        if room < 0:
            break
        shown.append(entry)
    return tuple(shown)


def _shown_value(key: str, value: str | bytes) -> str:
    if is_secret(key, value):
        return REDACTED
    if isinstance(value, bytes) or key.endswith("-bin"):
        return f"({len(value)} bytes)"
    return _cut(value, _VALUE_CHARS)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[:most] + "..."
