"""The table of sleep and wake, cell by cell, against a table of its own."""

import pytest

from outrigger.core.errors import Bug
from sidecar.policy.agent import AgentState
from sidecar.policy.lifecycle import (
    Effect,
    Exit,
    Input,
    RestartLimits,
    accepts,
    judge_exit,
    step,
)

# One line per cell: state, input, next state, effects. Whatever is not here is
# refused. Written by hand from the rules, not from the code's table.
CELLS = """
awake          sleep_requested   quiescing      issue_epoch ask_quiesce
awake          wake_requested    awake
awake          activity          awake
awake          attached          awake          welcome
awake          detached          awake
awake          restored_ok       awake
awake          restore_failed    waking         issue_epoch fall_back
awake          digest_mismatch   waking         issue_epoch fall_back
awake          serving           awake
awake          gone              waking         issue_epoch start
awake          crashed           waking         issue_epoch restart
awake          crash_looped      failed
awake          finished          failed

quiescing      wake_requested    awake          issue_epoch resume
quiescing      activity          awake          resume
quiescing      attached          awake          welcome resume
quiescing      detached          awake          resume
quiescing      quiesced          checkpointing  ask_save
quiescing      vetoed            awake          resume
quiescing      serving           quiescing
quiescing      gone              waking         issue_epoch start
quiescing      crashed           waking         issue_epoch restart
quiescing      crash_looped      failed
quiescing      finished          failed
quiescing      timed_out         awake          resume

checkpointing  wake_requested    awake          issue_epoch thaw resume
checkpointing  activity          awake          thaw resume
checkpointing  attached          awake          thaw welcome resume
checkpointing  detached          awake          thaw resume
checkpointing  vetoed            awake          thaw resume
checkpointing  saved             checkpointing  freeze
checkpointing  nothing_to_save   checkpointing  freeze
checkpointing  save_failed       awake          thaw resume
checkpointing  frozen_ok         frozen         keep_frozen
checkpointing  freeze_failed     awake          thaw resume
checkpointing  serving           checkpointing
checkpointing  gone              asleep
checkpointing  crashed           waking         issue_epoch restart
checkpointing  crash_looped      failed
checkpointing  finished          failed
checkpointing  timed_out         awake          thaw resume

frozen         wake_requested    waking         issue_epoch thaw await_thaw
frozen         activity          waking         issue_epoch thaw await_thaw
frozen         attached          frozen         welcome
frozen         detached          frozen
frozen         release_due       frozen         release
frozen         serving           frozen
frozen         gone              asleep
frozen         crashed           waking         issue_epoch restart
frozen         crash_looped      failed
frozen         finished          failed

asleep         wake_requested    waking         issue_epoch start
asleep         activity          asleep
asleep         detached          asleep
asleep         serving           asleep

waking         wake_requested    waking
waking         activity          waking
waking         attached          waking         welcome
waking         detached          waking
waking         thawed            awake          resume
waking         started           waking         await_agent
waking         start_failed      failed         kill
waking         unattached        awake
waking         restored_ok       waking         await_serving
waking         restore_failed    waking         fall_back
waking         digest_mismatch   waking         fall_back
waking         exhausted         failed         kill
waking         serving           awake
waking         gone              waking         start
waking         crashed           waking         restart
waking         crash_looped      failed
waking         finished          failed
waking         timed_out         failed         kill

failed         wake_requested    waking         issue_epoch start
failed         activity          failed
failed         detached          failed
failed         serving           failed
failed         gone              failed
failed         crashed           failed
failed         crash_looped      failed
failed         finished          failed
"""

EXPECTED = {
    (state, given): (after, tuple(effects))
    for state, given, after, *effects in map(
        str.split, filter(str.strip, CELLS.splitlines())
    )
}

PAIRS = [(state, given) for state in AgentState for given in Input]


@pytest.mark.parametrize(
    ("state", "given"), PAIRS, ids=lambda word: getattr(word, "value", None)
)
def test_every_cell_is_as_written_here(state, given):
    """Each pair moves as this file says, or is refused."""
    expected = EXPECTED.get((state.value, given.value))

    if expected is None:
        assert not accepts(state, given)
        with pytest.raises(Bug) as refused:
            step(state, given)
        assert refused.value.reason == "NO_SUCH_MOVE"
        assert given.value in refused.value.message
    else:
        move = step(state, given)
        effects = tuple(effect.value for effect in move.effects)
        assert (move.state.value, effects) == expected
        assert accepts(state, given)


def test_this_file_names_only_what_there_is():
    """A misspelt cell here would go untested, so none is let pass."""
    words = {state.value for state in AgentState}
    inputs = {given.value for given in Input}
    effects = {effect.value for effect in Effect}

    for (state, given), (after, done) in EXPECTED.items():
        assert state in words
        assert after in words
        assert given in inputs
        assert effects.issuperset(done)


def test_a_wake_is_accepted_in_every_state():
    """There is no state in which a wake is refused or leads towards sleep."""
    up = {AgentState.AWAKE, AgentState.WAKING}

    assert {step(state, Input.WAKE_REQUESTED).state for state in AgentState} == up


def test_asleep_is_reached_only_when_the_process_is_gone():
    """No cell enters asleep by any other input, nor by one from awake."""
    entering = [
        (state, given)
        for state, given in PAIRS
        if accepts(state, given)
        and step(state, given).state is AgentState.ASLEEP
        and state is not AgentState.ASLEEP
    ]

    assert entering == [
        (AgentState.CHECKPOINTING, Input.GONE),
        (AgentState.FROZEN, Input.GONE),
    ]


def test_every_effect_is_used_by_some_cell():
    """An effect nobody asks for would be dead code in the supervisor."""
    used = {
        effect
        for state, given in PAIRS
        if accepts(state, given)
        for effect in step(state, given).effects
    }

    assert used == set(Effect)


def an_exit(**given):
    """Return an exit that would be a first crash, changed as given."""
    facts = {
        "code": 1,
        "ended_by_us": False,
        "saved": False,
        "served": True,
        "failed_starts": 1,
    }
    return Exit(**(facts | given))


@pytest.mark.parametrize(
    ("how", "meaning"),
    [
        (an_exit(), Input.CRASHED),
        (an_exit(code=137), Input.CRASHED),
        (an_exit(code=137, ended_by_us=True), Input.GONE),
        (an_exit(code=137, saved=True), Input.GONE),
        (an_exit(code=0), Input.FINISHED),
        (an_exit(code=0, ended_by_us=True), Input.GONE),
        (an_exit(code=127, served=False), Input.FINISHED),
        (an_exit(code=126, served=False), Input.FINISHED),
        (an_exit(code=127, served=True), Input.CRASHED),
        (an_exit(code=1, served=False), Input.CRASHED),
        (an_exit(failed_starts=5), Input.CRASHED),
        (an_exit(failed_starts=6), Input.CRASH_LOOPED),
    ],
)
def test_what_an_exit_means(how, meaning):
    """Ended by us or saved is gone, 0 or never run is final, the rest is a crash."""
    assert judge_exit(how, RestartLimits()) is meaning


def test_without_restarts_every_exit_of_its_own_is_final():
    """An operator who wants no restart gets the exit code of the first end."""
    limits = RestartLimits(on_failure=False)

    assert judge_exit(an_exit(), limits) is Input.FINISHED
    assert judge_exit(an_exit(ended_by_us=True), limits) is Input.GONE


def test_pauses_double_up_to_the_longest_and_are_jittered_downwards():
    """The pause before a restart grows with the crashes and never beyond its cap."""
    limits = RestartLimits(first_pause_s=1.0, longest_pause_s=5.0)

    pauses = [limits.pause_s(crashes, 0.0) for crashes in range(6)]

    assert pauses == [1.0, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert limits.pause_s(2, 0.5) == pytest.approx(1.5)
