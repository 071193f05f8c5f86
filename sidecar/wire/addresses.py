"""Where an upstream is: targets as written, addresses as dialled, names looked up.

gRPC's own resolver serves a single target that is not balanced: it looks a name up
again whenever a connection is lost. Balancing needs to know the addresses one by
one, so names are looked up here.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""From host and port to gRPC targets; OSError when there is no answer."""

_LITERALS: Final = ("ipv4:", "ipv6:")
_NAME: Final = "dns:"


@dataclass(frozen=True, slots=True)
class Address:
    """One place to dial."""

    target: str
    """A gRPC target."""
    authority: str = ""
    """What the callee is called there, where the target does not say it."""


@dataclass(frozen=True, slots=True)
class HostName:
    """A name with a port, to look up."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """Return the name as callees know it."""
        return f"{self.host}:{self.port}"

    @property
    def unresolved(self) -> Address:
        """Return an address that leaves looking up to gRPC."""
        return Address(f"dns:///{self.authority}")


Place = Address | HostName


def places(target: str) -> tuple[Place, ...]:
    """Return the parts of a target that is to be balanced.

    A list of literal addresses is taken apart, a name without a DNS server of its own
    is for us to look up, and all else is one address for gRPC to understand.
    """
    for scheme in _LITERALS:
        if target.startswith(scheme):
            listed = target.removeprefix(scheme).lstrip("/").split(",")
            return tuple(Address(scheme + one) for one in listed)
    if target.startswith(_NAME):
        rest = target.removeprefix(_NAME)
        if rest.startswith("//") and not rest.startswith("///"):
            return (Address(target),)  # names a DNS server
        return (_host_name(rest.lstrip("/")) or Address(target),)
    return (_host_name(target) or Address(target),)


def _host_name(text: str) -> HostName | None:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or "/" in text or _is_literal(host):
        return None
    return HostName(host, int(port))


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        # unix:PATH:1 and the like: a colon is in no host name.
        return ":" in host
    return True


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Look a name up as the machine does; see `Resolve`."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    )
    targets = [_target(family, str(where[0]), port) for family, _, _, _, where in found]
    return tuple(dict.fromkeys(targets))


def _target(family: int, host: str, port: int) -> str:
    if family == socket.AF_INET6:
        return f"ipv6:[{host}]:{port}"
    return f"ipv4:{host}:{port}"
