"""Hands letters over to Redis Streams: an index to share and a second copy.

The journal stays the record. Redis may be away, refuse, be wiped or be rolled
back; the sidecar goes on, an alert says so, and what Redis lost is handed over
again. One stream per journal and shard, with explicit ids `<seq>-0`; an append
names the last id it expects, so that a resend after an answer that never came
cannot write twice, and a Redis that has less or more than we think says so.

No command is ever cancelled and its connection used again: whatever escapes from
a command, the connection goes with it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from typing import Any, Final, TypeVar

from redis.asyncio import Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from outrigger.core.clock import Clock
from outrigger.core.database import Database
from outrigger.core.errors import (
    Corrupt,
    Invalid,
    NotFound,
    OutriggerError,
    Refused,
    Transient,
)
from outrigger.core.events import Alerted, Payload, Recovered
from outrigger.core.rng import Rng
from sidecar.letters.handover import SCHEMA, Entry, Handover, Todo
from sidecar.letters.journal import Journal
from sidecar.letters.record import metadata_text
from sidecar.policy.letter import Letter
from sidecar.policy.verdict import backoff_s

__all__ = ["SCHEMA", "SharedTier", "TierStatus"]

T = TypeVar("T")

_OLDEST: Final = (6, 2)
_EVICTING: Final = "allkeys"
_BATCH_LETTERS: Final = 128
_BATCH_BYTES: Final = 1024 * 1024
_LOOK_S: Final = 0.5
_CHECK_S: Final = 5.0
_TIMEOUT_S: Final = 5.0
_RETRY_BASE_S: Final = 0.5
_RETRY_MAX_S: Final = 10.0
_SHARDS: Final = 4
_PAGE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatus:
    """How the shared tier is."""

    connected: bool = False
    problem: str = ""
    """What is wrong now, for a person; empty while all is well."""
    handed_over: int = 0
    """Letters ever handed over, again ones included."""
    waiting: int = 0
    """Letters to be handed over or taken out."""
    there: int = 0
    """Letters in Redis now."""


class SharedTier:
    """One journal's hand-over; owned by one event loop."""

    def __init__(
        self,
        url: str,
        journal: Journal,
        db: Database,
        *,
        clock: Clock,
        rng: Rng,
        publish: Callable[[Payload], object],
    ) -> None:
        """Take note of where to hand over; `run` does it.

        Args:
            url: `redis://`, `rediss://` or `unix://`.
            journal: whose letters; its `ledger` counts the hand-overs from now on.
            db: the journal's, whose schema includes SCHEMA.
            clock: paces looks, checks and attempts.
            rng: names the journal the first time; jitters attempts.
            publish: where alerts go.

        Raises:
            Invalid: BAD_REDIS_URL.
        """
        _checked(url)
        self._url = url
        self._journal = journal
        self._db = db
        self._clock = clock
        self._rng = rng
        self._publish = publish
        self._side = Handover(journal.agent_id)
        self._bell = asyncio.Event()
        self._status = TierStatus()
        self._failed_at: float | None = None
        self._failures = 0
        journal.on_pending.append(lambda _: self._bell.set())
        journal.handed_over = lambda: self._status.handed_over

    def status(self) -> TierStatus:
        """Return how it is."""
        return self._status

    async def run(self) -> None:
        """Hand over for ever; returns when the store is closed."""
        journal_id = self._rng.token_bytes(8).hex()
        await self._db.write(lambda conn: self._side.prepare(conn, journal_id, _SHARDS))
        await self._count()
        while True:
            try:
                await self._session()
            except Refused:
                return
            except (RedisError, OSError, OutriggerError) as error:
                self._fail(error)
            pause_s = backoff_s(
                _RETRY_BASE_S, _RETRY_MAX_S, self._failures, self._rng.draw()
            )
            self._failures += 1
            await self._clock.sleep(max(pause_s, _RETRY_BASE_S / 2))

    async def _session(self) -> None:
        """Use one connection until something escapes; it goes with that."""
        redis = _connection(self._url)
        try:
            await _check_server(redis)
            stream = _Streams(redis, self._side, self._db)
            await stream.open()
            while True:
                await self._empty(stream)
                await _check_server(redis)
                refilled = await stream.compare()
                await self._count()
                self._tell_refill(refilled)
                if not refilled:
                    self._well()
                    await self._rest()
        finally:
            self._status = replace(self._status, connected=False)
            await _drop(redis)

    async def _empty(self, stream: "_Streams") -> None:
        """Do all there is to do."""
        while True:
            todo = await self._db.read(
                lambda conn: self._side.todo(conn, _BATCH_LETTERS, _BATCH_BYTES)
            )
            for letter_id in todo.broken:
                with suppress(Corrupt, NotFound):
                    await self._journal.get(letter_id)  # parks it
            if todo.is_empty:
                return
            refilled = await stream.settle(todo)
            await self._count()
            self._tell_refill(refilled)

    async def _rest(self) -> None:
        """Wait for a new letter, ended ones, or the next comparison."""
        waited_s = 0.0
        while waited_s < _CHECK_S and not self._bell.is_set():
            await self._clock.sleep(_LOOK_S)
            waited_s += _LOOK_S
            if await self._db.read(self._side.waits):
                break
        self._bell.clear()

    async def _count(self) -> None:
        ever, waiting, there = await self._db.read(self._side.counts)
        self._status = replace(
            self._status,
            handed_over=ever,
            waiting=waiting,
            there=sum(there.values()),
        )

    # Telling.

    def _tell_refill(self, count: int) -> None:
        if count:
            self._publish(
                Alerted(
                    name="SHARED_TIER_REFILLED",
                    message=f"Redis had lost {count} letters that were handed over"
                    " (wiped, restarted without its log, or failed over): they are"
                    " handed over again from the journal",
                )
            )

    def _well(self) -> None:
        self._failures = 0
        self._status = replace(self._status, connected=True, problem="")
        if self._failed_at is not None:
            elapsed_s = self._clock.monotonic() - self._failed_at
            self._failed_at = None
            self._publish(Recovered(subject="shared tier", elapsed_s=elapsed_s))

    def _fail(self, error: Exception) -> None:
        """Alert once per kind of problem, not once per attempt."""
        known = self._status.problem
        problem = _problem(error)
        if self._failed_at is None:
            self._failed_at = self._clock.monotonic()
        self._status = replace(self._status, connected=False, problem=problem)
        if problem != known:
            self._publish(
                Alerted(
                    name="SHARED_TIER_AWAY",
                    message=f"{problem}: letters stay in the journal and are delivered"
                    " from there; the hand-over is tried again by itself",
                )
            )


class _Streams:
    """The streams of one journal over one connection."""

    def __init__(self, redis: Redis, side: Handover, db: Database) -> None:
        self._redis = redis
        self._side = side
        self._db = db
        source = resources.files("sidecar.letters") / "scripts" / "append.lua"
        self._append = redis.register_script(source.read_text("utf-8"))
        self._watermarks: dict[int, int] = {}
        self._tails: dict[int, int] = {}
        """Last number of each stream as we believe it to be."""

    async def open(self) -> None:
        """Read where the journal believes the streams to end."""
        self._watermarks = await self._db.read(self._side.watermarks)
        self._tails = dict(self._watermarks)

    async def settle(self, todo: Todo) -> int:
        """Make Redis and the journal alike; return how many must be done again."""
        added: dict[int, tuple[int, int]] = {}
        refilled = 0
        for shard in range(self._side.shards):
            letters = [
                pair
                for pair in todo.to_add
                if self._side.shard_of(pair[1].letter_id) == shard
            ]
            if letters:
                placed, lost = await self._add(shard, letters)
                added |= placed
                refilled += lost
        removed = await self._remove(todo.to_remove)
        await self._db.write(
            lambda conn: self._side.record(
                conn, added=added, removed=removed, alike=todo.alike
            )
        )
        return refilled

    async def compare(self) -> int:
        """Find what Redis has lost since; return how many letters that are.

        Called with nothing to do: then both sides must hold the same number.
        """
        lost = 0
        _, _, there = await self._db.read(self._side.counts)
        for shard in range(self._side.shards):
            outcome, last, length, _ = await self._call(shard, [])
            if outcome == "mismatch":
                lost += await self._realign(shard, last)
            elif length < there.get(shard, 0):
                lost += await self._rebuild(shard)
        return lost

    async def _add(
        self, shard: int, letters: Sequence[tuple[int, Letter]]
    ) -> tuple[dict[int, tuple[int, int]], int]:
        """Append letters; return their places, and how many others were lost."""
        first = max(self._watermarks.get(shard, 0), self._tails.get(shard, 0)) + 1
        entries = [
            (first + offset, _fields(letter))
            for offset, (_, letter) in enumerate(letters)
        ]
        outcome, last, _, written = await self._call(shard, entries)
        if outcome == "mismatch":
            return {}, await self._realign(shard, last)
        if written:
            self._tails[shard] = self._watermarks[shard] = first + written - 1
        placed = {
            seq: (shard, first + offset)
            for offset, (seq, _) in enumerate(letters[:written])
        }
        if outcome != "ok":
            await self._db.write(
                lambda conn: self._side.record(conn, added=placed, removed=())
            )
            raise Transient(
                "SHARED_TIER_REFUSED", f"Redis took no more letters ({outcome})"
            )
        return placed, 0

    async def _call(
        self, shard: int, entries: Sequence[tuple[int, Sequence[Any]]]
    ) -> tuple[str, int, int, int]:
        arguments: list[Any] = [self._tails.get(shard, 0), len(entries)]
        for seq, values in entries:
            arguments += [seq, len(values), *values]
        reply = await _answer(self._append(keys=[self._key(shard)], args=arguments))
        outcome, last, length, written = reply
        return outcome.decode(), int(last), int(length), int(written)

    async def _realign(self, shard: int, last: int) -> int:
        """Believe Redis about where its stream ends; return how many it lost."""
        tail = self._tails.get(shard, 0)
        self._tails[shard] = last
        if last < tail:
            return await self._db.write(
                lambda conn: self._side.refill(conn, shard, last)
            )
        await self._adopt(shard, tail)
        return 0

    async def _adopt(self, shard: int, after: int) -> None:
        """Take over what we appended without hearing that it was done."""
        key = self._key(shard)
        start = f"({after}-0"
        while True:
            found: Any = await _answer(self._redis.xrange(key, min=start, count=_PAGE))
            entries = [_entry(entry_id, fields) for entry_id, fields in found]
            if not entries:
                break
            strangers = await self._db.write(
                partial(self._side.adopt, shard=shard, entries=entries)
            )
            if strangers:
                ids = [f"{seq}-0" for seq in strangers]
                await _answer(self._redis.xdel(key, *ids))
            start = f"({entries[-1].handoff_seq}-0"
        last = self._tails[shard]
        await self._db.write(lambda conn: self._side.advance(conn, shard, last))
        self._watermarks[shard] = max(self._watermarks.get(shard, 0), last)

    async def _rebuild(self, shard: int) -> int:
        """Begin a stream anew whose entries went missing from within.

        The numbers go on, so that an old entry is never taken for a new one.
        """
        await _answer(self._redis.delete(self._key(shard)))
        self._tails[shard] = 0
        return await self._db.write(lambda conn: self._side.refill(conn, shard, 0))

    async def _remove(
        self, places: Sequence[tuple[int, tuple[int, int]]]
    ) -> Sequence[int]:
        by_shard: dict[int, list[str]] = {}
        for _, (shard, handoff_seq) in places:
            by_shard.setdefault(shard, []).append(f"{handoff_seq}-0")
        for shard, ids in by_shard.items():
            await _answer(self._redis.xdel(self._key(shard), *ids))
        return [seq for seq, _ in places]

    def _key(self, shard: int) -> str:
        return f"outrigger:{{{shard}}}:letters:{self._side.journal_id}"


def _fields(letter: Letter) -> tuple[Any, ...]:
    """Return a letter as the fields of an entry: all a rescuer would need."""
    return (
        "letter_id",
        letter.letter_id,
        "agent_id",
        letter.agent_id,
        "upstream",
        letter.upstream,
        "method",
        letter.method,
        "idempotency_key",
        letter.idempotency_key,
        "accepted",
        repr(letter.accept_wall_s),
        "expires",
        repr(letter.expire_wall_s),
        "digest",
        letter.request_digest,
        "request",
        letter.request or b"",
        "metadata",
        metadata_text(letter.metadata),
    )


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Entry:
    return Entry(
        handoff_seq=int(entry_id.partition(b"-")[0]),
        letter_id=fields.get(b"letter_id", b"").decode("utf-8", "replace"),
        request_digest=fields.get(b"digest", b""),
    )


async def _check_server(redis: Redis) -> None:
    """Refuse a Redis that is too old, or that may throw letters away.

    Raises:
        Transient: REDIS_TOO_OLD, REDIS_EVICTS.
    """
    server: dict[str, Any] = await _answer(redis.info("server"))
    version = str(server.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST:
        raise Transient(
            "REDIS_TOO_OLD", f"Redis {version} is too old: 6.2 or newer is needed"
        )
    memory: dict[str, Any] = await _answer(redis.info("memory"))
    policy = str(memory.get("maxmemory_policy", ""))
    if policy.startswith(_EVICTING):
        raise Transient(
            "REDIS_EVICTS",
            f"Redis has maxmemory-policy {policy} and would throw letters away: set it"
            " to noeviction",
        )


async def _answer(command: Awaitable[T]) -> T:
    """Wait for a command; be cancelled even where a wait inside it forgot that.

    Up to Python 3.11 `asyncio.wait_for`, which the client uses for every send,
    drops a cancellation that arrives when the send has just ended.
    """
    value = await command
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
    return value


def _connection(url: str) -> Redis:
    return Redis.from_url(
        url,
        single_connection_client=True,
        socket_timeout=_TIMEOUT_S,
        socket_connect_timeout=_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        client_name="outrigger",
    )


async def _drop(redis: Redis) -> None:
    """Close the connection at once: a late reply must find nobody."""
    closing: Awaitable[object] = redis.aclose()
    with suppress(RedisError, OSError):
        await closing


def _checked(url: str) -> None:
    try:
        parse_url(url)
    except ValueError as error:
        raise Invalid(
            "BAD_REDIS_URL",
            f"the Redis URL is not valid ({error}): write redis://HOST:PORT/DB",
        ) from error


def _problem(error: Exception) -> str:
    """Return one line; neither URL nor password are in what Redis says."""
    if isinstance(error, OutriggerError):
        return error.message
    return f"Redis cannot be used ({type(error).__name__}: {error})"
