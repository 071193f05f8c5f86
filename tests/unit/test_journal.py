import asyncio
import hashlib
import sqlite3
from dataclasses import replace

import pytest

from outrigger.core.database import Database
from outrigger.core.errors import (
    Conflict,
    Corrupt,
    Invalid,
    NotFound,
    Overloaded,
    Transient,
)
from outrigger.core.events import Alerted, ErrorSeen, LetterMoved
from sidecar.letters import record
from sidecar.letters.journal import SCHEMA, Journal, LetterFilter
from sidecar.letters.table import Route
from sidecar.policy.letter import LetterInput, LetterLimits, LetterState
from sidecar.policy.verdict import SendResult, Verdict
from tests.support.broken import break_database, disk_error
from tests.support.letters import METHOD, a_draft, an_office

OK = SendResult(code=0)
DELIVER = Verdict(what=LetterInput.DELIVER)
PARK = Verdict(what=LetterInput.PARK, reason="NOT_FOUND", counts=True)
PARKED = LetterFilter(states=(LetterState.PARKED,))
EIO = disk_error(sqlite3.SQLITE_IOERR_FSYNC)


@pytest.fixture
async def office(tmp_path):
    """A journal on disk with a clock that stands still."""
    async with an_office(tmp_path) as office:
        yield office


async def park(office, **fields):
    """A letter that its upstream refused for good."""
    letter_id = await office.take(code=0, **fields)
    for letter in await office.due(fields.get("upstream", "tool")):
        await office.journal.end(letter, SendResult(code=5, message="no"), PARK)
    return letter_id


async def counts(office):
    """The ledger as (accepted, delivered, parked, expired, discarded, live), sound."""
    ledger = await office.journal.ledger()
    assert ledger.lost == 0
    return (
        ledger.accepted,
        ledger.delivered,
        ledger.parked,
        ledger.expired,
        ledger.discarded,
        ledger.live,
    )


async def test_an_accepted_letter_is_on_disk_whole(office):
    """Another process finds it at once; nothing of the draft is lost."""
    draft = a_draft(ttl_s=60.0, idempotency_key="key-1", request=b"\x00payload")
    letter_id = await office.journal.accept(draft)
    letter = await office.journal.get(letter_id)
    rows = sqlite3.connect(office.path).execute("SELECT letter_id FROM letters")

    assert rows.fetchall() == [(draft.letter_id,)]
    assert letter_id == draft.letter_id
    assert letter.agent_id == "a1"
    assert (letter.upstream, letter.method) == ("tool", METHOD)
    assert letter.metadata == draft.metadata
    assert letter.request == b"\x00payload"
    assert letter.request_digest == hashlib.sha256(b"\x00payload").digest()
    assert letter.idempotency_key == "key-1"
    assert (letter.last_code, letter.last_message) == (14, "no connection")
    assert letter.expire_wall_s == office.clock.wall() + 60
    assert letter.next_attempt_wall_s == office.clock.wall() + 0.25
    assert letter.state is LetterState.PENDING


async def test_a_letter_without_a_key_gets_its_own_id_as_key(office):
    """So every delivery carries one."""
    letter = await office.journal.get(await office.take())

    assert letter.idempotency_key == letter.letter_id


async def test_a_letter_handed_over_outright_is_due_at_once_or_when_asked(office):
    """A failed call waits a moment; an asked-for time is obeyed."""
    wall = office.clock.wall()
    at_once = await office.journal.get(await office.take(code=0))
    later = await office.journal.get(await office.take(earliest_wall_s=wall + 99))

    assert at_once.next_attempt_wall_s == wall
    assert later.next_attempt_wall_s == wall + 99


async def test_the_same_key_again_is_the_same_letter(office):
    """Also while it is stored by somebody else, and after it has ended."""
    drafts = [a_draft(idempotency_key="k") for _ in range(20)]
    ids = await asyncio.gather(*(office.journal.accept(draft) for draft in drafts))
    office.clock.advance(1)
    for letter in await office.due():
        await office.journal.end(letter, OK, DELIVER)
    again = await office.take(idempotency_key="k")

    assert {*ids, again} == {drafts[0].letter_id}
    assert await counts(office) == (1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize(
    "other", [{"request": b"else"}, {"method": "/p.S/N"}, {"upstream": "u2"}]
)
async def test_a_key_used_for_another_call_is_refused(office, other):
    """Answering with the first letter's id would lose the second call silently."""
    await office.take(idempotency_key="k")
    with pytest.raises(Conflict) as raised:
        await office.take(idempotency_key="k", **other)

    assert raised.value.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_agents_share_a_file_and_nothing_else(tmp_path):
    """Neither keys nor letters nor ledgers of another agent are reachable."""
    async with an_office(tmp_path) as one:
        mine = await one.take(idempotency_key="k")
        other = Journal(
            one.db,
            agent_id="a2",
            clock=one.clock,
            rng=one.rng,
            limits=one.limits,
            publish=one.events.append,
        )
        theirs = await other.accept(a_draft(idempotency_key="k"))
        with pytest.raises(NotFound):
            await other.get(mine)

        assert theirs != mine
        assert (await other.ledger()).accepted == 1
        assert len((await other.list(LetterFilter())).letters) == 1
        assert (
            await other.redrive(LetterFilter(letter_ids=(mine,)), everything=False) == 0
        )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"request": b"x" * 101}, "LETTER_TOO_LARGE"),
        ({"idempotency_key": "x" * 513}, "BAD_IDEMPOTENCY_KEY"),
        ({"idempotency_key": "smörgås"}, "BAD_IDEMPOTENCY_KEY"),
        ({"idempotency_key": "a\nb"}, "BAD_IDEMPOTENCY_KEY"),
        ({"letter_id": "../x"}, "BAD_LETTER_ID"),
        ({"method": "nonsense"}, "BAD_METHOD"),
        ({"upstream": ""}, "BAD_UPSTREAM_NAME"),
        ({"ttl_s": 0.0}, "BAD_TTL"),
        ({"ttl_s": float("nan")}, "BAD_TTL"),
    ],
)
async def test_what_cannot_be_a_letter_is_refused_by_name(tmp_path, fields, reason):
    """Nothing is stored, and the refusal is counted."""
    limits = LetterLimits(max_request_bytes=100)
    async with an_office(tmp_path, limits=limits) as office:
        with pytest.raises(Invalid) as raised:
            await office.take(**fields)
        ledger = await office.journal.ledger()

    assert raised.value.reason == reason
    assert ledger.refused == {reason: 1}
    assert ledger.accepted == 0


async def test_an_id_used_twice_with_another_key_is_refused(office):
    """Ids name one letter for ever."""
    letter_id = await office.take()
    with pytest.raises(Invalid) as raised:
        await office.take(letter_id=letter_id, idempotency_key="other")

    assert raised.value.reason == "LETTER_ID_TAKEN"
    assert await counts(office) == (1, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    "limits", [LetterLimits(max_letters=2), LetterLimits(max_bytes=2 * (1024 + 7))]
)
async def test_a_full_journal_refuses_and_trims_nothing(tmp_path, limits):
    """Parked ones count too; one alert per time it fills; room makes it take again."""
    async with an_office(tmp_path, limits=limits) as office:
        kept = [await park(office), await office.take(code=0)]
        for _ in range(3):
            with pytest.raises(Overloaded) as raised:
                await office.take()
            assert raised.value.reason == "JOURNAL_FULL"
        found = await office.journal.list(LetterFilter())
        for letter in await office.due():
            await office.journal.end(letter, OK, DELIVER)
        await office.take()
        with pytest.raises(Overloaded):
            await office.take()

        assert [letter.letter_id for letter in found.letters] == kept
        alerts = [event for event in office.events if isinstance(event, Alerted)]
        assert [alert.name for alert in alerts] == ["LETTERS_REFUSED"] * 2
        assert (await office.journal.ledger()).refused == {"JOURNAL_FULL": 4}


async def test_a_known_key_is_answered_even_when_the_journal_is_full(tmp_path):
    """It takes no room."""
    async with an_office(tmp_path, limits=LetterLimits(max_letters=1)) as office:
        first = await office.take(idempotency_key="k")

        assert await office.take(idempotency_key="k") == first


async def test_a_claimed_letter_is_in_flight_on_disk_before_it_is_sent(office):
    """So that a crash while it is out is known; nobody else gets it meanwhile."""
    letter_id = await office.take()
    office.clock.advance(1)
    (claimed,) = await office.due()

    assert (claimed.letter_id, claimed.request) == (letter_id, b"request")
    assert await office.state(letter_id) == "in_flight"
    assert await office.due() == []


async def test_a_letter_is_not_claimed_before_it_is_due(office):
    """Routes say when to look."""
    await office.take()
    (route,) = await office.journal.routes()

    assert await office.due() == []
    assert route == Route("tool", METHOD, office.clock.wall() + 0.25)


async def test_routes_are_each_method_that_waits(office):
    """In order, with the first due time of each; ended ones do not count."""
    wall = office.clock.wall()
    await park(office, method="/p.S/Z")
    for method, wait in (("/p.S/B", 5), ("/p.S/B", 3), ("/p.S/A", 9)):
        await office.take(method=method, earliest_wall_s=wall + wait)
    await office.take(upstream="other", earliest_wall_s=wall + 1)

    assert await office.journal.routes() == [
        Route("other", METHOD, wall + 1),
        Route("tool", "/p.S/A", wall + 9),
        Route("tool", "/p.S/B", wall + 3),
    ]


async def test_a_failed_attempt_is_kept_with_its_letter(office):
    """Counts, codes, messages, the next time; the newest attempts stay."""
    limits = replace(office.limits, attempts_kept=2)
    office.journal._table._limits = limits
    letter_id = await office.take()
    for n in range(3):
        office.clock.advance(100)
        (letter,) = await office.due()
        retry = Verdict(
            what=LetterInput.RETRY, reason="INTERNAL", counts=n > 0, delay_s=50.0
        )
        await office.journal.end(letter, SendResult(code=13, message=f"n{n}"), retry)
    letter = await office.journal.get(letter_id)

    assert letter.state is LetterState.PENDING
    assert (letter.attempt_count, letter.failure_count) == (2, 3)
    assert (letter.last_code, letter.last_message) == (13, "n2")
    assert [attempt.message for attempt in letter.attempts] == ["n1", "n2"]
    assert letter.next_attempt_wall_s == office.clock.wall() + 50
    assert letter.reason == "INTERNAL"


async def test_a_delivered_letter_has_its_end(office):
    """Nothing waits for it any more."""
    letter_id = await office.take(code=0)
    for letter in await office.due():
        await office.journal.end(letter, OK, DELIVER)
    letter = await office.journal.get(letter_id)

    assert letter.state is LetterState.DELIVERED
    assert letter.end_wall_s == office.clock.wall()
    assert letter.next_attempt_wall_s is None
    assert await counts(office) == (1, 1, 0, 0, 0, 0)


async def test_what_was_not_sent_goes_back_without_an_attempt(office):
    """As if it had never been claimed, only later."""
    letter_id = await office.take(code=0)
    (letter,) = await office.due()
    await office.journal.put_back(letter, "REFUSED: limit", 5.0)
    back = await office.journal.get(letter_id)

    assert (back.state, back.attempt_count) == (LetterState.PENDING, 0)
    assert back.attempts == ()
    assert back.next_attempt_wall_s == office.clock.wall() + 5


async def test_a_crash_brings_back_what_was_in_flight(tmp_path):
    """Counted per letter; the third in a row parks it as poison."""
    seen = []
    for n in range(3):
        async with an_office(tmp_path) as office:
            if n == 0:
                letter_id = await office.take(code=0)
            route = Route("tool", METHOD, 0.0)
            claimed = await office.journal.claim(route, 5, suspects=n > 0)
            assert [letter.letter_id for letter in claimed] == [letter_id]
            seen.append(claimed[0].crash_count)
    async with an_office(tmp_path) as office:
        letter = await office.journal.get(letter_id)
        assert await counts(office) == (1, 0, 1, 0, 0, 0)

    assert seen == [0, 1, 2]
    assert (letter.state, letter.reason) == (LetterState.PARKED, "CRASH_POISON")


async def test_an_answer_clears_the_count_of_crashes(tmp_path):
    """Only crashes in a row make poison: a killed sidecar is not the letter's doing."""
    async with an_office(tmp_path) as office:
        letter_id = await office.take(code=0)
        await office.due()
    async with an_office(tmp_path) as office:
        (letter,) = await office.journal.claim(
            Route("tool", METHOD, 0.0), 1, suspects=True
        )
        retry = Verdict(what=LetterInput.RETRY, reason="UNAVAILABLE")
        await office.journal.end(letter, SendResult(code=14), retry)

        assert (await office.journal.get(letter_id)).crash_count == 0


async def test_an_orderly_stop_is_no_crash(tmp_path):
    """What was out is pending again, not suspected."""
    async with an_office(tmp_path) as office:
        letter_id = await office.take(code=0)
        await office.due()
        await office.journal.release()
    async with an_office(tmp_path) as office:
        letter = await office.journal.get(letter_id)

    assert (letter.state, letter.crash_count) == (LetterState.PENDING, 0)


async def test_every_move_is_told_once_it_is_committed(office):
    """With the states before and after, in order."""
    letter_id = await office.take(code=0)
    for letter in await office.due():
        await office.journal.end(letter, SendResult(code=5), PARK)
    await office.journal.redrive(PARKED, everything=False)

    assert [
        (event.before, event.after, event.reason)
        for event in office.events
        if isinstance(event, LetterMoved) and event.letter_id == letter_id
    ] == [
        ("", "pending", ""),
        ("pending", "in_flight", ""),
        ("in_flight", "parked", "NOT_FOUND"),
        ("parked", "pending", "REDRIVEN"),
    ]


async def test_a_caller_that_goes_away_leaves_its_letter_and_its_event(office):
    """The letter is stored and told of all the same."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await office.take(idempotency_key="k")
    again = await office.take(idempotency_key="k")

    assert [event.letter_id for event in office.events] == [again]
    assert await counts(office) == (1, 0, 0, 0, 0, 1)


async def test_listeners_hear_which_upstream_has_work(office):
    """New and redriven letters ring; ended ones do not."""
    rung = []
    office.journal.on_pending.append(rung.append)
    await park(office, upstream="u1")
    await office.journal.redrive(LetterFilter(upstream="u1"), everything=False)

    assert rung == ["u1", "u1"]


async def test_an_aged_letter_expires_wherever_it_waits(tmp_path):
    """When claimed, and by the sweep when it is held; one in time stays."""
    async with an_office(tmp_path) as office:
        claimed = await office.take(code=0, ttl_s=10.0)
        held = await office.take(code=0, ttl_s=10.0, method="/p.S/H")
        stays = await office.take(code=0, ttl_s=1000.0, method="/p.S/H")
        await office.journal.hold(Route("tool", "/p.S/H", 0.0), "UNAUTHENTICATED")
        office.clock.advance(10)
        assert await office.due() == []
        assert await office.state(claimed) == "expired"
        await office.journal.sweep()

        assert await office.state(held) == "expired"
        assert await office.state(stays) == "held"
        assert await counts(office) == (3, 0, 0, 2, 0, 1)


async def test_retention_lets_records_go_and_counts_stay(tmp_path):
    """Only delivered and discarded ones, oldest first; parked ones never."""
    limits = LetterLimits(gone_kept=2, gone_kept_s=1000.0)
    async with an_office(tmp_path, limits=limits) as office:
        parked = await park(office)
        for _ in range(5):
            office.clock.advance(1)
            await office.take(code=0)
            for letter in await office.due():
                await office.journal.end(letter, OK, DELIVER)
        await office.journal.sweep()
        left = await office.journal.list(LetterFilter())
        office.clock.advance(1000)
        await office.journal.sweep()
        at_last = await office.journal.list(LetterFilter())
        requests = await office.db.read(
            lambda conn: conn.execute("SELECT COUNT(*) FROM letter_requests").fetchone()
        )

        assert len(left.letters) == 3
        assert [letter.letter_id for letter in at_last.letters] == [parked]
        assert requests == (1,)
        assert await counts(office) == (6, 5, 1, 0, 0, 0)


async def test_retention_is_bounded_in_bytes(tmp_path):
    """Large delivered requests do not fill the disk."""
    limits = LetterLimits(gone_kept_bytes=50_000)
    async with an_office(tmp_path, limits=limits) as office:
        for _ in range(5):
            office.clock.advance(1)
            await office.take(code=0, request=b"x" * 20_000)
            for letter in await office.due():
                await office.journal.end(letter, OK, DELIVER)
        await office.journal.sweep()

        assert len((await office.journal.list(LetterFilter())).letters) == 2
        assert await counts(office) == (5, 5, 0, 0, 0, 0)


async def test_a_redriven_letter_begins_afresh_and_keeps_its_history(office):
    """Attempts and age begin again; what happened stays with it."""
    letter_id = await park(office, ttl_s=100.0)
    office.clock.advance(1000)
    moved = await office.journal.redrive(PARKED, everything=False)
    letter = await office.journal.get(letter_id)

    assert moved == 1
    assert letter.state is LetterState.PENDING
    assert (letter.attempt_count, letter.redrive_count) == (0, 1)
    assert len(letter.attempts) == 1
    assert letter.end_wall_s is None
    assert letter.expire_wall_s == office.clock.wall() + 100
    assert await counts(office) == (1, 0, 0, 0, 0, 1)


async def test_bulk_moves_take_many_letters(office):
    """More than one chunk of them."""
    for start in range(0, 450, 50):
        await asyncio.gather(*(office.take(code=0) for _ in range(start, start + 50)))
    held = await office.journal.hold(Route("tool", METHOD, 0.0), "UNAUTHENTICATED")
    redriven = await office.journal.redrive(LetterFilter(), everything=True)

    assert (held, redriven) == (450, 450)


async def test_validate_only_counts_and_moves_nothing(office):
    """Nobody is disturbed."""
    letter_id = await park(office)

    assert (
        await office.journal.redrive(PARKED, everything=False, validate_only=True) == 1
    )
    assert (
        await office.journal.discard(
            PARKED, reason="old", everything=False, validate_only=True
        )
        == 1
    )
    assert await office.state(letter_id) == "parked"


async def test_an_empty_filter_never_means_all(office):
    """It must be said in so many words; a filter that matches nothing moves nothing."""
    await park(office)
    for move in (
        office.journal.redrive(LetterFilter(), everything=False),
        office.journal.discard(LetterFilter(), reason="x", everything=False),
    ):
        with pytest.raises(Invalid) as raised:
            await move
        assert raised.value.reason == "EMPTY_FILTER"
    nothing = LetterFilter(upstream="nobody")

    assert await office.journal.redrive(nothing, everything=False) == 0
    assert await counts(office) == (1, 0, 1, 0, 0, 0)


async def test_discarding_needs_a_reason_and_keeps_it(office):
    """Thrown away is an end like any other; waiting ones only when named so."""
    parked, waiting = await park(office), await office.take()
    with pytest.raises(Invalid) as raised:
        await office.journal.discard(PARKED, reason="  ", everything=False)
    by_default = await office.journal.discard(
        LetterFilter(), reason="o", everything=True
    )
    pending = LetterFilter(states=(LetterState.PENDING,))
    by_name = await office.journal.discard(pending, reason="obsolete", everything=False)

    assert raised.value.reason == "NO_REASON"
    assert (by_default, by_name) == (1, 1)
    assert await office.state(parked) == "discarded"
    assert (await office.journal.get(waiting)).reason == "obsolete"
    assert await counts(office) == (2, 0, 0, 0, 2, 0)


async def test_a_waiting_letter_named_by_its_id_is_discarded_but_not_redriven(office):
    """Whoever names it means it; it needs no redrive, for it waits already."""
    waiting = await office.take()
    named = LetterFilter(letter_ids=(waiting,))

    assert await office.journal.redrive(named, everything=False) == 0
    assert await office.journal.discard(named, reason="wrong", everything=False) == 1
    assert await office.state(waiting) == "discarded"


async def test_a_letter_in_flight_is_left_alone_by_operators(office):
    """The claim wins."""
    letter_id = await office.take(code=0)
    await office.due()
    chosen = LetterFilter(letter_ids=(letter_id,), states=tuple(LetterState))

    assert await office.journal.discard(chosen, reason="x", everything=False) == 0
    assert await office.journal.redrive(chosen, everything=False) == 0
    assert await office.state(letter_id) == "in_flight"


async def test_pages_hold_every_letter_once(office):
    """Oldest first, also while others are added; the last page says so."""
    ids = [await office.take(code=0) for _ in range(7)]
    seen, token = [], ""
    while True:
        found = await office.journal.list(LetterFilter(upstream="tool"), 3, token)
        seen += [letter.letter_id for letter in found.letters]
        token = found.next_page_token
        if not token:
            break
        if len(seen) == 3:
            ids.append(await office.take(code=0))

    assert seen == ids
    assert all(letter.request is None for letter in found.letters)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (LetterFilter(), ["p1", "p2", "d1", "w1"]),
        (LetterFilter(states=(LetterState.PARKED,)), ["p1", "p2"]),
        (LetterFilter(upstream="u2"), ["p2"]),
        (LetterFilter(method="/p.S/W"), ["w1"]),
        (LetterFilter(letter_ids=("p1", "w1", "forged")), ["p1", "w1"]),
        (LetterFilter(states=(LetterState.PARKED,), upstream="u2"), ["p2"]),
        (LetterFilter(states=(LetterState.HELD,)), []),
    ],
)
async def test_a_filter_means_what_matches_all_its_fields(office, chosen, expected):
    """Empty fields do not narrow."""
    await park(office, letter_id="p1")
    await park(office, letter_id="p2", upstream="u2")
    await office.take(letter_id="d1", code=0)
    for letter in await office.due():
        await office.journal.end(letter, OK, DELIVER)
    await office.take(letter_id="w1", method="/p.S/W")
    found = await office.journal.list(chosen)

    assert [letter.letter_id for letter in found.letters] == expected


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((LetterFilter(), -1), "BAD_PAGE_SIZE"),
        ((LetterFilter(), 1001), "BAD_PAGE_SIZE"),
        ((LetterFilter(), 5, "5"), "BAD_PAGE_TOKEN"),
        ((LetterFilter(), 5, "x.00000000"), "BAD_PAGE_TOKEN"),
        ((LetterFilter(), 5, "9" * 30 + ".0"), "BAD_PAGE_TOKEN"),
        ((LetterFilter(letter_ids=("x",) * 1001),), "TOO_MANY_LETTER_IDS"),
    ],
)
async def test_a_page_that_cannot_be_is_refused(office, arguments, reason):
    """With what would be valid."""
    with pytest.raises(Invalid) as raised:
        await office.journal.list(*arguments)

    assert raised.value.reason == reason


async def test_a_token_of_another_filter_is_refused(office):
    """A page of one list cannot go on in another."""
    for _ in range(3):
        await office.take()
    token = (await office.journal.list(LetterFilter(), 1)).next_page_token
    with pytest.raises(Invalid):
        await office.journal.list(LetterFilter(upstream="tool"), 1, token)


async def test_a_letter_that_is_not_there_is_not_found(office):
    """A forged id reaches nothing."""
    with pytest.raises(NotFound) as raised:
        await office.journal.get("' OR 1=1 --")

    assert raised.value.reason == "NO_SUCH_LETTER"


DAMAGES = {
    "a flipped reason": "UPDATE letters SET reason = 'forged' WHERE letter_id = ?",
    "a zeroed count": "UPDATE letters SET attempt_count = 7 WHERE letter_id = ?",
    "a text that is no text": "UPDATE letters SET method = CAST(x'ff00fe' AS TEXT)"
    " WHERE letter_id = ?",
    "a number that is a text": "UPDATE letters SET request_size = 'many'"
    " WHERE letter_id = ?",
    "metadata that is no JSON": "UPDATE letters SET metadata = '[' WHERE letter_id = ?",
    "a time that is no time": "UPDATE letters SET next_attempt_wall = 'soon'"
    " WHERE letter_id = ?",
    "a time that is gone": "UPDATE letters SET next_attempt_wall = NULL"
    " WHERE letter_id = ?",
    "a missing request": "DELETE FROM letter_requests WHERE seq ="
    " (SELECT seq FROM letters WHERE letter_id = ?)",
    "another request": "UPDATE letter_requests SET request = x'00' WHERE seq ="
    " (SELECT seq FROM letters WHERE letter_id = ?)",
    "a request of another type": "UPDATE letter_requests SET request = 5 WHERE seq ="
    " (SELECT seq FROM letters WHERE letter_id = ?)",
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_record_is_parked_and_others_go_on(office, damage):
    """It is never sent, never repaired, and blocks nobody."""
    bad = await office.take(code=0)
    good = await office.take(code=0)
    office.damage(DAMAGES[damage], bad)
    claimed = await office.due()
    with pytest.raises(Corrupt) as raised:
        await office.journal.get(bad)
    shown = {
        letter.letter_id: letter
        for letter in (await office.journal.list(LetterFilter())).letters
    }

    assert [letter.letter_id for letter in claimed] == [good]
    assert raised.value.reason == "LETTER_UNDECODABLE"
    assert (shown[bad].state.value, shown[bad].reason) == ("parked", "UNDECODABLE")
    assert await counts(office) == (2, 0, 1, 0, 0, 1)


async def test_a_record_whose_state_is_damaged_is_found_by_the_scrub(office):
    """Until then the ledger says that one is lost; nothing hides it."""
    bad = await office.take(code=0)
    office.damage("UPDATE letters SET state = 'pendinG' WHERE letter_id = ?", bad)
    before = await office.journal.ledger()
    await office.journal.sweep()

    assert before.lost == 1
    assert await counts(office) == (1, 0, 1, 0, 0, 0)


async def test_the_scrub_goes_round_all_records(office):
    """A few at a time, and begins again at the end."""
    ids = [await office.take(code=0) for _ in range(30)]
    office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", ids[25])
    await office.journal.sweep()
    assert (await office.journal.ledger()).parked == 0
    await office.journal.sweep()
    assert (await office.journal.ledger()).parked == 1
    office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", ids[0])
    await office.journal.sweep()

    assert await counts(office) == (30, 0, 2, 0, 0, 28)


async def test_a_damaged_record_can_only_be_discarded(office):
    """A redrive leaves it parked; damage met on the way is parked too."""
    bad = await park(office)
    worse = await office.take(code=0)
    for letter_id in (bad, worse):
        office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", letter_id)
    every = LetterFilter(states=tuple(LetterState))
    redriven = await office.journal.redrive(every, everything=False)
    after = await counts(office)
    discarded = await office.journal.discard(every, reason="bad", everything=False)
    again = await office.journal.discard(every, reason="bad", everything=False)

    assert (redriven, discarded, again) == (0, 2, 0)
    assert after == (2, 0, 2, 0, 0, 0)
    assert await counts(office) == (2, 0, 0, 0, 2, 0)


async def test_damage_found_while_a_letter_is_out_parks_it(office):
    """Whatever its upstream said: the record cannot be trusted any more."""
    bad, worse = await office.take(code=0), await office.take(code=0)
    one, other = await office.due()
    for letter_id in (bad, worse):
        office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", letter_id)
    await office.journal.end(one, OK, DELIVER)
    await office.journal.put_back(other, "REFUSED", 1.0)

    assert await counts(office) == (2, 0, 2, 0, 0, 0)


@pytest.mark.parametrize("start", ["recover", "release", "expire"])
async def test_damage_found_by_upkeep_parks_it(office, start):
    """Starting, stopping and expiring go on with the others."""
    bad = await office.take(code=0, ttl_s=5.0)
    good = await office.take(code=0, ttl_s=5.0)
    if start != "expire":
        await office.due()
    office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", bad)
    if start == "recover":
        await office.journal.recover()
    elif start == "release":
        await office.journal.release()
    else:
        office.clock.advance(5)
        await office.journal.sweep()

    assert (await office.journal.ledger()).parked == 1
    assert await office.state(good) == ("expired" if start == "expire" else "pending")


async def test_a_damaged_letter_refuses_its_key(office):
    """We cannot say whether it is the same call."""
    bad = await office.take(idempotency_key="k")
    office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", bad)
    with pytest.raises(Corrupt):
        await office.take(idempotency_key="k")


async def test_a_letter_whose_commit_failed_is_held_in_doubt(office):
    """Its caller was told "not taken": it is never delivered unasked, and counted."""
    break_database(office.db, "COMMIT", EIO, after=True)
    draft = a_draft(idempotency_key="k", code=0)
    with pytest.raises(Transient):
        await office.journal.accept(draft)
    await office.db.reopen()
    await office.take(code=0, method="/p.S/A")
    await office.take(code=0)
    claimed = await office.due()
    held = await office.journal.get(draft.letter_id)
    asked = await office.take(idempotency_key="k", code=0)

    assert draft.letter_id not in [letter.letter_id for letter in claimed]
    assert len(claimed) == 2
    assert (held.state.value, held.reason) == ("held", "IN_DOUBT")
    assert asked == draft.letter_id
    assert await office.state(asked) == "pending"
    assert [letter.letter_id for letter in await office.due()] == [asked]
    assert (await office.journal.ledger()).in_doubt == 1
    assert office.db.in_doubt == frozenset()


async def test_doubt_is_settled_at_the_next_start_too(tmp_path):
    """The process died before it could reopen; the labels beside the file stayed."""
    async with an_office(tmp_path) as office:
        break_database(office.db, "COMMIT", EIO, after=True)
        draft = a_draft()
        with pytest.raises(Transient):
            await office.journal.accept(draft)
        alerts = [event.name for event in office.events]
    async with an_office(tmp_path) as office:
        assert await office.state(draft.letter_id) == "held"
        assert await counts(office) == (1, 0, 0, 0, 0, 1)

    assert alerts == ["LETTERS_REFUSED"]


async def test_a_failed_letter_that_is_really_gone_is_not_in_doubt(office):
    """Nothing is there to hold."""
    break_database(office.db, "COMMIT", EIO)
    with pytest.raises(Transient):
        await office.take()
    await office.db.reopen()
    await office.journal.recover()

    assert await counts(office) == (0, 0, 0, 0, 0, 0)
    assert (await office.journal.ledger()).in_doubt == 0


async def test_only_what_waits_can_be_in_doubt(office):
    """A letter that was acknowledged and has ended keeps its end."""
    letter_id = await park(office)
    office.db._doubt.add({letter_id})
    await office.journal.recover()

    assert await office.state(letter_id) == "parked"
    assert (await office.journal.ledger()).in_doubt == 0


async def test_a_record_of_a_newer_version_is_not_guessed_at(office):
    """Its checksum is right and its words are unknown: it is not touched."""
    letter = await office.journal.get(await office.take())
    fields = list(record.row_of(letter)[:-1])
    fields[fields.index("pending")] = "teleported"
    row = (*fields, record._checksum(tuple(fields)))
    with pytest.raises(Corrupt) as raised:
        record.letter_of(row, None)

    assert raised.value.reason == "LETTER_UNDECODABLE"


async def test_a_full_disk_refuses_typed_and_takes_again_later(office):
    """Nothing was acknowledged that is not there."""
    break_database(office.db, "COMMIT", disk_error(sqlite3.SQLITE_FULL))
    with pytest.raises(Overloaded) as raised:
        await office.take()
    await office.take()

    assert raised.value.reason == "STORE_FULL"
    assert await counts(office) == (1, 0, 0, 0, 0, 1)


async def test_an_export_brings_every_letter_to_another_journal(tmp_path):
    """Waiting ones wait there, ended ones have ended; a second time changes nothing."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    async with an_office(tmp_path / "one") as one:
        parked = await park(one)
        delivered = await one.take(code=0)
        for letter in await one.due():
            await one.journal.end(letter, OK, DELIVER)
        waiting = await one.take()
        carried = [letter async for letter in one.journal.export(LetterFilter())]
    async with an_office(tmp_path / "two", agent_id="b") as two:
        new = [await two.journal.import_(letter) for letter in carried]
        again = [await two.journal.import_(letter) for letter in carried]
        states = [await two.state(i) for i in (parked, delivered, waiting)]
        letter = await two.journal.get(parked)
        assert await counts(two) == (3, 1, 1, 0, 0, 1)

    assert (new, again) == ([True] * 3, [False] * 3)
    assert states == ["parked", "delivered", "pending"]
    assert (letter.agent_id, letter.request) == ("b", b"request")
    assert letter.attempts == carried[0].attempts


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"request": b"tampered"}, "BAD_LETTER_DIGEST"),
        ({"request_digest": b""}, "BAD_LETTER_DIGEST"),
        ({"request": None}, "NO_REQUEST"),
        ({"letter_id": "a b"}, "BAD_LETTER_ID"),
        ({"method": "x"}, "BAD_METHOD"),
    ],
)
async def test_a_bad_import_is_refused_and_named(tmp_path, change, reason):
    """The error says which letter; nothing of it is stored."""
    (tmp_path / "two").mkdir()
    async with an_office(tmp_path) as one:
        letter = await one.journal.get(await one.take())
    async with an_office(tmp_path / "two") as two:
        bad = replace(letter, **change)
        with pytest.raises(Invalid) as raised:
            await two.journal.import_(bad)
        assert await counts(two) == (0, 0, 0, 0, 0, 0)

    assert raised.value.reason == reason
    assert bad.letter_id in raised.value.message or change.get("method")


async def test_an_import_whose_key_is_taken_is_refused(office):
    """Two letters of one key would be one call delivered twice."""
    letter = await office.journal.get(await office.take(idempotency_key="k"))
    with pytest.raises(Invalid) as raised:
        await office.journal.import_(replace(letter, letter_id="other"))

    assert raised.value.reason == "IDEMPOTENCY_KEY_TAKEN"


async def test_an_export_leaves_out_what_is_damaged_and_says_so(office):
    """The rest comes through; a record that went meanwhile is no error."""
    bad, gone, good = [await office.take(code=0) for _ in range(3)]
    office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", bad)
    carried = office.journal.export(LetterFilter())
    office.damage("DELETE FROM letters WHERE letter_id = ?", "nobody")
    whole = office.journal._bulk.ids

    async def ids(chosen):
        found = await whole(chosen)
        office.damage("DELETE FROM letters WHERE letter_id = ?", gone)
        return found

    office.journal._bulk.ids = ids
    got = [letter.letter_id async for letter in carried]
    errors = [event for event in office.events if isinstance(event, ErrorSeen)]

    assert got == [good]
    assert [(error.subject, error.reason) for error in errors] == [
        (bad, "LETTER_UNDECODABLE")
    ]


async def test_a_moved_letter_that_is_gone_moves_nothing(office):
    """Its record was let go between the selection and the move."""
    letter_id = await park(office)
    office.damage("DELETE FROM letters WHERE letter_id = ?", letter_id)

    assert await office.journal._bulk.redrive([letter_id], 0.0) == 0


async def test_a_journal_that_is_no_database_is_refused_and_left(tmp_path):
    """Evidence stays evidence."""
    path = tmp_path / "sidecar.db"
    path.write_bytes(b"not a journal" * 1000)
    with pytest.raises(Corrupt) as raised:
        Database(path, SCHEMA)

    assert raised.value.reason == "STORE_CORRUPT"
    assert path.read_bytes() == b"not a journal" * 1000


async def test_the_ledger_asks_the_shared_tier_for_its_count(tmp_path):
    """Without one it is 0."""
    async with an_office(tmp_path) as office:
        before = (await office.journal.ledger()).handed_over
        office.journal.handed_over = lambda: 7

        assert (before, (await office.journal.ledger()).handed_over) == (0, 7)
        assert office.journal.agent_id == "a1"
