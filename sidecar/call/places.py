"""Places at an upstream: taken by a call for as long as it may send something.

Where there is none, a call may wait for one: in a bounded queue, fair between agents,
and only if it can hope to be served in time. A letter on its way never waits and
never goes before a call that does: live traffic goes first.

The races, and who wins:

- A place that comes free against a call that just arrives: the waiting one. Its place
  is taken for it before it is told, so nobody can step in between.
- A place handed to a call whose caller goes away before it hears of it: the caller;
  the place goes on to the next.
- A place against the end of the wait: whichever reaches the queue first takes the call
  out of it, and the other finds nothing.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import cast

from outrigger.core.errors import Overloaded
from sidecar.call.descriptor import Resolution, Resumed, Wait
from sidecar.call.flight import Flight
from sidecar.call.standing import UpstreamStanding

Resolve = Callable[[int, Resolution], object]
"""Tells a wire to go on with a parked call."""


class Places:
    """Gives the places of every upstream out, and takes them back once each."""

    def __init__(self, tokens: "itertools.count[int]", resolve: Resolve) -> None:
        self._tokens = tokens
        self._resolve = resolve
        self._waiting: dict[int, Flight] = {}

    @property
    def held(self) -> int:
        """How many calls wait for a place."""
        return len(self._waiting)

    def enter(self, flight: Flight) -> bool:
        """Take a place for a call; False means there is none for it now."""
        upstream = flight.method.upstream
        if upstream.queue is not None and len(upstream.queue):
            return False
        flight.has_place = upstream.limit.enter()
        return flight.has_place

    def wait(self, flight: Flight, now: float) -> Wait | None:
        """Queue a call for a place; None means that it cannot wait.

        It is asked for again when it has a place, or when there is no more hope.
        """
        upstream = flight.method.upstream
        queue = upstream.queue
        if queue is None or flight.is_delivery:
            return None
        expires = min(now + upstream.policy.queue_max_s, flight.expires)
        if now + _expected_s(flight) >= expires:
            return None
        offer = queue.offer(flight.call.agent, flight, expires)
        if offer.evicted is not None:
            self._tell(cast("Flight", offer.evicted))
        if not offer.accepted:
            return None
        token = flight.token = next(self._tokens)
        self._waiting[token] = flight
        return Wait(flight, token)

    def taken_out(self, token: int) -> Flight | None:
        """Return the call that waited under a token; None if none did."""
        flight = self._waiting.pop(token, None)
        if flight is not None:
            flight.token = None
            _unqueue(flight)
        return flight

    def leave(self, flight: Flight, now: float) -> None:
        """Give up what a call has: its place in the queue, or at the upstream."""
        if flight.token in self._waiting:
            del self._waiting[flight.token]
            _unqueue(flight)
        if flight.has_place:
            flight.has_place = False
            upstream = flight.method.upstream
            upstream.limit.leave()
            if upstream.queue is not None:
                self._hand_on(upstream, now)

    def tick(self, upstreams: Iterable[UpstreamStanding], now: float) -> None:
        """End waits that were too long, and use limits that grew."""
        for upstream in upstreams:
            if upstream.queue is None:
                continue
            self._end_late(upstream, now)
            self._hand_on(upstream, now)

    def _end_late(self, upstream: UpstreamStanding, now: float) -> None:
        for flight in upstream.queue.expired(now) if upstream.queue else ():
            self._tell(cast("Flight", flight))

    def _hand_on(self, upstream: UpstreamStanding, now: float) -> None:
        queue, limit = upstream.queue, upstream.limit
        while queue and limit.in_flight < limit.most:
            flight = cast("Flight | None", queue.pop(now))
            if flight is None:
                # Left until the next tick they would keep newcomers out meanwhile.
                self._end_late(upstream, now)
                return
            flight.has_place = limit.enter()
            self._tell(flight)

    def _tell(self, flight: Flight) -> None:
        if flight.token is not None:
            self._resolve(flight.token, Resumed())


def full(flight: Flight) -> Overloaded:
    """Return what a call is told that can neither be sent nor wait."""
    return flight.method.upstream.limit.refusal()


def waited_in_vain(flight: Flight, waited_s: float) -> Overloaded:
    """Return what a call is told that waited and got no place."""
    upstream = flight.method.upstream
    return Overloaded(
        "QUEUE_TIMEOUT",
        f"this call to {upstream.name} waited {waited_s:.3f} s for one of"
        f" {upstream.limit.most} places and got none; nothing was sent: come back"
        " later, with fewer at once",
        metadata={"upstream": upstream.name, "limit": str(upstream.limit.most)},
        retry_after_s=upstream.policy.queue_max_s,
    )


def _unqueue(flight: Flight) -> None:
    queue = flight.method.upstream.queue
    if queue is not None:
        queue.remove(flight)


def _expected_s(flight: Flight) -> float:
    """Return how long a call that joins the queue now may have to wait."""
    upstream = flight.method.upstream
    ahead = len(upstream.queue or ()) + 1
    return flight.method.median.usual_s() * ahead / upstream.limit.most
