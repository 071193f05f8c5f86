import asyncio
import time
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from redis import Redis

from outrigger.core.clock import SystemClock
from outrigger.core.errors import Invalid
from outrigger.core.events import Alerted, Recovered
from outrigger.core.tasks import Tasks
from sidecar.letters import shared_tier as module
from sidecar.letters.journal import LetterFilter
from sidecar.letters.shared_tier import SCHEMA, SharedTier
from sidecar.policy.letter import LetterInput
from sidecar.policy.verdict import SendResult, Verdict
from tests.support.letters import an_office
from tests.support.redis_server import RedisServer

DELIVER = Verdict(what=LetterInput.DELIVER)


@pytest.fixture
def server(tmp_path):
    """A redis-server, killed afterwards."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    """The same loops with shorter pauses."""
    for name, value in {
        "_LOOK_S": 0.02,
        "_CHECK_S": 0.1,
        "_RETRY_BASE_S": 0.05,
        "_RETRY_MAX_S": 0.1,
        "_TIMEOUT_S": 1.0,
    }.items():
        monkeypatch.setattr(module, name, value)


class Scene:
    """A journal with a hand-over to a Redis."""

    def __init__(self, office, url):
        self.office = office
        self.clock = SystemClock()
        self.tasks = Tasks(office.events.append, self.clock)
        self.tier = SharedTier(
            url,
            office.journal,
            office.db,
            clock=self.clock,
            rng=office.rng,
            publish=office.events.append,
        )
        self.task = self.tasks.spawn("tier", self.tier.run())

    async def until(self, condition, timeout_s=30.0):
        """Wait until something holds, or fail."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, (self.tier.status(), self.office.events[-3:])
            await asyncio.sleep(0.01)

    async def settled(self, there):
        """Wait until nothing is left to do and that many letters are in Redis."""

        def done():
            status = self.tier.status()
            return status.connected and (status.waiting, status.there) == (0, there)

        await self.until(done)

    async def deliver(self, count):
        """Deliver that many letters."""
        letters = (await self.office.due())[:count]
        for letter in letters:
            await self.office.journal.end(letter, SendResult(code=0), DELIVER)
        return [letter.letter_id for letter in letters]

    def alerts(self, name):
        """Messages of the alerts of one name."""
        return [
            event.message
            for event in self.office.events
            if isinstance(event, Alerted) and event.name == name
        ]

    @property
    def recoveries(self):
        return [e for e in self.office.events if isinstance(e, Recovered)]


@asynccontextmanager
async def scene_in(folder, url):
    """A running hand-over, stopped afterwards."""
    async with an_office(folder, extra=SCHEMA) as office:
        scene = Scene(office, url)
        try:
            yield scene
        finally:
            await scene.tasks.close()


def entries(server):
    """All entries of all streams: letter id to request, each once."""
    found = {}
    with closing(
        Redis(port=server.port, password=server.settings.get("requirepass"))
    ) as r:
        for key in r.keys("outrigger:*"):
            for _, fields in r.xrange(key):
                letter_id = fields[b"letter_id"].decode()
                assert letter_id not in found, "twice in Redis"
                found[letter_id] = fields[b"request"]
    return found


async def test_living_letters_are_in_redis_and_ended_ones_are_not(tmp_path, server):
    """With their payload; the ledger counts them."""
    async with scene_in(tmp_path, server.url) as scene:
        ids = [
            await scene.office.take(code=0, request=f"r{n}".encode()) for n in range(20)
        ]
        await scene.settled(20)
        before = entries(server)
        ended = await scene.deliver(15)
        await scene.settled(5)

        assert before == {name: f"r{n}".encode() for n, name in enumerate(ids)}
        assert entries(server).keys() == set(ids) - set(ended)
        assert (await scene.office.journal.ledger()).handed_over == 20
        assert scene.alerts("SHARED_TIER_AWAY") == []


async def test_letters_from_before_the_tier_are_handed_over_too(tmp_path, server):
    """Turning it on later forgets nobody; many batches are one after another."""
    async with an_office(tmp_path) as office:
        ids = {await office.take(code=0) for _ in range(300)}
    async with scene_in(tmp_path, server.url) as scene:
        await scene.settled(300)

        assert entries(server).keys() == ids


async def test_a_redriven_letter_is_handed_over_again(tmp_path, server):
    """Under a new number: its old entry is gone with its end."""
    async with scene_in(tmp_path, server.url) as scene:
        letter_id = await scene.office.take(code=0)
        await scene.settled(1)
        park = Verdict(what=LetterInput.PARK, reason="NOT_FOUND")
        for letter in await scene.office.due():
            await scene.office.journal.end(letter, SendResult(code=5), park)
        await scene.settled(0)
        await scene.office.journal.redrive(LetterFilter(), everything=True)
        await scene.settled(1)

        assert list(entries(server)) == [letter_id]
        assert scene.tier.status().handed_over == 2


async def test_redis_killed_and_started_again_misses_nothing(tmp_path, server):
    """Accepting and delivering go on meanwhile; then both sides are alike."""
    async with scene_in(tmp_path, server.url) as scene:
        first = [await scene.office.take(code=0) for _ in range(5)]
        await scene.settled(5)
        server.kill()
        await scene.until(lambda: scene.tier.status().problem)
        second = [await scene.office.take(code=0) for _ in range(5)]
        ended = await scene.deliver(3)
        server.start()
        await scene.settled(7)

        assert entries(server).keys() == {*first, *second} - set(ended)
        assert len(scene.alerts("SHARED_TIER_AWAY")) >= 1
        assert len(scene.recoveries) == 1


async def test_kills_at_any_moment_leave_both_sides_alike(tmp_path, server):
    """Ten kills while letters come and go; nothing is lost, nothing is there twice."""
    async with scene_in(tmp_path, server.url) as scene:
        ids, ended = [], []
        for n in range(10):
            ids += [await scene.office.take(code=0) for _ in range(10)]
            ended += await scene.deliver(4)
            await asyncio.sleep(0.007 * n)
            server.kill()
            server.start()
        await scene.settled(len(ids) - len(ended))

        assert entries(server).keys() == set(ids) - set(ended)


async def test_a_wiped_redis_is_filled_again(tmp_path, server):
    """Found without any new letter; one alert says how many were lost."""
    async with scene_in(tmp_path, server.url) as scene:
        ids = {await scene.office.take(code=0) for _ in range(20)}
        await scene.settled(20)
        server.call("FLUSHALL")
        await scene.until(lambda: scene.alerts("SHARED_TIER_REFILLED"))
        await scene.settled(20)

        assert entries(server).keys() == ids


async def test_a_redis_rolled_back_gets_its_tail_again(tmp_path, server):
    """As after a failover that lost the newest writes; the rest is left as it is."""
    async with scene_in(tmp_path, server.url) as scene:
        ids = {await scene.office.take(code=0) for _ in range(10)}
        await scene.settled(10)
        server.call("SAVE")
        server.call("CONFIG", "SET", "appendonly", "no")
        later = {await scene.office.take(code=0) for _ in range(10)}
        await scene.settled(20)
        server.kill()
        server.settings["appendonly"] = "no"
        server.start()
        await scene.until(lambda: scene.alerts("SHARED_TIER_REFILLED"))
        await scene.settled(20)

        assert entries(server).keys() == ids | later
        assert "had lost 10 letters" in scene.alerts("SHARED_TIER_REFILLED")[0]


async def test_entries_gone_from_within_are_found_and_handed_over_again(
    tmp_path, server
):
    """Somebody trimmed a stream: its last id is right, its length is not."""
    async with scene_in(tmp_path, server.url) as scene:
        ids = {await scene.office.take(code=0) for _ in range(20)}
        await scene.settled(20)
        with closing(Redis(port=server.port)) as other:
            for key in other.keys("outrigger:*"):
                other.xtrim(key, maxlen=1, approximate=False)
        await scene.until(lambda: scene.alerts("SHARED_TIER_REFILLED"))
        await scene.settled(20)

        assert entries(server).keys() == ids


async def test_an_append_without_an_answer_is_not_made_twice(tmp_path, server):
    """What Redis has beyond our record is ours: taken over, or taken out if ended."""
    async with scene_in(tmp_path, server.url) as scene:
        ids = [await scene.office.take(code=0) for _ in range(20)]
        await scene.settled(20)
    async with an_office(tmp_path, extra=SCHEMA) as office:
        office.damage("DELETE FROM letter_handovers")
        office.damage("DELETE FROM letter_watermarks")
        office.damage("INSERT INTO letter_handover_todo SELECT seq, 'a1' FROM letters")
        for letter in (await office.due())[:5]:
            await office.journal.end(letter, SendResult(code=0), DELIVER)
    async with scene_in(tmp_path, server.url) as scene:
        await scene.settled(15)

        assert entries(server).keys() < set(ids)
        assert len(entries(server)) == 15
        assert scene.alerts("SHARED_TIER_REFILLED") == []


async def test_an_entry_that_is_not_ours_is_taken_out(tmp_path, server):
    """Forged letters in our stream are not letters."""
    async with scene_in(tmp_path, server.url) as scene:
        await scene.office.take(code=0)
        await scene.settled(1)
        with closing(Redis(port=server.port)) as other:
            for key in other.keys("outrigger:*"):
                other.xadd(key, {"letter_id": "forged", "digest": "x"}, id="99-0")
                other.xadd(key, {"x": "y"}, id="100-0")
        more = [await scene.office.take(code=0) for _ in range(8)]
        await scene.settled(9)

        assert "forged" not in entries(server)
        assert set(more) < entries(server).keys()


async def test_a_wrong_password_is_one_alert_and_no_harm(tmp_path):
    """Neither URL nor password are in it; letters are taken as ever."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder, requirepass="right-one").start()
    try:
        url = server.url.replace("right-one", "wrong-one")
        async with scene_in(tmp_path, url) as scene:
            await scene.until(lambda: scene.alerts("SHARED_TIER_AWAY"))
            await scene.office.take(code=0)
            await asyncio.sleep(0.5)
            (alert,) = scene.alerts("SHARED_TIER_AWAY")
            ledger = await scene.office.journal.ledger()

        assert "wrong-one" not in alert
        assert ledger.live == 1
        assert scene.tier.status().waiting in {0, 1}
    finally:
        server.kill()


async def test_an_evicting_redis_is_refused_until_it_is_mended(tmp_path, server):
    """Also when the policy changes while we are connected."""
    server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    async with scene_in(tmp_path, server.url) as scene:
        await scene.office.take(code=0)
        await scene.until(lambda: scene.alerts("SHARED_TIER_AWAY"))
        refused = entries(server)
        server.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await scene.settled(1)
        server.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
        await scene.until(lambda: len(scene.alerts("SHARED_TIER_AWAY")) == 2)

    assert refused == {}
    assert "maxmemory-policy allkeys-lru" in scene.alerts("SHARED_TIER_AWAY")[0]


async def test_a_redis_absent_at_the_start_is_used_when_it_comes(tmp_path):
    """The sidecar starts without it."""
    folder = tmp_path / "redis"
    folder.mkdir()
    server = RedisServer(folder)
    try:
        async with scene_in(tmp_path, server.url) as scene:
            letter_id = await scene.office.take(code=0)
            await scene.until(lambda: scene.alerts("SHARED_TIER_AWAY"))
            server.start()
            await scene.settled(1)

            assert list(entries(server)) == [letter_id]
            assert scene.recoveries
    finally:
        server.kill()


async def test_a_redis_out_of_memory_keeps_what_it_took_and_takes_the_rest_later(
    tmp_path, server
):
    """`-OOM` in the middle of a batch: the count written is believed."""
    async with scene_in(tmp_path, server.url) as scene:
        await scene.office.take(code=0)
        await scene.settled(1)
        server.call("CONFIG", "SET", "maxmemory", "1")
        ids = [
            await scene.office.take(code=0, request=b"x" * 50_000) for _ in range(30)
        ]
        await scene.until(lambda: scene.alerts("SHARED_TIER_AWAY"))
        server.call("CONFIG", "SET", "maxmemory", "0")
        await scene.settled(31)

        assert set(ids) < entries(server).keys()


async def test_a_silent_redis_is_left_and_tried_again(tmp_path, server):
    """Its connection is dropped: a late reply finds nobody."""
    async with scene_in(tmp_path, server.url) as scene:
        await scene.settled(0)
        server.pause()
        try:
            await scene.until(lambda: scene.tier.status().problem)
            letter_id = await scene.office.take(code=0)
        finally:
            server.resume()
        await scene.settled(1)

        assert list(entries(server)) == [letter_id]


async def test_a_cancelled_hand_over_leaves_nothing_half_known(tmp_path, server):
    """Stopped at any await, the next start finds both sides and makes them alike."""
    ids = []
    for n in range(8):
        async with scene_in(tmp_path, server.url) as scene:
            ids += [await scene.office.take(code=0) for _ in range(10)]
            await asyncio.sleep(0.004 * n)
    async with scene_in(tmp_path, server.url) as scene:
        await scene.settled(80)

        assert entries(server).keys() == set(ids)


async def test_a_damaged_letter_is_parked_and_others_are_handed_over(tmp_path, server):
    """It is not copied to where others might act on it."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        bad, good = await office.take(code=0), await office.take(code=0)
        office.damage("UPDATE letters SET reason = 'x' WHERE letter_id = ?", bad)
    async with scene_in(tmp_path, server.url) as scene:
        await scene.settled(1)

        assert list(entries(server)) == [good]
        assert (await scene.office.journal.ledger()).parked == 1


async def test_the_journal_is_left_when_the_store_closes(tmp_path, server):
    """The hand-over ends with it."""
    async with scene_in(tmp_path, server.url) as scene:
        await scene.settled(0)
        await scene.office.db.close()
        await scene.task

    assert not scene.tier.status().connected


async def test_records_let_go_leave_nothing_behind(tmp_path, server):
    """Retention of a letter whose entry is out already clears the list as well."""
    async with scene_in(tmp_path, server.url) as scene:
        await scene.office.take(code=0)
        await scene.settled(1)
        await scene.deliver(1)
        await scene.settled(0)
        scene.office.clock.advance(10 * 86_400)
        await scene.office.journal.sweep()
        rows = await scene.office.db.read(
            lambda conn: conn.execute(
                "SELECT (SELECT COUNT(*) FROM letters),"
                " (SELECT COUNT(*) FROM letter_handovers),"
                " (SELECT COUNT(*) FROM letter_handover_todo)"
            ).fetchone()
        )

    assert rows == (0, 0, 0)


@pytest.mark.parametrize("url", ["", "http://x", "redis://host:port"])
async def test_a_bad_url_is_refused_at_once(tmp_path, url):
    """With how to write it."""
    async with an_office(tmp_path, extra=SCHEMA) as office:
        with pytest.raises(Invalid) as raised:
            Scene(office, url)

    assert raised.value.reason == "BAD_REDIS_URL"


async def test_an_old_redis_is_refused(tmp_path, server, monkeypatch):
    """The version is named."""
    monkeypatch.setattr(module, "_OLDEST", (99, 0))
    async with scene_in(tmp_path, server.url) as scene:
        await scene.until(lambda: scene.alerts("SHARED_TIER_AWAY"))

    assert "is too old" in scene.alerts("SHARED_TIER_AWAY")[0]


def test_the_script_is_part_of_the_package():
    """It is found where the module looks."""
    assert (Path(module.__file__).parent / "scripts" / "append.lua").exists()
