import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from outrigger.core import store_file
from outrigger.core.clock import SystemClock
from outrigger.core.database import Database, connect
from outrigger.core.errors import (
    Bug,
    Corrupt,
    Invalid,
    Overloaded,
    Refused,
    Transient,
)
from outrigger.core.events import Alerted, Recovered
from outrigger.core.reopening import keep_open
from outrigger.core.tasks import Tasks, finish
from tests.support.broken import break_database, disk_error
from tests.support.clock import FakeClock

SCHEMA = "CREATE TABLE IF NOT EXISTS words (word TEXT UNIQUE NOT NULL, body BLOB)"
EIO = disk_error(sqlite3.SQLITE_IOERR_FSYNC)


def put(word, size=0):
    """A write of one word."""
    return lambda conn: (
        conn.execute(
            "INSERT INTO words VALUES (?, zeroblob(?))", (word, size)
        ).lastrowid
    )


def words(conn):
    """All words, as a read."""
    return [row[0] for row in conn.execute("SELECT word FROM words ORDER BY rowid")]


@pytest.fixture
def path(tmp_path):
    """Where the database is."""
    return tmp_path / "words.db"


@pytest.fixture
async def database(path):
    """An open one, closed afterwards."""
    database = Database(path, SCHEMA)
    yield database
    await database.close()


async def on_disk(path):
    """What somebody else finds in the file."""
    with closing(sqlite3.connect(path)) as other:
        return words(other)


async def test_an_answered_write_is_seen_by_another_process(database, path):
    """The answer comes after the commit, not before."""
    rowid = await database.write(put("kept"))

    assert rowid == 1
    assert await on_disk(path) == ["kept"]


async def test_many_writers_share_their_commits(database):
    """What waits together is committed together: far fewer commits than writes."""
    commits = []
    whole = database._transact

    def counting(batch):
        commits.append(len(batch))
        return whole(batch)

    database._transact = counting
    await asyncio.gather(*(database.write(put(f"w{n}")) for n in range(400)))

    assert sum(commits) == 400
    assert len(commits) < 40
    assert max(commits) <= 256


async def test_a_failing_function_takes_back_only_its_own_changes(database):
    """Its neighbours in the batch are stored; its error reaches its caller."""

    def half(conn):
        put("half")(conn)
        raise Invalid("BAD_WORD", "no")

    results = await asyncio.gather(
        database.write(put("before")),
        database.write(half),
        database.write(put("after")),
        return_exceptions=True,
    )

    assert isinstance(results[1], Invalid)
    assert await database.read(words) == ["before", "after"]


@pytest.mark.parametrize(
    "statement", ["SELEKT 1", "INSERT INTO words VALUES (NULL, 1)"]
)
async def test_bad_sql_fails_that_write_only(database, statement):
    """A statement that is wrong, or breaks a constraint, does not fail the store."""
    with pytest.raises(sqlite3.Error):
        await database.write(lambda conn: conn.execute(statement))

    await database.write(put("fine"))
    assert await database.read(words) == ["fine"]


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt(), StopIteration()])
async def test_no_exception_ends_the_writer(database, error):
    """What no future may carry becomes a Bug, and the next write works."""

    def leave(_):
        raise error

    with pytest.raises(Bug) as raised:
        await database.write(leave)

    assert raised.value.__cause__ is error
    await database.write(put("still here"))


async def test_a_function_that_commits_by_itself_fails_the_store(database):
    """The batch's bounds are gone then: nothing is acknowledged after that."""
    with pytest.raises(Transient) as raised:
        await database.write(lambda conn: conn.execute("COMMIT"))

    assert raised.value.reason == "STORE_FAILED"


async def test_a_cancelled_writer_does_not_break_its_batch(database):
    """The work is done all the same, and neighbours get their answers."""
    tasks = Tasks(print, SystemClock())
    task = tasks.spawn("writer", database.write(put("cancelled")))
    await asyncio.sleep(0)
    await finish(task)
    await database.write(put("neighbour"))

    assert await database.read(words) == ["cancelled", "neighbour"]


async def test_a_failed_fsync_fails_the_waiting_and_the_later(database):
    """Nobody is told "stored" any more, and the fsync is not tried again."""
    await database.write(put("before"))
    broken = break_database(database, "COMMIT", EIO, times=100)
    waiting = [database.write(put(f"w{n}"), label=f"w{n}") for n in range(3)]
    results = await asyncio.gather(*waiting, return_exceptions=True)
    with pytest.raises(Transient) as raised:
        await database.write(put("later"))

    assert {error.reason for error in results} == {"STORE_FAILED"}
    assert raised.value.reason == "STORE_FAILED"
    assert broken.left == 99
    assert database.failure.reason == "STORE_FAILED"
    assert database.in_doubt == {"w0", "w1", "w2"}


async def test_what_is_queued_behind_a_failed_commit_fails_too(database):
    """A write that was queued before the failure was known is not tried."""
    break_database(database, "COMMIT", EIO)
    futures = [database.submit(put(f"w{n}")) for n in range(300)]
    results = await asyncio.gather(*futures, return_exceptions=True)

    assert {type(error) for error in results} == {Transient}
    assert await database.read(words) == []


async def test_reopening_keeps_exactly_what_was_acknowledged(database, path):
    """A commit whose fsync failed is gone; what came before is there; it goes on."""
    await database.write(put("acknowledged", size=100_000))
    break_database(database, "COMMIT", EIO)
    with pytest.raises(Transient):
        await database.write(put("failed"))
    inode = path.stat().st_ino
    await database.reopen()
    await database.write(put("next"))

    assert path.stat().st_ino != inode
    assert database.failure is None
    assert await database.read(words) == ["acknowledged", "next"]
    assert await on_disk(path) == ["acknowledged", "next"]


async def test_a_write_that_proved_valid_after_all_is_named_in_doubt(database):
    """Its commit was reported failed, yet it is there: its label tells its owner."""
    break_database(database, "COMMIT", EIO, after=True)
    with pytest.raises(Transient):
        await database.write(put("ghost"), label="ghost")
    await database.reopen()

    assert await database.read(words) == ["ghost"]
    assert database.in_doubt == {"ghost"}


async def test_doubt_outlives_the_process_until_it_is_settled(path):
    """The labels are beside the file; settling them removes them."""
    database = Database(path, SCHEMA)
    break_database(database, "COMMIT", EIO)
    with pytest.raises(Transient):
        await database.write(put("ghost"), label="ghost")
    await database.close()
    database = Database(path, SCHEMA)
    found = database.in_doubt
    await database.settle_doubt(found)
    await database.close()
    database = Database(path, SCHEMA)
    settled = database.in_doubt
    await database.close()

    assert found == {"ghost"}
    assert settled == frozenset()
    assert not list(path.parent.glob("*.doubt"))


async def test_a_disk_that_takes_no_doubt_file_keeps_it_in_memory(database, path):
    """Best effort: the failure itself is reported all the same."""
    path.with_name("words.db.doubt").mkdir()
    break_database(database, "COMMIT", EIO)
    with pytest.raises(Transient):
        await database.write(put("ghost"), label="ghost")

    assert database.in_doubt == {"ghost"}
    path.with_name("words.db.doubt").rmdir()


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (sqlite3.SQLITE_FULL, Overloaded, "STORE_FULL"),
        (sqlite3.SQLITE_READONLY, Transient, "STORE_READ_ONLY"),
        (sqlite3.SQLITE_BUSY, Transient, "STORE_BUSY"),
        (sqlite3.SQLITE_NOMEM, Transient, "STORE_NO_MEMORY"),
        (sqlite3.SQLITE_CANTOPEN, Transient, "STORE_UNOPENABLE"),
    ],
)
async def test_what_passes_by_itself_fails_only_its_batch(database, code, kind, reason):
    """The next write tries again and works when the cause has ended."""
    break_database(database, "COMMIT", disk_error(code))
    with pytest.raises(kind) as raised:
        await database.write(put("refused"))
    await database.write(put("later"))

    assert raised.value.reason == reason
    assert database.failure is None
    assert await database.read(words) == ["later"]


async def test_a_full_file_takes_again_when_there_is_room(database):
    """SQLite's own page limit stands for the disk's end."""
    await database.write(lambda conn: conn.execute("PRAGMA max_page_count = 20"))
    with pytest.raises(Overloaded) as raised:
        await database.write(put("large", size=1_000_000))
    await database.write(put("small"))
    await database.write(lambda conn: conn.execute("PRAGMA max_page_count = 9999"))
    await database.write(put("large", size=1_000_000))

    assert raised.value.reason == "STORE_FULL"
    assert await database.read(words) == ["small", "large"]


async def test_a_file_replaced_under_us_takes_nothing_more(database, path):
    """An answer for a file nobody will find again would be a lie; reopening heals."""
    await database.write(put("one"))
    copy = path.with_name("copy.db")
    shutil.copy(path, copy)
    copy.replace(path)
    with pytest.raises(Transient) as raised:
        await database.write(put("two"))
    await database.reopen()
    await database.write(put("three"))

    assert raised.value.reason == "STORE_FAILED"
    assert await on_disk(path) == ["one", "three"]


async def test_reopening_a_sound_store_changes_nothing(database, path):
    """It is safe to ask for."""
    inode = path.stat().st_ino
    await database.reopen()

    assert path.stat().st_ino == inode


async def test_a_disk_that_still_fails_can_be_asked_again(database):
    """Reopening fails typed and leaves the store failed; later it works."""
    await database.write(put("kept"))
    database._failure = store_file.Failure(Transient, "STORE_FAILED", "tested")
    break_database(database, "backup", EIO)
    with pytest.raises(Transient) as raised:
        await database.reopen()
    still = database.failure
    await database.reopen()

    assert raised.value.reason == "STORE_FAILED"
    assert still is not None
    assert await database.read(words) == ["kept"]


async def test_a_copy_that_differs_is_not_taken(database):
    """The comparison after reading back is what finds a disk that lies."""
    await database.write(put("kept"))

    class Lying:
        def __init__(self, whole):
            self._whole = whole

        def backup(self, target):
            self._whole.backup(target)
            target.execute("DELETE FROM words")

        def __getattr__(self, name):
            return getattr(self._whole, name)

    sound = database._connection
    database._connection = Lying(sound)
    database._failure = store_file.Failure(Transient, "STORE_FAILED", "tested")
    with pytest.raises(Corrupt):
        await database.reopen()
    database._connection = sound
    await database.reopen()

    assert await database.read(words) == ["kept"]


async def test_a_copy_that_reads_back_damaged_is_not_taken(database, monkeypatch):
    """What the disk gives back counts, not what was written to it."""
    for n in range(20):
        await database.write(put(f"word {n}", size=3000))
    database._failure = store_file.Failure(Transient, "STORE_FAILED", "tested")

    def rot(handle, *_):
        with Path(f"/proc/self/fd/{handle}").open("r+b") as file:
            file.seek(8192)
            file.write(bytes(8192))

    with monkeypatch.context() as patch:
        patch.setattr(store_file.os, "posix_fadvise", rot)
        with pytest.raises(Corrupt):
            await database.reopen()
    await database.reopen()

    assert len(await database.read(words)) == 20


async def test_an_answer_nobody_wants_any_more_is_dropped(database):
    """The work is done; the neighbour's answer still comes."""
    dropped = database.submit(put("one"))
    dropped.cancel()
    await database.write(put("two"))

    assert await database.read(words) == ["one", "two"]


async def test_reopening_goes_on_after_the_swap_failed(database, monkeypatch):
    """The old connections are gone by then; the finished copy is still the truth."""
    await database.write(put("kept"))
    database._failure = store_file.Failure(Transient, "STORE_FAILED", "tested")

    def no_swap(_):
        raise OSError("no")

    with monkeypatch.context() as patch:
        patch.setattr("outrigger.core.database.swap", no_swap)
        with pytest.raises(Transient):
            await database.reopen()
        with pytest.raises(Transient) as raised:
            await database.read(words)
    await database.reopen()

    assert raised.value.reason == "STORE_UNREADABLE"
    assert await database.read(words) == ["kept"]


def test_a_swap_interrupted_by_a_crash_is_finished_at_the_next_start(path):
    """The old log must not be played into the new file."""
    with closing(connect(path)) as old:
        old.executescript(SCHEMA)
        put("old")(old)
        store_file.copy_verified(old, path)
        put("later")(old)
        shutil.copy(f"{path}-wal", path.with_name("wal.stale"))
    path.with_name("wal.stale").replace(f"{path}-wal")
    with closing(connect(path)) as new:
        found = words(new)

    assert found == ["old"]
    assert not list(path.parent.glob("*.reopened"))


async def test_closing_twice_is_closing_once(path):
    """What waited is stored; later use is refused by name."""
    database = Database(path, SCHEMA)
    waiting = database.submit(put("waiting"))
    await asyncio.gather(database.close(), database.close())
    await database.close()

    assert await waiting == 1
    for later in (database.write(put("x")), database.read(words), database.reopen()):
        with pytest.raises(Refused) as raised:
            await later
        assert raised.value.reason == "STORE_CLOSED"


def test_a_loop_that_is_gone_does_not_end_the_writer(path):
    """Its answer is dropped; another loop's are given."""

    async def open_and_leave():
        database = Database(path, SCHEMA)
        database.submit(lambda _: gate.wait())
        return database

    gate = threading.Event()
    database = asyncio.run(open_and_leave())
    gate.set()

    async def go_on():
        await database.write(put("second loop"))
        found = await database.read(words)
        await database.close()
        return found

    assert asyncio.run(go_on()) == ["second loop"]


async def test_a_defect_in_a_read_reaches_its_caller(database):
    """Bad SQL of a reader is the reader's own."""
    with pytest.raises(sqlite3.OperationalError):
        await database.read(lambda conn: conn.execute("SELEKT"))


async def test_a_damaged_page_met_by_a_read_is_corrupt(path):
    """Damage after opening is named as what it is."""
    database = Database(path, SCHEMA)
    for n in range(50):
        await database.write(put(f"word {n}", size=3000))
    await database.close()
    database = Database(path, SCHEMA)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(60_000))
    with pytest.raises(Corrupt) as raised:
        await database.read(words)
    await database.close()

    assert raised.value.reason == "STORE_CORRUPT"


def flip(path):
    """Overwrite pages in the middle."""
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 8192)


def cut(path):
    """Lose the second half."""
    os.truncate(path, path.stat().st_size // 2)


def scribble(path):
    """Be something else altogether."""
    path.write_bytes(b"these are the days of our lives\n" * 1000)


@pytest.mark.parametrize("damage", [flip, cut, scribble])
async def test_a_damaged_file_is_refused_and_left_as_it_was(path, damage):
    """The error says what to do; not a byte of the evidence changes."""
    database = Database(path, SCHEMA)
    for n in range(50):
        await database.write(put(f"word {n}", size=3000))
    await database.close()
    damage(path)
    before = path.read_bytes()
    with pytest.raises(Corrupt) as raised:
        Database(path, SCHEMA)

    assert raised.value.reason == "STORE_CORRUPT"
    assert str(path) in raised.value.message
    assert path.read_bytes() == before


def test_a_path_that_cannot_be_a_file_is_unopenable(tmp_path):
    """A folder in its place, or no folder around it: one clear line."""
    for bad in (tmp_path, tmp_path / "no" / "such" / "words.db"):
        with pytest.raises(Transient) as raised:
            Database(bad, SCHEMA)
        assert raised.value.reason == "STORE_UNOPENABLE"


def test_a_name_too_long_is_unopenable(tmp_path):
    """Errors of the operating system are named like SQLite's."""
    with pytest.raises(Transient) as raised:
        Database(tmp_path / ("x" * 300), SCHEMA)

    assert raised.value.reason == "STORE_UNOPENABLE"


def test_a_file_in_place_of_the_folder_is_unopenable(tmp_path):
    """It is the same to its operator."""
    (tmp_path / "state").write_text("")
    with pytest.raises(Transient) as raised:
        Database(tmp_path / "state" / "words.db", SCHEMA)

    assert raised.value.reason == "STORE_UNOPENABLE"


def test_a_locked_or_read_only_file_is_unopenable(path, monkeypatch):
    """Opening proves at once that the file takes writes."""
    monkeypatch.setattr(store_file, "_BUSY_TIMEOUT_S", 0.0)
    with closing(connect(path)) as other:
        other.executescript(SCHEMA)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(Transient) as raised:
            Database(path, SCHEMA)

    assert raised.value.reason == "STORE_UNOPENABLE"


def test_a_schema_that_does_not_fit_is_refused(path):
    """A file of another version is not half-opened."""
    with pytest.raises(Transient) as raised:
        Database(path, "CREATE TABLE (")

    assert raised.value.reason == "STORE_UNOPENABLE"


CHILD = """
import asyncio, resource, signal, sys
from pathlib import Path
from outrigger.core.database import Database
from outrigger.core.errors import OutriggerError

async def main():
    database = Database(Path(sys.argv[1]), sys.argv[2])
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    async def put(n):
        await database.write(lambda c: c.execute(
            "INSERT INTO words VALUES (?, zeroblob(10000))", (f"w{n}",)))
    n, reasons = 0, []
    while not reasons:
        try:
            await put(n)
            print("stored", f"w{n}", flush=True)
            n += 1
        except OutriggerError as error:
            reasons.append(error.reason)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    if database.failure is not None:
        await database.reopen()
    await put("last")
    print("stored", "wlast", flush=True)
    print("refused", *reasons, flush=True)
    await database.close()

asyncio.run(main())
"""


async def test_a_file_size_limit_refuses_typed_and_loses_nothing(path):
    """A real refused write(2): what was answered is there, and it goes on after."""
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-P", "-c", CHILD, str(path), SCHEMA],
        cwd=root,
        env={"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    lines = [line.split() for line in result.stdout.splitlines()]
    stored = [line[1] for line in lines if line[0] == "stored"]

    assert result.returncode == 0, result.stderr
    assert lines[-1][1:] in (["STORE_FAILED"], ["STORE_FULL"])
    assert len(stored) > 5
    assert await on_disk(path) == stored


async def test_the_keeper_reopens_and_says_so(database):
    """Alert, attempts with pauses, recovery; then it watches again."""
    clock, seen = FakeClock(), []
    tasks = Tasks(print, clock)
    await database.write(put("kept"))
    tasks.spawn("keeper", keep_open(database, clock=clock, publish=seen.append))
    await clock.wait_for_sleepers()
    database._failure = store_file.Failure(Transient, "STORE_FAILED", "tested")
    break_database(database, "backup", EIO)
    clock.advance(1)
    await clock.wait_for_sleepers()
    while len(seen) < 2:
        await asyncio.sleep(0.001)
    await clock.wait_for_sleepers()
    clock.advance(1)
    while len(seen) < 3:
        await asyncio.sleep(0.001)
    await tasks.close()

    assert [type(event) for event in seen] == [Alerted, Alerted, Recovered]
    assert [event.name for event in seen[:2]] == ["STORE_FAILED", "STORE_NOT_REOPENED"]
    assert seen[2].elapsed_s == 1


async def test_the_keeper_ends_with_the_store(path):
    """A closed store needs no keeper."""
    database = Database(path, SCHEMA)
    database._failure = store_file.Failure(Transient, "STORE_FAILED", "tested")
    await database.close()

    await keep_open(database, clock=FakeClock(), publish=lambda _: None)
