"""What is known of an upstream before it is dialled."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from outrigger.core import values
from outrigger.core.errors import Invalid
from sidecar.policy.outlier import OutlierSettings
from sidecar.wire.addresses import Address, Place, places
from sidecar.wire.peer_tls import PeerTls

Balance = Literal["pick_first", "round_robin"]

_BALANCES: Final = ("pick_first", "round_robin")
_KEEPALIVE_MIN_S: Final = 10.0
_RESOLVE_MIN_S: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamSpec:
    """Where an upstream is and how to reach it; `mistakes` says what is wrong."""

    targets: tuple[str, ...]
    """gRPC targets: one, or the addresses to choose from."""
    balance: Balance | None = None
    """pick_first: the first that can be reached, in this order; round_robin: all in
    turn, names looked up by ourselves. None: pick_first for one, else round_robin."""
    tls: bool = False
    ca: Path | None = None
    """PEM; None: the authorities gRPC brings along."""
    cert: Path | None = None
    key: Path | None = None
    authority: str = ""
    """Name the upstream's certificate must carry, if not the one that is dialled."""
    keepalive_s: float | None = 330.0
    """How long a connection with calls in flight may be silent before it is pinged;
    None: no pings. A gRPC server takes one ping per 300 s without data and closes
    the connection of who sends more, so the default stays above that."""
    keepalive_timeout_s: float = 20.0
    """How long to wait for the answer to a ping."""
    warm_up: int = 1
    """How many addresses to wait for at start, a second at most; 0: none."""
    resolve_s: float = 30.0
    """How often names are looked up, beside each time that an address fails."""
    outlier: OutlierSettings = field(default_factory=OutlierSettings)

    @property
    def is_balanced(self) -> bool:
        """Say whether calls take turns."""
        if self.balance is None:
            return len(self.targets) > 1
        return self.balance == "round_robin"

    @property
    def peer_tls(self) -> PeerTls | None:
        """Return the files for TLS; None for plaintext."""
        if not self.tls:
            return None
        return PeerTls(ca=self.ca, cert=self.cert, key=self.key)

    def places(self) -> tuple[Place, ...]:
        """Return what to dial and what to look up."""
        if not self.is_balanced:
            # gRPC's own resolver and choice within a target; ours between targets.
            return tuple(Address(target) for target in self.targets)
        return tuple(place for target in self.targets for place in places(target))

    def mistakes(self) -> list[str]:
        """Return everything that is wrong, one line each; reads the TLS files."""
        return [*self._bad_targets(), *self._bad_tls(), *self._bad_numbers()]

    def _bad_targets(self) -> list[str]:
        wrong = [] if self.targets else ["no target"]
        for target in self.targets:
            try:
                values.target(target)
            except values.Wrong as error:
                wrong.append(f"target {target!r}: {error}")
        if not wrong and self.is_balanced:
            wrong.extend(
                f"target {place.target!r}: round_robin looks names up itself and needs"
                " dns:///NAME:PORT, without a DNS server of its own"
                for place in self.places()
                if isinstance(place, Address) and place.target.startswith("dns:")
            )
        if self.balance is not None and self.balance not in _BALANCES:
            wrong.append(f"balance {self.balance!r}: expected {' or '.join(_BALANCES)}")
        if len(set(self.targets)) < len(self.targets):
            wrong.append("a target is listed twice")
        return wrong

    def _bad_tls(self) -> list[str]:
        if (tls := self.peer_tls) is not None:
            return tls.mistakes()
        given = [
            name for name in ("ca", "cert", "key", "authority") if getattr(self, name)
        ]
        return [f"{', '.join(given)} without tls: say tls = true"] if given else []

    def _bad_numbers(self) -> list[str]:
        wrong = []
        if self.keepalive_s is not None and self.keepalive_s < _KEEPALIVE_MIN_S:
            wrong.append(
                f"keepalive_s {self.keepalive_s:g}: expected {_KEEPALIVE_MIN_S:g} or"
                " more, for servers close the connections of clients that ping too"
                " often (too_many_pings; 300 s between pings is what they take unless"
                " told otherwise)"
            )
        if self.keepalive_timeout_s <= 0:
            wrong.append("keepalive_timeout_s: expected more than 0")
        if self.warm_up < 0:
            wrong.append("warm_up: expected 0 or more")
        if self.resolve_s < _RESOLVE_MIN_S:
            wrong.append(f"resolve_s: expected {_RESOLVE_MIN_S:g} or more")
        return wrong


def checked(given: Mapping[str, UpstreamSpec | str]) -> dict[str, UpstreamSpec]:
    """Return what is known of each upstream; a target stands for a spec of its own.

    Raises:
        Invalid: BAD_UPSTREAM, with every mistake of every upstream.
    """
    specs = {
        name: UpstreamSpec(targets=(one,)) if isinstance(one, str) else one
        for name, one in given.items()
    }
    wrong = [
        f"{name}: {line}" for name, spec in specs.items() for line in spec.mistakes()
    ]
    if wrong:
        raise Invalid("BAD_UPSTREAM", f"upstreams cannot be used: {'; '.join(wrong)}")
    return specs
