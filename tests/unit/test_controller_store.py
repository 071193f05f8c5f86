import asyncio
import sqlite3
from dataclasses import replace

import pytest

from controller.policy.audit import GENESIS, AuditRecord, seal, verify
from controller.store.protocol import Store
from controller.store.sqlite import SqliteStore
from outrigger.core.errors import Corrupt, Transient
from tests.support.clock import FakeClock
from tests.support.store_contract import StoreContract, entry


class TestSqliteStore(StoreContract):
    """The contract, on one file."""

    @pytest.fixture
    def make_store(self, tmp_path):
        """Open the file."""

        async def make() -> Store:
            return SqliteStore(tmp_path / "controller.db")

        return make


@pytest.fixture
async def path(tmp_path):
    """A store of four audit records, closed."""
    path = tmp_path / "controller.db"
    store = SqliteStore(path)
    for number in range(1, 5):
        await store.append_audit(entry(number))
    await store.close()
    return path


TAMPERING = {
    "a changed reason": ("UPDATE audit SET reason = 'x' WHERE sequence = 2", 2),
    "a changed digest": ("UPDATE audit SET chain_digest = x'00' WHERE sequence = 3", 3),
    "a removed record": ("DELETE FROM audit WHERE sequence = 2", 2),
    "a removed beginning": ("DELETE FROM audit WHERE sequence = 1", 1),
    "a removed end": ("DELETE FROM audit WHERE sequence = 4", 3),
    "a removed audit": ("DELETE FROM audit", 0),
}


@pytest.mark.parametrize("case", TAMPERING)
async def test_tampering_with_the_audit_is_found_at_the_start(path, case):
    """The first record that does not fit is named."""
    statement, number = TAMPERING[case]
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    store = SqliteStore(path)

    with pytest.raises(Corrupt, match=f"audit records? (after )?{number} ") as caught:
        await store.load(seen_after_wall_s=0.0)

    assert caught.value.reason == "AUDIT_BROKEN"
    await store.close()


async def test_an_old_audit_is_pruned_and_still_a_chain(tmp_path):
    """The chain then begins at the oldest record kept."""
    store = SqliteStore(tmp_path / "controller.db", audit_kept=4)
    for number in range(1, 11):
        await store.append_audit(entry(number))

    records = await store.audit(after=0, limit=100)

    assert [record.sequence for record in records] == [5, 6, 7, 8, 9, 10]
    await store.load(seen_after_wall_s=0.0)
    await store.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path):
    """Nothing is overwritten."""
    path = tmp_path / "controller.db"
    path.write_bytes(b"not a database at all, sorry" * 64)

    with pytest.raises(Corrupt) as caught:
        SqliteStore(path)

    assert caught.value.reason == "STORE_CORRUPT"
    assert path.read_bytes().startswith(b"not a database")


async def test_a_store_whose_file_was_taken_away_comes_back(tmp_path):
    """Writes fail until the watch over it has made a new file."""
    path = tmp_path / "controller.db"
    store = SqliteStore(path)
    await store.append_audit(entry(1))
    path.rename(tmp_path / "gone.db")
    with pytest.raises(Transient):
        await store.append_audit(entry(2))
    events = []
    watch = asyncio.create_task(
        store.keep_open(clock=FakeClock(), publish=events.append)
    )
    while len(events) < 2:
        await asyncio.sleep(0.01)

    assert (await store.append_audit(entry(2))).sequence == 2
    watch.cancel()
    await store.close()


def test_a_chain_digest_covers_what_stands_before_it_and_every_field():
    """Each change gives another digest."""
    sealed = seal(GENESIS, 1, entry(1))
    others = [
        seal(b"x", 1, entry(1)),
        seal(GENESIS, 2, entry(1)),
        *(
            seal(GENESIS, 1, replace(entry(1), **{name: value}))
            for name, value in {
                "wall_us": 0,
                "principal": "p",
                "method": "m",
                "subject": "s",
                "status_code": 1,
                "reason": "r",
            }.items()
        ),
    ]

    digests = {record.chain_digest for record in (sealed, *others)}

    assert len(digests) == len(others) + 1


def test_a_record_out_of_its_place_breaks_the_chain():
    """Two records that were swapped do not verify."""
    first = seal(GENESIS, 1, entry(1))
    second: AuditRecord = seal(first.chain_digest, 2, entry(2))

    with pytest.raises(Corrupt):
        verify([second, first], 0, GENESIS)
