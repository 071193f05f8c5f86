"""The sidecar's domain to protobuf and back; nothing is decided here."""

import base64
import binascii
from collections.abc import Mapping
from typing import Final

from google.protobuf.duration_pb2 import Duration

from outrigger.core.errors import Invalid
from outrigger.core.rpc.events import timestamp
from outrigger.v1 import agent_pb2, sidecar_service_pb2
from sidecar.call.descriptor import CallCounts
from sidecar.policy.agent import AgentSnapshot, AgentState, LoadSample

_AGENT_STATES: Final = {
    AgentState.AWAKE: agent_pb2.Agent.STATE_AWAKE,
    AgentState.QUIESCING: agent_pb2.Agent.STATE_QUIESCING,
    AgentState.CHECKPOINTING: agent_pb2.Agent.STATE_CHECKPOINTING,
    AgentState.FROZEN: agent_pb2.Agent.STATE_FROZEN,
    AgentState.ASLEEP: agent_pb2.Agent.STATE_ASLEEP,
    AgentState.WAKING: agent_pb2.Agent.STATE_WAKING,
    AgentState.FAILED: agent_pb2.Agent.STATE_FAILED,
}

_PAGE_DEFAULT: Final = 50
_PAGE_MAX: Final = 1000


def agent_to_proto(
    snapshot: AgentSnapshot,
    *,
    group: str,
    instance: str,
    addresses: agent_pb2.SidecarAddresses,
    load: agent_pb2.Load,
) -> agent_pb2.Agent:
    """Return an agent's snapshot with what surrounds it."""
    return agent_pb2.Agent(
        name=f"agents/{snapshot.agent_id}",
        agent_id=snapshot.agent_id,
        state=_AGENT_STATES[snapshot.state],
        reason=snapshot.reason,
        state_time=timestamp(snapshot.since_wall_s),
        epoch=snapshot.epoch,
        generation=snapshot.generation,
        state_digest=snapshot.state_digest,
        pid=snapshot.pid,
        sleep_count=snapshot.sleep_count,
        wake_count=snapshot.wake_count,
        last_wake_s=snapshot.last_wake_s,
        woken_digest=snapshot.woken_digest,
        group=group,
        sidecar_instance=instance,
        addresses=addresses,
        load=load,
    )


def load_to_proto(sample: LoadSample | None) -> agent_pb2.Load:
    """Return a sample; the caller adds what the sidecar counts itself."""
    if sample is None:
        return agent_pb2.Load()
    return agent_pb2.Load(
        sample_time=timestamp(sample.wall_s),
        cpu_ratio=sample.cpu_ratio,
        rss_bytes=sample.rss_bytes,
        pss_bytes=sample.pss_bytes,
        process_count=sample.process_count,
        sidecar_pss_bytes=sample.sidecar_pss_bytes,
    )


def counts_to_proto(
    counts: CallCounts, *, held: int
) -> sidecar_service_pb2.CallCounters:
    """Return a guard's counters."""
    return sidecar_service_pb2.CallCounters(
        begun_count=counts.begun,
        ok_count=counts.ok,
        failed_count=counts.failed,
        refused_counts=_plain(counts.refused),
        retry_count=counts.retries,
        letter_count=counts.letters,
        cancelled_count=counts.cancelled,
        in_flight_count=counts.in_flight,
        held_count=held,
    )


def duration(seconds: float) -> Duration:
    """Return seconds as a Duration, microseconds kept."""
    message = Duration()
    message.FromMicroseconds(int(seconds * 1_000_000))
    return message


def page_size(asked: int) -> int:
    """Return how many to list: 50 by default, at most 1,000.

    Raises:
        Invalid: BAD_PAGE_SIZE.
    """
    if asked < 0:
        raise Invalid("BAD_PAGE_SIZE", f"page_size {asked} is negative: give 1 to 1000")
    return min(asked or _PAGE_DEFAULT, _PAGE_MAX)


def page_token(after: str) -> str:
    """Return an opaque token that stands for `after`."""
    return base64.urlsafe_b64encode(after.encode()).decode() if after else ""


def page_after(token: str) -> str:
    """Return what a token stands for.

    Raises:
        Invalid: BAD_PAGE_TOKEN.
    """
    try:
        # Strictly: by default Python passes over what is no base64, and a garbled
        # token would begin again at the first page.
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise Invalid(
            "BAD_PAGE_TOKEN",
            "page_token is not one of ours: take next_page_token of the answer before",
        ) from error


def _plain(counts: Mapping[str, int]) -> dict[str, int]:
    return {key: value for key, value in counts.items() if value}
