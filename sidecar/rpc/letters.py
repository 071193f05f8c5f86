"""LetterService: letters shown, moved, carried, and calls taken to deliver later."""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.core.access import Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.errors import Invalid, NotFound, OutriggerError, Refused
from outrigger.core.ids import check_method, letter_id
from outrigger.core.rng import Rng
from outrigger.core.rpc.events import timestamp, wall
from outrigger.v1 import letter_pb2, letter_service_pb2_grpc
from outrigger.v1 import letter_service_pb2 as pb
from sidecar.call.descriptor import LetterDraft, Metadata
from sidecar.letters.journal import Journal, LetterFilter
from sidecar.policy.letter import (
    GONE,
    UNSAFE_METHOD,
    Attempt,
    Ledger,
    Letter,
    LetterState,
    never_unsafe,
)

_SERVICE: Final = "/outrigger.v1.LetterService/"
_OPERATORS: Final = frozenset({Role.OPERATOR})
_BOTH: Final = frozenset({Role.OPERATOR, Role.AGENT})
ACCESS: Final = {
    _SERVICE + "DeliverCall": Rule(roles=_BOTH),
    _SERVICE + "GetLetter": Rule(roles=_BOTH),
    _SERVICE + "ListLetters": Rule(roles=_BOTH),
    _SERVICE + "GetLedger": Rule(roles=_BOTH),
    _SERVICE + "RedriveLetters": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "DiscardLetters": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "ExportLetters": Rule(roles=_OPERATORS),
    _SERVICE + "ImportLetters": Rule(roles=_OPERATORS, mutating=True),
}
"""DeliverCall has no change limit: the journal's caps bound it."""

_STATES: Final = {
    LetterState.PENDING: letter_pb2.Letter.STATE_PENDING,
    LetterState.HELD: letter_pb2.Letter.STATE_HELD,
    LetterState.IN_FLIGHT: letter_pb2.Letter.STATE_IN_FLIGHT,
    LetterState.DELIVERED: letter_pb2.Letter.STATE_DELIVERED,
    LetterState.PARKED: letter_pb2.Letter.STATE_PARKED,
    LetterState.EXPIRED: letter_pb2.Letter.STATE_EXPIRED,
    LetterState.DISCARDED: letter_pb2.Letter.STATE_DISCARDED,
}
_FROM_PROTO: Final = {value: key for key, value in _STATES.items()}

_KEY: Final = re.compile(r"[0-9a-z_.-]+\Z")
_VALUE: Final = re.compile(rb"[\x20-\x7e]*\Z")
_FIRST_S: Final = 0
_LAST_S: Final = 253_402_300_799
_NANOS: Final = 1_000_000_000
_METADATA_BYTES: Final = 128 * 1024
"""As much as a listener of ours takes with a call."""

_Context = grpc.aio.ServicerContext[Any, Any]
Redact = Callable[[Metadata], tuple[tuple[str, str | bytes], ...]]


class LetterServicer(letter_service_pb2_grpc.LetterServiceServicer):
    """Serves one journal."""

    def __init__(
        self,
        journal: Journal,
        *,
        route: Callable[[str, str], str],
        redact: Redact,
        clock: Clock,
        rng: Rng,
        unsafe: Callable[[str, str], bool] = never_unsafe,
    ) -> None:
        """Prepare.

        Args:
            journal: whose letters.
            route: method and upstream asked for (or empty) to the upstream's name;
                raises when there is none.
            redact: removes credentials and what is for us from metadata.
            clock: for ids.
            rng: for ids.
            unsafe: says of upstream and method whether a second send may do harm;
                may raise NotFound for an upstream that is not configured.
        """
        self._journal = journal
        self._route = route
        self._redact = redact
        self._clock = clock
        self._rng = rng
        self._unsafe = unsafe

    async def DeliverCall(
        self, request: pb.DeliverCallRequest, context: _Context
    ) -> pb.DeliverCallResponse:
        """Take a call to deliver later."""
        taken = await self._journal.accept(self._draft(request))
        return pb.DeliverCallResponse(
            letter=letter_to_proto(await self._journal.get(taken), whole=False)
        )

    async def GetLetter(
        self, request: pb.GetLetterRequest, context: _Context
    ) -> pb.GetLetterResponse:
        """Return one letter, whole."""
        letter = await self._journal.get(request.letter_id)
        return pb.GetLetterResponse(letter=letter_to_proto(letter, whole=True))

    async def ListLetters(
        self, request: pb.ListLettersRequest, context: _Context
    ) -> pb.ListLettersResponse:
        """Return a page of letters, oldest first."""
        page = await self._journal.list(
            filter_from_proto(request.filter), request.page_size, request.page_token
        )
        return pb.ListLettersResponse(
            letters=[letter_to_proto(one, whole=False) for one in page.letters],
            next_page_token=page.next_page_token,
        )

    async def RedriveLetters(
        self, request: pb.RedriveLettersRequest, context: _Context
    ) -> pb.RedriveLettersResponse:
        """Put letters back to pending."""
        count = await self._journal.redrive(
            filter_from_proto(request.filter),
            everything=request.all,
            validate_only=request.validate_only,
        )
        return pb.RedriveLettersResponse(redriven_count=count)

    async def DiscardLetters(
        self, request: pb.DiscardLettersRequest, context: _Context
    ) -> pb.DiscardLettersResponse:
        """End letters for good."""
        count = await self._journal.discard(
            filter_from_proto(request.filter),
            reason=request.reason,
            everything=request.all,
            validate_only=request.validate_only,
        )
        return pb.DiscardLettersResponse(discarded_count=count)

    async def GetLedger(
        self, request: pb.GetLedgerRequest, context: _Context
    ) -> pb.GetLedgerResponse:
        """Say where all letters are."""
        return pb.GetLedgerResponse(ledger=_ledger(await self._journal.ledger()))

    async def ExportLetters(
        self, request: pb.ExportLettersRequest, context: _Context
    ) -> AsyncIterator[pb.ExportLettersResponse]:
        """Send whole letters."""
        async for letter in self._journal.export(filter_from_proto(request.filter)):
            yield pb.ExportLettersResponse(letter=letter_to_proto(letter, whole=True))

    async def ImportLetters(
        self,
        request_iterator: AsyncIterator[pb.ImportLettersRequest],
        context: _Context,
    ) -> pb.ImportLettersResponse:
        """Take exported letters; what was taken before a bad one stays."""
        imported = known = 0
        async for request in request_iterator:
            try:
                new = await self._import(letter_from_proto(request.letter))
            except OutriggerError as error:
                raise type(error)(
                    error.reason,
                    f"{error.message} ({imported} letters before it were imported)",
                    metadata={"letter": request.letter.letter_id},
                ) from error
            imported += new
            known += not new
        return pb.ImportLettersResponse(imported_count=imported, known_count=known)

    async def _import(self, letter: Letter) -> bool:
        if letter.state not in GONE:  # those are records only; others may be sent
            with contextlib.suppress(NotFound):
                # Of an upstream that is not here it is held; delivery asks again.
                self._check_safe(letter.upstream, letter.method)
        return await self._journal.import_(letter)

    def _check_safe(self, upstream: str, method: str) -> None:
        if self._unsafe(upstream, method):
            raise Refused(
                UNSAFE_METHOD,
                f"{method} of {upstream!r} is declared unsafe, and a letter may be sent"
                " more than once: call it through the outbound listener, or change"
                " its rule",
            )

    def _draft(self, request: pb.DeliverCallRequest) -> LetterDraft:
        method = check_method(request.method)
        upstream = self._route(method, request.upstream)
        self._check_safe(upstream, method)
        earliest = request.HasField("earliest_time")
        if earliest:
            _check_time(request.earliest_time, "earliest_time")
        return LetterDraft(
            letter_id=letter_id(self._clock.wall(), self._rng.token_bytes(10)),
            upstream=upstream,
            method=method,
            metadata=self._redact(_metadata(request.metadata)),
            request=request.request,
            idempotency_key=request.idempotency_key,
            code=0,
            message="",
            earliest_wall_s=wall(request.earliest_time) if earliest else None,
            ttl_s=(
                request.ttl.ToMilliseconds() / 1000 if request.HasField("ttl") else None
            ),
        )


def filter_from_proto(message: pb.LetterFilter) -> LetterFilter:
    """Return which letters are meant.

    Raises:
        Invalid: BAD_LETTER_STATE.
    """
    return LetterFilter(
        states=tuple(_state(value) for value in message.states),
        upstream=message.upstream,
        method=message.method,
        letter_ids=tuple(message.letter_ids),
    )


def letter_to_proto(letter: Letter, *, whole: bool) -> letter_pb2.Letter:
    """Return a letter; request and attempts only when `whole`."""
    message = letter_pb2.Letter(
        name=f"letters/{letter.letter_id}",
        letter_id=letter.letter_id,
        agent_id=letter.agent_id,
        state=_STATES[letter.state],
        reason=letter.reason,
        upstream=letter.upstream,
        method=letter.method,
        idempotency_key=letter.idempotency_key,
        metadata=[_entry(key, value) for key, value in letter.metadata],
        request_size_bytes=letter.request_size_bytes,
        request_digest=letter.request_digest,
        attempt_count=letter.attempt_count,
        redrive_count=letter.redrive_count,
        accept_time=timestamp(letter.accept_wall_s),
        last_status_code=letter.last_code,
        last_status_message=letter.last_message,
    )
    _set_times(message, letter)
    if whole:
        message.request = letter.request or b""
        message.attempts.extend(_attempt(one) for one in letter.attempts)
    return message


def letter_from_proto(message: letter_pb2.Letter) -> Letter:
    """Return an exported letter.

    Raises:
        Invalid: BAD_LETTER_STATE, BAD_METADATA or BAD_TIME.
    """
    for name in ("accept_time", "end_time", "expire_time"):
        _check_time(getattr(message, name), name)
    for attempt in message.attempts:
        _check_time(attempt.end_time, "attempts.end_time")
    return Letter(
        letter_id=message.letter_id,
        agent_id=message.agent_id,
        upstream=message.upstream,
        method=message.method,
        idempotency_key=message.idempotency_key,
        metadata=_metadata(message.metadata),
        request=message.request,
        request_size_bytes=len(message.request),
        request_digest=message.request_digest,
        accept_wall_s=wall(message.accept_time),
        ttl_s=_ttl_s(message),
        state=_state(message.state),
        reason=message.reason,
        attempt_count=message.attempt_count,
        redrive_count=message.redrive_count,
        end_wall_s=wall(message.end_time) if message.HasField("end_time") else None,
        expire_wall_s=_expiry(message),
        last_code=message.last_status_code,
        last_message=message.last_status_message,
        attempts=tuple(
            Attempt(wall(one.end_time), one.status_code, one.status_message)
            for one in message.attempts
        ),
    )


def _expiry(message: letter_pb2.Letter) -> float | None:
    return wall(message.expire_time) if message.HasField("expire_time") else None


def _ttl_s(message: letter_pb2.Letter) -> float | None:
    expire = _expiry(message)
    return None if expire is None else max(expire - wall(message.accept_time), 0.0)


def _set_times(message: letter_pb2.Letter, letter: Letter) -> None:
    # A held one remembers when it was due; it will not be tried then.
    held = letter.state is LetterState.HELD
    if letter.next_attempt_wall_s is not None and not held:
        message.next_attempt_time.CopyFrom(timestamp(letter.next_attempt_wall_s))
    if letter.end_wall_s is not None:
        message.end_time.CopyFrom(timestamp(letter.end_wall_s))
    if letter.expire_wall_s is not None:
        message.expire_time.CopyFrom(timestamp(letter.expire_wall_s))


def _attempt(one: Attempt) -> letter_pb2.LetterAttempt:
    return letter_pb2.LetterAttempt(
        end_time=timestamp(one.end_wall_s),
        status_code=one.code,
        status_message=one.message,
    )


def _state(value: letter_pb2.Letter.State.ValueType) -> LetterState:
    found = _FROM_PROTO.get(value)
    if found is None:
        raise Invalid(
            "BAD_LETTER_STATE",
            f"letter state {value} is not known: use pending, held, in_flight,"
            " delivered, parked, expired or discarded",
        )
    return found


def _metadata(entries: Any) -> tuple[tuple[str, str | bytes], ...]:  # noqa: ANN401 - a repeated field
    """Return entries as metadata; text keys carry text.

    What no request can carry would be found out only by every delivery of it.

    Raises:
        Invalid: BAD_METADATA.
    """
    size = sum(len(entry.key) + len(entry.value) for entry in entries)
    if size > _METADATA_BYTES:
        raise Invalid(
            "BAD_METADATA",
            f"the metadata has {size} bytes and a call carries at most"
            f" {_METADATA_BYTES}: send less of it",
        )
    found: list[tuple[str, str | bytes]] = []
    for entry in entries:
        if not _KEY.match(entry.key):
            raise Invalid(
                "BAD_METADATA",
                f"metadata key {entry.key!r} is not valid: use a-z, 0-9, dot, dash and"
                " underscore",
            )
        if entry.key.endswith("-bin"):
            found.append((entry.key, entry.value))
        elif _VALUE.match(entry.value):
            found.append((entry.key, entry.value.decode("ascii")))
        else:
            raise Invalid(
                "BAD_METADATA",
                f"metadata {entry.key!r} is not printable ASCII: use a key that ends"
                " in -bin",
            )
    return tuple(found)


def _check_time(stamp: Timestamp, name: str) -> None:
    if not (_FIRST_S <= stamp.seconds <= _LAST_S and 0 <= stamp.nanos < _NANOS):
        raise Invalid(
            "BAD_TIME",
            f"{name} is {stamp.seconds} s and {stamp.nanos} ns since 1970: give a time"
            " between the years 1970 and 9999",
        )


def _entry(key: str, value: str | bytes) -> letter_pb2.MetadataEntry:
    raw = value.encode() if isinstance(value, str) else value
    return letter_pb2.MetadataEntry(key=key, value=raw)


def _ledger(ledger: Ledger) -> letter_pb2.Ledger:
    return letter_pb2.Ledger(
        accepted_count=ledger.accepted,
        delivered_count=ledger.delivered,
        parked_count=ledger.parked,
        expired_count=ledger.expired,
        discarded_count=ledger.discarded,
        live_count=ledger.live,
        lost_count=ledger.lost,
        refused_counts=dict(ledger.refused),
        handed_over_count=ledger.handed_over,
    )
