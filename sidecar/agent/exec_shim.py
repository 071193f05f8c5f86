"""Becomes the agent, but dies with the sidecar.

    python -P -m sidecar.agent.exec_shim PARENT_PID -- COMMAND [ARGUMENT ...]

Asks the kernel to KILL this process when its parent dies, makes sure that the
parent has not died already, then executes the command in its own place. The
request outlives the execution. It is KILL because a stopped agent takes no other
signal, and a program of its own instead of a `preexec_fn` because that runs
Python between fork and exec in a process that has threads.

The kernel watches the thread that started this process: only the sidecar's main
thread may do so. A set-user-id command drops the request; then the next sidecar
ends what is left over.

Imports as little as it can: it stands between a wake and the agent.
"""

import ctypes
import os
import signal
import sys

USAGE_EXIT = 2
ORPHAN_EXIT = 125
NOT_EXECUTABLE_EXIT = 126
NOT_FOUND_EXIT = 127
"""As shells answer."""

_PR_SET_PDEATHSIG = 1


def main(words: list[str]) -> int:
    """Execute the command; return only when that fails."""
    if len(words) < 3 or not words[0].isdigit() or words[1] != "--":  # noqa: PLR2004 - PARENT -- COMMAND
        return _say("usage: exec_shim PARENT_PID -- COMMAND [ARGUMENT ...]", USAGE_EXIT)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        return _say(
            f"cannot tie the agent to its sidecar: {os.strerror(ctypes.get_errno())}",
            ORPHAN_EXIT,
        )
    if os.getppid() != int(words[0]):
        return _say("the sidecar has ended; the agent is not started", ORPHAN_EXIT)
    command = words[2:]
    try:
        os.execvp(command[0], command)  # noqa: S606 - the operator's command, no shell wanted
    except OSError as error:
        code = (
            NOT_FOUND_EXIT
            if isinstance(error, FileNotFoundError)
            else NOT_EXECUTABLE_EXIT
        )
        return _say(f"cannot run {command[0]!r}: {error.strerror}", code)


def _say(message: str, code: int) -> int:
    sys.stderr.write(f"outrigger: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
