"""The meter: samples the agent's processes at an even pace and keeps the newest."""

from collections.abc import Callable
from typing import Protocol

from outrigger.core.clock import Clock
from sidecar.policy.activity import Activity, ActivityLimits, Evidence
from sidecar.policy.agent import LoadSample


class SamplerPort(Protocol):
    """What measures."""

    async def sample(self, root_pid: int) -> LoadSample:
        """Measure the tree below a process; 0 means there is none."""
        ...


class Meter:
    """What an agent uses, and how long it has been idle."""

    def __init__(
        self,
        sampler: SamplerPort,
        *,
        pid: Callable[[], int],
        evidence: Callable[[float | None], Evidence],
        clock: Clock,
        interval_s: float,
    ) -> None:
        """Prepare; `run` measures.

        Args:
            sampler: what measures.
            pid: the agent's process now; 0 means none.
            evidence: what else speaks for activity, given the CPU share.
            clock: to pace by.
            interval_s: seconds from sample to sample.
        """
        self._sampler = sampler
        self._pid = pid
        self._evidence = evidence
        self._clock = clock
        self._interval_s = interval_s
        self._activity = Activity(ActivityLimits(), clock.monotonic())
        self.latest: LoadSample | None = None

    async def run(self) -> None:
        """Sample for ever."""
        while True:
            self.latest = await self._sampler.sample(self._pid())
            self._activity.idle_s(
                self._evidence(self.latest.cpu_ratio), self._clock.monotonic()
            )
            await self._clock.sleep(self._interval_s)

    def idle_s(self) -> float:
        """Return the seconds since the newest activity, as known now."""
        return self._activity.idle_s(self._evidence(None), self._clock.monotonic())
