"""Events to and from protobuf."""

from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.core import events
from outrigger.v1 import event_pb2


def timestamp(wall_s: float) -> Timestamp:
    """Return seconds since 1970 as a Timestamp, microseconds kept."""
    stamp = Timestamp()
    stamp.FromMicroseconds(int(wall_s * 1_000_000))
    return stamp


def wall(stamp: Timestamp) -> float:
    """Return a Timestamp as seconds since 1970."""
    return stamp.ToMicroseconds() / 1_000_000


def event_to_proto(event: events.Event) -> event_pb2.Event:
    """Return an event as its message."""
    message = event_pb2.Event(
        sequence=event.sequence,
        event_time=timestamp(event.wall_s),
        agent_id=event.agent_id,
    )
    _set_payload(message, event.payload)
    return message


def event_from_proto(message: event_pb2.Event) -> events.Event | None:
    """Return the event in a message; None if its payload is unknown here."""
    payload = _payload(message)
    if payload is None:
        return None
    return events.Event(
        sequence=message.sequence,
        wall_s=wall(message.event_time),
        agent_id=message.agent_id,
        payload=payload,
    )


def _set_payload(message: event_pb2.Event, payload: events.Payload) -> None:
    match payload:
        case events.ErrorSeen(boundary=b, reason=r, causes=c, subject=s):
            message.error.boundary = b
            message.error.reason = r
            message.error.cause_chain = "\n".join(c)
            message.error.subject = s
        case events.CircuitMoved(circuit=i, before=b, after=a, reason=r):
            message.circuit.circuit = i
            message.circuit.before = b
            message.circuit.after = a
            message.circuit.reason = r
        case events.LetterMoved():
            message.letter.letter_id = payload.letter_id
            message.letter.before = payload.before
            message.letter.after = payload.after
            message.letter.reason = payload.reason
            message.letter.method = payload.method
        case events.CheckpointMoved():
            message.checkpoint.generation = payload.generation
            message.checkpoint.action = payload.action
            message.checkpoint.reason = payload.reason
            message.checkpoint.raw_size_bytes = payload.raw_size_bytes
        case events.Transitioned():
            message.transition.before = payload.before
            message.transition.after = payload.after
            message.transition.input = payload.input
            message.transition.reason = payload.reason
            message.transition.epoch = payload.epoch
        case events.Recovered(subject=s, elapsed_s=e):
            message.recovery.subject = s
            message.recovery.elapsed_s = e
        case events.Alerted(name=n, message=m):
            message.alert.name = n
            message.alert.message = m


def _payload(message: event_pb2.Event) -> events.Payload | None:  # noqa: PLR0911 - one arm per kind
    match message.WhichOneof("payload"):
        case "error":
            e = message.error
            return events.ErrorSeen(
                boundary=e.boundary,
                reason=e.reason,
                causes=tuple(e.cause_chain.split("\n")),
                subject=e.subject,
            )
        case "circuit":
            c = message.circuit
            return events.CircuitMoved(
                circuit=c.circuit, before=c.before, after=c.after, reason=c.reason
            )
        case "letter":
            m = message.letter
            return events.LetterMoved(
                letter_id=m.letter_id,
                before=m.before,
                after=m.after,
                reason=m.reason,
                method=m.method,
            )
        case "checkpoint":
            k = message.checkpoint
            return events.CheckpointMoved(
                generation=k.generation,
                action=k.action,
                reason=k.reason,
                raw_size_bytes=k.raw_size_bytes,
            )
        case "transition":
            t = message.transition
            return events.Transitioned(
                before=t.before,
                after=t.after,
                input=t.input,
                reason=t.reason,
                epoch=t.epoch,
            )
        case "recovery":
            r = message.recovery
            return events.Recovered(subject=r.subject, elapsed_s=r.elapsed_s)
        case "alert":
            return events.Alerted(
                name=message.alert.name, message=message.alert.message
            )
        case _:
            return None
