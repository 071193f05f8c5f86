"""When a circuit opens and how it closes again."""

from dataclasses import dataclass

from outrigger.core.errors import Invalid


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
    buckets: int = 10
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
    jitter_ratio: float = 0.2
    """A rest is shortened by up to this share, so that sidecars do not probe in
    step. It is never lengthened: recovery is promised within a time."""
    probes_at_once: int = 3
    """Leases out at one time while half open."""
    probes_to_close: int = 2
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
            Invalid: BAD_CIRCUIT.
        """
        counts = (
            self.consecutive_failures,
            self.min_calls,
            self.slow_in_a_row,
            self.slow_min_calls,
            self.buckets,
            self.probes_at_once,
            self.probes_to_close,
        )
        times = (
            self.window_s,
            self.slow_s,
            self.open_s,
            self.lease_s,
            self.probe_retry_s,
        )
        if (
            min(counts) < 1
            or not min(times) > 0
            or self.open_max_s < self.open_s
            or not 0 < self.failure_ratio <= 1
            or not 0 < self.slow_ratio <= 1
            or not 0 <= self.jitter_ratio < 1
        ):
            raise Invalid(
                "BAD_CIRCUIT",
                f"the circuit settings {self} are not possible: counts must be 1 or"
                " more, times more than 0, open_max_s no less than open_s,"
                " failure_ratio and slow_ratio in (0, 1], jitter_ratio in [0, 1)",
            )
