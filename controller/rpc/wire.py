"""The controller's domain to protobuf and back; nothing is decided here."""

import base64
import binascii
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from controller.policy.agent import (
    Addresses,
    Agent,
    Load,
    Report,
    State,
    Transition,
    status,
)
from controller.policy.audit import AuditRecord
from controller.policy.schedule import Action, Settings
from controller.registry import Command, Result
from outrigger.core import errors
from outrigger.core.errors import Bug, Invalid, OutriggerError
from outrigger.core.events import Event, Transitioned
from outrigger.core.rpc.events import timestamp
from outrigger.v1 import agent_pb2, connect_service_pb2, fleet_service_pb2

_STATES: Final = {
    State.AWAKE: agent_pb2.Agent.STATE_AWAKE,
    State.QUIESCING: agent_pb2.Agent.STATE_QUIESCING,
    State.CHECKPOINTING: agent_pb2.Agent.STATE_CHECKPOINTING,
    State.FROZEN: agent_pb2.Agent.STATE_FROZEN,
    State.ASLEEP: agent_pb2.Agent.STATE_ASLEEP,
    State.WAKING: agent_pb2.Agent.STATE_WAKING,
    State.FAILED: agent_pb2.Agent.STATE_FAILED,
    State.UNKNOWN: agent_pb2.Agent.STATE_UNKNOWN,
}
_STATES_BACK: Final = {number: state for state, number in _STATES.items()}
_ERRORS: Final[dict[str, type[OutriggerError]]] = {
    cls.status: cls
    for cls in (
        errors.Transient,
        errors.TimedOut,
        errors.Overloaded,
        errors.Refused,
        errors.Invalid,
        errors.NotFound,
        errors.Denied,
        errors.Unauthenticated,
        errors.Conflict,
        errors.Corrupt,
        errors.Bug,
    )
}
_STATUS_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode}

MOST_CHARS: Final = 512
"""Longest text taken from a sidecar; the rest is cut off."""

_PAGE_DEFAULT: Final = 50
_PAGE_MOST: Final = 1000
_MOST_DIGEST_BYTES: Final = 64
_MOST_WALL_S: Final = 253_402_300_799


def seconds(span: Duration) -> float:
    """Return a Duration in seconds, whatever its sender put in."""
    return float(span.seconds + span.nanos / 1e9)


def duration(seconds_: float) -> Duration:
    """Return seconds as a Duration, microseconds kept."""
    span = Duration()
    span.FromMicroseconds(round(seconds_ * 1_000_000))
    return span


def agent_to_proto(agent: Agent, now: float) -> agent_pb2.Agent:
    """Return an agent with the state that the controller vouches for."""
    report = agent.report
    state, why = status(agent, now)
    message = agent_pb2.Agent(
        name=f"agents/{report.agent_id}",
        agent_id=report.agent_id,
        state=_STATES[state],
        reason=why,
        epoch=report.epoch,
        generation=report.generation,
        state_digest=report.state_digest,
        pid=report.pid,
        pinned=agent.pin is not None,
        group=report.group,
        sidecar_instance=report.sidecar_instance,
        addresses=_addresses_to_proto(report.addresses),
        sleep_count=report.sleep_count,
        wake_count=report.wake_count,
        last_wake_s=report.last_wake_s,
        woken_digest=report.woken_digest,
        report_age=duration(now - agent.heard_at),
    )
    if 0 < report.since_wall_s <= _MOST_WALL_S:
        message.state_time.CopyFrom(timestamp(report.since_wall_s))
    if report.load is not None:
        message.load.CopyFrom(_load_to_proto(report.load))
    return message


def _addresses_to_proto(addresses: Addresses) -> agent_pb2.SidecarAddresses:
    return agent_pb2.SidecarAddresses(
        outbound=addresses.outbound,
        api=addresses.api,
        api_tcp=addresses.api_tcp,
        inbound=addresses.inbound,
    )


def _load_to_proto(load: Load) -> agent_pb2.Load:
    message = agent_pb2.Load(
        cpu_ratio=load.cpu_ratio,
        rss_bytes=load.rss_bytes,
        pss_bytes=load.pss_bytes,
        process_count=load.process_count,
        outbound_in_flight=load.outbound_in_flight,
        inbound_in_flight=load.inbound_in_flight,
        keep_awake_leases=load.keep_awake_leases,
        live_letters=load.live_letters,
        sidecar_pss_bytes=load.sidecar_pss_bytes,
    )
    if 0 < load.sample_wall_s <= _MOST_WALL_S:
        message.sample_time.CopyFrom(timestamp(load.sample_wall_s))
    if 0 <= load.idle_s <= _MOST_WALL_S:
        message.idle.CopyFrom(duration(load.idle_s))
    return message


def report_from_proto(message: agent_pb2.Agent) -> Report:
    """Return what a sidecar says; impossible values stay impossible."""
    return Report(
        agent_id=message.agent_id[:MOST_CHARS],
        state=_STATES_BACK.get(message.state, State.UNKNOWN),
        reason=message.reason[:MOST_CHARS],
        since_wall_s=_wall(message.state_time),
        epoch=message.epoch,
        generation=message.generation,
        state_digest=message.state_digest[:_MOST_DIGEST_BYTES],
        pid=message.pid,
        load=_load(message.load) if message.HasField("load") else None,
        group=message.group[:MOST_CHARS],
        sidecar_instance=message.sidecar_instance[:MOST_CHARS],
        addresses=_addresses(message.addresses),
        sleep_count=message.sleep_count,
        wake_count=message.wake_count,
        last_wake_s=message.last_wake_s,
        woken_digest=message.woken_digest[:_MOST_DIGEST_BYTES],
    )


def _wall(stamp: Timestamp) -> float:
    return float(stamp.seconds + stamp.nanos / 1e9)


def _addresses(message: agent_pb2.SidecarAddresses) -> Addresses:
    return Addresses(
        outbound=message.outbound[:MOST_CHARS],
        api=message.api[:MOST_CHARS],
        api_tcp=message.api_tcp[:MOST_CHARS],
        inbound=message.inbound[:MOST_CHARS],
    )


def _load(message: agent_pb2.Load) -> Load:
    return Load(
        sample_wall_s=_wall(message.sample_time),
        cpu_ratio=message.cpu_ratio,
        rss_bytes=message.rss_bytes,
        pss_bytes=message.pss_bytes,
        process_count=message.process_count,
        outbound_in_flight=message.outbound_in_flight,
        inbound_in_flight=message.inbound_in_flight,
        keep_awake_leases=message.keep_awake_leases,
        # No idle time said is not "idle for 0 s", but it is as good as busy.
        idle_s=seconds(message.idle),
        live_letters=message.live_letters,
        sidecar_pss_bytes=message.sidecar_pss_bytes,
    )


def transition_from_event(event: Event) -> Transition | None:
    """Return the transition an event tells of; None if it tells of another thing."""
    moved = event.payload
    if not isinstance(moved, Transitioned):
        return None
    return Transition(
        wall_s=event.wall_s if 0 <= event.wall_s <= _MOST_WALL_S else 0.0,
        before=moved.before[:MOST_CHARS],
        after=moved.after[:MOST_CHARS],
        input=moved.input[:MOST_CHARS],
        reason=moved.reason[:MOST_CHARS],
        epoch=moved.epoch,
    )


def transition_to_proto(moved: Transition) -> fleet_service_pb2.TransitionRecord:
    """Return a kept transition."""
    record = fleet_service_pb2.TransitionRecord(event_time=timestamp(moved.wall_s))
    record.transition.before = moved.before
    record.transition.after = moved.after
    record.transition.input = moved.input
    record.transition.reason = moved.reason
    record.transition.epoch = moved.epoch
    return record


def command_to_proto(command: Command) -> connect_service_pb2.ConnectResponse:
    """Return a command as its message."""
    actions = connect_service_pb2.Command
    return connect_service_pb2.ConnectResponse(
        command=connect_service_pb2.Command(
            command_id=command.command_id,
            action=actions.ACTION_SLEEP if command.sleep else actions.ACTION_WAKE,
            seen_epoch=command.seen_epoch,
            reason=command.reason,
        )
    )


def result_from_proto(message: connect_service_pb2.CommandResult) -> Result:
    """Return a sidecar's answer; an unknown status is a defect of its sender."""
    return Result(
        command_id=message.command_id,
        error=_error(message) if message.status_code else None,
        report=report_from_proto(message.agent) if message.HasField("agent") else None,
    )


def _error(message: connect_service_pb2.CommandResult) -> OutriggerError:
    cls = _ERRORS.get(_STATUS_NAMES.get(message.status_code, ""), Bug)
    return cls(
        message.reason[:MOST_CHARS] or "NO_REASON",
        message.message[:MOST_CHARS] or "the sidecar gave no reason",
    )


def audit_to_proto(record: AuditRecord) -> fleet_service_pb2.AuditRecord:
    """Return a record of the audit."""
    message = fleet_service_pb2.AuditRecord(
        sequence=record.sequence,
        principal=record.entry.principal,
        method=record.entry.method,
        subject=record.entry.subject,
        status_code=record.entry.status_code,
        reason=record.entry.reason,
        chain_digest=record.chain_digest,
    )
    message.event_time.FromMicroseconds(record.entry.wall_us)
    return message


def scheduler_to_proto(
    settings: Settings, sleep_count: int
) -> fleet_service_pb2.Scheduler:
    """Return how the scheduler is set."""
    return fleet_service_pb2.Scheduler(
        enabled=settings.enabled,
        keep_alive=duration(settings.keep_alive_s),
        sleep_count=sleep_count,
    )


def explanation_to_proto(
    agent: Agent, action: Action, now: float
) -> fleet_service_pb2.ExplainAgentResponse:
    """Return what the scheduler would do with an agent, and why."""
    return fleet_service_pb2.ExplainAgentResponse(
        agent=agent_to_proto(agent, now),
        decision=action.decision.value,
        reason=action.reason,
        would_change=action.would_change,
        transitions=[transition_to_proto(moved) for moved in agent.transitions],
    )


def page_size(asked: int) -> int:
    """Return how many to list; more than the most gives the most.

    Raises:
        Invalid: BAD_PAGE_SIZE.
    """
    if asked < 0:
        raise Invalid(
            "BAD_PAGE_SIZE",
            f"page_size {asked} is not valid: give 1 to {_PAGE_MOST}, or 0 for"
            f" {_PAGE_DEFAULT}",
        )
    return min(asked, _PAGE_MOST) or _PAGE_DEFAULT


def page_token(last: str) -> str:
    """Return the token of the page that follows the item `last`."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def page_start(token: str) -> str:
    """Return the item that a page follows; empty for the first page.

    Raises:
        Invalid: BAD_PAGE_TOKEN.
    """
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise Invalid(
            "BAD_PAGE_TOKEN",
            "page_token is not one of ours: pass next_page_token of the answer"
            " before, or nothing for the first page",
        ) from error
