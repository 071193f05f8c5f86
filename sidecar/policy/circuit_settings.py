"""When a circuit opens and how it closes again."""

from collections.abc import Iterator
from dataclasses import dataclass

from sidecar.policy.bounds import (
    Mistake,
    above,
    at_least,
    at_most,
    below,
    ordered,
    refuse,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitSettings:
    """When to open and how to close again."""

    consecutive_failures: int = 5
    """Hard failures in a row that open it."""
    failure_ratio: float = 0.5
    """Share of failures in the window that opens it."""
    min_calls: int = 10
    """Calls in the window below which the share says nothing."""
    window_s: float = 10.0
    """How long a call counts for the shares."""
    buckets: int = 10
    """Parts of the window: a call is forgotten up to one of them early."""
    slow_s: float = 2.0
    """A call that has no answer after this is slow, be it still on its way or not; a
    method that is known to take long gets more. Infinite means that none is."""
    slow_in_a_row: int = 5
    """So many slow calls without any answer between them open it."""
    slow_ratio: float = 0.8
    """Share of slow calls in the window that opens it."""
    slow_min_calls: int = 5
    """Calls in the window below which that share says nothing."""
    open_s: float = 1.0
    """First rest; doubles each time in a row until `open_max_s`."""
    open_max_s: float = 15.0
    """Longest rest."""
    jitter_ratio: float = 0.2
    """A rest is shortened by up to this share, so that sidecars do not probe in
    step. It is never lengthened: recovery is promised within a time."""
    probes_at_once: int = 3
    """Leases out at one time while half open."""
    probes_to_close: int = 2
    """Probes that must succeed, and none fail, for it to close."""
    lease_s: float = 10.0
    """After this a probe's place is given to another."""
    probe_retry_s: float = 0.1
    """When to come back to a half-open circuit that has no place."""
    shadow: bool = False
    """Count and tell, but refuse nothing except by an operator's isolation."""
    learn: bool = False
    """Learn what is usual for each method, and open on what is not. Until enough is
    known, and for the upstream itself, the fixed numbers above hold."""

    def __post_init__(self) -> None:
        """Check the bounds.

        Raises:
            BadSettings: BAD_CIRCUIT, naming every mistake.
        """
        refuse("BAD_CIRCUIT", "the circuit settings are not possible", _mistakes(self))


def _mistakes(settings: CircuitSettings) -> Iterator[Mistake]:
    counts = (
        "consecutive_failures",
        "min_calls",
        "buckets",
        "slow_in_a_row",
        "slow_min_calls",
        "probes_at_once",
        "probes_to_close",
    )
    times = ("window_s", "slow_s", "open_s", "open_max_s", "lease_s", "probe_retry_s")
    yield from at_least(settings, 1, *counts)
    yield from above(settings, 0, *times)
    yield from above(settings, 0, "failure_ratio", "slow_ratio")
    yield from at_most(settings, 1, "failure_ratio", "slow_ratio")
    yield from at_least(settings, 0, "jitter_ratio")
    yield from below(settings, 1, "jitter_ratio")
    yield from ordered(settings, "open_s", "open_max_s")
