"""Places at an upstream: taken by a call for as long as it may send something."""

from sidecar.call.flight import Flight


class Places:
    """Gives the places of every upstream out, and takes them back once each."""

    def enter(self, flight: Flight) -> bool:
        """Take a place for a call; False means there is none."""
        flight.has_place = flight.method.upstream.limit.enter()
        return flight.has_place

    def leave(self, flight: Flight) -> None:
        """Give a call's place back, if it has one."""
        if flight.has_place:
            flight.has_place = False
            flight.method.upstream.limit.leave()
