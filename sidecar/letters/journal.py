"""The journal: every letter on the local disk before its caller hears of it.

The journal is the record. A letter leaves it only by an end of its own, and what
is here and what has ended always adds up (`Ledger.lost` is computed, not hoped).

Races, and who wins:

- A caller goes away while its letter is being stored: the letter is stored, and
  whoever brings the same idempotency key again gets the same letter.
- An operator moves letters while one of them is claimed: the claim wins; moves
  look at the state again inside their own transaction.
- A commit is reported failed and the row is there all the same: it is held as
  in doubt before anything is claimed, because its caller was told "not taken".
"""

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from outrigger.core.clock import Clock
from outrigger.core.database import Database
from outrigger.core.errors import Corrupt, Invalid, NotFound, OutriggerError
from outrigger.core.events import Alerted, Payload
from outrigger.core.ids import check_method, check_upstream_name
from outrigger.core.rng import Rng
from outrigger.core.tasks import describe
from sidecar.call.descriptor import LetterDraft
from sidecar.letters.record import SCHEMA, digest, letter_of
from sidecar.letters.redrive import Redrive
from sidecar.letters.selection import LetterFilter, LetterPage, page
from sidecar.letters.table import LetterTable, Moves, Route, request_of
from sidecar.letters.upkeep import KeptBack, Upkeep
from sidecar.policy.letter import (
    LIVE,
    Ledger,
    Letter,
    LetterLimits,
    LetterState,
    short,
)
from sidecar.policy.verdict import SendResult, Verdict, backoff_s

__all__ = ["SCHEMA", "Journal", "LetterFilter", "LetterPage"]

T = TypeVar("T")
_CHUNK: Final = 200
_SCRUB_ROWS: Final = 20
_KEY_CHARS: Final = 512
_LETTER_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}\Z")
_FULL: Final = frozenset({"JOURNAL_FULL", "STORE_FULL", "STORE_FAILED"})


class Journal:
    """One agent's letters; owned by one event loop."""

    def __init__(
        self,
        db: Database,
        *,
        agent_id: str,
        clock: Clock,
        rng: Rng,
        limits: LetterLimits,
        publish: Callable[[Payload], object],
    ) -> None:
        """Hold the letters of `agent_id` in `db`, whose schema includes SCHEMA.

        Call `recover` once before anything is claimed.
        """
        self._db = db
        self._agent_id = agent_id
        self._clock = clock
        self._rng = rng
        self._limits = limits
        self._publish = publish
        self._table = LetterTable(agent_id, limits)
        self._upkeep = Upkeep(self._table, agent_id, limits)
        self._bulk = Redrive(db, self._table, agent_id, self._move)
        self._refused: dict[str, int] = {}
        self._alerted = False
        self._scrubbed = 0
        self.on_pending: list[Callable[[str], None]] = []
        """Called with an upstream's name when it has something to deliver."""
        self.handed_over: Callable[[], int] = lambda: 0
        """Asked by `ledger`; the shared tier puts its own count here."""

    @property
    def agent_id(self) -> str:
        """Return whose letters these are."""
        return self._agent_id

    @property
    def limits(self) -> LetterLimits:
        """Return the bounds."""
        return self._limits

    # Taking.

    async def accept(self, draft: LetterDraft) -> str:
        """Return the letter's id once it is on disk.

        The same idempotency key again returns the first letter's id, as long as
        its record is kept.

        Raises:
            Overloaded: JOURNAL_FULL, STORE_FULL.
            Invalid: LETTER_TOO_LARGE, BAD_IDEMPOTENCY_KEY, BAD_METHOD,
                BAD_UPSTREAM_NAME, BAD_TTL, LETTER_ID_TAKEN.
            Conflict: IDEMPOTENCY_KEY_REUSED for a different call.
            Transient: STORE_FAILED and the like: the disk takes nothing now.
        """
        try:
            letter = self._letter(draft)
            taken, _ = await self._insert(letter, label=letter.letter_id)
        except OutriggerError as error:
            self._refuse(error)
            raise
        self._alerted = False
        return taken.letter_id

    def _letter(self, draft: LetterDraft) -> Letter:
        now = self._clock.wall()
        ttl_s = self._limits.max_age_s if draft.ttl_s is None else draft.ttl_s
        if not ttl_s > 0:
            raise Invalid("BAD_TTL", f"a letter cannot live {ttl_s} s: give it more")
        ttl_s = min(ttl_s, self._limits.max_age_s)
        limits = self._limits
        base_s = limits.backoff_base_s
        wait_s = backoff_s(base_s, base_s, 0, self._rng.draw()) if draft.code else 0.0
        due = max(now + wait_s, draft.earliest_wall_s or 0.0)
        return _checked(
            Letter(
                letter_id=draft.letter_id,
                agent_id=self._agent_id,
                upstream=draft.upstream,
                method=draft.method,
                idempotency_key=draft.idempotency_key or draft.letter_id,
                metadata=tuple(draft.metadata),
                request=draft.request,
                request_size_bytes=len(draft.request),
                request_digest=digest(draft.request),
                accept_wall_s=now,
                ttl_s=float(ttl_s),
                next_attempt_wall_s=float(due),
                expire_wall_s=now + ttl_s,
                last_code=draft.code,
                last_message=short(draft.message),
            ),
            limits,
        )

    async def _insert(self, letter: Letter, *, label: str = "") -> tuple[Letter, bool]:
        def work(conn: sqlite3.Connection) -> tuple[tuple[Letter, bool], Moves]:
            moves = Moves()
            return self._table.insert(conn, letter, moves), moves

        return await self._move(work, label=label)

    def _refuse(self, error: OutriggerError) -> None:
        self._refused[error.reason] = self._refused.get(error.reason, 0) + 1
        if error.reason in _FULL and not self._alerted:
            self._alerted = True
            self._publish(Alerted(name="LETTERS_REFUSED", message=error.message))

    # Looking.

    async def get(self, letter_id: str) -> Letter:
        """Return one letter, whole and verified.

        Raises:
            NotFound: NO_SUCH_LETTER.
            Corrupt: LETTER_UNDECODABLE; it is parked then.
        """

        def work(conn: sqlite3.Connection) -> tuple[tuple[Any, ...], bytes]:
            row = self._table.row(conn, letter_id)
            return row, request_of(conn, row[0])

        row, request = await self._db.read(work)
        try:
            return letter_of(row[1:], request)
        except Corrupt:
            await self._park_broken([row[0]])
            raise

    async def list(
        self, chosen: LetterFilter, page_size: int = 0, page_token: str = ""
    ) -> LetterPage:
        """Return letters, oldest first, without requests.

        Args:
            chosen: which.
            page_size: at most 1,000; 0 means 50.
            page_token: from the answer before; empty begins.

        Raises:
            Invalid: BAD_PAGE_SIZE, BAD_PAGE_TOKEN, TOO_MANY_LETTER_IDS.
        """
        return await self._db.read(
            lambda conn: page(conn, self._agent_id, chosen, page_size, page_token)
        )

    async def ledger(self) -> Ledger:
        """Say where all letters ever accepted are now."""
        ledger = await self._db.read(self._upkeep.ledger)
        return replace(
            ledger, refused=dict(self._refused), handed_over=self.handed_over()
        )

    # Moving many.

    async def redrive(
        self, chosen: LetterFilter, *, everything: bool, validate_only: bool = False
    ) -> int:
        """Put ended or held letters back to pending, with a fresh age limit.

        Args:
            chosen: which; without states: parked, expired and held.
            everything: an empty filter means all of those.
            validate_only: count only.

        Returns:
            How many were, or would be, redriven. Records that are not sound stay.

        Raises:
            Invalid: EMPTY_FILTER.
        """
        ids = await self._bulk.select(chosen, everything=everything)
        if validate_only:
            return len(ids)
        return await self._bulk.redrive(ids, self._clock.wall())

    async def discard(
        self,
        chosen: LetterFilter,
        *,
        reason: str,
        everything: bool,
        validate_only: bool = False,
    ) -> int:
        """End letters for good. One in flight is left alone.

        Args:
            chosen: which; without states: parked, expired and held, and pending ones
                that are named by their ids.
            reason: kept with each letter.
            everything: an empty filter means all of those.
            validate_only: count only.

        Returns:
            How many were, or would be, discarded.

        Raises:
            Invalid: EMPTY_FILTER, NO_REASON.
        """
        if not reason.strip():
            raise Invalid(
                "NO_REASON", "discarding needs a reason: it is kept with each letter"
            )
        ids = await self._bulk.select(
            chosen, everything=everything, named=(LetterState.PENDING,)
        )
        if validate_only:
            return len(ids)
        return await self._bulk.discard(ids, reason, self._clock.wall())

    async def hold(self, route: Route, reason: str) -> int:
        """Hold all that is pending for a method; return how many that were."""
        return await self._bulk.hold(route, reason, self._clock.wall())

    async def kept_back(self, reasons: Sequence[str]) -> Sequence[KeptBack]:
        """Return methods of upstreams that have letters held for one of `reasons`."""
        return await self._db.read(lambda conn: self._upkeep.kept_back(conn, reasons))

    async def free(self, held: KeptBack) -> int:
        """Make what is held so pending again, as due as it was; return how many."""
        return await self._bulk.free(
            held.upstream, held.method, held.reason, self._clock.wall()
        )

    # Carrying.

    async def export(self, chosen: LetterFilter) -> AsyncIterator[Letter]:
        """Yield whole letters, oldest first, as selected at the beginning.

        A record that is not sound is left out and reported as an event.
        """
        for letter_id in await self._bulk.ids(chosen):
            try:
                yield await self.get(letter_id)
            except Corrupt as error:
                self._publish(describe("letters-export", error, subject=letter_id))
            except NotFound:
                continue

    async def import_(self, letter: Letter) -> bool:
        """Take an exported letter as our own; return whether it was new.

        One that waited, waits again; one that had ended keeps its end.

        Raises:
            Invalid: BAD_LETTER_DIGEST, NO_REQUEST, LETTER_TOO_LARGE and as accept.
            Overloaded: JOURNAL_FULL, STORE_FULL.
            Conflict: IDEMPOTENCY_KEY_REUSED.
        """
        taken, new = await self._insert(self._imported(letter))
        if taken.letter_id != letter.letter_id:
            raise Invalid(
                "IDEMPOTENCY_KEY_TAKEN",
                f"letter {letter.letter_id} has the idempotency key of letter"
                f" {taken.letter_id}, which is here already",
            )
        return new

    def _imported(self, letter: Letter) -> Letter:
        if letter.request is None:
            raise Invalid(
                "NO_REQUEST",
                f"letter {letter.letter_id} comes without its request: export it again",
            )
        if digest(letter.request) != letter.request_digest:
            raise Invalid(
                "BAD_LETTER_DIGEST",
                f"the request of letter {letter.letter_id} does not fit its SHA-256:"
                " the export is damaged; take another copy",
            )
        now = self._clock.wall()
        live = letter.state in LIVE
        return _checked(
            replace(
                letter,
                agent_id=self._agent_id,
                request_size_bytes=len(letter.request),
                state=LetterState.PENDING if live else letter.state,
                reason="IMPORTED" if live else short(letter.reason),
                next_attempt_wall_s=now if live else None,
                end_wall_s=None if live else letter.end_wall_s or now,
                crash_count=0,
                last_message=short(letter.last_message),
            ),
            self._limits,
        )

    # For the delivery.

    async def recover(self) -> int:
        """Take back what a crash left in flight; call once, at the start.

        Returns:
            How many letters were in flight.
        """
        now = self._clock.wall()

        def work(conn: sqlite3.Connection) -> tuple[int, Moves]:
            moves = self._upkeep.recover(conn, now)
            return len(moves.events), moves

        count = await self._move(work)
        await self._settle_doubt()
        return count

    async def release(self) -> None:
        """Make all that is in flight pending again; for an orderly stop."""
        now = self._clock.wall()
        await self._move(lambda conn: (None, self._upkeep.release(conn, now)))

    async def routes(self) -> Sequence[Route]:
        """Return every route with pending letters, and when its first is due."""
        routes, broken = await self._db.read(self._table.routes)
        if broken:
            await self._park_broken(broken)
            routes, _ = await self._db.read(self._table.routes)
        return routes

    async def claim(
        self, route: Route, limit: int, *, suspects: bool = False
    ) -> Sequence[Letter]:
        """Mark due letters in flight, durably, and return them whole.

        Args:
            route: whose letters.
            limit: how many at most.
            suspects: those that were in flight in a crash, instead of the others.
        """
        if self._db.in_doubt:
            await self._settle_doubt()
        now = self._clock.wall()
        return await self._move(
            lambda conn: self._table.claim(conn, route, limit, now, suspects=suspects)
        )

    async def end(self, letter: Letter, result: SendResult, verdict: Verdict) -> None:
        """Record how a send ended."""
        now = self._clock.wall()
        await self._move(
            lambda conn: (
                None,
                self._table.end(conn, letter, result, verdict, now),
            )
        )

    async def put_back(self, letter: Letter, reason: str, delay_s: float) -> None:
        """Make a claimed letter pending again; it was not sent."""
        now = self._clock.wall()
        await self._move(
            lambda conn: (
                None,
                self._table.put_back(conn, letter, reason, now + delay_s, now),
            )
        )

    async def sweep(self) -> None:
        """Expire, let go what retention does not keep, verify a few records."""
        now = self._clock.wall()
        aged = await self._db.read(lambda conn: self._upkeep.aged(conn, now, _CHUNK))
        if aged:
            await self._move(lambda conn: (None, self._upkeep.expire(conn, aged, now)))
        surplus = await self._db.read(lambda conn: self._upkeep.surplus(conn, now))
        for start in range(0, len(surplus), _CHUNK):
            some = surplus[start : start + _CHUNK]
            await self._db.write(partial(self._upkeep.forget, rows=some))
        await self._scrub()

    async def _scrub(self) -> None:
        broken, self._scrubbed = await self._db.read(
            lambda conn: self._upkeep.scrub(conn, self._scrubbed, _SCRUB_ROWS)
        )
        if broken:
            await self._park_broken(broken)

    async def _park_broken(self, rows: Sequence[int]) -> None:
        now = self._clock.wall()
        await self._move(
            lambda conn: (None, self._upkeep.park_if_broken(conn, rows, now))
        )

    async def _settle_doubt(self) -> None:
        labels = self._db.in_doubt
        if not labels:
            return
        now = self._clock.wall()
        await self._move(
            lambda conn: (None, self._upkeep.hold_doubtful(conn, labels, now))
        )
        await self._db.settle_doubt(labels)

    async def _move(
        self, work: Callable[[sqlite3.Connection], tuple[T, Moves]], *, label: str = ""
    ) -> T:
        """Write, and tell what moved once it is committed, even if nobody waits."""
        done = self._db.submit(work, label=label)
        done.add_done_callback(self._tell)
        value, _ = await asyncio.shield(done)
        return value

    def _tell(self, done: asyncio.Future[tuple[Any, Moves]]) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        _, moves = done.result()
        for event in moves.events:
            self._publish(event)
        for upstream in moves.pending:
            for listener in self.on_pending:
                listener(upstream)


def _checked(letter: Letter, limits: LetterLimits) -> Letter:
    """Return the letter if it may be stored."""
    check_upstream_name(letter.upstream)
    check_method(letter.method)
    if not _LETTER_ID.match(letter.letter_id):
        raise Invalid(
            "BAD_LETTER_ID",
            f"letter id {letter.letter_id[:80]!r} is not valid: it is a UUID",
        )
    key = letter.idempotency_key
    if not (0 < len(key) <= _KEY_CHARS and key.isascii() and key.isprintable()):
        raise Invalid(
            "BAD_IDEMPOTENCY_KEY",
            f"an idempotency key has 1 to {_KEY_CHARS} printable ASCII characters,"
            f" not {key[:80]!r}",
        )
    if letter.request_size_bytes > limits.max_request_bytes:
        raise Invalid(
            "LETTER_TOO_LARGE",
            f"the request has {letter.request_size_bytes} bytes and a letter may have"
            f" {limits.max_request_bytes}: send less, or send it in parts",
        )
    return letter
