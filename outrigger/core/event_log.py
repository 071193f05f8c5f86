"""The event log of one process: numbers events, logs them, hands them to watchers.

Race: a watcher may be slower than the events. It then loses the oldest ones it
has not read and sees the gap in `sequence`; nobody waits for it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator

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
        self._watchers: set[asyncio.Queue[Event]] = set()

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
        for queue in self._watchers:
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(event)
        return event

    async def watch(self) -> AsyncIterator[Event]:
        """Yield events published from now on, until the caller stops."""
        queue: asyncio.Queue[Event] = asyncio.Queue(_WATCHER_EVENTS)
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)


def _level(payload: Payload) -> int:
    """Return how loud an event is in the log: what loses work is as loud as errors."""
    lost = isinstance(payload, CheckpointMoved) and payload.action == "fell_back"
    grave = lost or isinstance(payload, ErrorSeen | Alerted)
    return logging.WARNING if grave else logging.INFO
