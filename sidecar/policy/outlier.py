"""Which addresses of an upstream are worse than the others, and for how long.

An address is ejected after so many failures in a row, if another address answered
since the row began: what fails everywhere is no outlier but an outage, and that is
for the circuit to judge. Were addresses ejected in an outage, half of them would
still be missing when it is over.

On its return an address is on trial: real calls go there, the first answer clears
it, the first failure ejects it again and for longer. How often it was ejected is
forgotten once it has held out for as long as an ejection may last.

What attempts report that began before the last ejection is old news and ignored: a
call with a patient deadline would otherwise eject an address twice for one fault.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from sidecar.call.descriptor import Origin
from sidecar.policy.bounds import (
    Mistake,
    above,
    at_least,
    at_most,
    below,
    ordered,
    refuse,
)
from sidecar.policy.classify import Code

_GATEWAY: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})
_LONG_AGO: Final = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierSettings:
    """When to eject and for how long."""

    failures: int = 5
    """So many in a row eject an address; 0 ejects nothing, ever."""
    base_s: float = 5.0
    """Of the first ejection; the n-th in a row lasts n times as long."""
    max_s: float = 60.0
    """Of the longest ejection."""
    jitter_ratio: float = 0.2
    """Up to this share of an ejection is left out by chance, so that addresses
    ejected together do not come back together."""
    max_ratio: float = 0.5
    """Most of the addresses that may be ejected at a time; never the last one."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            BadSettings: BAD_OUTLIER, naming every mistake.
        """
        refuse("BAD_OUTLIER", "the outlier settings are not possible", _mistakes(self))


@dataclass(slots=True)
class Ejected:
    """An address was ejected."""

    address: str
    until: float
    """Monotonic seconds."""
    times: int
    """In a row, this one included."""
    why: str


@dataclass(slots=True)
class Cleared:
    """An address that had been ejected answers again."""

    address: str
    after_s: float
    """Since it was first ejected."""


@dataclass(slots=True)
class Record:
    """What is known of one address; read it, and let `Outliers` write."""

    failures: int = 0
    """In a row."""
    row_began: float = _LONG_AGO
    last_answer: float = _LONG_AGO
    until: float = _LONG_AGO
    """When the last ejection ends or ended."""
    times: int = 0
    """Ejections in a row."""
    generation: int = 0
    """Ejections ever; see `Outliers.failed`."""
    first_ejected: float = _LONG_AGO
    is_on_trial: bool = False
    """It was ejected and has not answered since."""
    why: str = ""


class Outliers:
    """The addresses of one upstream."""

    __slots__ = ("_records", "_settings")

    def __init__(self, settings: OutlierSettings) -> None:
        self._settings = settings
        self._records: dict[str, Record] = {}

    def keep(self, addresses: Iterable[str]) -> None:
        """Know these addresses and forget all others."""
        known = self._records
        self._records = {one: known.get(one) or Record() for one in addresses}

    def record(self, address: str) -> Record | None:
        """Return what is known of an address; None if it is not one of ours."""
        return self._records.get(address)

    def is_ejected(self, address: str, now: float) -> bool:
        """Say whether calls should go elsewhere now."""
        record = self._records.get(address)
        return record is not None and now < record.until

    def answered(self, address: str, generation: int, now: float) -> Cleared | None:
        """Take note that an address answered.

        Args:
            address: one of those kept; others are ignored.
            generation: of its record when the attempt began.
            now: monotonic seconds.
        """
        record = self._records.get(address)
        if record is None or generation != record.generation or now < record.until:
            return None
        record.failures = 0
        record.last_answer = now
        if not record.is_on_trial:
            return None
        record.is_on_trial = False
        return Cleared(address, now - record.first_ejected)

    def failed(
        self, address: str, generation: int, now: float, draw: float
    ) -> Ejected | None:
        """Take note that an address failed, and eject it if that is too much.

        Args:
            address: one of those kept; others are ignored.
            generation: of its record when the attempt began.
            now: monotonic seconds.
            draw: a number in [0, 1).
        """
        record = self._records.get(address)
        if record is None or generation != record.generation or now < record.until:
            return None
        if record.failures == 0:
            record.row_began = now
        record.failures += 1
        if not self._is_outlier(record) or not self._has_room(now):
            return None
        return self._eject(address, record, now, draw)

    def _is_outlier(self, record: Record) -> bool:
        limit = self._settings.failures
        if limit == 0 or (record.failures < limit and not record.is_on_trial):
            return False
        return any(
            other.last_answer >= record.row_began
            for other in self._records.values()
            if other is not record
        )

    def _has_room(self, now: float) -> bool:
        """Say whether one more may go, itself counted."""
        count = len(self._records)
        most = min(int(count * self._settings.max_ratio), count - 1)
        return sum(now < one.until for one in self._records.values()) < most

    def _eject(self, address: str, record: Record, now: float, draw: float) -> Ejected:
        settings = self._settings
        if now - record.until > settings.max_s:
            record.times = 0
        if record.is_on_trial:
            record.why = "it failed again when it was tried again"
        else:
            record.why = f"{record.failures} failures in a row while others answered"
            record.first_ejected = now
        record.times += 1
        record.generation += 1
        length_s = min(settings.base_s * record.times, settings.max_s)
        record.until = now + length_s * (1 - settings.jitter_ratio * draw)
        # The next failure begins a row of its own; what others answered while this
        # address was away counts, or a trial that fails first would pass.
        record.failures, record.row_began = 1, now
        record.is_on_trial = True
        return Ejected(address, record.until, record.times, record.why)


def has_failed(code: int, origin: Origin) -> bool | None:
    """Return what the end of an attempt says about the address it went to.

    True: no connection, or the status of a gateway that found nobody. False: an
    answer, whichever. None: nothing, because it was made here or it is not known
    who made it.

    Args:
        code: gRPC status number.
        origin: who made it.
    """
    if origin is Origin.LOCAL:
        return None
    if code in _GATEWAY or origin is Origin.TRANSPORT:
        return True
    return None if origin is Origin.UNKNOWN else False


def _mistakes(settings: OutlierSettings) -> Iterator[Mistake]:
    yield from at_least(settings, 0, "failures", "jitter_ratio", "max_ratio")
    yield from above(settings, 0, "base_s", "max_s")
    yield from below(settings, 1, "jitter_ratio")
    yield from at_most(settings, 1, "max_ratio")
    yield from ordered(settings, "base_s", "max_s")
