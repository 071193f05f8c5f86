"""Keep-awake leases: an agent's word that it is busy, for a while."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from outrigger.core.errors import Invalid, NotFound, Overloaded

SHORTEST_S: Final = 1.0
LONGEST_S: Final = 3600.0
LEASES_MAX: Final = 64
REASON_CHARS: Final = 256


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease."""

    lease_id: str
    until: float
    """Monotonic seconds."""
    reason: str


class KeepAwakeLeases:
    """The leases of one agent; each ends by itself."""

    def __init__(self, new_id: Callable[[], str], most: int = LEASES_MAX) -> None:
        """Prepare; `new_id` names leases, `most` is how many may be held at once."""
        self._new_id = new_id
        self._most = most
        self._held: dict[str, Lease] = {}

    def take(self, lease_id: str, ttl_s: float, reason: str, now: float) -> Lease:
        """Take a lease, or renew the one named.

        Args:
            lease_id: lease to renew; empty takes a new one.
            ttl_s: 1 s to 1 h from `now`.
            reason: shown to operators; at most 256 characters.
            now: monotonic seconds.

        Raises:
            Invalid: BAD_LEASE_TTL, LEASE_REASON_TOO_LONG.
            NotFound: NO_SUCH_LEASE when the one to renew has ended.
            Overloaded: TOO_MANY_LEASES.
        """
        _check(ttl_s, reason)
        self._expire(now)
        if not lease_id:
            self._check_room()
            lease_id = self._new_id()
        elif lease_id not in self._held:
            raise NotFound(
                "NO_SUCH_LEASE",
                f"keep-awake lease {lease_id!r} has ended or never was: take a new one"
                " with an empty lease_id, and renew in half the ttl",
            )
        lease = Lease(lease_id, now + ttl_s, reason)
        self._held[lease_id] = lease
        return lease

    def release(self, lease_id: str) -> None:
        """End a lease early; one that is gone is fine."""
        self._held.pop(lease_id, None)

    def clear(self) -> None:
        """End every lease: whoever took them is gone."""
        self._held.clear()

    def held(self, now: float) -> tuple[Lease, ...]:
        """Return the leases that hold, oldest first."""
        self._expire(now)
        return tuple(self._held.values())

    def count(self, now: float) -> int:
        """Return how many leases hold."""
        return len(self.held(now))

    def _check_room(self) -> None:
        if len(self._held) >= self._most:
            raise Overloaded(
                "TOO_MANY_LEASES",
                f"{self._most} keep-awake leases are held already: renew one of them"
                " instead of taking another",
            )

    def _expire(self, now: float) -> None:
        self._held = {key: held for key, held in self._held.items() if held.until > now}


def _check(ttl_s: float, reason: str) -> None:
    if not SHORTEST_S <= ttl_s <= LONGEST_S:
        raise Invalid(
            "BAD_LEASE_TTL",
            f"a keep-awake lease of {ttl_s:g} s was asked for: ttl must be between"
            f" {SHORTEST_S:g} s and {LONGEST_S:g} s; renew it to stay awake longer",
        )
    if len(reason) > REASON_CHARS:
        raise Invalid(
            "LEASE_REASON_TOO_LONG",
            f"the reason of a keep-awake lease has {len(reason)} characters, at most"
            f" {REASON_CHARS} are kept: shorten it",
        )
