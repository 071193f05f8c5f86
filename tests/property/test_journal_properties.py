import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from outrigger.core.errors import Conflict, Overloaded
from sidecar.letters.journal import LetterFilter
from sidecar.letters.table import Route
from sidecar.policy.letter import LetterInput, LetterLimits, LetterState
from sidecar.policy.verdict import SendResult, judge
from tests.support.letters import METHOD, Office, a_draft

LIMITS = LetterLimits(
    max_attempts=3, max_letters=5, max_age_s=500.0, gone_kept=3, gone_kept_s=1e9
)
KEYS = [f"key-{n}" for n in range(8)]
METHODS = [METHOD, "/p.S/N"]
LIVE = {"pending", "held", "in_flight"}


@dataclass
class Known:
    """What the model knows of a letter."""

    letter_id: str
    key: str
    method: str
    request: bytes
    born: float
    due: float
    expires: float
    state: str = "pending"
    attempts: int = 0
    crashes: int = 0
    kept: bool = True
    """Retention may have let the record go otherwise."""


class JournalMachine(RuleBasedStateMachine):
    """The journal against dicts, with crashes and restarts between the steps."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = Path(tempfile.mkdtemp())
        self.model = {}
        self.accepted = 0
        self.ends = dict.fromkeys(("delivered", "parked", "expired", "discarded"), 0)
        self.out = {}

    def run(self, work):
        """Run to its end on the machine's loop."""
        return self.loop.run_until_complete(work)

    @initialize()
    def open(self):
        """A first start in an empty folder."""
        self.office = self.run(self._open(None))

    async def _open(self, clock):
        office = Office(self.folder, limits=LIMITS, clock=clock)
        await office.journal.recover()
        return office

    def teardown(self):
        """Leave nothing behind."""
        self.run(self.office.db.close())
        self.loop.close()
        shutil.rmtree(self.folder)

    def among(self, *states):
        """Known letters in these states whose records are kept."""
        return [one for one in self.model.values() if one.state in states and one.kept]

    def kept_count(self):
        """What counts against the cap."""
        return sum(one.state in {*LIVE, "parked", "expired"} for one in self.all())

    def all(self):
        """Every letter ever."""
        return self.model.values()

    def end(self, one, state):
        """Move a letter of the model, with the counts of ends."""
        if one.state in self.ends:
            self.ends[one.state] -= 1
        one.state = state
        if state in self.ends:
            self.ends[state] += 1

    @rule(
        key=st.sampled_from(KEYS),
        method=st.sampled_from(METHODS),
        request=st.sampled_from([b"", b"one", b"two"]),
    )
    def accept(self, key, method, request):
        """A new key makes a letter, a known one returns it, a reused one is refused."""
        draft = a_draft(idempotency_key=key, method=method, request=request, code=0)
        known = next((o for o in self.all() if o.key == key and o.kept), None)
        now = self.office.clock.wall()
        try:
            letter_id = self.run(self.office.journal.accept(draft))
        except Conflict:
            assert known is not None
            assert (known.method, known.request) != (method, request)
            return
        except Overloaded:
            assert known is None
            assert self.kept_count() == LIMITS.max_letters
            return
        if known is not None:
            assert letter_id == known.letter_id
            assert (known.method, known.request) == (method, request)
            return
        assert letter_id == draft.letter_id
        self.accepted += 1
        self.model[letter_id] = Known(
            letter_id, key, method, request, now, now, now + LIMITS.max_age_s
        )

    @rule(
        method=st.sampled_from(METHODS), suspects=st.booleans(), limit=st.integers(1, 3)
    )
    def claim(self, method, suspects, limit):
        """Exactly due ones of that method, oldest due first; aged ones expire."""
        now = self.office.clock.wall()
        due = [
            one
            for one in self.among("pending")
            if one.method == method and one.due <= now and (one.crashes > 0) == suspects
        ]
        due.sort(key=lambda one: one.due)
        claimed = self.run(
            self.office.journal.claim(
                Route("tool", method, 0.0), limit, suspects=suspects
            )
        )
        assert len(claimed) <= min(limit, len(due))
        for letter in claimed:
            one = self.model[letter.letter_id]
            assert one in due
            assert letter.request == one.request
            assert one.expires > now
            self.end(one, "in_flight")
            self.out[letter.letter_id] = letter
        for one in due:
            found = self.run(self.office.journal.get(one.letter_id)).state.value
            if found == "expired":
                assert one.expires <= now
                self.end(one, "expired")

    @rule(
        method=st.sampled_from(METHODS),
        suspects=st.booleans(),
        code=st.sampled_from([0, 3, 13]),
    )
    def send(self, method, suspects, code):
        """Claim and answer in one go, which is what mostly happens."""
        before = set(self.out)
        self.claim(method=method, suspects=suspects, limit=3)
        for letter_id in sorted(set(self.out) - before):
            self.take_answer(letter_id, code, 0.0)

    @precondition(lambda self: self.out)
    @rule(
        data=st.data(),
        code=st.sampled_from([0, 3, 8, 13, 14, 16]),
        draw=st.floats(0, 0.99),
    )
    def answer(self, data, code, draw):
        """The verdict on an answer is what becomes of the letter."""
        self.take_answer(data.draw(st.sampled_from(sorted(self.out))), code, draw)

    def take_answer(self, letter_id, code, draw):
        """Let the policy judge it, record it twice, and move the model."""
        letter = self.out.pop(letter_id)
        one = self.model[letter_id]
        now = self.office.clock.wall()
        result = SendResult(code=code, message="said so")
        verdict = judge(
            letter, result, LIMITS, draw=draw, peers_succeed=False, now_wall_s=now
        )
        self.run(self.office.journal.end(letter, result, verdict))
        self.run(self.office.journal.end(letter, result, verdict))
        one.attempts += verdict.counts
        one.crashes = 0
        one.due = now + verdict.delay_s
        self.end(one, _state_after(verdict))

    @precondition(lambda self: self.out)
    @rule(data=st.data(), delay=st.floats(0, 10))
    def put_back(self, data, delay):
        """It was not sent after all."""
        letter_id = data.draw(st.sampled_from(sorted(self.out)))
        letter = self.out.pop(letter_id)
        one = self.model[letter_id]
        self.run(self.office.journal.put_back(letter, "REFUSED", delay))
        one.due = self.office.clock.wall() + delay
        self.end(one, "pending")

    @rule(seconds=st.sampled_from([0.1, 1.0, 20.0, 300.0]))
    def wait(self, seconds):
        """Time passes."""
        self.office.clock.advance(seconds)

    @rule()
    def sweep(self):
        """Waiting ones that are too old expire; only ended records are let go."""
        self.run(self.office.journal.sweep())
        now = self.office.clock.wall()
        for one in self.among("pending", "held"):
            if one.expires <= now:
                self.end(one, "expired")
        self.retain()

    def retain(self):
        """Of delivered and discarded letters only so many records stay."""
        page = self.run(self.office.journal.list(LetterFilter(), 1000))
        stored = {letter.letter_id for letter in page.letters}
        gone = [one for one in self.all() if one.state in {"delivered", "discarded"}]
        left = [one for one in gone if one.letter_id in stored]
        assert len(left) == min(
            LIMITS.gone_kept, len([one for one in gone if one.kept])
        )
        for one in gone:
            one.kept = one.letter_id in stored

    @rule(states=st.sets(st.sampled_from(["parked", "expired", "held"])))
    def redrive(self, states):
        """Exactly those meant are pending again, afresh."""
        meant = states or {"parked", "expired", "held"}
        chosen = LetterFilter(states=tuple(LetterState(s) for s in sorted(states)))
        count = self.run(self.office.journal.redrive(chosen, everything=True))
        now = self.office.clock.wall()
        moved = self.among(*meant)
        assert count == len(moved)
        for one in moved:
            one.attempts = one.crashes = 0
            one.due, one.expires = now, now + LIMITS.max_age_s
            self.end(one, "pending")

    @rule(method=st.sampled_from(METHODS))
    def discard(self, method):
        """Exactly those of a method that wait or were given up."""
        chosen = LetterFilter(
            method=method, states=(LetterState.PENDING, LetterState.PARKED)
        )
        count = self.run(
            self.office.journal.discard(chosen, reason="x", everything=False)
        )
        moved = [o for o in self.among("pending", "parked") if o.method == method]
        assert count == len(moved)
        for one in moved:
            self.end(one, "discarded")

    @rule(method=st.sampled_from(METHODS))
    def hold(self, method):
        """Exactly those of a method that wait."""
        self.run(self.office.journal.hold(Route("tool", method, 0.0), "DENIED"))
        for one in self.among("pending"):
            if one.method == method:
                self.end(one, "held")

    @rule(orderly=st.booleans())
    def restart(self, orderly):
        """Opening again loses nothing; what was out is suspected, or not."""
        if orderly:
            self.run(self.office.journal.release())
        self.run(self.office.db.close())
        clock = self.office.clock
        self.office = self.run(self._open(clock))
        for letter_id in self.out:
            one = self.model[letter_id]
            one.crashes += not orderly
            one.due = clock.wall()
            poison = one.crashes >= LIMITS.crash_limit
            self.end(one, "parked" if poison else "pending")
        self.out.clear()

    @invariant()
    def the_ledger_adds_up(self):
        """Accepted = delivered + parked + expired + discarded + live, always."""
        if not hasattr(self, "office"):
            return
        ledger = self.run(self.office.journal.ledger())
        live = sum(one.state in LIVE for one in self.all())
        assert ledger.lost == 0
        assert ledger.accepted == self.accepted
        assert ledger.live == live
        assert {
            "delivered": ledger.delivered,
            "parked": ledger.parked,
            "expired": ledger.expired,
            "discarded": ledger.discarded,
        } == self.ends

    @invariant()
    def every_letter_is_where_the_model_says(self):
        """With its payload; nothing is there that was never accepted."""
        if not hasattr(self, "office"):
            return
        page = self.run(self.office.journal.list(LetterFilter(), 1000))
        found = {letter.letter_id: letter for letter in page.letters}
        kept = {one.letter_id: one for one in self.all() if one.kept}
        assert found.keys() == kept.keys()
        for letter_id, letter in found.items():
            one = kept[letter_id]
            assert (letter.state.value, letter.attempt_count, letter.crash_count) == (
                one.state,
                one.attempts,
                one.crashes,
            )


def _state_after(verdict):
    return {
        LetterInput.DELIVER: "delivered",
        LetterInput.PARK: "parked",
        LetterInput.EXPIRE: "expired",
        LetterInput.HOLD: "held",
        LetterInput.RETRY: "pending",
    }[verdict.what]


class TestJournal(JournalMachine.TestCase):
    """Runs the machine."""

    settings = settings(
        max_examples=100,
        stateful_step_count=40,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
