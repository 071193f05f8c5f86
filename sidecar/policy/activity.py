"""How long an agent has been idle.

Activity is what the agent does, never only what it is sent: calls in flight in
and out, keep-awake leases, CPU, and messages on open streams. Silence on the
inbound side proves nothing: an agent that waits for a model has no inbound call.

A stream that stays open keeps an agent busy for `stream_idle_s` after its last
message and no longer, else one forgotten subscription would keep it awake for
ever. Whoever counts calls passes such streams apart from the calls in flight.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityLimits:
    """What counts."""

    cpu_busy_ratio: float = 0.05
    """Share of one core from which on an agent is busy by itself."""
    stream_idle_s: float = 60.0
    """An open stream counts for so long after its last message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is seen at one moment; times are monotonic seconds."""

    calls_in_flight: int = 0
    """In and out, without the streams listed below."""
    leases: int = 0
    last_call: float | None = None
    """When the newest call began or ended."""
    stream_messages: tuple[float, ...] = ()
    """Time of the last message of each open stream."""
    cpu_ratio: float | None = None
    """Newest sample; None means none since the last look."""


class Activity:
    """Remembers when an agent was last busy."""

    def __init__(self, limits: ActivityLimits, now: float) -> None:
        self._limits = limits
        self._last = now

    def idle_s(self, evidence: Evidence, now: float) -> float:
        """Take what is seen and return the seconds since the newest activity.

        0 while something is going on. Time never runs backwards here: evidence
        from before the newest activity changes nothing.
        """
        if self._busy(evidence):
            self._last = max(self._last, now)
        for moment in self._moments(evidence):
            self._last = max(self._last, min(moment, now))
        return max(now - self._last, 0.0)

    def _busy(self, evidence: Evidence) -> bool:
        return (
            evidence.calls_in_flight > 0
            or evidence.leases > 0
            or (evidence.cpu_ratio or 0.0) >= self._limits.cpu_busy_ratio
        )

    def _moments(self, evidence: Evidence) -> tuple[float, ...]:
        calls = () if evidence.last_call is None else (evidence.last_call,)
        lasting = self._limits.stream_idle_s
        return (*calls, *(seen + lasting for seen in evidence.stream_messages))
