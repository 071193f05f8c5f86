import asyncio
import sqlite3
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest

from outrigger.core.errors import OutriggerError, Transient
from outrigger.core.events import Alerted, ErrorSeen
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Answer, Origin, Outcome
from sidecar.letters import delivery as module
from sidecar.letters.delivery import Delivery, DeliverySettings
from sidecar.letters.journal import LetterFilter
from sidecar.letters.table import Route
from sidecar.policy.letter import LetterLimits, LetterState
from tests.support.broken import break_database, disk_error
from tests.support.letters import an_office

EIO = disk_error(sqlite3.SQLITE_IOERR_FSYNC)


@dataclass
class Done:
    """A delivery that was attempted."""

    outcome: Outcome
    response: bytes = b""


def answered(code, message="", *, origin=Origin.UPSTREAM, trailers=()):
    """What a wire returns for a status."""
    return Done(Outcome(code, message, origin, committed=False, trailers=trailers))


class Scene:
    """A delivery with an upstream that answers by script."""

    def __init__(self, office, *, upstreams=None, unsafe=(), **settings):
        self.office = office
        self.clock = office.clock
        self.sent = []
        self.out = 0
        self.most_out = 0
        self.answer = lambda letter: answered(0)
        self.gate = None
        self.waits = {}
        self.tasks = Tasks(office.events.append, office.clock)
        self.delivery = Delivery(
            office.journal,
            self.send,
            clock=office.clock,
            rng=office.rng,
            tasks=self.tasks,
            publish=office.events.append,
            retry_after=lambda upstream, method: self.waits.get((upstream, method)),
            settings=DeliverySettings(**settings),
            upstreams=upstreams,
            unsafe=lambda upstream, method: method in unsafe,
        )

    async def send(self, letter, timeout_s):
        self.sent.append(letter.letter_id)
        self.out += 1
        self.most_out = max(self.most_out, self.out)
        try:
            if self.gate is not None:
                await self.gate.wait()
            result = self.answer(letter)
            if isinstance(result, BaseException):
                raise result
            return result
        finally:
            self.out -= 1

    async def settle(self, seconds=0.0, step=0.1):
        """Let that much time pass, with everything that happens in it."""
        left = seconds
        while True:
            for _ in range(6):
                await self.beat()
                self.clock.advance(0.005)
            if left <= 0:
                return
            self.clock.advance(min(step, left))
            left -= step

    async def beat(self):
        """Let everybody go on until the store has done all that was asked of it."""
        for ask in (self.office.db.write, self.office.db.read):
            await asyncio.sleep(0)
            with suppress(OutriggerError):
                await ask(lambda conn: None)
            await asyncio.sleep(0)

    async def until(self, condition, seconds=120.0):
        """Let time pass until something holds; fail if it never does."""
        for _ in range(int(seconds / 0.1)):
            if await condition():
                return
            await self.settle(0.1)
        raise AssertionError("it never came true")

    async def states(self):
        """How many letters are in each state."""
        found = (await self.office.journal.list(LetterFilter(), 1000)).letters
        return {
            state.value: sum(letter.state is state for letter in found)
            for state in LetterState
            if any(letter.state is state for letter in found)
        }

    async def all_delivered(self):
        return set(await self.states()) == {"delivered"}

    def named(self, kind, name):
        """Events of one kind and name."""
        key = "name" if kind is Alerted else "boundary"
        return [
            event
            for event in self.office.events
            if isinstance(event, kind) and getattr(event, key) == name
        ]


@asynccontextmanager
async def scene_in(folder, *, limits=None, **settings):
    """A running delivery, stopped afterwards; `upstreams` None means all there are."""
    async with an_office(folder, limits=limits) as office:
        scene = Scene(office, **settings)
        scene.tasks.spawn("delivery-run", scene.delivery.run())
        try:
            yield scene
        finally:
            scene.gate = None
            await scene.delivery.stop(0)
            await scene.tasks.close()


@pytest.fixture
async def scene(tmp_path):
    """The usual one."""
    async with scene_in(tmp_path) as scene:
        yield scene


async def test_letters_are_delivered_once_each_when_all_is_well(scene):
    """In order of acceptance at first, and each end is on disk."""
    ids = [await scene.office.take(code=0) for _ in range(50)]
    await scene.until(scene.all_delivered)

    assert sorted(scene.sent) == sorted(ids)
    assert (await scene.office.journal.ledger()).delivered == 50


async def test_the_start_is_narrow_and_the_width_is_kept(tmp_path):
    """One letter first; never more than the width at once."""
    async with scene_in(tmp_path, width=4) as scene:
        scene.gate = asyncio.Event()
        for _ in range(20):
            await scene.office.take(code=0)
        await scene.settle(1)
        first = scene.most_out
        scene.gate.set()
        await scene.until(scene.all_delivered)

    assert first == 1
    assert scene.most_out <= 4


async def test_a_letter_is_in_flight_on_disk_while_it_is_out(scene):
    """So that a crash is known."""
    scene.gate = asyncio.Event()
    letter_id = await scene.office.take(code=0)
    await scene.settle(0.2)

    assert await scene.office.state(letter_id) == "in_flight"
    assert scene.delivery.in_flight == 1
    scene.gate.set()


async def test_an_outage_uses_up_no_attempt_and_ends_in_delivery(tmp_path):
    """Far more failures than attempts, and few tries for many letters."""
    async with scene_in(tmp_path, limits=LetterLimits(max_attempts=2)) as scene:
        scene.answer = lambda letter: answered(14, "away", origin=Origin.TRANSPORT)
        for _ in range(30):
            await scene.office.take(code=0)
        await scene.settle(60, step=0.5)
        tries = len(scene.sent)
        states = await scene.states()
        scene.answer = lambda letter: answered(0)
        scene.delivery.nudge("tool")
        await scene.until(scene.all_delivered, 30)

    assert states == {"pending": 30}
    assert 5 < tries < 60


async def test_an_open_circuit_is_not_tried_at_all(scene):
    """No attempt, no send; another method of the same upstream goes on."""
    scene.waits[("tool", "/p.S/Shut")] = 5.0
    shut = await scene.office.take(code=0, method="/p.S/Shut")
    free = await scene.office.take(code=0, method="/p.S/Free")
    await scene.settle(3)
    before = (list(scene.sent), await scene.office.state(shut))
    scene.waits.clear()
    await scene.until(scene.all_delivered, 10)

    assert before == ([free], "pending")
    assert scene.sent == [free, shut]


async def test_a_nudge_goes_on_at_once_after_an_open_circuit(scene):
    """It does not wait for the time that the circuit named."""
    scene.waits[("tool", "/p.S/M")] = 1000.0
    await scene.office.take(code=0)
    await scene.settle(1)
    scene.waits.clear()
    scene.delivery.nudge("tool")
    await scene.settle(0.1)

    assert len(scene.sent) == 1


async def test_a_new_letter_for_a_shut_upstream_wakes_nobody(scene):
    """A flood while the circuit is open must not cost a round per letter."""
    scene.waits[("tool", "/p.S/M")] = 1000.0
    await scene.office.take(code=0)
    await scene.settle(0.1)
    rounds = []
    whole = scene.office.journal.routes

    async def counting():
        rounds.append(1)
        return await whole()

    scene.office.journal.routes = counting
    for _ in range(30):
        await scene.office.take(code=0)
    await scene.settle()

    assert len(rounds) <= 2


async def test_idle_rounds_are_far_apart(scene):
    """Nothing to do costs next to nothing: a look every few seconds."""
    await scene.settle(1)
    rounds = []
    whole = scene.office.journal.routes

    async def counting():
        rounds.append(1)
        return await whole()

    scene.office.journal.routes = counting
    await scene.settle(60, step=0.5)

    assert 5 <= len(rounds) <= 30


async def test_a_poison_letter_is_parked_and_blocks_nobody(tmp_path):
    """It fails while its peers succeed, until its attempts are used up."""
    limits = LetterLimits(max_attempts=3, backoff_max_s=1.0)
    async with scene_in(tmp_path, limits=limits) as scene:
        bad = await scene.office.take(code=0)
        scene.answer = lambda letter: answered(13 if letter.letter_id == bad else 0)
        for _ in range(20):
            await scene.office.take(code=0)

        async def parked():
            return await scene.states() == {"parked": 1, "delivered": 20}

        await scene.until(parked, 30)
        letter = await scene.office.journal.get(bad)

    assert (letter.attempt_count, letter.reason) == (3, "ATTEMPTS_EXHAUSTED")
    assert [attempt.code for attempt in letter.attempts] == [13] * 3


async def test_what_kills_its_callee_is_parked_though_it_looks_like_an_outage(tmp_path):
    """Others get through between its failures, so the upstream is not away."""
    limits = LetterLimits(max_attempts=3)
    async with scene_in(tmp_path, limits=limits) as scene:
        bad = await scene.office.take(code=0)
        gone = answered(14, "connection reset", origin=Origin.TRANSPORT)
        scene.answer = lambda letter: gone if letter.letter_id == bad else answered(0)

        async def parked():
            await scene.office.take(code=0)
            return await scene.office.state(bad) == "parked"

        await scene.until(parked, 120)

    assert scene.sent.count(bad) == 4


async def test_a_permanent_status_parks_at_once_with_its_message(scene):
    """The reason is the status, the evidence is the attempt."""
    scene.answer = lambda letter: answered(3, "field x is wrong")
    letter_id = await scene.office.take(code=0)
    await scene.settle(1)
    letter = await scene.office.journal.get(letter_id)

    assert scene.sent == [letter_id]
    assert (letter.state, letter.reason) == (LetterState.PARKED, "INVALID_ARGUMENT")
    assert letter.last_message == "field x is wrong"


async def test_a_denial_holds_the_whole_method_and_alerts_once(scene):
    """Operators mend the credentials and redrive; then it alerts anew if need be."""
    scene.answer = lambda letter: answered(16 if letter.method == "/p.S/D" else 0)
    for _ in range(5):
        await scene.office.take(code=0, method="/p.S/D")
    other = await scene.office.take(code=0, method="/p.S/E")
    await scene.settle(5)
    held = await scene.states()
    await scene.office.take(code=0, method="/p.S/D")
    await scene.settle(5)
    alerts = len(scene.named(Alerted, "LETTERS_HELD"))
    scene.answer = lambda letter: answered(0)
    await scene.office.journal.redrive(LetterFilter(method="/p.S/D"), everything=False)
    await scene.until(scene.all_delivered, 20)

    assert held == {"held": 5, "delivered": 1}
    assert other in scene.sent
    assert alerts == 1
    assert scene.delivery._denied == set()


@pytest.mark.parametrize(
    ("value", "least_s"),
    [("7000", 7.0), (b"7000", 7.0), ("-1", 300.0), ("soon", 300.0)],
)
async def test_the_upstreams_own_pause_is_obeyed(scene, value, least_s):
    """`grpc-retry-pushback-ms`; what cannot be read means: not soon."""
    trailers = (("other", "1"), ("grpc-retry-pushback-ms", value))
    scene.answer = lambda letter: answered(8, "slow down", trailers=trailers)
    letter_id = await scene.office.take(code=0)
    await scene.until(lambda: asyncio.sleep(0, bool(scene.sent)))
    at = scene.clock.wall()
    await scene.settle(0.1)
    letter = await scene.office.journal.get(letter_id)

    assert letter.next_attempt_wall_s == pytest.approx(at + least_s, abs=0.5)
    assert letter.attempt_count == 0


@pytest.mark.parametrize(
    "refusal",
    [
        Answer(14, "circuit open", (("grpc-retry-pushback-ms", "400"),)),
        answered(8, "limit", origin=Origin.LOCAL),
        answered(1, "stopped", origin=Origin.LOCAL),
    ],
)
async def test_what_the_sidecar_itself_refuses_counts_for_nothing(scene, refusal):
    """It goes back as if it had not been tried, and is tried again soon."""
    scene.answer = lambda letter: refusal
    letter_id = await scene.office.take(code=0)
    await scene.settle(3)
    letter = await scene.office.journal.get(letter_id)
    scene.answer = lambda letter: answered(0)
    await scene.until(scene.all_delivered, 10)

    assert letter.attempt_count == letter.failure_count == 0
    assert letter.attempts == ()
    assert letter.reason.startswith("REFUSED: ")


async def test_a_sender_that_raises_puts_the_letter_back(scene):
    """The failure is recorded with its letter, others go on, and it uses attempts."""
    bad = await scene.office.take(code=0)
    scene.answer = lambda letter: (
        ZeroDivisionError("a defect") if letter.letter_id == bad else answered(0)
    )
    await scene.office.take(code=0)
    await scene.settle(2)
    letter = await scene.office.journal.get(bad)
    seen = scene.named(ErrorSeen, "delivery")

    assert letter.state is LetterState.PENDING
    assert letter.attempt_count >= 1
    assert letter.last_message == "the send failed: ZeroDivisionError"
    assert seen[0].subject == bad
    assert await scene.states() == {"pending": 1, "delivered": 1}


async def test_a_sender_that_hangs_is_given_up(scene, monkeypatch):
    """Its place is not lost for ever."""
    monkeypatch.setattr(module, "_HUNG_S", -29.99)
    scene.gate = asyncio.Event()
    letter_id = await scene.office.take(code=0)

    async def failed():
        return (await scene.office.journal.get(letter_id)).attempt_count > 0

    await scene.until(failed, 20)
    letter = await scene.office.journal.get(letter_id)

    assert (letter.last_code, letter.last_message) == (4, "the send hung")


async def test_a_stop_takes_back_what_is_out(tmp_path):
    """Pending again, not suspected, nothing counted."""
    async with scene_in(tmp_path) as scene:
        scene.gate = asyncio.Event()
        letter_id = await scene.office.take(code=0)
        await scene.settle(0.2)
        await scene.delivery.stop(0)
        letter = await scene.office.journal.get(letter_id)

        assert (letter.state, letter.crash_count) == (LetterState.PENDING, 0)
        assert letter.attempt_count == 0
        assert scene.delivery.in_flight == 0


async def test_a_stop_waits_for_what_is_nearly_done(tmp_path):
    """Within its grace."""
    async with scene_in(tmp_path) as scene:
        scene.gate = asyncio.Event()
        letter_id = await scene.office.take(code=0)
        await scene.settle(0.2)
        stop = scene.tasks.spawn("stop", scene.delivery.stop(30))
        await scene.settle()
        scene.gate.set()
        await stop

        assert await scene.office.state(letter_id) == "delivered"


async def test_a_stop_while_an_end_is_recorded_keeps_the_end(scene):
    """It was delivered: taking it back would deliver it twice."""
    letter_id = await scene.office.take(code=0)
    whole = scene.office.journal.end

    async def slow(*arguments):
        await whole(*arguments)
        await asyncio.Event().wait()

    scene.office.journal.end = slow
    await scene.settle(0.5)
    await scene.delivery.stop(0)

    assert scene.sent == [letter_id]
    assert await scene.office.state(letter_id) == "delivered"


async def test_a_record_that_went_missing_is_reported_and_given_up(scene):
    """Trying for ever would not bring it back; its place is free again."""
    scene.gate = asyncio.Event()
    letter_id = await scene.office.take(code=0)
    await scene.settle(0.2)
    scene.office.damage("DELETE FROM letters WHERE letter_id = ?", letter_id)
    scene.gate.set()
    await scene.settle(1)

    (error,) = scene.named(ErrorSeen, "delivery-record")
    assert error.reason == "NO_SUCH_LETTER"
    assert scene.delivery.in_flight == 0
    assert (await scene.office.journal.ledger()).lost == 1


async def test_an_answer_is_recorded_when_the_store_works_again(scene):
    """The letter is not sent a second time for it."""
    scene.gate = asyncio.Event()
    letter_id = await scene.office.take(code=0)
    await scene.settle(0.2)
    break_database(scene.office.db, "COMMIT", EIO)
    with pytest.raises(Transient):
        await scene.office.take()
    scene.gate.set()
    await scene.settle(5)
    failing = scene.named(ErrorSeen, "delivery-record")
    await scene.office.db.reopen()
    await scene.settle(2)

    assert failing
    assert await scene.office.state(letter_id) == "delivered"
    assert scene.sent == [letter_id]


async def test_a_failing_store_is_asked_again_without_haste(scene):
    """Rounds fail, are reported about once a second, and go on when it works."""
    await scene.settle(1)
    break_database(scene.office.db, "COMMIT", EIO)
    with pytest.raises(Transient):
        await scene.office.take()
    scene.office.journal.on_pending.clear()
    await scene.office.db.reopen()
    letter_id = await scene.office.take(code=0)
    scene.office.db._failure = scene.office.db.failure
    broken = break_database(scene.office.db, "BEGIN IMMEDIATE", EIO, times=1)
    scene.delivery.nudge("tool")
    await scene.settle(10, step=0.5)
    reported = len(scene.named(ErrorSeen, "delivery"))
    await scene.office.db.reopen()
    await scene.until(scene.all_delivered, 10)

    assert broken.left == 0
    assert 3 <= reported <= 25
    assert scene.sent == [letter_id]


async def test_a_closed_store_ends_the_delivery(tmp_path):
    """What was out is found at the next start."""
    async with an_office(tmp_path) as office:
        scene = Scene(office)
        run = scene.tasks.spawn("delivery-run", scene.delivery.run())
        scene.gate = asyncio.Event()
        await office.take(code=0)
        await scene.settle(0.2)
        await office.db.close()
        scene.gate.set()
        scene.delivery.nudge("tool")
        await scene.settle(2)

        assert run.done()
        assert scene.delivery.in_flight == 0
        assert not scene.named(ErrorSeen, "delivery-run")
        await scene.tasks.close()


async def test_suspects_of_a_crash_go_one_by_one_and_last(tmp_path):
    """So that only the culprit is counted when it crashes us again."""
    async with an_office(tmp_path) as office:
        suspects = [await office.take(code=0) for _ in range(3)]
        await office.due()
    async with scene_in(tmp_path) as scene:
        scene.gate = asyncio.Event()
        fresh = [await scene.office.take(code=0) for _ in range(2)]
        out_together = []
        whole = scene.answer

        def answer(letter):
            out_together.append(scene.out if letter.letter_id in suspects else 0)
            return whole(letter)

        scene.answer = answer
        scene.gate.set()
        await scene.until(scene.all_delivered, 30)

    assert set(scene.sent) == {*suspects, *fresh}
    assert scene.sent[0] in fresh
    assert max(out_together) <= 2


async def test_methods_of_an_upstream_take_turns(tmp_path):
    """A thousand letters of one do not keep the one letter of another waiting."""
    async with scene_in(tmp_path, width=2) as scene:
        scene.waits = {("tool", "/p.S/A"): 60.0, ("tool", "/p.S/B"): 60.0}
        for _ in range(60):
            await scene.office.take(code=0, method="/p.S/A")
        late = await scene.office.take(code=0, method="/p.S/B")
        scene.waits = {}
        scene.delivery.nudge("tool")
        await scene.until(scene.all_delivered, 60)

    assert scene.sent.index(late) < 10


async def test_an_upstream_that_is_away_does_not_keep_another_waiting(scene):
    """Lanes are apart."""
    scene.answer = lambda letter: answered(14 if letter.upstream == "away" else 0)
    for _ in range(20):
        await scene.office.take(code=0, upstream="away")
        await scene.office.take(code=0, upstream="here")

    async def here():
        return (await scene.states()).get("delivered") == 20

    await scene.until(here, 10)


async def test_a_letter_is_not_sent_before_its_time(scene):
    """It wakes by itself then."""
    wall = scene.clock.wall()
    await scene.office.take(earliest_wall_s=wall + 30)
    await scene.settle(15)
    early = list(scene.sent)
    await scene.until(scene.all_delivered, 20)

    assert early == []


async def test_old_letters_expire_while_their_upstream_is_away(scene):
    """Each with its reason; none is lost."""
    scene.waits[("tool", "/p.S/M")] = 5.0
    for _ in range(3):
        await scene.office.take(code=0, ttl_s=30.0)
    await scene.settle(45, step=1.0)

    assert await scene.states() == {"expired": 3}
    assert (await scene.office.journal.ledger()).lost == 0


async def test_memory_of_failures_is_bounded(tmp_path):
    """Letters that ended by other hands are forgotten in time."""
    async with scene_in(tmp_path, limits=LetterLimits(max_letters=5)) as scene:
        scene.delivery._failed_at.update({str(n): 0 for n in range(10)})
        await scene.settle(12, step=0.5)

        assert scene.delivery._failed_at == {}


# What must not be sent, as things are configured.


async def test_letters_of_an_upstream_that_is_gone_are_held_with_one_alert(tmp_path):
    """They move once, and nothing more is written for them; others go on."""
    async with scene_in(tmp_path, upstreams={"tool"}) as scene:
        for number in range(6):
            method = f"/p.S/M{number % 2}"
            await scene.office.take(code=0, upstream="old", method=method)
        later = scene.clock.wall() + 3600
        await scene.office.take(code=0, upstream="old", earliest_wall_s=later)
        other = await scene.office.take(code=0)
        await scene.settle(10)
        first = len(scene.office.events)
        await scene.settle(30, step=0.5)
        alerts = scene.named(Alerted, "LETTERS_HELD")
        found = (await scene.office.journal.list(LetterFilter(upstream="old"))).letters

        assert scene.sent == [other]
        assert {(one.state.value, one.reason) for one in found} == {
            ("held", "NO_UPSTREAM")
        }
        assert len(found) == 7
        assert len(scene.office.events) == first
        assert len(alerts) == 1
        assert "upstream 'old' is not configured any more" in alerts[0].message


async def test_a_later_start_lets_go_what_may_go_again(tmp_path):
    """As due as they were; what is held for anything else stays held."""
    async with scene_in(tmp_path, upstreams={"tool"}) as scene:
        at_once = await scene.office.take(code=0, upstream="old")
        later = scene.clock.wall() + 3600
        in_time = await scene.office.take(code=0, upstream="old", earliest_wall_s=later)
        lost = await scene.office.take(code=0, upstream="older")
        denied = await scene.office.take(code=0, upstream="old", method="/p.S/D")
        await scene.settle(1)
        await scene.office.journal.redrive(
            LetterFilter(letter_ids=(denied,)), everything=False
        )
        await scene.office.journal.hold(Route("old", "/p.S/D", 0.0), "UNAUTHENTICATED")
    async with scene_in(tmp_path, upstreams={"tool", "old"}) as scene:
        await scene.settle(5)
        sent = list(scene.sent)
        states = [
            await scene.office.state(one) for one in (at_once, in_time, lost, denied)
        ]
        alerts = scene.named(Alerted, "LETTERS_HELD")
        scene.clock.advance(3600)
        await scene.settle(10)

        assert sent == [at_once]
        assert states == ["delivered", "pending", "held", "held"]
        assert alerts == []
        assert scene.sent == [at_once, in_time]


async def test_letters_of_a_method_declared_unsafe_are_held(tmp_path):
    """One alert; they go on once the rule is gone."""
    async with scene_in(tmp_path, unsafe={"/p.S/U"}) as scene:
        for _ in range(3):
            await scene.office.take(code=0, method="/p.S/U")
        other = await scene.office.take(code=0)
        await scene.settle(10)
        held = (await scene.office.journal.list(LetterFilter(method="/p.S/U"))).letters
        alerts = scene.named(Alerted, "LETTERS_HELD")

        assert scene.sent == [other]
        assert {one.reason for one in held} == {"UNSAFE_METHOD"}
        assert len(alerts) == 1
        assert "/p.S/U is declared unsafe" in alerts[0].message
    async with scene_in(tmp_path) as scene:
        await scene.until(scene.all_delivered, 20)

        assert len(scene.sent) == 3


async def test_a_store_that_fails_puts_the_letting_go_off(tmp_path):
    """It is done when the store works again."""
    async with scene_in(tmp_path, upstreams=()) as scene:
        letter_id = await scene.office.take(code=0)
        await scene.settle(1)
        assert await scene.office.state(letter_id) == "held"
    async with an_office(tmp_path) as office:
        scene = Scene(office, upstreams={"tool"})
        break_database(office.db, "COMMIT", EIO)
        scene.tasks.spawn("delivery-run", scene.delivery.run())
        await scene.settle(0.5)
        faults = scene.named(ErrorSeen, "delivery")
        before = list(scene.sent)
        await office.db.reopen()
        await scene.until(scene.all_delivered, 20)
        await scene.delivery.stop(0)
        await scene.tasks.close()

    assert (len(faults) > 0, before) == (True, [])
    assert scene.sent == [letter_id]
