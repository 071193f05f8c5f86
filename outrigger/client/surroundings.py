"""Where the agent finds its sidecar, and how it connects."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import grpc

from outrigger.core import names
from outrigger.core.errors import Invalid

CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    # A channel with equal arguments would share a subchannel and with it the
    # reconnect backoff of one that the sidecar's restart had broken.
    ("grpc.use_local_subchannel_pool", 1),
    # The sidecar is back within a second or two after it was killed; a pause that
    # grew to minutes would outlast it.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # not a pause: how long a dial may take
    ("grpc.max_reconnect_backoff_ms", 1000),
    # An agent that was frozen wakes with all its timers due: a keepalive would
    # close the connection for a ping that was never late.
    ("grpc.keepalive_time_ms", 2**31 - 1),
    # The sidecar is on this machine; a proxy from the environment is not for it.
    ("grpc.enable_http_proxy", 0),
    # How large a message may be is for the agent and its upstreams to say.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)

_VARIABLES: Final = (
    names.ENV_AGENT_ID,
    names.ENV_API,
    names.ENV_OUTBOUND,
    names.ENV_TOKEN,
)


class Pending(Protocol):
    """Something that will happen, unless it is cancelled."""

    def cancel(self) -> object:
        """Keep it from happening if it has not happened yet."""
        ...


CallIn = Callable[[Callable[[], None], float], Pending]
"""Run this after so many seconds, on a thread of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a sidecar tells its agent through the environment."""

    agent_id: str
    api: str
    """gRPC target of the sidecar's API."""
    outbound: str
    """gRPC target of the relay."""
    token: str


def read_surroundings(environ: Mapping[str, str]) -> Surroundings:
    """Return what the sidecar put into the environment.

    Raises:
        Invalid: NOT_BESIDE_A_SIDECAR, with the variables that are missing.
    """
    missing = [name for name in _VARIABLES if not environ.get(name)]
    if missing:
        raise Invalid(
            "NOT_BESIDE_A_SIDECAR",
            f"{', '.join(missing)} not set: start this program as `outrigger sidecar"
            " ... -- PROGRAM`, which sets them, or pass a mapping that has them",
        )
    agent_id, api, outbound, token = (environ[name] for name in _VARIABLES)
    return Surroundings(agent_id=agent_id, api=api, outbound=outbound, token=token)


def open_channel(target: str) -> grpc.Channel:
    """Return a channel to a listener of the sidecar; it connects when used."""
    return grpc.insecure_channel(target, options=CHANNEL_OPTIONS)


def call_in(behaviour: Callable[[], None], delay_s: float) -> Pending:
    """Run `behaviour` after `delay_s` seconds on a thread of its own."""
    timer = threading.Timer(delay_s, behaviour)
    timer.daemon = True
    timer.start()
    return timer
