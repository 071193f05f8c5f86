"""Delivers letters, at least once each, at the pace their upstreams bear.

A letter is marked in flight on disk before it is sent, so that a crash while it
is out is known afterwards, and its end is on disk before its place is given to
another. Between the upstream's answer and that commit a crash makes a duplicate,
never a loss; the duplicate carries the same idempotency key and payload.

Races, and who wins:

- New letters come while a round looks for due ones: they ring, and the next
  round sees them.
- The upstream comes back while its lane pauses: `nudge` ends the pause.
- A stop comes while letters are out: they get `grace_s`, then their sends are
  cancelled and they are pending again.
- The store fails while an answer waits to be recorded: it is kept and recorded
  when the store works again; the letter is not sent a second time for it.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final

from outrigger.core.clock import Clock
from outrigger.core.errors import OutriggerError, Overloaded, Refused, Transient
from outrigger.core.events import Alerted, Payload
from outrigger.core.names import PUSHBACK_TRAILER
from outrigger.core.rng import Rng
from outrigger.core.tasks import Tasks, describe, finish
from sidecar.call.descriptor import Answer, Origin, Outcome, Trailers
from sidecar.letters.journal import Journal
from sidecar.letters.table import Route
from sidecar.policy.lane import Lane
from sidecar.policy.letter import (
    NO_UPSTREAM,
    UNSAFE_METHOD,
    Letter,
    LetterInput,
    never_unsafe,
)
from sidecar.policy.verdict import Class, SendResult, classify, judge
from sidecar.wire.protocol import Sent

SendPort = Callable[[Letter, float], Awaitable[Sent | Answer]]
"""Sends one letter within that many seconds."""

_ROUND_S: Final = 0.005
"""Shortest time between two rounds: ends that come together share one."""
_IDLE_S: Final = 5.0
_STALL_S: Final = 0.5
_QUIET_S: Final = 1.0
_SWEEP_S: Final = 10.0
_RECORD_PAUSE_S: Final = 1.0
_HUNG_S: Final = 5.0
_CANCELLED: Final = 1
_UNKNOWN: Final = 2
_DEADLINE_EXCEEDED: Final = 4
_RESOURCE_EXHAUSTED: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliverySettings:
    """How letters are delivered."""

    timeout_s: float = 30.0
    """Limit of one send."""
    width: int = 16
    """Most letters out at once per upstream."""


class Delivery:
    """Delivers one agent's letters; owned by one event loop."""

    def __init__(  # noqa: PLR0913 - each is a seam to somebody else
        self,
        journal: Journal,
        send: SendPort,
        *,
        clock: Clock,
        rng: Rng,
        tasks: Tasks,
        publish: Callable[[Payload], object],
        retry_after: Callable[[str, str], float | None],
        settings: DeliverySettings | None = None,
        upstreams: Collection[str] | None = None,
        unsafe: Callable[[str, str], bool] = never_unsafe,
    ) -> None:
        """Listen to the journal; `run` does the rest.

        Args:
            journal: recovered already.
            send: an Answer means the sidecar refused and nothing was sent.
            clock: paces rounds and pauses.
            rng: jitters pauses.
            tasks: where sends run.
            publish: where events go.
            retry_after: seconds until a circuit of (upstream, method) may admit;
                None when it does now.
            settings: bounds.
            upstreams: names of those configured; letters of others are held. None
                means that every upstream is.
            unsafe: says of a configured upstream and a method whether a second send
                may do harm; such letters are held.
        """
        self._journal = journal
        self._send = send
        self._clock = clock
        self._rng = rng
        self._tasks = tasks
        self._publish = publish
        self._retry_after = retry_after
        self._settings = settings or DeliverySettings()
        self._upstreams = upstreams
        self._unsafe = unsafe
        self._lanes: dict[str, Lane] = {}
        self._bell = asyncio.Event()
        self._out: set[asyncio.Task[None]] = set()
        self._failed_at: dict[str, int] = {}
        """Letter id to its lane's successes when it failed last."""
        self._denied: set[tuple[str, str]] = set()
        self._barred: set[tuple[str, str]] = set()
        """What alerts were about: reason, and upstream or method."""
        self._has_freed = False
        self._suspect_out = False
        self._quiet_until: dict[str, float] = {}
        self._sweep_at = 0.0
        self._turn = 0
        self._stopping = False
        journal.on_pending.append(self._came)

    @property
    def in_flight(self) -> int:
        """Return how many letters are out."""
        return len(self._out)

    def nudge(self, upstream: str) -> None:
        """Go on at once with an upstream: its circuit closed, its channel is ready."""
        self._lane(upstream).nudged()
        self._quiet_until.pop(upstream, None)
        self._bell.set()

    async def run(self) -> None:
        """Deliver until stopped, or until the store is closed."""
        while not self._stopping:
            try:
                until = await self._round()
            except Refused:
                return
            except OutriggerError as error:
                self._publish(describe("delivery", error))
                until = self._clock.monotonic() + _RECORD_PAUSE_S
            await self._clock.sleep(_ROUND_S)
            await self._rest(until)

    async def stop(self, grace_s: float) -> None:
        """Send nothing more, wait for what is out, then take the rest back."""
        self._stopping = True
        self._bell.set()
        if self._out:
            await asyncio.wait(tuple(self._out), timeout=grace_s)
        for task in tuple(self._out):
            await finish(task)
        await self._journal.release()

    # One round.

    async def _round(self) -> float:
        """Send what may go now; return when to look again, monotonic seconds."""
        if not self._has_freed:
            await self._free()
            self._has_freed = True
        now = self._clock.monotonic()
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            if len(self._failed_at) > self._journal.limits.max_letters:
                self._failed_at.clear()  # of letters that ended by other hands
            await self._journal.sweep()
        until = now + _IDLE_S
        waiting: dict[str, list[Route]] = {}
        for route in await self._journal.routes():
            due_in_s = route.first_due_wall_s - self._clock.wall()
            if bar := self._bar(route.upstream, route.method):
                await self._keep_back(route, bar)
            elif due_in_s > 0:
                until = min(until, now + due_in_s)
            else:
                waiting.setdefault(route.upstream, []).append(route)
        for upstream, routes in waiting.items():
            until = min(until, await self._serve(upstream, routes, now))
        return until

    def _bar(self, upstream: str, method: str) -> str:
        """Return why letters must not be sent, as things are configured; or ""."""
        if self._upstreams is not None and upstream not in self._upstreams:
            return NO_UPSTREAM
        return UNSAFE_METHOD if self._unsafe(upstream, method) else ""

    async def _keep_back(self, route: Route, bar: str) -> None:
        """Hold letters until a later start finds them free to go."""
        count = await self._journal.hold(route, bar)
        what = route.upstream if bar == NO_UPSTREAM else route.method
        if (bar, what) in self._barred:
            return
        self._barred.add((bar, what))
        self._publish(Alerted(name="LETTERS_HELD", message=_held(route, bar, count)))

    async def _free(self) -> None:
        """Let go what earlier runs kept back for a reason that is gone."""
        for held in await self._journal.kept_back((NO_UPSTREAM, UNSAFE_METHOD)):
            if self._bar(held.upstream, held.method) != held.reason:
                await self._journal.free(held)

    async def _serve(self, upstream: str, due: list[Route], now: float) -> float:
        """Send letters of one upstream; return when to look at it again."""
        lane = self._lane(upstream)
        if not lane.free(now):
            return max(lane.paused_until, now + _STALL_S)
        until = now + _IDLE_S
        open_routes: list[Route] = []
        for route in due:
            wait_s = self._retry_after(route.upstream, route.method)
            if wait_s is None:
                open_routes.append(route)
            else:
                until = min(until, now + max(wait_s, _ROUND_S))
        if not open_routes:
            self._quiet_until[upstream] = min(until, now + _QUIET_S)
            return until
        await self._share(lane, open_routes, now)
        return min(until, now + _STALL_S)

    async def _share(self, lane: Lane, routes: list[Route], now: float) -> None:
        """Give every method its part, another one first each time."""
        self._turn += 1
        first = self._turn % len(routes)
        for route in (*routes[first:], *routes[:first]):
            free = lane.free(now)
            if not free or self._stopping:
                return
            for letter in await self._claim(route, math.ceil(free / len(routes))):
                self._launch(letter, route, lane)

    async def _claim(self, route: Route, limit: int) -> Sequence[Letter]:
        letters = await self._journal.claim(route, limit)
        if letters or self._suspect_out:
            return letters
        return await self._journal.claim(route, 1, suspects=True)

    def _launch(self, letter: Letter, route: Route, lane: Lane) -> None:
        lane.began()
        suspect = letter.crash_count > 0
        self._suspect_out = self._suspect_out or suspect
        task = self._tasks.spawn(
            "delivery", self._deliver(letter, route, lane), subject=letter.letter_id
        )
        self._out.add(task)
        task.add_done_callback(lambda done: self._landed(done, suspect=suspect))

    def _landed(self, task: asyncio.Task[None], *, suspect: bool) -> None:
        self._out.discard(task)
        if suspect:
            self._suspect_out = False
        self._bell.set()

    # One letter.

    async def _deliver(self, letter: Letter, route: Route, lane: Lane) -> None:
        kind: Class | None = None
        try:
            sent = await self._sent(letter)
            if isinstance(sent, Answer):
                await self._put_back(letter, sent)
            else:
                kind = classify(sent)
                await self._judge(letter, route, lane, sent)
        except asyncio.CancelledError:
            await self._record(lambda: self._journal.put_back(letter, "STOPPED", 0.0))
            raise
        finally:
            lane.ended(kind, self._clock.monotonic(), self._rng.draw())

    async def _sent(self, letter: Letter) -> SendResult | Answer:
        """Send; whatever the sender does, there is a result."""
        timeout_s = self._settings.timeout_s
        try:
            async with asyncio.timeout(timeout_s + _HUNG_S):
                sent = await self._send(letter, timeout_s)
        except TimeoutError:
            return SendResult(code=_DEADLINE_EXCEEDED, message="the send hung")
        except Exception as error:  # noqa: BLE001 - this is the boundary
            self._publish(describe("delivery", error, subject=letter.letter_id))
            return SendResult(
                code=_UNKNOWN, message=f"the send failed: {type(error).__name__}"
            )
        return sent if isinstance(sent, Answer) else _result(sent.outcome)

    async def _put_back(self, letter: Letter, answer: Answer) -> None:
        pushback_s = _pushback_s(answer.trailers)
        delay_s = max(pushback_s or 0.0, self._rng.draw())
        reason = f"REFUSED: {answer.message}"
        await self._record(lambda: self._journal.put_back(letter, reason, delay_s))

    async def _judge(
        self, letter: Letter, route: Route, lane: Lane, result: SendResult
    ) -> None:
        before = self._failed_at.get(letter.letter_id)
        verdict = judge(
            letter,
            result,
            self._journal.limits,
            draw=self._rng.draw(),
            peers_succeed=before is not None and lane.successes > before,
            now_wall_s=self._clock.wall(),
        )
        await self._record(lambda: self._journal.end(letter, result, verdict))
        if verdict.what is LetterInput.RETRY:
            self._failed_at[letter.letter_id] = lane.successes
        else:
            self._failed_at.pop(letter.letter_id, None)
        if verdict.what is LetterInput.DELIVER:
            self._denied.discard((route.upstream, route.method))
        elif verdict.what is LetterInput.HOLD:
            await self._hold(route, verdict.reason, result.message)

    async def _hold(self, route: Route, reason: str, message: str) -> None:
        key = (route.upstream, route.method)
        if key not in self._denied:
            self._denied.add(key)
            self._publish(
                Alerted(
                    name="LETTERS_HELD",
                    message=f"{route.upstream} answered {reason} to a letter for"
                    f" {route.method} ({message}): its letters are held; mend the"
                    " credentials, then redrive them",
                )
            )
        await self._record(lambda: self._journal.hold(route, reason))

    async def _record(self, write: Callable[[], Awaitable[object]]) -> None:
        """Write until the store takes it.

        A closed store means: after the next start. Any other error will not pass
        by itself: the letter stays in flight until then too.
        """
        while True:
            try:
                await write()
            except (Transient, Overloaded) as error:
                self._publish(describe("delivery-record", error))
            except OutriggerError as error:
                if not isinstance(error, Refused):
                    self._publish(describe("delivery-record", error))
                return
            else:
                return
            await self._clock.sleep(_RECORD_PAUSE_S)

    # Resting.

    def _lane(self, upstream: str) -> Lane:
        lane = self._lanes.get(upstream)
        if lane is None:
            lane = self._lanes[upstream] = Lane(self._settings.width)
        return lane

    def _came(self, upstream: str) -> None:
        """Ring for a new letter, unless its upstream cannot take one now anyway."""
        now = self._clock.monotonic()
        quiet = now < self._quiet_until.get(upstream, now)
        if not quiet and self._lane(upstream).free(now):
            self._bell.set()

    async def _rest(self, until: float) -> None:
        pause_s = until - self._clock.monotonic()
        if pause_s > 0 and not self._bell.is_set():
            timer = self._tasks.spawn("delivery-timer", self._ring_after(pause_s))
            try:
                await self._bell.wait()
            finally:
                timer.cancel()
        self._bell.clear()

    async def _ring_after(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._bell.set()


def _held(route: Route, bar: str, count: int) -> str:
    if bar == NO_UPSTREAM:
        return (
            f"upstream {route.upstream!r} is not configured any more: its letters are"
            f" held, {count} for {route.method}; configure it and start again, or"
            " discard them"
        )
    return (
        f"{route.method} is declared unsafe, and a letter may be sent more than once:"
        f" its letters are held, {count} for {route.upstream!r}; change the rule and"
        " start again, or discard them"
    )


def _result(outcome: Outcome) -> SendResult | Answer:
    """Return what the policy needs; what we ourselves stopped was not sent."""
    ours = outcome.origin is Origin.LOCAL
    if ours and outcome.code in {_CANCELLED, _RESOURCE_EXHAUSTED}:
        return Answer(outcome.code, outcome.message, outcome.trailers)
    return SendResult(
        code=outcome.code,
        message=outcome.message,
        broken=outcome.origin is Origin.TRANSPORT,
        pushback_s=_pushback_s(outcome.trailers),
    )


def _pushback_s(trailers: Trailers) -> float | None:
    """Return `grpc-retry-pushback-ms` in seconds; gRFC A6: unreadable means never."""
    for key, value in trailers:
        if key == PUSHBACK_TRAILER:
            text = value if isinstance(value, str) else value.decode("ascii", "replace")
            return int(text) / 1000 if text.isascii() and text.isdigit() else -1.0
    return None
