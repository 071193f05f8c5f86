"""Wake on call: the guard of calls to the agent.

Awake: a call goes straight on. Not awake: it is held, one wake is asked for, and it
goes on in its turn once the agent serves again, or is given up. Either way it is
handed on once and never replayed: nobody knows what the agent had done with it.

The races, and who wins:

* **Call against sleep.** Every call first says that it began, which ends a sleep under
  way, and only then is the agent asked for; so one that begins while the agent still
  falls asleep finds it awake, or is held and wakes it.
* **Wake against hold.** A wake may succeed, fail or be refused before the call that
  asked for it is held. It is therefore looked at again after asking, and whoever is
  told to go on while still being held takes effect a step of the loop later.
* **Resumed against gone.** A call may be told to go on and lose its caller, its
  patience or its wire at the same moment. The first to come back to this guard
  counts; each call is counted out once.
"""

import itertools
from collections.abc import Callable
from typing import Final

from outrigger.core.errors import Bug, OutriggerError, Overloaded, Transient
from sidecar.call.answers import Details, no_details, refusal
from sidecar.call.descriptor import (
    Answer,
    Call,
    CallCounts,
    Finish,
    GivenUp,
    Go,
    Outcome,
    Permit,
    Refuse,
    Resolution,
    Resumed,
    Wait,
)
from sidecar.call.metadata import asked_of

APP: Final = "app"
"""Name of the upstream that is the agent itself."""

_LAYER: Final = "wake"
_COME_BACK_S: Final = 1.0
_PASS: Final = Finish(None)


class Held(Permit):
    """A call to the agent; `token` is there while it is held."""

    __slots__ = ("expires", "is_told", "token")

    def __init__(self, call: Call) -> None:
        super().__init__(call, APP)
        self.token: int | None = None
        self.expires: float | None = None
        """When to give it up; None leaves that to its own deadline."""
        self.is_told = False
        """It was told how the wait ended."""


class InboundGuard:
    """See `descriptor.Guard`; there are no circuits, retries or letters here."""

    def __init__(  # noqa: PLR0913 - its surroundings, all of them named
        self,
        *,
        awake: Callable[[], bool],
        wake: Callable[[str], object],
        on_call: Callable[[], object],
        resolve: Callable[[int, Resolution], object],
        details: Details = no_details,
        hold_max_s: float = 30.0,
        max_held: int = 256,
    ) -> None:
        """Begin without calls.

        Args:
            awake: says whether calls may be handed on now.
            wake: asks for a wake, with a reason for a person; may raise OutriggerError.
            on_call: told that a call begins, before `awake` is asked.
            resolve: the wire's.
            details: makes the `grpc-status-details-bin` of refusals.
            hold_max_s: longest hold of a call that has no deadline.
            max_held: most calls held at once; each may hold a replay buffer.
        """
        self._awake = awake
        self._wake = wake
        self._on_call = on_call
        self._resolve = resolve
        self._details = details
        self._hold_max_s = hold_max_s
        self._max_held = max_held
        self._held: dict[int, Held] = {}
        self._tokens = itertools.count(1)
        self._is_asked = False
        self._failures = 0
        self._reason = ""
        """Why the newest wake failed."""
        self.counts: Final = CallCounts()
        """Each call begun is in exactly one of ok, failed, refused and cancelled
        once it is over. `in_flight` has those `held` among them."""
        self.last_activity = 0.0
        """When a call last began or ended, monotonic seconds; 0 before the first."""

    def begin(self, call: Call, now: float) -> Go | Wait | Refuse:
        """Hand the call on, hold it, or refuse it."""
        self.counts.begun += 1
        self.last_activity = now
        held = Held(call)
        try:
            self._on_call()
            if not self._awake():
                self._ask(call)
        except OutriggerError as error:
            return self._refuse(error)
        self.counts.in_flight += 1
        if self._awake():
            return _go(held, now)
        return self._hold(held, now)

    def attempt(self, permit: Permit, now: float) -> Go:  # noqa: ARG002 - of Guard
        """Never asked, for `ended` never says Retry.

        Raises:
            Bug: NEVER_RETRIED.
        """
        raise Bug("NEVER_RETRIED", "a call to the agent is handed on once only")

    def due(self, permit: Permit, now: float) -> float | None:  # noqa: ARG002 - of Guard
        """Return None: nothing is hedged."""
        return None

    def sent(self, permit: Permit, attempt: int, now: float) -> None:
        """Take no note: nobody waits for the agent's answers here."""

    def answered(self, permit: Permit, attempt: int, now: float) -> None:
        """Take no note: a call to the agent may take as long as it likes."""

    def ended(
        self,
        permit: Permit,  # noqa: ARG002 - of Guard
        attempt: int,  # noqa: ARG002 - of Guard
        outcome: Outcome,
        now: float,
        draw: float,  # noqa: ARG002 - of Guard
    ) -> Finish:
        """Pass the agent's answer on, whatever it is."""
        if outcome.code == 0:
            self.counts.ok += 1
        else:
            self.counts.failed += 1
        self._over(now)
        return _PASS

    def cancelled(self, permit: Permit, now: float) -> None:
        """Count a call out whose caller went away, held or handed on."""
        if isinstance(permit, Held):
            self._let_go(permit)
        self.counts.cancelled += 1
        self._over(now)

    def resolved(self, token: int, result: Resolution, now: float) -> Go | Refuse:
        """Hand a held call on, or refuse it.

        Raises:
            Bug: NOT_HELD.
        """
        held = self._held.get(token)
        if held is None:
            raise Bug("NOT_HELD", f"no call to the agent is held under token {token}")
        self._let_go(held)
        if isinstance(result, Resumed):
            return _go(held, now)
        self._count_refusal()
        self._over(now)
        if isinstance(result, GivenUp):
            return Refuse(result.answer)
        return Refuse(self._answer(_no_letters()))

    def tick(self, now: float, draw: float = 0.0) -> None:  # noqa: ARG002 - of Guard
        """Give up calls without a deadline that were held for too long."""
        for held in tuple(self._held.values()):
            if held.expires is not None and now >= held.expires:
                self._tell(held, GivenUp(self._answer(self._not_woken())))

    def agent_is_awake(self) -> None:
        """Hand every held call on, in the order they came."""
        self._is_asked = False
        for held in tuple(self._held.values()):
            self._tell(held, Resumed())

    def agent_failed(self, reason: str) -> None:
        """Give every held call up; the next one asks for a wake again."""
        self._is_asked = False
        self._failures += 1
        self._reason = reason
        answer = self._answer(_failed(reason))
        for held in tuple(self._held.values()):
            self._tell(held, GivenUp(answer))

    def _ask(self, call: Call) -> None:
        """Ask for a wake once, unless there is no room for the call anyway."""
        if len(self._held) >= self._max_held:
            raise Overloaded(
                "TOO_MANY_HELD",
                f"{self._max_held} calls wait for the agent to wake, which is the"
                f" limit; nothing was sent: come back in {_COME_BACK_S:g} s",
                retry_after_s=_COME_BACK_S,
            )
        if self._is_asked:
            return
        before = self._failures
        self._wake(f"a call of {call.method}")
        if self._failures != before and not self._awake():
            raise _failed(self._reason)

    def _hold(self, held: Held, now: float) -> Wait:
        self._is_asked = True
        held.token = next(self._tokens)
        if held.call.deadline is None:
            held.expires = now + self._hold_max_s
        self._held[held.token] = held
        self.counts.held = len(self._held)
        return Wait(held, held.token)

    def _let_go(self, held: Held) -> None:
        """End a hold, if it is one."""
        if held.token is None:
            return
        del self._held[held.token]
        held.token = None
        self.counts.held = len(self._held)
        if not self._held:
            # Nobody waits any more: the next call asks anew, should this wake be lost.
            self._is_asked = False

    def _tell(self, held: Held, result: Resumed | GivenUp) -> None:
        if held.is_told or held.token is None:
            return
        held.is_told = True
        self._resolve(held.token, result)

    def _refuse(self, error: OutriggerError) -> Refuse:
        self._count_refusal()
        return Refuse(self._answer(error))

    def _answer(self, error: OutriggerError) -> Answer:
        return refusal(error, _LAYER, self._details)

    def _not_woken(self) -> Transient:
        return Transient(
            "NOT_WOKEN",
            f"the agent did not wake within {self._hold_max_s:g} s; nothing was sent:"
            " try again, or give the call a deadline that is longer",
            retry_after_s=_COME_BACK_S,
        )

    def _count_refusal(self) -> None:
        refused = self.counts.refused
        refused[_LAYER] = refused.get(_LAYER, 0) + 1

    def _over(self, now: float) -> None:
        self.counts.in_flight -= 1
        self.last_activity = now


def _go(held: Held, now: float) -> Go:
    call = held.call
    asked = asked_of(call.metadata)
    metadata = call.metadata if asked is None else asked.passed
    left_s = None if call.deadline is None else max(call.deadline - now, 0.0)
    return Go(held, 0, metadata, left_s)


def _failed(reason: str) -> Transient:
    return Transient(
        "AGENT_FAILED",
        f"the agent did not wake ({reason}); nothing was sent: the next call tries to"
        f" wake it again, in {_COME_BACK_S:g} s at the earliest",
        retry_after_s=_COME_BACK_S,
    )


def _no_letters() -> Bug:
    return Bug("NO_LETTERS_HERE", "a call to the agent was taken for a letter")
