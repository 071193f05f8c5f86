"""The gate that work passes, so that a saved state is a state at rest.

Three parties want the agent's state at once: its own threads want to change it,
a save wants to read it whole, the sidecar wants it to stay as it was saved. Who
wins: work under way is never interrupted; a save keeps new work out and waits
for the old; a sleep does the same and, once its save is done, keeps the gate
closed. `open` beats a sleep that still waits, and never beats a save.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from outrigger.core.errors import Refused


class Gate:
    """Closed at first; opened when the agent holds its state."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._depths = threading.local()
        self._working = 0
        self._saving = False
        self._open = False
        self._ended = False
        self._turn = 0

    @contextmanager
    def work(self) -> Iterator[None]:
        """Wait until work may go on, then keep saves and sleeps waiting.

        A thread may nest it: a sleep that began meanwhile does not lock it out of
        what it has begun.

        Raises:
            Refused: AGENT_STOPPED.
        """
        depth = self._depth()
        if depth == 0:
            self._enter()
        self._depths.value = depth + 1
        try:
            yield
        finally:
            self._depths.value = depth
            if depth == 0:
                self._change(self._leave)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Wait until no work is under way, and keep it out.

        Raises:
            Refused: SAVE_INSIDE_WORK, because it would wait for itself;
                AGENT_STOPPED.
        """
        self.require_no_work_here()
        with self._changed:
            self._changed.wait_for(lambda: not self._saving)
            self._saving = True
        try:
            self._wait_for_work()
            yield
        finally:
            self._change(self._saved)

    def require_no_work_here(self) -> None:
        """Raise on a thread that is in the middle of work.

        Raises:
            Refused: SAVE_INSIDE_WORK.
        """
        if self._depth():
            raise Refused(
                "SAVE_INSIDE_WORK",
                "the state cannot be saved inside a `working()` block, which says"
                " that it is being changed; leave the block first",
            )

    def close(self) -> int:
        """Let no new work in; return a turn to ask `wait_quiet` with."""
        with self._changed:
            self._open = False
            self._turn += 1
            return self._turn

    def open(self, turn: int | None = None) -> None:
        """Let work in again; with a turn only if it is still that one."""
        with self._changed:
            if turn in (None, self._turn) and not self._ended:
                self._open = True
                self._turn += 1
                self._changed.notify_all()

    def end(self) -> None:
        """Turn everybody away who waits or will come."""
        self._change(self._finish)

    def is_turn(self, turn: int) -> bool:
        """Return whether nobody opened or closed the gate since that `close`."""
        with self._changed:
            return self._turn == turn

    def wait_quiet(self, turn: int, timeout_s: float) -> bool:
        """Wait until no work is under way, or it is somebody else's turn.

        Returns:
            Whether it is quiet.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._turn != turn or self._quiet(), timeout_s
            )
            return self._quiet()

    def _enter(self) -> None:
        with self._changed:
            self._changed.wait_for(self._may_enter)
            self._require_running()
            self._working += 1

    def _wait_for_work(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._ended or not self._working)
            self._require_running()

    def _require_running(self) -> None:
        if self._ended:
            raise Refused(
                "AGENT_STOPPED",
                "this agent has been stopped; begin nothing new and end",
            )

    def _may_enter(self) -> bool:
        return self._ended or (self._open and not self._saving)

    def _quiet(self) -> bool:
        return not self._working and not self._saving

    def _depth(self) -> int:
        return int(getattr(self._depths, "value", 0))

    def _change(self, change: Callable[[], None]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()

    def _leave(self) -> None:
        self._working -= 1

    def _saved(self) -> None:
        self._saving = False

    def _finish(self) -> None:
        self._open = False
        self._ended = True
        self._turn += 1
