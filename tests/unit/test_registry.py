import asyncio

import pytest

from controller.commands import Commands
from controller.policy.agent import Addresses, State
from controller.policy.fleet import Greeted, Pinned
from controller.registry import Connection, Registry, Result
from outrigger.core.errors import (
    Conflict,
    NotFound,
    Overloaded,
    Refused,
    TimedOut,
    Transient,
)
from tests.support.clock import FakeClock
from tests.support.fleet import idle_fleet, report


def connection(agent_id="otter", instance="i-1"):
    return Connection(
        agent_id=agent_id,
        instance=instance,
        operator_token="secret",
        addresses=Addresses(),
    )


def opened(registry, **changes):
    """A connection that the registry has taken in."""
    made = connection(**changes)
    registry.open(made, heard=True)
    return made


async def answer(live, *errors):
    """Answer one command per error, in order; return the commands."""
    seen = []
    for error in errors:
        command = await live.next_command()
        seen.append(command)
        live.answer(Result(command_id=command.command_id, error=error, report=None))
    return seen


@pytest.fixture
def registry():
    """Commands get little time."""
    return Registry(timeout_s=0.05)


async def test_a_command_is_sent_and_its_result_comes_back(registry):
    """Under an id of its own."""
    live = opened(registry)
    answering = asyncio.create_task(answer(live, None, None))

    for _ in range(2):
        result = await registry.command("otter", sleep=True, seen_epoch=3, reason="r")
        assert result.error is None

    first, second = await answering
    assert (first.sleep, first.seen_epoch, first.reason) == (True, 3, "r")
    assert first.command_id != second.command_id


async def test_a_sidecar_that_is_not_connected_is_away(registry):
    """Said at once, with the hint to come back."""
    with pytest.raises(Transient) as caught:
        await registry.command("otter", sleep=True, seen_epoch=1, reason="")

    assert caught.value.reason == "SIDECAR_AWAY"


async def test_a_command_without_a_result_times_out_and_is_not_sent_late(registry):
    """Nor does its late result disturb anybody."""
    live = opened(registry)
    with pytest.raises(TimedOut) as caught:
        await registry.command("otter", sleep=True, seen_epoch=1, reason="")
    assert caught.value.reason == "NO_RESULT"

    live.answer(Result(command_id="whoever", error=None, report=None))
    answering = asyncio.create_task(answer(live, None))
    await registry.command("otter", sleep=False, seen_epoch=1, reason="")

    (sent,) = await answering
    assert not sent.sleep


async def test_a_stream_that_ends_fails_what_waits_on_it(registry):
    """At once, not after the timeout; later commands are told the same."""
    slow = Registry(timeout_s=60)
    live = opened(slow)
    waiting = asyncio.create_task(
        slow.command("otter", sleep=True, seen_epoch=1, reason="")
    )
    await live.next_command()

    slow.close(live)

    with pytest.raises(Transient):
        await waiting
    with pytest.raises(Transient):
        await live.send(None, 1.0)
    assert await live.next_command() is None


async def test_commands_without_results_are_bounded():
    """One sidecar that answers nothing cannot fill the memory."""
    slow = Registry(timeout_s=60)
    live = opened(slow)
    waiting = [
        asyncio.create_task(slow.command("otter", sleep=True, seen_epoch=1, reason=""))
        for _ in range(64)
    ]
    await asyncio.sleep(0)

    with pytest.raises(Overloaded) as caught:
        await slow.command("otter", sleep=True, seen_epoch=1, reason="")

    assert caught.value.reason == "TOO_MANY_COMMANDS"
    slow.close(live)
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_newer_stream_of_the_same_sidecar_takes_over(registry):
    """The old one ends with the reason; letting go of it changes nothing."""
    old = opened(registry)
    new = opened(registry)

    assert (old.ended, old.ending.reason) == (True, "REPLACED")
    assert registry.close(old) is False
    assert registry.connection("otter") is new


async def test_another_sidecar_is_refused_while_the_first_is_heard_of(registry):
    """And let in when the first has fallen silent."""
    first = opened(registry)
    with pytest.raises(Conflict) as caught:
        registry.open(connection(instance="i-2"), heard=True)
    assert caught.value.reason == "AGENT_TAKEN"
    assert not first.ended

    second = connection(instance="i-2")
    registry.open(second, heard=False)

    assert first.ended
    assert registry.connection("otter") is second


async def test_a_connection_is_let_go_of_once(registry):
    """Only the one that is present counts."""
    live = opened(registry)

    assert registry.close(live)
    assert not registry.close(live)

    assert len(registry) == 0


async def test_ending_all_gives_every_stream_the_reason(registry):
    """Their owners then let go of them."""
    live = opened(registry)

    registry.end_all(Transient("STOPPING", "bye"))
    registry.end_all(Transient("AGAIN", "bye"))

    assert live.ending.reason == "STOPPING"
    assert await live.next_command() is None


def test_a_connection_never_shows_its_token():
    """Not even in a log of it."""
    assert "secret" not in repr(connection())


@pytest.fixture
def commands(registry):
    """Commands to one connected, idle agent; with its fleet and connection."""
    fleet = idle_fleet("otter", now=1000.0)
    return Commands(fleet, registry, FakeClock()), fleet, opened(registry)


async def test_a_sleep_names_the_newest_epoch_and_is_noted(commands):
    """The fleet knows when it was asked."""
    doing, fleet, live = commands
    answering = asyncio.create_task(answer(live, None))

    agent = await doing.sleep("otter", 0, "why")

    (sent,) = await answering
    assert (sent.sleep, sent.seen_epoch, sent.reason) == (True, 1, "why")
    assert agent.sleep_asked_at == 1000.0
    assert fleet.agent("otter").sleep_failed_at is None


async def test_a_stale_epoch_is_refused_before_anything_is_sent(commands):
    """For sleep and wake alike, with the epoch that is."""
    doing = commands[0]
    for verb in (doing.sleep, doing.wake):
        with pytest.raises(Conflict) as caught:
            await verb("otter", 7, "")
        assert caught.value.reason == "STALE_EPOCH"
        assert caught.value.metadata["epoch"] == "1"


async def test_an_unknown_agent_is_not_found(commands):
    """Before anybody asks for its connection."""
    with pytest.raises(NotFound):
        await commands[0].wake("heron", 0, "")


async def test_a_pinned_agent_is_not_put_to_sleep_by_hand(commands):
    """Or the scheduler would wake it again at once."""
    doing, fleet, _ = commands
    fleet.apply("otter", Pinned("demo"), 1000.0)

    with pytest.raises(Refused) as caught:
        await doing.sleep("otter", 0, "")

    assert caught.value.reason == "AGENT_PINNED"


async def test_only_an_agent_that_is_awake_can_be_put_to_sleep(commands):
    """The state and its reason are named."""
    doing, fleet, _ = commands
    fleet.introduce(Greeted(report(state=State.ASLEEP, reason="was idle")), 1000.0)

    with pytest.raises(Refused, match=r"is asleep \(was idle\)") as caught:
        await doing.sleep("otter", 0, "")

    assert caught.value.reason == "NOT_AWAKE"


async def test_a_sidecars_refusal_is_passed_on_and_remembered(commands):
    """It counts as a failed sleep."""
    doing, fleet, live = commands
    answering = asyncio.create_task(answer(live, Refused("BUSY", "calls in flight")))

    with pytest.raises(Refused, match="calls in flight"):
        await doing.sleep("otter", 0, "")

    await answering
    assert fleet.agent("otter").sleep_failed_at == 1000.0


async def test_a_sleep_that_came_too_late_has_not_failed(commands):
    """The agent moved on; nothing is wrong with it."""
    doing, fleet, live = commands
    answering = asyncio.create_task(answer(live, Conflict("STALE_EPOCH", "stale")))

    with pytest.raises(Conflict):
        await doing.sleep("otter", 0, "")

    await answering
    assert fleet.agent("otter").sleep_failed_at is None


async def test_a_lost_sleep_counts_as_failed(commands):
    """It may or may not have begun: leave the agent alone for a while."""
    doing, fleet, _ = commands

    with pytest.raises(TimedOut):
        await doing.sleep("otter", 0, "")

    assert fleet.agent("otter").sleep_failed_at == 1000.0


async def test_a_wake_that_came_too_late_is_sent_again(commands):
    """Unless the caller insisted on an epoch."""
    doing, _, live = commands
    stale = Conflict("STALE_EPOCH", "stale")
    answering = asyncio.create_task(answer(live, stale, stale, None))
    await doing.wake("otter", 0, "")
    assert len(await answering) == 3

    answering = asyncio.create_task(answer(live, stale))
    with pytest.raises(Conflict):
        await doing.wake("otter", 1, "")
    await answering


async def test_a_wake_gives_up_after_three_tries(commands):
    """An agent that moves faster than we ask needs another look."""
    doing, _, live = commands
    stale = Conflict("STALE_EPOCH", "stale")
    answering = asyncio.create_task(answer(live, stale, stale, stale))

    with pytest.raises(Conflict):
        await doing.wake("otter", 0, "")

    await answering
