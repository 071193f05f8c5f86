"""Runs the demo: a folder, the processes, the story, the verdict, the end."""

import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import grpc
from rich.console import Console

from outrigger.client import error_of
from outrigger.core.clock import SystemClock
from outrigger.core.errors import OutriggerError
from outrigger.core.names import ADMIN_TOKEN_FILE, TOKEN_METADATA
from outrigger.demo.processes import Processes
from outrigger.demo.screen import Screen
from outrigger.demo.story import Story
from outrigger.demo.verdict import judge

_WATCH_S: Final = 1.0

_Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


def run_demo(
    *,
    keep: bool = False,
    redis: str | None = None,
    environ: Mapping[str, str],
    state_dir: Path | None = None,
    console: Console | None = None,
) -> int:
    """Play the whole story with real processes and print what came of it.

    Every process that was started is stopped again, also on Ctrl-C and SIGTERM.

    Args:
        keep: afterwards leave everything running until Ctrl-C.
        redis: URL of a Redis that the sidecars use as well.
        environ: environment of the processes.
        state_dir: where they keep their state and logs; a temporary folder if
            None, removed at the end unless something failed.
        console: where to print; standard output if None.

    Returns:
        0 if every claim holds, else 1.
    """
    console = console or Console()
    folder = state_dir or Path(tempfile.mkdtemp(prefix="outrigger-demo-"))
    clock = SystemClock()
    processes = Processes(folder, environ, clock)
    code = 1
    try:
        with _handling(signal.SIGTERM, signal.default_int_handler):
            code = _play(folder, processes, console, clock, redis=redis, keep=keep)
    except grpc.RpcError as error:
        console.print(f"[red]the demo failed:[/] {error_of(error)!r}")
    except OutriggerError as error:
        console.print(f"[red]the demo failed:[/] {error.message} [{error.reason}]")
    finally:
        _end(processes, console)
        _tidy(folder, console, is_ours=state_dir is None, is_good=code == 0)
    return code


def _play(
    folder: Path,
    processes: Processes,
    console: Console,
    clock: SystemClock,
    *,
    redis: str | None,
    keep: bool,
) -> int:
    screen = Screen(console, clock)
    story = Story(folder, processes, screen, clock)
    try:
        with screen:
            story.begin(redis)
            story.read()
            story.sleep()
            story.wake()
        claims = list(judge(story.facts))
        screen.summarize(story.facts, claims)
        console.print(f"{screen.elapsed_s:.0f} s in all", highlight=False)
        if keep:
            _stay(folder, story, console, clock)
    finally:
        story.close()
    return 0 if all(claim.holds for claim in claims) else 1


def _stay(folder: Path, story: Story, console: Console, clock: SystemClock) -> None:
    console.print("\nEverything keeps running until Ctrl-C. To try:\n")
    for line in _grpcurl(folder, story):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    try:
        while True:
            clock.pause(_WATCH_S)
    except KeyboardInterrupt:
        console.print("\nstopping")


def _grpcurl(folder: Path, story: Story) -> Iterator[str]:
    first = story.sidecars[0]
    token = folder / "controller" / ADMIN_TOKEN_FILE
    operator = f'grpcurl -plaintext -H "{TOKEN_METADATA}: $(cat {token})"'
    admin = story.controller.admin
    fleet = "outrigger.v1.FleetService"
    agent = f'-d \'{{"agent_id": "{first.name}"}}\''
    yield f"{operator} {admin} list"
    yield f"{operator} {admin} {fleet}/ListAgents"
    yield f"{operator} {agent} {admin} {fleet}/SleepAgent"
    yield f"{operator} {agent} {admin} {fleet}/ExplainAgent"
    yield (
        f"{operator} -H 'outrigger-agent: {first.name}' {admin}"
        " outrigger.v1.LetterService/GetLedger"
    )
    yield (
        f"grpcurl -plaintext -d '\"light\"' {first.inbound} outrigger.demo.Index/Lookup"
    )
    yield (
        f"grpcurl -plaintext -d '\"one two three\"' {first.outbound}"
        " outrigger.demo.Tools/Terms"
    )


def _end(processes: Processes, console: Console) -> None:
    # A second Ctrl-C must not leave processes behind.
    with (
        _handling(signal.SIGINT, signal.SIG_IGN),
        _handling(signal.SIGTERM, signal.SIG_IGN),
    ):
        for name in processes.stop():
            console.print(f"[red]{name} did not stop and was killed[/]")


def _tidy(folder: Path, console: Console, *, is_ours: bool, is_good: bool) -> None:
    if is_ours and is_good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        console.print(f"state and logs are in {folder}", soft_wrap=True)


@contextmanager
def _handling(number: signal.Signals, how: _Handler) -> Iterator[None]:
    """Handle a signal that way for the length of a block.

    SIGTERM by default_int_handler ends the demo the way Ctrl-C does, so that its
    processes are stopped too.
    """
    before = signal.signal(number, how)
    try:
        yield
    finally:
        signal.signal(number, before)
