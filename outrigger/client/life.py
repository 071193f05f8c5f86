"""What the agent does when its sidecar asks: restore, quiet, save, go on, stop."""

import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from outrigger.client.gate import Gate
from outrigger.client.link import REPLACED, Link
from outrigger.client.saves import Saves, require_digest
from outrigger.core.blocks import state_digest
from outrigger.core.errors import (
    Corrupt,
    Denied,
    OutriggerError,
    Refused,
    TimedOut,
)
from outrigger.v1 import attach_service_pb2 as wire
from outrigger.v1.checkpoint_pb2 import Checkpoint

_log = logging.getLogger("outrigger.client")

_CLIENT: Final = "outrigger.client"
_QUIET_DEFAULT_S: Final = 10.0
_QUIET_SHARE: Final = 0.8
"""Of the time the sidecar gives; the rest is for the answer to reach it."""


class NotNow(Exception):
    """Raised by a quiesce hook: the agent does not want to sleep now, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """What only the agent's author knows."""

    save: Callable[[], bytes]
    restore: Callable[[bytes], None]
    quiesce: Callable[[], None]
    proves_by_saving: bool


class Life:
    """Answers the sidecar.

    Messages arrive on the link's thread. `resume` and `stop` are obeyed there, so
    that a long save never keeps them waiting; quieting and saving run on a second
    thread, each under the turn of the gate it began with, and answer nothing once
    the turn is over.

    Races. A stream may break before `restored` has reached the sidecar, which then
    names the checkpoint to the next one again: the proof is kept and repeated.
    `serving` says where and proves what at the sidecar, so it goes out only on a
    stream whose welcome was answered and whose hello named the address of now; that
    is looked up and sent under one lock, which `broke` needs before a new stream.
    Two saves at once could end in the wrong order, the older state as the newer
    generation: the next one reads the state when the one before is on disk.
    """

    def __init__(
        self,
        hooks: Hooks,
        saves: Saves,
        gate: Gate,
        make_link: Callable[..., Link],
        app_address: str,
    ) -> None:
        self._hooks = hooks
        self._saves = saves
        self._gate = gate
        self._link = make_link(hello=self.hello, take=self.take, broke=self.broke)
        self._changed = threading.Condition()
        self._app_address = app_address
        self._said_address = app_address
        """As the newest hello named it."""
        self._saving = threading.Lock()
        self._has_state = False
        self._proof: wire.Restored | None = None
        """What was restored; None if the agent started afresh."""
        self._is_welcomed = False
        """The welcome of the stream of now was answered."""
        self._wants_to_serve = False
        self._is_serving = False
        self._is_stopped = False
        self._problem: OutriggerError | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker = threading.Thread(
            target=self._work, name="outrigger-sleep", daemon=True
        )

    def start(self) -> None:
        """Open the link and begin to answer."""
        self._worker.start()
        self._link.start()

    def end(self) -> None:
        """Turn work away and end the link; `join` comes later."""
        self._stop()
        self._jobs.put(None)
        self._link.close()

    def join(self) -> None:
        """Wait until the second thread has ended."""
        if threading.current_thread() is not self._worker:
            self._worker.join()

    def serve(self, app_address: str, timeout_s: float | None) -> None:
        """See `Agent.serving`."""
        self.wait_until_restored(timeout_s)
        with self._changed:
            self._app_address = app_address or self._app_address
            self._wants_to_serve = True
            self._raise_if_hopeless()
            if self._app_address != self._said_address:
                # Only `hello` carries the address; the welcome that answers it is
                # followed by `serving`.
                self._link.renew()
            else:
                self._announce()

    def wait_until_restored(self, timeout_s: float | None) -> None:
        """See `Agent.wait_until_restored`."""
        self._wait(lambda: self._has_state, timeout_s)

    def wait_until_serving(self, timeout_s: float | None) -> None:
        """See `Agent.wait_until_serving`."""
        self._wait(lambda: self._is_serving, timeout_s)

    def wait_until_stopped(self, timeout_s: float | None) -> bool:
        """See `Agent.wait_until_stopped`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_stopped, timeout_s)

    def save(self, epoch: int = 0) -> Checkpoint:
        """Save the state at rest under an epoch; 0 means the current one."""
        self._gate.require_no_work_here()
        with self._saving:
            with self._gate.still():
                state = self._hooks.save()
            return self._saves.save(state, epoch)

    def hello(self) -> wire.AttachRequest:
        """Return the first message of a stream."""
        with self._changed:
            self._said_address = self._app_address
            hello = wire.Hello(
                pid=os.getpid(),
                client=_CLIENT,
                app_address=self._app_address,
                resumed=self._has_state,
            )
        return wire.AttachRequest(hello=hello)

    def take(self, message: wire.AttachResponse) -> None:
        """Obey one message of the sidecar."""
        match message.WhichOneof("message"):
            case "welcome":
                self._welcome(message.welcome)
            case "prepare_sleep":
                turn = self._gate.close()
                self._jobs.put(lambda: self._prepare(message.prepare_sleep, turn))
            case "save":
                turn = self._gate.close()
                self._jobs.put(lambda: self._save(message.save.epoch, turn))
            case "resume":
                self._gate.open()
            case "stop":
                self._stop()
            case unknown:
                _log.warning("the sidecar said %s, which is new to us", unknown)

    def broke(self, problem: OutriggerError) -> None:
        """Note why a stream ended."""
        _log.info("the Attach stream ended: %r", problem)
        with self._changed:
            self._problem = problem
            self._is_serving = False
            self._is_welcomed = False
            if _is_replaced(problem) and self._wants_to_serve:
                # The sidecar gave up the sleep that this stream was asked for, and
                # nobody else will tell us.
                self._gate.open()
            self._changed.notify_all()

    def _welcome(self, welcome: wire.Welcome) -> None:
        try:
            if not self._has_state:
                self._proof = self._restore(welcome)
            self._show_proof(welcome)
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            self._restore_failed(error)
            return
        with self._changed:
            self._has_state = True
            self._is_welcomed = True
            self._problem = None
            # Also opens the gate again: a sleep whose stream broke is given up.
            self._announce()
            self._changed.notify_all()

    def _show_proof(self, welcome: wire.Welcome) -> None:
        generation, proof = welcome.restore_generation, self._proof
        if not generation:
            return
        wanted = wire.Restored(
            generation=generation, state_digest=welcome.restore_digest
        )
        if proof != wanted:
            held = f"generation {proof.generation}" if proof else "a state begun afresh"
            raise Refused(
                "OTHER_STATE_HELD",
                f"this process holds {held} and cannot restore generation"
                f" {generation} as well: start it anew",
            )
        self._send(wire.AttachRequest(restored=proof))

    def _restore(self, welcome: wire.Welcome) -> wire.Restored | None:
        generation = welcome.restore_generation
        if not generation:
            return None
        _, state = self._saves.restore(generation)
        require_digest(state, generation, welcome.restore_digest)
        self._hooks.restore(state)
        if self._hooks.proves_by_saving:
            self._prove(state)
        return wire.Restored(generation=generation, state_digest=state_digest(state))

    def _prove(self, state: bytes) -> None:
        held = self._hooks.save()
        if held != state:
            raise Corrupt(
                "STATE_NOT_REPRODUCED",
                f"save() gave {len(held)} other bytes right after restore() was given"
                f" {len(state)}; make both exact, or leave proves_by_saving off",
            )

    def _restore_failed(self, error: Exception) -> None:
        _log.warning("the state was not restored", exc_info=error)
        problem = Refused("RESTORE_FAILED", f"{type(error).__name__}: {error}")
        with self._changed:
            self._problem = problem
        self._send(wire.AttachRequest(failed=wire.Failed(reason=problem.message)))

    def _prepare(self, request: wire.PrepareSleep, turn: int) -> None:
        limit_s = request.timeout.ToMilliseconds() / 1000 or _QUIET_DEFAULT_S
        wait_s = limit_s * _QUIET_SHARE
        try:
            if not self._gate.wait_quiet(turn, wait_s):
                raise NotNow(f"work was under way for longer than {wait_s:g} s")  # noqa: TRY301 - the same veto as a hook's
            self._hooks.quiesce()
        except NotNow as veto:
            self._veto(request.epoch, turn, str(veto))
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            _log.exception("the quiesce hook failed")
            self._veto(request.epoch, turn, f"{type(error).__name__}: {error}")
        else:
            quiesced = wire.Quiesced(epoch=request.epoch)
            self._reply(turn, wire.AttachRequest(quiesced=quiesced))

    def _veto(self, epoch: int, turn: int, reason: str) -> None:
        veto = wire.Veto(epoch=epoch, reason=reason)
        if self._gate.is_turn(turn):
            self._send(wire.AttachRequest(veto=veto))
        self._gate.open(turn)

    def _save(self, epoch: int, turn: int) -> None:
        try:
            generation = self.save(epoch).generation
        except Exception as error:  # noqa: BLE001 - a hook may raise anything
            _log.exception("the state was not saved")
            failed = wire.Failed(epoch=epoch, reason=f"{type(error).__name__}: {error}")
            self._reply(turn, wire.AttachRequest(failed=failed))
        else:
            saved = wire.Saved(epoch=epoch, generation=generation)
            self._reply(turn, wire.AttachRequest(saved=saved))

    def _reply(self, turn: int, answer: wire.AttachRequest) -> None:
        if self._gate.is_turn(turn):
            self._send(answer)

    def _announce(self) -> None:
        """Say that the agent serves if it is so here and now."""
        with self._changed:
            is_said = self._app_address == self._said_address
            if not (self._wants_to_serve and self._is_welcomed and is_said):
                return
            self._gate.open()
            self._send(wire.AttachRequest(serving=wire.Serving()))
            self._is_serving = True
            self._changed.notify_all()

    def _stop(self) -> None:
        self._gate.end()
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _work(self) -> None:
        for job in iter(self._jobs.get, None):
            job()

    def _wait(self, is_so: Callable[[], bool], timeout_s: float | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: is_so() or self._is_hopeless(), timeout_s)
            if is_so():
                return
            self._raise_if_hopeless()
            raise TimedOut(
                "ATTACH_TIMED_OUT",
                f"the sidecar did not hand over the state within {timeout_s} s; look"
                " at the cause and at the sidecar's log",
            ) from self._problem

    def _raise_if_hopeless(self) -> None:
        if self._is_stopped:
            raise Refused(
                "AGENT_STOPPED",
                "this agent has been stopped; begin nothing new and end",
            )
        if self._problem is not None and _is_final(self._problem):
            raise self._problem

    def _is_hopeless(self) -> bool:
        final = self._problem is not None and _is_final(self._problem)
        return self._is_stopped or final

    def _send(self, message: wire.AttachRequest) -> None:
        self._link.send(message)


def _is_replaced(problem: OutriggerError) -> bool:
    return problem.reason == REPLACED


def _is_final(problem: OutriggerError) -> bool:
    return isinstance(problem, Denied) or _is_replaced(problem)
