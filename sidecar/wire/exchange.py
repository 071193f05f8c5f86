"""One call from begin to end: ask the guard, do what it says, tell it how that went.

Who may end a call at the same moment: its outcome, its caller, its deadline, its
letter. The first to reach the guard wins. An attempt is told to it once: as ended, or
not at all if its caller went away, for then `cancelled` speaks for it, or if another
attempt of the call won. Once a letter is being taken nothing else ends the call,
because the letter may be on disk.
"""

import asyncio
from dataclasses import dataclass
from typing import Final, cast

from outrigger.core.errors import Bug, OutriggerError, Refused
from sidecar.call.descriptor import (
    Await,
    Call,
    Finish,
    Go,
    Letter,
    LetterDraft,
    LetterRefused,
    LetterTaken,
    Outcome,
    Permit,
    Refuse,
    Resolution,
    Retry,
    Wait,
)
from sidecar.wire import local
from sidecar.wire.attempt import Attempt
from sidecar.wire.caller import Caller, CallerGone, settled
from sidecar.wire.parts import Parts
from sidecar.wire.race import Race
from sidecar.wire.replay import Replay
from sidecar.wire.upstreams import ChannelHandle

Verdict = Go | Wait | Refuse | Letter | Retry | Finish

_SLACK_S: Final = 0.005
_SLACK_RATIO: Final = 0.01
_SLACK_MAX_S: Final = 0.05
"""The library rounds timeouts up by as much, so callers give up that much sooner;
beyond the maximum one that goes away early is believed to have cancelled."""


@dataclass(slots=True)
class Ended:
    """How a call ended."""

    verdict: Finish | Refuse
    outcome: Outcome | None
    """Of the last attempt; None if there was none."""


class Exchange:
    """One call."""

    def __init__(self, parts: Parts, call: Call, caller: Caller) -> None:
        self._parts = parts
        self._call = call
        self._caller = caller
        self._began = parts.clock.monotonic()
        self._permit: Permit | None = None
        self._live: dict[int, Attempt] = {}
        """Attempts on their way, by number."""
        self._contest: Race | None = None
        self._winner: int | None = None
        """The attempt whose response is passed on."""
        self.ended: Ended | None = None
        """How the call ended; None until it has, and when its caller went away."""
        self._outcome: Outcome | None = None
        self._hand_over: asyncio.Task[None] | None = None
        self._resolved: Go | Refuse | Finish | Letter | None = None

    async def carry(self) -> None:
        """Carry the call to its end, and leave that in `ended`.

        Raises:
            asyncio.CancelledError: the caller went away; the guard was told.
            Exception: a defect; the guard was told that the call is gone.
        """
        self.ended = await self.run()

    def leave(self) -> bool:
        """Begin to end a call whose caller went away; False asks to be cancelled.

        Only what waits for an upstream's call can end by itself.
        """
        if self._contest is not None or len(self._live) != 1:
            return False
        return next(iter(self._live.values())).leave()

    async def run(self) -> Ended:
        """Carry the call to its end.

        Raises:
            asyncio.CancelledError: the caller went away; the guard was told.
            Exception: a defect; the guard was told that the call is gone.
        """
        parts = self._parts
        verdict: Verdict = parts.guard.begin(self._call, self._began)
        if not isinstance(verdict, Refuse):
            self._caller.open()
        try:
            while not isinstance(verdict, Finish | Refuse):
                verdict = await self._next(verdict)
        except CallerGone:
            self._gone()
            raise asyncio.CancelledError from None
        except BaseException:
            self._gone()
            raise
        finally:
            self._caller.replay.abandon()
        return Ended(verdict, self._outcome)

    async def _next(self, verdict: Go | Wait | Letter | Retry) -> Verdict:
        if isinstance(verdict, Retry):
            await self._parts.clock.sleep(verdict.after_s)
            permit = cast("Permit", self._permit)  # an attempt came before
            return _alone(self._parts.guard.attempt(permit, self._now()))
        self._permit = verdict.permit
        if isinstance(verdict, Go):
            return await self._attempt(verdict)
        if isinstance(verdict, Letter):
            return await self._letter(verdict)
        return await self._park(verdict)

    async def _attempt(self, go: Go) -> Verdict:
        parts = self._parts
        handle = parts.targets.get(go.permit.upstream)
        if handle is None:
            gone = local.outcome(local.no_channel(go.permit.upstream))
            return _alone(self._ended(go, gone))
        self._winner = None
        if parts.guard.due(go.permit, self._now()) is not None:
            return await self._race(go)
        outcome = await self._made(go, handle).run()
        self._live.clear()
        return _alone(self._ended(go, outcome))

    def _made(self, go: Go, handle: ChannelHandle) -> Attempt:
        attempt = self._live[go.attempt] = Attempt(
            go, self._call.method, self._caller, handle, self._parts, self._claim
        )
        return attempt

    def _claim(self, attempt: int) -> bool:
        """Let the first attempt that has an answer pass it on."""
        if self._winner is None:
            self._winner = attempt
            permit = cast("Permit", self._permit)  # an attempt was made
            self._parts.guard.answered(permit, attempt, self._now())
            if self._contest is not None:
                self._contest.won_by(attempt)
                self._live = {attempt: self._live[attempt]}
        return self._winner == attempt

    def _ended(self, go: Go, outcome: Outcome) -> Verdict | Await:
        self._outcome = outcome
        return self._parts.guard.ended(
            go.permit, go.attempt, outcome, self._now(), self._parts.rng.draw()
        )

    async def _race(self, go: Go) -> Verdict:
        """Make attempts side by side until one settles the call."""
        gos = {go.attempt: go}
        race = self._contest = Race(self._contender, self._parts.tasks)
        race.start(go)
        try:
            while True:
                ended = await race.next(self._until_due(go.permit))
                if ended is None and self._until_due(go.permit) != 0.0:
                    continue  # an answer has begun in the same moment
                if ended is None and self._caller.replay.only_message is None:
                    return await self._lone(race, gos)
                if ended is None:
                    more = self._parts.guard.attempt(go.permit, self._now())
                    if isinstance(more, Go):
                        gos[more.attempt] = more
                        race.start(more)
                    continue
                number, outcome = ended
                if self._winner not in {None, number}:
                    continue  # it ended while the winner was answering
                del self._live[number]
                verdict = self._ended(gos[number], outcome)
                if not isinstance(verdict, Await):
                    self._live.clear()
                    return verdict
        finally:
            self._contest = None
            await race.stop()

    async def _lone(self, race: Race, gos: dict[int, Go]) -> Verdict:
        """Leave the first attempt alone: its request is not one whole message."""
        number, outcome = await race.only()
        self._live.clear()
        return _alone(self._ended(gos[number], outcome))

    def _contender(self, go: Go) -> Attempt:
        # The channel was there when the race began; one that is taken away meanwhile
        # ends the attempts that are on it.
        handle = self._parts.targets.get(go.permit.upstream)
        if handle is None:
            raise Bug("NO_CHANNEL", f"{go.permit.upstream} went away during a race")
        return self._made(go, handle)

    def _until_due(self, permit: Permit) -> float | None:
        due = self._parts.guard.due(permit, self._now())
        return None if due is None else max(0.0, due - self._now())

    async def _park(self, wait: Wait) -> Verdict:
        parked = self._parts.parked
        parked[wait.token] = asyncio.get_running_loop().create_future()
        try:
            result = await parked[wait.token]
        finally:
            del parked[wait.token]
        return self._parts.guard.resolved(wait.token, result, self._now())

    async def _letter(self, letter: Letter) -> Verdict:
        replay = self._caller.replay
        await settled(replay, self._parts.options.letter_wait_s)
        request = replay.only_message
        if request is None:
            refused = LetterRefused(_why_no_letter(replay))
            return self._parts.guard.resolved(letter.token, refused, self._now())
        task = self._begin_hand_over(letter, request)
        await asyncio.wait((task,))
        if self._resolved is None:
            raise Bug("UNRESOLVED", "the guard did not resolve a letter; see the log")
        return self._resolved

    def _begin_hand_over(self, letter: Letter, request: bytes) -> asyncio.Task[None]:
        """Take the letter in a task of its own.

        A caller that goes away in the middle of it cannot undo what may be on disk.
        """
        self._hand_over = self._parts.tasks.spawn(
            "wire.letter",
            self._take(letter, request),
            subject=self._call.call_id,
        )
        return self._hand_over

    async def _take(self, letter: Letter, request: bytes) -> None:
        result: Resolution = LetterRefused("UNEXPECTED")
        try:
            result = await self._accept(letter, request)
        except OutriggerError as error:
            result = LetterRefused(error.reason)
        finally:
            self._resolved = self._parts.guard.resolved(
                letter.token, result, self._now()
            )

    async def _accept(self, letter: Letter, request: bytes) -> LetterTaken:
        if self._parts.letters is None:
            raise Refused("NO_LETTERS", "this sidecar takes no letters")
        draft = LetterDraft(
            letter_id=self._call.call_id,
            upstream=letter.upstream,
            method=self._call.method,
            metadata=tuple(letter.metadata),
            request=request,
            idempotency_key=letter.idempotency_key,
            code=letter.code,
            message=letter.message,
        )
        return LetterTaken(await self._parts.letters.accept(draft))

    def _gone(self) -> None:
        """Tell the guard that the caller is gone, or has run out of time."""
        if self._permit is None or self._hand_over is not None:
            return
        now = self._now()
        if not self._live or not self._is_late(now):
            self._parts.guard.cancelled(self._permit, now)
            return
        verdict: Verdict | Await = Await()
        for number, attempt in self._live.items():
            verdict = self._parts.guard.ended(
                self._permit, number, attempt.late(), now, self._parts.rng.draw()
            )
        if isinstance(verdict, Retry | Await):
            self._parts.guard.cancelled(self._permit, now)
        elif isinstance(verdict, Letter):
            self._late_letter(verdict)

    def _late_letter(self, letter: Letter) -> None:
        """Take a letter that its caller will not hear of."""
        replay = self._caller.replay
        request = replay.only_message
        if request is None:
            refused = LetterRefused(_why_no_letter(replay))
            self._parts.guard.resolved(letter.token, refused, self._now())
            return
        _ = self._begin_hand_over(letter, request)

    def _is_late(self, now: float) -> bool:
        """Say whether the caller went away because its time was up.

        Its own clock rings first, by a rounding error of the timeout.
        """
        deadline = self._call.deadline
        if deadline is None:
            return False
        slack_s = _SLACK_S + _SLACK_RATIO * (deadline - self._began)
        return now >= deadline - min(slack_s, _SLACK_MAX_S)

    def _now(self) -> float:
        return self._parts.clock.monotonic()


def _alone(verdict: Verdict | Await) -> Verdict:
    """Return the verdict on an attempt that has none beside it.

    Raises:
        Bug: NOBODY_ELSE, the guard waits for another one.
    """
    if isinstance(verdict, Await):
        raise Bug("NOBODY_ELSE", "the guard waits for an attempt that was not made")
    return verdict


def _why_no_letter(replay: Replay) -> str:
    return "REQUEST_TOO_LARGE" if replay.has_overflowed else "STREAMING_REQUEST"
