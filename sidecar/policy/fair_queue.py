"""Calls that wait for a place, fair between the agents they come from.

Places go round the agents, one each, first in first out within an agent. A full
queue makes room for an agent with less in it by giving up the newest call of the
agent with most: otherwise whoever floods the queue first owns it.

The race: a call may be given its place, run out of time, and lose its caller at the
same moment. Each of `pop`, `expired` and `remove` takes it out of the queue, so one
of them gets it and the others find nothing.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from outrigger.core.errors import Bug, Invalid

T = TypeVar("T")

_WORTH: Final = 2
"""An eviction must leave its agent with no less than the newcomer's agent has."""


@dataclass(slots=True)
class Offer(Generic[T]):
    """What became of a call that was offered; read only."""

    accepted: bool
    evicted: T | None = None
    """The call given up for it, of another agent; its caller must be told."""


@dataclass(slots=True)
class _Waiting(Generic[T]):
    agent: str
    item: T
    expires: float


class _Lengths:
    """Agents by how many calls they have waiting; knows the most, in O(1)."""

    __slots__ = ("_agents", "most")

    def __init__(self) -> None:
        self._agents: dict[int, OrderedDict[str, None]] = {}
        self.most = 0

    def move(self, agent: str, before: int, after: int) -> None:
        """Note that an agent has one more or one less."""
        if before:
            peers = self._agents[before]
            del peers[agent]
            if not peers:
                del self._agents[before]
        if after:
            self._agents.setdefault(after, OrderedDict())[agent] = None
        # One at a time: the most is where it was, or this agent has it now.
        if after > self.most or (before == self.most and before not in self._agents):
            self.most = after

    def longest(self) -> str:
        """Return the agent that came to the most last."""
        return next(reversed(self._agents[self.most]))


class FairQueue(Generic[T]):
    """A bounded queue; an item is known by its identity, not by what it equals."""

    __slots__ = ("_late", "_lengths", "_lines", "_most", "_places")

    def __init__(self, most: int) -> None:
        """Hold at most so many; 0 means that nothing ever waits.

        Raises:
            Invalid: BAD_QUEUE.
        """
        if most < 0:
            raise Invalid(
                "BAD_QUEUE",
                f"a queue of {most} calls is not possible: give 0 or more",
            )
        self._most = most
        self._lines: OrderedDict[str, OrderedDict[int, _Waiting[T]]] = OrderedDict()
        self._places: dict[int, _Waiting[T]] = {}
        self._late: dict[int, _Waiting[T]] = {}
        self._lengths = _Lengths()

    def __len__(self) -> int:
        """How many are held, those whose time is up and not yet fetched included."""
        return len(self._places)

    def waiting(self, agent: str) -> int:
        """Return how many calls of an agent wait, without those found too late."""
        return len(self._lines.get(agent, ()))

    def offer(self, agent: str, item: T, expires: float) -> Offer[T]:
        """Let a call wait until `expires` (monotonic seconds), if there is room.

        Raises:
            Bug: OFFERED_TWICE.
        """
        if id(item) in self._places:
            raise Bug("OFFERED_TWICE", f"{item!r} waits already: report this")
        if len(self._places) < self._most:
            self._append(_Waiting(agent, item, expires))
            return Offer(accepted=True)
        if self._lengths.most < self.waiting(agent) + _WORTH:
            return Offer(accepted=False)
        evicted = self._newest(self._lengths.longest())
        self._drop(evicted)
        self._append(_Waiting(agent, item, expires))
        return Offer(accepted=True, evicted=evicted.item)

    def pop(self, now: float) -> T | None:
        """Return the next call to get a place; None if none waits in time."""
        while self._lines:
            agent, line = next(iter(self._lines.items()))
            first = next(iter(line.values()))
            self._drop(first)
            if now < first.expires:
                if line:
                    self._lines.move_to_end(agent)
                return first.item
            # Set aside: to be looked at once, and still to be told by `expired`.
            self._places[id(first.item)] = self._late[id(first.item)] = first
        return None

    def expired(self, now: float) -> list[T]:
        """Take out and return every call whose time is up."""
        late = [held for held in self._places.values() if now >= held.expires]
        for held in late:
            self._drop(held)
        return [held.item for held in late]

    def remove(self, item: T) -> bool:
        """Take out a call whose caller went away; False if it is not there."""
        held = self._places.get(id(item))
        if held is None:
            return False
        self._drop(held)
        return True

    def _newest(self, agent: str) -> _Waiting[T]:
        return next(reversed(self._lines[agent].values()))

    def _append(self, held: _Waiting[T]) -> None:
        line = self._lines.setdefault(held.agent, OrderedDict())
        line[id(held.item)] = self._places[id(held.item)] = held
        self._lengths.move(held.agent, len(line) - 1, len(line))

    def _drop(self, held: _Waiting[T]) -> None:
        key = id(held.item)
        del self._places[key]
        if self._late.pop(key, None) is not None:
            return
        line = self._lines[held.agent]
        del line[key]
        self._lengths.move(held.agent, len(line) + 1, len(line))
        if not line:
            del self._lines[held.agent]
