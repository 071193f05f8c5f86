"""The event log of one process: numbers events, logs them, hands them to watchers.

Race: a watcher may be slower than the events. It then loses the oldest ones it
has not read and sees the gap in `sequence`; nobody waits for it.
"""

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from outrigger.core.backlog import Backlog
from outrigger.core.clock import Clock
from outrigger.core.events import Alerted, CheckpointMoved, ErrorSeen, Event, Payload

_log = logging.getLogger("outrigger.events")
_WATCHER_EVENTS = 1024


class EventLog:
    """One process's events; owned by its event loop."""

    def __init__(self, *, agent_id: str, clock: Clock) -> None:
        self._agent_id = agent_id
        self._clock = clock
        self._sequence = 0
        self._watchers: dict[Backlog[Event], Callable[[Payload], bool]] = {}

    def publish(self, payload: Payload, *, agent_id: str | None = None) -> Event:
        """Number the payload, log it and hand it to every watcher."""
        self._sequence += 1
        event = Event(
            sequence=self._sequence,
            wall_s=self._clock.wall(),
            agent_id=self._agent_id if agent_id is None else agent_id,
            payload=payload,
        )
        _log.log(_level(payload), "%s", payload)
        for backlog, wanted in self._watchers.items():
            if wanted(payload):
                backlog.put(event)
        return event

    @contextmanager
    def subscribed(self, wanted: Callable[[Payload], bool]) -> Iterator[Backlog[Event]]:
        """Collect the wanted events from now on, for the length of a block."""
        backlog: Backlog[Event] = Backlog(_WATCHER_EVENTS)
        self._watchers[backlog] = wanted
        try:
            yield backlog
        finally:
            del self._watchers[backlog]

    async def watch(self) -> AsyncIterator[Event]:
        """Yield events published from now on, until the caller stops."""
        with self.subscribed(lambda _: True) as backlog:
            while True:
                event, _ = await backlog.take()
                yield event


def _level(payload: Payload) -> int:
    """Return how loud an event is in the log: what loses work is as loud as errors."""
    lost = isinstance(payload, CheckpointMoved) and payload.action == "fell_back"
    grave = lost or isinstance(payload, ErrorSeen | Alerted)
    return logging.WARNING if grave else logging.INFO
