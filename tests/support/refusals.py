"""Starts that must be refused, and proof that nothing on the disk was changed."""

import hashlib
import json
import sys
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from outrigger.core.rpc.errors import from_rpc_error
from tests.support.command import assert_one_line, command_line, run_apart
from tests.support.processes import wait_for

SERVERS = ("controller", "sidecar")
_ON_FREE_PORTS = {
    "controller": ("--listen", "127.0.0.1:0", "--connect", "127.0.0.1:0"),
    "sidecar": ("--agent-id", "a", "--outbound", "127.0.0.1:0", "--api", "127.0.0.1:0"),
}
_OWN = {"lock", "address.json"}
"""Files that say nothing worth keeping."""


def start_words(server, state, *flags):
    """Return the words that start a server of ours on free ports."""
    return (server, *_ON_FREE_PORTS[server], "--state", state, *flags)


def refused(server, state, *flags, environ=None):
    """Start a server that must end by itself; return its code and its one line."""
    result = run_apart(*start_words(server, state, *flags), environ=environ)
    assert_one_line(result)
    assert result.err.startswith(f"outrigger: {server}: ")
    assert result.out == ""
    return result


def serve(stack, *words):
    """Start a server that must come up; return it with its addresses."""
    started = stack.start("served", *command_line(*words))
    started.state = Path(words[words.index("--state") + 1])
    started.addresses = wait_for(lambda: announced(started), "address.json")
    return started


def announced(started):
    """Return what a server has left in address.json; fails if it has ended."""
    assert started.process.poll() is None, started.text()
    found = json.loads((started.state / "address.json").read_text())
    return found if found["pid"] == started.pid else None


def limited(bytes_max, *words):
    """Return a command that runs our command with files of at most so many bytes."""
    limit = (
        "import os, resource, sys;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes_max}, {bytes_max}));"
        "os.execv(sys.executable, [sys.executable, '-P', '-m', 'outrigger.cli.main',"
        " *sys.argv[1:]])"
    )
    return [sys.executable, "-P", "-c", limit, *map(str, words)]


def contents(folder):
    """Return the digest of every file that matters, by its place."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in _OWN and not path.name.endswith("-shm")
    }


@contextmanager
def unchanged(folder):
    """Fail if anything in a folder is another one after the block."""
    before = contents(folder)
    yield
    assert contents(folder) == before


def _finished(answer):
    """Read a stream to its end; anything else is at its end."""
    if not hasattr(answer, "DESCRIPTOR") and not isinstance(answer, bytes):
        list(answer)


def refusal(call, request, **given):
    """Return (status, reason) of a call that must fail, and check its words."""
    with pytest.raises(grpc.RpcError) as caught:
        _finished(call(request, timeout=10, **given))
    error = from_rpc_error(caught.value)
    assert error.message
    assert "\n" not in error.message
    return caught.value.code().name, error.reason


def private(path):
    """Make a folder as ours are, with those above it."""
    path.mkdir(mode=0o700, parents=True)
    return path
