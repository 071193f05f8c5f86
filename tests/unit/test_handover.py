from sidecar.letters.handover import SCHEMA, Entry, Handover
from sidecar.letters.record import digest
from sidecar.policy.letter import LetterInput
from sidecar.policy.verdict import SendResult, Verdict
from tests.support.letters import an_office

DELIVER = Verdict(what=LetterInput.DELIVER)


async def a_side(office):
    """The hand-over's side of an office."""
    side = Handover("a1")
    await office.db.write(lambda conn: side.prepare(conn, "j1", 2))
    return side


async def todo_of(office, side, *, limit=100, max_bytes=10**6):
    """What there is to do now."""
    return await office.db.read(lambda conn: side.todo(conn, limit, max_bytes))


async def deliver_all(office):
    """End every letter."""
    for letter in await office.due():
        await office.journal.end(letter, SendResult(code=0), DELIVER)


async def test_a_letter_that_ends_while_it_is_handed_over_is_taken_out_again(tmp_path):
    """Its row stays on the list: both sides differ when the hand-over is recorded."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        side = await a_side(office)
        await office.take(code=0)
        ((seq, _),) = (await todo_of(office, side)).to_add
        await deliver_all(office)
        await office.db.write(
            lambda conn: side.record(conn, added={seq: (0, 1)}, removed=())
        )
        todo = await todo_of(office, side)

    assert todo.to_remove == [(seq, (0, 1))]


async def test_a_letter_redriven_while_it_is_taken_out_is_handed_over_again(tmp_path):
    """The same race the other way round."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        side = await a_side(office)
        await office.take(code=0)
        ((seq, letter),) = (await todo_of(office, side)).to_add
        await office.db.write(
            lambda conn: side.record(conn, added={seq: (0, 1)}, removed=())
        )
        for claimed in await office.due():
            park = Verdict(what=LetterInput.PARK, reason="NOT_FOUND")
            await office.journal.end(claimed, SendResult(code=5), park)
        out = (await todo_of(office, side)).to_remove
        await office.journal._bulk.redrive([letter.letter_id], 0.0)
        await office.db.write(lambda conn: side.record(conn, added={}, removed=[seq]))
        todo = await todo_of(office, side)

    assert out == [(seq, (0, 1))]
    assert [pair[0] for pair in todo.to_add] == [seq]


async def test_a_letter_that_came_and_went_is_struck_off(tmp_path):
    """Nothing was handed over, nothing has to be taken out."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        side = await a_side(office)
        await office.take(code=0)
        await deliver_all(office)
        todo = await todo_of(office, side)
        await office.db.write(
            lambda conn: side.record(conn, added={}, removed=(), alike=todo.alike)
        )

        assert len(todo.alike) == 1
        assert (await todo_of(office, side)).is_empty
        assert not await office.db.read(side.waits)


async def test_a_batch_is_bounded_in_letters_and_bytes(tmp_path):
    """One letter is always taken, however large."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        side = await a_side(office)
        for _ in range(5):
            await office.take(code=0, request=b"x" * 1000)

        assert len((await todo_of(office, side, limit=3)).to_add) == 3
        assert len((await todo_of(office, side, max_bytes=1500)).to_add) == 2
        assert len((await todo_of(office, side, max_bytes=1)).to_add) == 1


async def test_the_journals_name_and_shards_are_fixed_the_first_time(tmp_path):
    """A later start cannot move letters to other streams."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        first, later = await a_side(office), Handover("a1")
        await office.db.write(lambda conn: later.prepare(conn, "j2", 8))

    assert (later.journal_id, later.shards) == (first.journal_id, 2)
    assert {later.shard_of(f"letter-{n}") for n in range(20)} == {0, 1}


async def test_only_our_own_letters_are_adopted_and_each_once(tmp_path):
    """Same id, same request, not there yet; everything else is a stranger."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        side = await a_side(office)
        mine = await office.take(code=0, request=b"r")
        found = [
            Entry(5, mine, digest(b"forged")),
            Entry(6, mine, digest(b"r")),
            Entry(7, mine, digest(b"r")),
            Entry(8, "nobody", digest(b"r")),
        ]
        strangers = await office.db.write(lambda conn: side.adopt(conn, 1, found))
        counts = await office.db.read(side.counts)
        watermarks = await office.db.read(side.watermarks)

    assert strangers == [5, 7, 8]
    assert counts == (1, 0, {1: 1})
    assert watermarks == {1: 8}
