"""Random lives of an agent, against a small model of the world around it."""

from hypothesis import event, given, settings
from hypothesis import strategies as st

from sidecar.policy.agent import AgentState
from sidecar.policy.lifecycle import Effect, Input, accepts, step

ENDS = (Input.CRASHED, Input.CRASH_LOOPED, Input.FINISHED)
ANY_TIME = (
    Input.WAKE_REQUESTED,
    *[Input.SLEEP_REQUESTED] * 8,
    Input.ACTIVITY,
    Input.DETACHED,
)
ANSWERS = {
    Effect.ASK_QUIESCE: (Input.QUIESCED, Input.VETOED, Input.TIMED_OUT),
    Effect.ASK_SAVE: (Input.SAVED, Input.SAVE_FAILED, Input.VETOED, Input.TIMED_OUT),
    Effect.FREEZE: (Input.FROZEN_OK, Input.FREEZE_FAILED),
    Effect.KEEP_FROZEN: (Input.RELEASE_DUE,),
    Effect.RELEASE: (),
    Effect.START: (Input.TIMED_OUT, Input.START_FAILED),
    Effect.RESTART: (Input.TIMED_OUT, Input.START_FAILED),
    Effect.AWAIT_AGENT: (
        Input.RESTORED_OK,
        Input.RESTORE_FAILED,
        Input.DIGEST_MISMATCH,
        Input.UNATTACHED,
        Input.TIMED_OUT,
    ),
    Effect.FALL_BACK: (Input.EXHAUSTED, Input.TIMED_OUT),
    Effect.KILL: (),
}
"""What a step may come back with."""


class World:
    """A process and the steps under way, moved only by effects and answers."""

    def __init__(self):
        self.state = AgentState.ASLEEP
        self.epochs = []
        self.alive = False
        self.stopped = False
        self.dying = False
        self.heard = False
        self.start_pending = False
        self.saved = False
        self.answers = ()
        self.feed(Input.WAKE_REQUESTED)

    def feed(self, given):
        move = step(self.state, given)
        if move.state is not self.state:
            self.answers = ()
        self.state = move.state
        if self.state is AgentState.AWAKE:
            self.saved = False
        for effect in move.effects:
            self.perform(effect)
        self.check()

    def perform(self, effect):
        """Do what the supervisor would: change the world, await answers."""
        self.answers = ANSWERS.get(effect, self.answers)
        change = getattr(self, f"do_{effect.value}", None)
        if change is not None:
            change()

    def do_issue_epoch(self):
        self.epochs.append(len(self.epochs) + 1)

    def do_ask_quiesce(self):
        self.saved = False

    def do_freeze(self):
        self.stopped = self.alive

    def do_thaw(self):
        self.stopped = self.stopped and self.dying

    def do_await_thaw(self):
        self.answers = () if self.dying else (Input.THAWED, Input.TIMED_OUT)

    def do_start(self):
        self.start_pending = True

    do_restart = do_start

    def do_release(self):
        self.dying = self.alive
        self.heard = False

    do_kill = do_release
    do_fall_back = do_release

    def do_resume(self):
        assert not self.stopped or self.dying

    def possible(self):
        """Return what may happen next, as (name, input) pairs."""
        happenings = [given for given in ANY_TIME if accepts(self.state, given)]
        # Steps usually succeed, else few lives would ever get as far as sleep.
        answers = [given for given in self.answers if accepts(self.state, given)]
        happenings += answers + answers[:1] * 8
        if self.heard and not self.stopped:
            spoken = (Input.SERVING, Input.ATTACHED)
            happenings += [given for given in spoken if accepts(self.state, given)]
        if self.alive:
            happenings.append(Input.GONE if self.dying or self.saved else ENDS[0])
            if not (self.dying or self.saved or self.stopped):
                happenings += ENDS[1:]
        if self.start_pending and not self.alive:
            happenings += [Input.STARTED] * 8
        return happenings

    def happen(self, given):
        if given is Input.SAVED:
            self.saved = True
        if given is Input.STARTED:
            self.start_pending = False
            self.alive, self.dying, self.stopped = True, False, False
            self.heard = True
        if given in (Input.GONE, *ENDS):
            self.alive = self.dying = self.stopped = self.heard = False
        if given in (Input.TIMED_OUT, Input.START_FAILED):
            self.start_pending = False
        self.feed(given)

    def check(self):
        if self.state is AgentState.ASLEEP:
            assert not self.alive, "asleep with a live process"
        if self.state is AgentState.FROZEN:
            assert self.saved, "frozen without a saved state"
        if self.state in (AgentState.AWAKE, AgentState.QUIESCING):
            assert self.alive, "awake without a process"
            assert not self.stopped, "awake and stopped"


def live(data, world, rounds):
    """Let random possible things happen."""
    for _ in range(rounds):
        event(world.state.value)
        world.happen(data.draw(st.sampled_from(world.possible())))


@given(st.data(), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_no_life_is_ever_both_asleep_and_alive(data, rounds):
    """Whatever happens in whatever order, the model's promises hold at each step."""
    world = World()

    live(data, world, rounds)

    assert world.epochs == sorted(set(world.epochs))


@given(st.data(), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_a_wake_always_leads_to_awake(data, rounds):
    """From anywhere a wake leads up at once, and to awake if nothing fails."""
    world = World()
    live(data, world, rounds)

    world.happen(Input.WAKE_REQUESTED)
    assert world.state in (AgentState.WAKING, AgentState.AWAKE)
    for _ in range(8):
        if world.state is AgentState.AWAKE:
            break
        if world.alive and world.dying:
            world.happen(Input.GONE)
        elif world.start_pending:
            world.happen(Input.STARTED)
        elif Input.THAWED in world.answers:
            world.happen(Input.THAWED)
        else:
            world.happen(Input.SERVING)

    assert world.state is AgentState.AWAKE


@given(st.data(), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_a_sleep_is_taken_only_from_awake(data, rounds):
    """The table knows no sleep from any other state."""
    world = World()

    live(data, world, rounds)

    assert accepts(world.state, Input.SLEEP_REQUESTED) == (
        world.state is AgentState.AWAKE
    )
