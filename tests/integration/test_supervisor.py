"""Sleep, wake, crash and restart with a real child process."""

import asyncio
import dataclasses

import pytest

from outrigger.core.errors import Conflict, Refused, Transient
from sidecar.agent.ports import SleepMode
from sidecar.agent.processes import read_stat
from sidecar.policy.agent import AgentState
from sidecar.policy.lifecycle import RestartLimits
from tests.support.agent_rig import DiskRig, Rig, is_alive, kill, wait_for

HELD = 60.0
"""Seconds; longer than any test runs."""


async def fall_asleep(rig):
    """Put the agent to sleep and wait until it is."""
    rig.supervisor.request_sleep(0, "test")
    return await rig.until(AgentState.ASLEEP)


async def test_three_nights_in_a_row_lose_nothing(tmp_path):
    """Asleep the process is gone; awake again the state is what it was, each time."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        for night in range(1, 4):
            number = await rig.say(f"add {night * 1000}")
            pid = rig.snapshot.pid

            answered = rig.supervisor.request_sleep(0, "test")
            assert answered.state is AgentState.QUIESCING
            asleep = await rig.until(AgentState.ASLEEP)
            assert (asleep.pid, is_alive(pid)) == (0, False)
            assert asleep.generation == night
            assert asleep.sleep_count == night

            answered = rig.supervisor.request_wake(asleep.epoch, "test")
            assert answered.state is AgentState.WAKING
            awake = await rig.until(AgentState.AWAKE)
            assert awake.pid not in (0, pid)
            assert await rig.say("get") == number
            assert awake.woken_digest == asleep.state_digest != b""
            assert (awake.wake_count, awake.epoch > asleep.epoch) == (night, True)
            assert 0 < awake.last_wake_s < 15

    one_night = ["quiescing", "checkpointing", "frozen", "asleep", "waking", "awake"]
    assert rig.moves() == ["waking", "awake", *one_night * 3]
    assert rig.errors() == []


async def test_nights_with_the_real_store_on_disk(tmp_path):
    """The same over files, and once more by the next sidecar."""
    async with DiskRig(tmp_path) as rig:
        await rig.begin()
        for night in (1, 2):
            number = await rig.say("add 7")
            asleep = await fall_asleep(rig)
            assert asleep.generation == night
            rig.supervisor.request_wake(0, "test")
            await rig.until(AgentState.AWAKE)
            assert await rig.say("get") == number
        await fall_asleep(rig)
        assert rig.errors() == []

    async with DiskRig(tmp_path) as rig:
        await rig.supervisor.start()
        assert rig.state is AgentState.ASLEEP
        rig.supervisor.request_wake(0, "test")
        awake = await rig.until(AgentState.AWAKE)
        assert await rig.say("get") == number
        assert awake.woken_digest == awake.state_digest


async def test_a_wake_while_quiescing_gives_the_sleep_up(tmp_path):
    """A call is in flight and the agent stays up when a wake comes meanwhile."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        pid = rig.snapshot.pid
        rig.in_flight = 1
        sleeping = rig.supervisor.request_sleep(0, "test")

        woken = rig.supervisor.request_wake(sleeping.epoch, "test")

        assert (woken.state, woken.pid) == (AgentState.AWAKE, pid)
        assert woken.epoch > sleeping.epoch
        rig.in_flight = 0
        assert await rig.say("add 1") == 1


async def test_a_wake_while_saving_fences_the_late_save_off(tmp_path):
    """A save of the sleep that was given up is refused when it arrives at last."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        rig.shelf.may_save.clear()
        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.CHECKPOINTING)

        woken = rig.supervisor.request_wake(0, "test")
        await wait_for(lambda: rig.shelf.fenced == woken.epoch)
        rig.shelf.may_save.set()

        assert woken.state is AgentState.AWAKE
        assert await rig.say("add 1") == 1
        assert rig.shelf.kept == {}
        await fall_asleep(rig)
        assert rig.shelf.kept[1].raw == b"1"


async def test_a_wake_while_frozen_thaws_the_same_process(tmp_path):
    """A frozen agent is up again without a restart, and goes on."""
    async with Rig(tmp_path, frozen_keep_s=HELD) as rig:
        await rig.begin()
        pid = rig.snapshot.pid
        await rig.say("add 7")
        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.FROZEN)
        assert read_stat(pid).is_stopped

        rig.supervisor.request_wake(0, "test")
        awake = await rig.until(AgentState.AWAKE)

        assert (awake.pid, awake.wake_count, awake.sleep_count) == (pid, 1, 1)
        assert await rig.say("add 1") == 8
        assert awake.last_wake_s < 5


async def test_a_wake_while_the_process_is_being_ended_starts_it_again(tmp_path):
    """KILL cannot be taken back; the agent lives again as soon as it has died."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        number = await rig.say("add 7")
        pid = rig.snapshot.pid
        rig.supervisor.request_sleep(0, "test")
        async with asyncio.timeout(10):
            while not rig.actuator.is_ending:
                await asyncio.sleep(0)
        assert rig.state is AgentState.FROZEN

        assert rig.supervisor.request_wake(0, "test").state is AgentState.WAKING
        awake = await rig.until(AgentState.AWAKE)

        assert awake.pid != pid
        assert await rig.say("get") == number
        assert AgentState.ASLEEP.value not in rig.moves()


async def test_the_agent_may_veto(tmp_path):
    """An agent that says no stays awake and the reason is kept."""
    async with Rig(tmp_path, "veto") as rig:
        await rig.begin()
        rig.supervisor.request_sleep(0, "test")

        awake = await rig.until(AgentState.AWAKE)

        assert "I am thinking" in awake.reason
        assert rig.shelf.kept == {}


@pytest.mark.parametrize(
    ("habit", "settings", "reason"),
    [
        ("mute", {"quiesce_timeout_s": 0.2}, "TIMED_OUT"),
        ("unsaved", {"save_timeout_s": 0.2}, "TIMED_OUT"),
        ("cannot-save", {}, "SAVE_FAILED"),
        ("wrong-epoch", {}, "WRONG_EPOCH"),
    ],
)
async def test_a_sleep_that_fails_leaves_the_agent_as_it_was(
    tmp_path, habit, settings, reason
):
    """No answer, no save or the wrong save: awake, same process, and said why."""
    async with Rig(tmp_path, habit, **settings) as rig:
        await rig.begin()
        pid = rig.snapshot.pid
        # The shelf takes epoch 0 as the present one; let it be an older one.
        rig.shelf.current_epoch = lambda: 1
        rig.shelf.fence_error = None
        if habit == "wrong-epoch":
            rig.shelf.put = without_fence(rig.shelf)
        rig.supervisor.request_sleep(0, "test")

        await wait_for(rig.errors)
        awake = await rig.until(AgentState.AWAKE)

        assert rig.errors() == [reason]
        assert (awake.pid, awake.sleep_count) == (pid, 0)
        assert await rig.say("add 1") == 1


def without_fence(shelf):
    """Return a `put` that lets older epochs pass."""
    put = shelf.put

    def lenient(raw, *, epoch=0):
        shelf.fenced = 0
        return put(raw, epoch=epoch)

    return lenient


async def test_a_rotten_save_is_seen_before_the_process_goes(tmp_path):
    """What cannot be read back from disk is no reason to sleep."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        rig.shelf.bad.add(1)

        rig.supervisor.request_sleep(0, "test")
        await wait_for(rig.errors)

        assert rig.errors() == ["BAD_CHECKPOINT"]
        assert rig.state is AgentState.AWAKE


@pytest.mark.parametrize(
    "state", [AgentState.QUIESCING, AgentState.CHECKPOINTING, AgentState.FROZEN]
)
async def test_work_that_begins_ends_the_sleep(tmp_path, state):
    """A call counted or a lease told of wins over a sleep at every point."""
    async with Rig(tmp_path, frozen_keep_s=0.3) as rig:
        await rig.begin()
        pid = rig.snapshot.pid
        rig.in_flight = int(state is AgentState.QUIESCING)
        if state is AgentState.CHECKPOINTING:
            rig.shelf.may_save.clear()
        rig.supervisor.request_sleep(0, "test")
        await rig.until(state)

        rig.begun += 1
        rig.in_flight = 0
        awake = await rig.until(AgentState.AWAKE)
        rig.shelf.may_save.set()

        assert awake.pid == pid
        assert await rig.say("add 1") == 1


async def test_a_lease_told_of_wakes_a_frozen_agent_at_once(tmp_path):
    """`activity` ends a sleep without waiting for the next look."""
    async with Rig(tmp_path, frozen_keep_s=HELD) as rig:
        await rig.begin()
        rig.supervisor.activity()
        assert rig.state is AgentState.AWAKE
        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.FROZEN)

        rig.supervisor.activity("a call began")

        assert rig.state is AgentState.WAKING
        await rig.until(AgentState.AWAKE)


async def test_a_crash_restarts_from_the_newest_good_checkpoint(tmp_path):
    """What was saved comes back, what was not is lost, and the recovery is said."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        await rig.say("add 5")
        await rig.say("save")
        await rig.say("add 90")
        pid = rig.snapshot.pid

        kill(pid)
        await wait_for(lambda: "CRASHED" in rig.errors())
        awake = await rig.until(AgentState.AWAKE)

        assert awake.pid != pid
        assert await rig.say("get") == 5
        assert (awake.sleep_count, awake.wake_count) == (0, 0)
        assert any(type(p).__name__ == "Recovered" for p in rig.seen)
        assert not rig.supervisor.child_exited.done()


async def test_a_crash_while_quiescing_is_a_crash(tmp_path):
    """Nothing was saved yet, so the agent is started again."""
    async with Rig(tmp_path, "mute") as rig:
        await rig.begin()
        rig.supervisor.request_sleep(0, "test")

        kill(rig.snapshot.pid)
        await wait_for(lambda: "CRASHED" in rig.errors())

        await rig.until(AgentState.AWAKE)


async def test_killed_while_frozen_is_asleep(tmp_path):
    """Its state was on disk already: the death is the sleep that was wanted."""
    async with Rig(tmp_path, frozen_keep_s=HELD) as rig:
        await rig.begin()
        number = await rig.say("add 7")
        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.FROZEN)

        kill(rig.snapshot.pid)
        asleep = await rig.until(AgentState.ASLEEP)
        rig.supervisor.request_wake(asleep.epoch, "test")
        await rig.until(AgentState.AWAKE)

        assert await rig.say("get") == number
        assert (rig.snapshot.sleep_count, rig.snapshot.wake_count) == (1, 1)
        assert rig.errors() == []


@pytest.mark.parametrize("code", [0, 3])
async def test_the_exit_code_is_passed_on(tmp_path, code):
    """A clean end is final; without restarts every end is."""
    restart = RestartLimits(on_failure=code == 0)
    async with Rig(tmp_path, restart=restart) as rig:
        await rig.begin()

        assert await rig.say(f"exit {code}") is None

        assert await asyncio.wait_for(rig.supervisor.child_exited, 10) == code
        assert rig.supervisor.child_exit_code == code
        assert rig.state is AgentState.FAILED


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("/bin/sh", "-c", "exit 0"), 0),
        (("no-such-program-anywhere",), 127),
        (("/etc/passwd",), 126),
    ],
)
async def test_a_command_that_ends_at_once_ends_the_sidecar(tmp_path, words, code):
    """One that is done, or that cannot be run at all, is not tried again."""
    async with Rig(tmp_path, words=words) as rig:
        await rig.supervisor.start()

        assert await asyncio.wait_for(rig.supervisor.child_exited, 10) == code
        assert rig.moves() == ["waking", "failed"]


async def test_one_that_always_crashes_is_given_up(tmp_path):
    """After the crashes allowed in a row its code is passed on; a wake tries anew."""
    words = ("/bin/sh", "-c", f"echo x >> {tmp_path}/lives; kill -9 $$")
    async with Rig(tmp_path, words=words) as rig:
        await rig.supervisor.start()

        assert await asyncio.wait_for(rig.supervisor.child_exited, 10) == 137
        assert rig.state is AgentState.FAILED
        assert rig.errors() == ["CRASHED", "CRASHED", "CRASH_LOOPED"]
        assert (tmp_path / "lives").read_text() == "x\n" * 3

        assert rig.supervisor.request_wake(0, "again").state is AgentState.WAKING
        await rig.until(AgentState.FAILED)


async def test_one_that_ignores_term_is_killed_with_its_children(tmp_path):
    """Stopping ends the whole session, by KILL where TERM does not help."""
    async with Rig(tmp_path, "deaf", stop_grace_s=0.2) as rig:
        await rig.begin()
        pid = rig.snapshot.pid
        child = await rig.say("spawn")

    assert not is_alive(pid)
    assert not is_alive(child)
    assert rig.supervisor.child_exit_code == 137


async def test_children_are_frozen_and_end_with_the_agent(tmp_path):
    """The agent's children are the agent: stopped with it and gone with it."""
    async with Rig(tmp_path, frozen_keep_s=HELD) as rig:
        await rig.begin()
        child = await rig.say("spawn")
        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.FROZEN)
        assert read_stat(child).is_stopped

        kill(rig.snapshot.pid)
        await rig.until(AgentState.ASLEEP)

        assert not is_alive(child)


async def test_one_that_never_attaches_is_awake_and_cannot_be_saved(tmp_path):
    """A program without our client runs, but a sleep that ends it is refused."""
    async with Rig(tmp_path, "hermit", unattached_after_s=0.1) as rig:
        await rig.begin()

        with pytest.raises(Refused) as refused:
            rig.supervisor.request_sleep(0, "test")

        assert refused.value.reason == "AGENT_NOT_ATTACHED"
        assert "--sleep-mode freeze" in refused.value.message


async def test_one_that_should_restore_and_never_attaches_fails(tmp_path):
    """It is not taken for awake without its state; the process is ended."""
    async with Rig(
        tmp_path, "hermit", unattached_after_s=0.1, wake_timeout_s=0.5
    ) as rig:
        rig.shelf.put(b"5")
        await rig.supervisor.start()

        failed = await rig.until(AgentState.FAILED)
        await wait_for(lambda: not rig.snapshot.pid)

        assert "within 0.5 s" in failed.reason
        assert rig.errors() == ["TIMED_OUT"]
        assert not rig.supervisor.child_exited.done()


async def test_freezing_needs_no_attach_and_never_ends_the_process(tmp_path):
    """In freeze mode sleep is frozen, and killed there it has crashed."""
    words = ("/bin/sleep", "100")
    async with Rig(
        tmp_path, words=words, sleep_mode=SleepMode.FREEZE, unattached_after_s=0.05
    ) as rig:
        await rig.begin()
        pid = rig.snapshot.pid
        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.FROZEN)
        await asyncio.sleep(0.1)
        assert (rig.state, read_stat(pid).is_stopped) == (AgentState.FROZEN, True)

        rig.supervisor.request_wake(0, "test")
        assert (await rig.until(AgentState.AWAKE)).pid == pid

        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.FROZEN)
        kill(pid)
        await wait_for(lambda: "CRASHED" in rig.errors())
        assert (await rig.until(AgentState.AWAKE)).pid != pid


@pytest.mark.parametrize(
    ("habit", "reason"),
    [("forgetful", "DIGEST_MISMATCH"), ("cannot-restore", "RESTORE_FAILED")],
)
async def test_a_state_that_does_not_come_back_falls_back_then_fails(
    tmp_path, habit, reason
):
    """Older generations are tried, said so, and without any left it has failed."""
    async with Rig(tmp_path, habit) as rig:
        for raw in (b"1", b"2", b"3"):
            rig.shelf.put(raw)
        rig.shelf.bad.add(2)
        await rig.supervisor.start()

        await rig.until(AgentState.FAILED)
        await wait_for(lambda: not rig.snapshot.pid)

        assert rig.errors() == [reason, "BAD_CHECKPOINT", reason, "EXHAUSTED"]
        fell_back = [p for p in rig.seen if getattr(p, "action", "") == "fell_back"]
        assert [moved.generation for moved in fell_back] == [1]


async def test_no_good_checkpoint_is_no_fresh_start(tmp_path):
    """An agent that had a state is never started without one."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        await fall_asleep(rig)
        rig.shelf.bad.add(1)

        rig.supervisor.request_wake(0, "test")
        await rig.until(AgentState.FAILED)

        assert rig.errors() == ["NO_GOOD_CHECKPOINT"]
        rig.shelf.bad.clear()
        rig.supervisor.request_wake(0, "mended")
        await rig.until(AgentState.AWAKE)


async def test_a_full_disk_does_not_keep_it_asleep(tmp_path):
    """A fence that cannot be written is reported, and the wake goes on."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        number = await rig.say("add 7")
        await fall_asleep(rig)
        rig.shelf.fence_error = Transient("DISK_FULL", "no room")

        rig.supervisor.request_wake(0, "test")
        await rig.until(AgentState.AWAKE)

        assert await rig.say("get") == number
        assert "DISK_FULL" in rig.errors()


async def test_commands_that_cannot_be_are_refused_and_change_nothing(tmp_path):
    """Stale epochs, sleepers put to sleep, and dry runs leave everything alone."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        epoch = rig.snapshot.epoch
        for command in (rig.supervisor.request_sleep, rig.supervisor.request_wake):
            with pytest.raises(Conflict) as stale:
                command(epoch + 1, "test")
            assert stale.value.reason == "STALE_EPOCH"
            assert stale.value.metadata["epoch"] == str(epoch)
        rig.supervisor.request_sleep(epoch, "test", validate_only=True)
        rig.supervisor.request_wake(epoch, "test", validate_only=True)
        assert (rig.state, rig.snapshot.epoch) == (AgentState.AWAKE, epoch)
        assert rig.supervisor.request_wake(epoch, "test").epoch == epoch

        await fall_asleep(rig)
        with pytest.raises(Refused) as twice:
            rig.supervisor.request_sleep(0, "test")
        assert twice.value.reason == "NOT_AWAKE"
    with pytest.raises(Refused) as over:
        rig.supervisor.request_wake(0, "test")
    assert over.value.reason == "STOPPING"


async def test_an_agent_of_somebody_else_is_left_alone(tmp_path):
    """Without a command there is nothing to end and nothing to start."""
    async with Rig(tmp_path, managed=False) as rig:
        await rig.supervisor.start()
        assert rig.supervisor.awake

        for command in (rig.supervisor.request_sleep, rig.supervisor.request_wake):
            with pytest.raises(Refused) as refused:
                command(0, "test")
            assert refused.value.reason == "NO_COMMAND"


async def test_a_sleeper_stays_asleep_through_a_restart_of_the_sidecar(tmp_path):
    """The next sidecar starts nothing, and wakes it with its state when asked."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        number = await rig.say("add 7")
        before = await fall_asleep(rig)
        shelf = rig.shelf

    async with Rig(tmp_path) as rig:
        rig.shelf.kept = shelf.kept
        await rig.supervisor.start()
        after = rig.snapshot
        assert (after.state, after.pid) == (AgentState.ASLEEP, 0)
        same = {"epoch": 0, "since_wall_s": 0}
        assert dataclasses.replace(after, **same) == dataclasses.replace(before, **same)
        assert after.epoch > before.epoch

        rig.supervisor.request_wake(0, "test")
        await rig.until(AgentState.AWAKE)
        assert await rig.say("get") == number
        assert rig.snapshot.wake_count == 1


async def test_a_frozen_agent_is_left_asleep_when_the_sidecar_ends(tmp_path):
    """Its state is on disk, so it need not be started again by the next one."""
    async with Rig(tmp_path, frozen_keep_s=HELD) as rig:
        await rig.begin()
        pid = rig.snapshot.pid
        rig.supervisor.request_sleep(0, "test")
        await rig.until(AgentState.FROZEN)

    assert (rig.state, is_alive(pid)) == (AgentState.ASLEEP, False)


async def test_whoever_was_up_is_restored_after_a_restart_of_the_sidecar(tmp_path):
    """An agent that was not asleep is started and restored."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        await rig.say("add 5")
        await rig.say("save")
        shelf, epoch = rig.shelf, rig.snapshot.epoch

    async with Rig(tmp_path) as rig:
        rig.shelf.kept = shelf.kept
        await rig.begin()
        assert await rig.say("get") == 5
        assert rig.snapshot.epoch > epoch


async def test_attaching_again_replaces_the_stream_and_nothing_else(tmp_path):
    """A broken stream is mended by a new one; the state stays where it is."""
    async with Rig(tmp_path) as rig:
        await rig.begin()
        await rig.say("add 7")
        first = rig.supervisor._life.link

        await rig.say("reattach")
        await wait_for(lambda: rig.supervisor._life.link not in (None, first))
        await rig.attached()

        assert await rig.say("get") == 7
        assert rig.state is AgentState.AWAKE
        await fall_asleep(rig)
        assert rig.shelf.kept[1].raw == b"7"


async def test_a_stream_lost_while_falling_asleep_ends_the_sleep(tmp_path):
    """Nobody can be asked any more, so the agent stays awake."""
    async with Rig(tmp_path, "mute") as rig:
        await rig.begin()
        rig.supervisor.request_sleep(0, "test")

        rig.supervisor.detach(rig.supervisor._life.link)

        assert rig.state is AgentState.AWAKE


async def test_a_listener_that_fails_is_reported_and_stops_nobody(tmp_path):
    """The machine goes on whatever those who listen to it do."""
    async with Rig(tmp_path) as rig:
        calls = []

        def broken():
            calls.append(rig.state)
            raise ZeroDivisionError

        rig.supervisor.on_change.append(broken)
        await rig.begin()

        assert AgentState.AWAKE in calls
        assert "UNEXPECTED" in rig.errors()
