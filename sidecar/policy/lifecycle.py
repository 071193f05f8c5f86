"""Sleep and wake of one agent, as a table.

`TABLE[state, input] = (next state, effects)`. The table decides and performs
nothing; a supervisor performs the effects in their order and feeds back what
came of them. A pair that is not in the table is a defect and raises.

The races, and who wins:

* **Wake against sleep.** A wake that arrives mid-sleep wins at every point:
  while quiescing or checkpointing the sleep is given up, a frozen agent is
  thawed, and one whose process is already being ended is started again as soon
  as it is gone (`GONE` in `waking`). A sleep asked for in any state but `awake`
  is refused by the supervisor before it comes here.
* **Work against sleep.** A call or lease that begins while quiescing or
  checkpointing cancels the sleep. One seen while frozen (its bytes were under
  way when the agent was stopped) wakes it: nothing may be in flight when the
  process goes.
* **Release against thaw.** KILL cannot be taken back. After `RELEASE` a thaw
  does nothing and the wake goes on with `GONE`; before it, CONT comes first and
  `RELEASE_DUE` has no cell outside `frozen`.
* **Death against sleep.** A process that dies before its state is on disk has
  crashed and is started again; once the checkpoint of this very sleep has been
  read back (`GONE`) its death is the sleep that was wanted.
* **Late answers.** Every step belongs to the state that began it: the
  supervisor cancels a state's steps when the state is left and drops messages
  that carry another epoch. So answers of a sleep given up never come here.
* **Stream against process.** A broken Attach while quiescing or checkpointing
  ends the sleep, because nobody can be asked any more; while frozen it means
  nothing, because a stopped process is silent.
* **Restore against sleep.** What came of a restore is judged while waking or
  awake only. A frozen agent that would have to restore is not let attach, and one
  that answers while it is only to be frozen ends that sleep (`ACTIVITY`) first.
* **Two starts.** `START` first waits until the former process is gone, so one
  agent never lives twice.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from outrigger.core.errors import Bug
from sidecar.policy.agent import AgentState


class Input(enum.Enum):
    """What can happen to an agent."""

    SLEEP_REQUESTED = "sleep_requested"
    WAKE_REQUESTED = "wake_requested"
    ACTIVITY = "activity"
    """A call or lease began."""
    ATTACHED = "attached"
    DETACHED = "detached"
    QUIESCED = "quiesced"
    """The agent says so and nothing of it is in flight here."""
    VETOED = "vetoed"
    SAVED = "saved"
    """The checkpoint of this sleep was read back from disk and is good."""
    NOTHING_TO_SAVE = "nothing_to_save"
    """Only to be frozen: its state stays in memory."""
    SAVE_FAILED = "save_failed"
    FROZEN_OK = "frozen_ok"
    FREEZE_FAILED = "freeze_failed"
    RELEASE_DUE = "release_due"
    """Frozen for long enough and still nothing in flight."""
    THAWED = "thawed"
    STARTED = "started"
    START_FAILED = "start_failed"
    UNATTACHED = "unattached"
    """No Attach came in time, and nothing had to be restored."""
    RESTORED_OK = "restored_ok"
    RESTORE_FAILED = "restore_failed"
    DIGEST_MISMATCH = "digest_mismatch"
    EXHAUSTED = "exhausted"
    """No older checkpoint is left to fall back to."""
    SERVING = "serving"
    GONE = "gone"
    """The process is gone and nothing with it: we ended it, or it is saved."""
    CRASHED = "crashed"
    CRASH_LOOPED = "crash_looped"
    """Crashed once too often."""
    FINISHED = "finished"
    """Ended by itself and is not to be started again."""
    TIMED_OUT = "timed_out"


class Effect(enum.Enum):
    """What the supervisor is to do about it."""

    ISSUE_EPOCH = "issue_epoch"
    """Take the next epoch; everything older is fenced off."""
    ASK_QUIESCE = "ask_quiesce"
    ASK_SAVE = "ask_save"
    FREEZE = "freeze"
    KEEP_FROZEN = "keep_frozen"
    """Wait, look for work once more, then say RELEASE_DUE."""
    RELEASE = "release"
    """End the frozen process by KILL."""
    THAW = "thaw"
    """Let it run; nothing happens to one that runs or is being ended."""
    AWAIT_THAW = "await_thaw"
    RESUME = "resume"
    """Tell the agent to go on."""
    START = "start"
    """Start it once the former process is gone."""
    RESTART = "restart"
    """The same after a pause that grows."""
    AWAIT_AGENT = "await_agent"
    WELCOME = "welcome"
    """Say which checkpoint to restore, if any."""
    AWAIT_SERVING = "await_serving"
    FALL_BACK = "fall_back"
    """End the process; the next start restores an older checkpoint."""
    KILL = "kill"
    """End the process, if there is one."""


@dataclass(frozen=True, slots=True)
class Move:
    """One cell."""

    state: AgentState
    effects: tuple[Effect, ...] = ()


_AWAKE = AgentState.AWAKE
_QUIESCING = AgentState.QUIESCING
_CHECKPOINTING = AgentState.CHECKPOINTING
_FROZEN = AgentState.FROZEN
_ASLEEP = AgentState.ASLEEP
_WAKING = AgentState.WAKING
_FAILED = AgentState.FAILED

_STAY_AWAKE = Move(_AWAKE)
_GIVE_UP = Move(_AWAKE, (Effect.RESUME,))
_UNDO_FREEZE = Move(_AWAKE, (Effect.THAW, Effect.RESUME))
_RESTART = Move(_WAKING, (Effect.ISSUE_EPOCH, Effect.RESTART))
_REPLACE = Move(_WAKING, (Effect.ISSUE_EPOCH, Effect.START))
_RESTORE_OLDER = Move(_WAKING, (Effect.ISSUE_EPOCH, Effect.FALL_BACK))
_REVIVE = Move(_WAKING, (Effect.ISSUE_EPOCH, Effect.THAW, Effect.AWAIT_THAW))
_FAIL = Move(_FAILED)
_FAIL_AND_KILL = Move(_FAILED, (Effect.KILL,))

_CELLS: Final[dict[AgentState, dict[Input, Move]]] = {
    _AWAKE: {
        Input.SLEEP_REQUESTED: Move(
            _QUIESCING, (Effect.ISSUE_EPOCH, Effect.ASK_QUIESCE)
        ),
        Input.WAKE_REQUESTED: _STAY_AWAKE,
        Input.ACTIVITY: _STAY_AWAKE,
        Input.ATTACHED: Move(_AWAKE, (Effect.WELCOME,)),
        Input.DETACHED: _STAY_AWAKE,
        Input.RESTORED_OK: _STAY_AWAKE,
        Input.RESTORE_FAILED: _RESTORE_OLDER,
        Input.DIGEST_MISMATCH: _RESTORE_OLDER,
        Input.SERVING: _STAY_AWAKE,
        Input.GONE: _REPLACE,
        Input.CRASHED: _RESTART,
        Input.CRASH_LOOPED: _FAIL,
        Input.FINISHED: _FAIL,
    },
    _QUIESCING: {
        Input.WAKE_REQUESTED: Move(_AWAKE, (Effect.ISSUE_EPOCH, Effect.RESUME)),
        Input.ACTIVITY: _GIVE_UP,
        Input.ATTACHED: Move(_AWAKE, (Effect.WELCOME, Effect.RESUME)),
        Input.DETACHED: _GIVE_UP,
        Input.QUIESCED: Move(_CHECKPOINTING, (Effect.ASK_SAVE,)),
        Input.VETOED: _GIVE_UP,
        Input.SERVING: Move(_QUIESCING),
        Input.GONE: _REPLACE,
        Input.CRASHED: _RESTART,
        Input.CRASH_LOOPED: _FAIL,
        Input.FINISHED: _FAIL,
        Input.TIMED_OUT: _GIVE_UP,
    },
    _CHECKPOINTING: {
        Input.WAKE_REQUESTED: Move(
            _AWAKE, (Effect.ISSUE_EPOCH, Effect.THAW, Effect.RESUME)
        ),
        Input.ACTIVITY: _UNDO_FREEZE,
        Input.ATTACHED: Move(_AWAKE, (Effect.THAW, Effect.WELCOME, Effect.RESUME)),
        Input.DETACHED: _UNDO_FREEZE,
        Input.VETOED: _UNDO_FREEZE,
        Input.SAVED: Move(_CHECKPOINTING, (Effect.FREEZE,)),
        Input.NOTHING_TO_SAVE: Move(_CHECKPOINTING, (Effect.FREEZE,)),
        Input.SAVE_FAILED: _UNDO_FREEZE,
        Input.FROZEN_OK: Move(_FROZEN, (Effect.KEEP_FROZEN,)),
        Input.FREEZE_FAILED: _UNDO_FREEZE,
        Input.SERVING: Move(_CHECKPOINTING),
        Input.GONE: Move(_ASLEEP),
        Input.CRASHED: _RESTART,
        Input.CRASH_LOOPED: _FAIL,
        Input.FINISHED: _FAIL,
        Input.TIMED_OUT: _UNDO_FREEZE,
    },
    _FROZEN: {
        Input.WAKE_REQUESTED: _REVIVE,
        Input.ACTIVITY: _REVIVE,
        Input.ATTACHED: Move(_FROZEN, (Effect.WELCOME,)),
        Input.DETACHED: Move(_FROZEN),
        Input.RELEASE_DUE: Move(_FROZEN, (Effect.RELEASE,)),
        Input.SERVING: Move(_FROZEN),
        Input.GONE: Move(_ASLEEP),
        Input.CRASHED: _RESTART,
        Input.CRASH_LOOPED: _FAIL,
        Input.FINISHED: _FAIL,
    },
    _ASLEEP: {
        Input.WAKE_REQUESTED: _REPLACE,
        Input.ACTIVITY: Move(_ASLEEP),
        Input.DETACHED: Move(_ASLEEP),
        Input.SERVING: Move(_ASLEEP),
    },
    _WAKING: {
        Input.WAKE_REQUESTED: Move(_WAKING),
        Input.ACTIVITY: Move(_WAKING),
        Input.ATTACHED: Move(_WAKING, (Effect.WELCOME,)),
        Input.DETACHED: Move(_WAKING),
        Input.THAWED: Move(_AWAKE, (Effect.RESUME,)),
        Input.STARTED: Move(_WAKING, (Effect.AWAIT_AGENT,)),
        Input.START_FAILED: _FAIL_AND_KILL,
        Input.UNATTACHED: _STAY_AWAKE,
        Input.RESTORED_OK: Move(_WAKING, (Effect.AWAIT_SERVING,)),
        Input.RESTORE_FAILED: Move(_WAKING, (Effect.FALL_BACK,)),
        Input.DIGEST_MISMATCH: Move(_WAKING, (Effect.FALL_BACK,)),
        Input.EXHAUSTED: _FAIL_AND_KILL,
        Input.SERVING: _STAY_AWAKE,
        Input.GONE: Move(_WAKING, (Effect.START,)),
        Input.CRASHED: Move(_WAKING, (Effect.RESTART,)),
        Input.CRASH_LOOPED: _FAIL,
        Input.FINISHED: _FAIL,
        Input.TIMED_OUT: _FAIL_AND_KILL,
    },
    _FAILED: {
        Input.WAKE_REQUESTED: _REPLACE,
        Input.ACTIVITY: _FAIL,
        Input.DETACHED: _FAIL,
        Input.SERVING: _FAIL,
        Input.GONE: _FAIL,
        Input.CRASHED: _FAIL,
        Input.CRASH_LOOPED: _FAIL,
        Input.FINISHED: _FAIL,
    },
}

TABLE: Final[Mapping[tuple[AgentState, Input], Move]] = MappingProxyType(
    {
        (state, given): move
        for state, row in _CELLS.items()
        for given, move in row.items()
    }
)


def accepts(state: AgentState, given: Input) -> bool:
    """Say whether the input can come in this state."""
    return (state, given) in TABLE


def step(state: AgentState, given: Input) -> Move:
    """Return the next state and what to do.

    Raises:
        Bug: NO_SUCH_MOVE for a pair that is not in the table.
    """
    move = TABLE.get((state, given))
    if move is None:
        raise Bug(
            "NO_SUCH_MOVE",
            f"{given.value!r} cannot come while an agent is {state.value!r}: the"
            " supervisor let through what it had to refuse or drop",
        )
    return move


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartLimits:
    """When and how soon an agent that ended is started again."""

    on_failure: bool = True
    """False: never; its exit code is passed on."""
    failed_starts_max: int = 5
    """Starts in a row that may end before the agent is awake; the exit code of the
    next one is passed on."""
    stable_s: float = 10.0
    """Awake for so long, the crashes before are forgotten."""
    first_pause_s: float = 0.2
    longest_pause_s: float = 10.0

    def pause_s(self, crashes: int, draw: float) -> float:
        """Return how long to wait after that many crashes in a row.

        Doubles with each crash; `draw` in [0, 1) takes up to half of it away.
        """
        doubled = self.first_pause_s * 2.0 ** (max(crashes, 1) - 1)
        return min(doubled, self.longest_pause_s) * (1.0 - draw / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How the agent's process ended."""

    code: int
    ended_by_us: bool
    saved: bool
    """It was being put to sleep and its state was read back from disk."""
    served: bool
    """It has been awake since the sidecar started."""
    failed_starts: int
    """In a row, this one included; 0 if it had been awake."""


_CANNOT_RUN: Final = frozenset({126, 127})


def judge_exit(how: Exit, limits: RestartLimits) -> Input:
    """Return what the end of the process means."""
    if how.ended_by_us or how.saved:
        return Input.GONE
    never_ran = how.code in _CANNOT_RUN and not how.served
    if how.code == 0 or never_ran or not limits.on_failure:
        return Input.FINISHED
    if how.failed_starts > limits.failed_starts_max:
        return Input.CRASH_LOOPED
    return Input.CRASHED
