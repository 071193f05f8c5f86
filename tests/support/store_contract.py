"""What every controller store promises; subclass it with a `make_store` fixture.

`make_store` returns a function that opens the same store again at each call.
"""

from dataclasses import replace

import pytest

from controller.policy.agent import Transition
from controller.policy.audit import GENESIS, AuditEntry, verify
from controller.policy.fleet import TRANSITIONS_KEPT
from controller.store.protocol import KeptSettings, KnownAgent

OTTER = KnownAgent(
    agent_id="otter",
    group="demo",
    sidecar_instance="i-1",
    state="awake",
    epoch=3,
    generation=2,
    seen_wall_s=1.7e9,
)
MOVED = Transition(
    wall_s=1.7e9, before="awake", after="quiescing", input="x", reason="r", epoch=4
)


def entry(number):
    return AuditEntry(
        wall_us=1_700_000_000_000_000 + number,
        principal="operator",
        method="/outrigger.v1.FleetService/SleepAgent",
        subject=f"agent ü {number}",
        status_code=0,
        reason="",
    )


class StoreContract:
    """Each promise as a test; a second `open` is a second life."""

    @pytest.fixture
    async def open_store(self, make_store):
        """A function that opens the store anew, after the one before is closed."""
        stores = []

        async def reopen():
            if stores:
                await stores[-1].close()
            stores.append(await make_store())
            return stores[-1]

        yield reopen
        if stores:
            await stores[-1].close()

    async def kept(self, store, seen_after_wall_s=0.0):
        return await store.load(seen_after_wall_s=seen_after_wall_s)

    async def test_a_new_store_is_empty(self, open_store):
        """And its scheduler was never set."""
        kept = await self.kept(await open_store())

        assert (kept.agents, kept.pins, kept.transitions) == ((), {}, {})
        assert kept.settings == KeptSettings()

    async def test_agents_are_remembered_by_their_newest(self, open_store):
        """In the order of their ids."""
        store = await open_store()
        await store.remember(OTTER)
        await store.remember(replace(OTTER, agent_id="heron"))
        await store.remember(replace(OTTER, state="asleep", epoch=4))

        kept = await self.kept(await open_store())

        assert [agent.agent_id for agent in kept.agents] == ["heron", "otter"]
        assert kept.agents[1] == replace(OTTER, state="asleep", epoch=4)

    async def test_agents_not_seen_for_long_are_forgotten_unless_pinned(
        self, open_store
    ):
        """Their transitions go with them."""
        store = await open_store()
        await store.remember(OTTER)
        await store.remember(replace(OTTER, agent_id="heron"))
        await store.add_transition("otter", MOVED)
        await store.pin("heron", "demo")

        kept = await self.kept(store, seen_after_wall_s=1.7e9 + 1)

        assert [agent.agent_id for agent in kept.agents] == ["heron"]
        assert kept.transitions == {}

    async def test_pins_outlive_the_controller(self, open_store):
        """The newest reason stands; an unpin is as durable, and may be repeated."""
        store = await open_store()
        await store.pin("otter", "first")
        await store.pin("otter", "second")
        assert (await self.kept(await open_store())).pins == {"otter": "second"}

        store = await open_store()
        await store.unpin("otter")
        await store.unpin("otter")
        assert (await self.kept(await open_store())).pins == {}

    async def test_settings_outlive_the_controller(self, open_store):
        """A keep-alive that was never set stays unset."""
        store = await open_store()
        await store.set_scheduler(KeptSettings(enabled=True, keep_alive_s=12.5))
        kept = await self.kept(await open_store())
        assert kept.settings == KeptSettings(enabled=True, keep_alive_s=12.5)

        store = await open_store()
        await store.set_scheduler(KeptSettings(enabled=True))
        kept = await self.kept(await open_store())
        assert kept.settings == KeptSettings(enabled=True)

    async def test_the_newest_transitions_of_each_agent_are_kept(self, open_store):
        """Newest first, and no more than the fleet shows."""
        store = await open_store()
        await store.remember(OTTER)
        for number in range(TRANSITIONS_KEPT + 3):
            await store.add_transition("otter", replace(MOVED, epoch=number))

        found = (await self.kept(await open_store())).transitions["otter"]

        assert len(found) == TRANSITIONS_KEPT
        assert found[0] == replace(MOVED, epoch=TRANSITIONS_KEPT + 2)

    async def test_the_audit_is_a_chain_over_both_lives(self, open_store):
        """Sequences rise by one; every digest follows from the one before."""
        store = await open_store()
        await store.append_audit(entry(1))
        store = await open_store()
        last = await store.append_audit(entry(2))

        records = await store.audit(after=0, limit=10)

        assert [record.sequence for record in records] == [1, 2]
        assert [record.entry for record in records] == [entry(1), entry(2)]
        assert verify(records, 0, GENESIS) == (2, last.chain_digest)

    async def test_the_audit_is_read_in_pages(self, open_store):
        """After a sequence, so many, oldest first."""
        store = await open_store()
        for number in range(1, 6):
            await store.append_audit(entry(number))

        page = await store.audit(after=2, limit=2)

        assert [record.sequence for record in page] == [3, 4]
        assert await store.audit(after=5, limit=2) == ()
