"""Commands that are processes of their own: their packages own their flags."""

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Sequence
from typing import Any

from outrigger.cli.log import logging_to
from outrigger.cli.terminal import Terminal
from outrigger.core.config import FlagParser


def controller(argv: Sequence[str], terminal: Terminal) -> int:
    """Run a controller until it is told to stop."""
    return _serve("controller", argv, terminal)


def sidecar(argv: Sequence[str], terminal: Terminal) -> int:
    """Run a sidecar, and its agent if a command is given; return its exit code."""
    return _serve("sidecar", argv, terminal)


def demo(argv: Sequence[str], terminal: Terminal) -> int:
    """Run the whole story with real processes."""
    parser = FlagParser(
        prog="outrigger demo",
        description="Run the whole story with real processes; ends by itself.",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave everything running until Ctrl-C"
    )
    parser.add_argument("--redis", metavar="URL", help="keep letters in Redis as well")
    flags = parser.parse_args(list(argv))
    driver = importlib.import_module("outrigger.demo.driver")
    return _finish(
        driver.run_demo(
            keep=flags.keep, redis=flags.redis, environ=dict(terminal.environ)
        )
    )


def _serve(package: str, argv: Sequence[str], terminal: Terminal) -> int:
    settings: Any = importlib.import_module(f"{package}.config")
    config = settings.from_args(list(argv), terminal.environ)
    app: Any = importlib.import_module(f"{package}.app")
    with logging_to(terminal.stderr, package):
        return _finish(app.run(config))


def _finish(outcome: int | Awaitable[int]) -> int:
    """Return an exit code; an app may be a function or a coroutine."""
    if inspect.isawaitable(outcome):
        return asyncio.run(_wait(outcome))
    return outcome


async def _wait(outcome: Awaitable[int]) -> int:
    return int(await outcome)
