"""Real processes for tests and benches: started, found, killed, waited for.

A `Stack` owns every process it starts and ends them all, whatever happens.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-P", "-m")
START_S = 20.0


def wait_for(check, what, *, timeout_s=START_S):
    """Return the first true answer of `check`, or fail saying what did not come."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError, grpc.RpcError):
            found = check()
            if found:
                return found
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come within {timeout_s:g} s")


class Running:
    """One process of ours."""

    def __init__(self, name, command, *, folder, env=None):
        self.name = name
        self.folder = folder
        self.log = folder / f"{name}.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )

    @property
    def pid(self):
        return self.process.pid

    def kill(self, sign=signal.SIGKILL):
        """Send a signal and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(sign)
        try:
            return self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)
            raise

    def port_line(self, before):
        """Return what was printed since the log had `before` bytes, in words."""
        return self.log.read_bytes()[before:].split()

    def text(self):
        return self.log.read_text(errors="replace")


class Stack:
    """A controller, sidecars and upstreams in one folder."""

    def __init__(self, folder):
        self.folder = folder
        self.running = []
        self._channels = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for channel in self._channels:
            channel.close()
        for running in reversed(self.running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.kill(signal.SIGTERM)

    def start(self, name, *command, env=None):
        running = Running(name, command, folder=self.folder, env=env)
        self.running.append(running)
        return running

    def controller(self, *flags):
        """Start a controller on free ports, the same ones at the next start."""
        state = self.folder / "controller"
        known = self._addresses(state)
        started = self.start(
            "controller",
            *PYTHON,
            "outrigger.cli.main",
            "controller",
            "--listen",
            known.get("admin", "127.0.0.1:0"),
            "--connect",
            known.get("connect", "127.0.0.1:0"),
            "--state",
            str(state),
            *flags,
        )
        started.addresses = self._announced(started, state)
        started.state = state
        return started

    def sidecar(self, agent_id, *flags, command=(), upstream=None, env=None):
        """Start a sidecar on free ports, the same ones at the next start."""
        state = self.folder / agent_id
        known = self._addresses(state)
        args = [
            "--agent-id",
            agent_id,
            "--state",
            str(state),
            "--outbound",
            known.get("outbound", "127.0.0.1:0"),
            "--api",
            known.get("api_tcp", "127.0.0.1:0"),
            *flags,
        ]
        if upstream:
            args += ["--upstream", f"default={upstream}"]
        if command:
            args += ["--", *command]
        started = self.start(
            agent_id, *PYTHON, "outrigger.cli.main", "sidecar", *args, env=env
        )
        started.addresses = self._announced(started, state)
        started.state = state
        return started

    def upstream(self, name="upstream", *, port=0):
        """Start an upstream that writes down what it answers."""
        seen = self.folder / f"{name}.seen"
        before = self._log_size(name)
        started = self.start(
            name,
            *PYTHON,
            "tests.support.ledger_upstream",
            "--listen",
            f"127.0.0.1:{port}",
            "--seen",
            str(seen),
        )
        lines = wait_for(lambda: started.port_line(before), f"{name}'s port")
        started.port = int(lines[0])
        started.target = f"127.0.0.1:{started.port}"
        started.seen = seen
        return started

    def channel(self, target):
        """Return a channel that ends with the stack and reconnects quickly."""
        channel = grpc.insecure_channel(
            target,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 5000),  # how long a dial may take
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),
            ],
        )
        self._channels.append(channel)
        return channel

    def _log_size(self, name):
        log = self.folder / f"{name}.log"
        return log.stat().st_size if log.exists() else 0

    def _addresses(self, state):
        path = state / "address.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _announced(self, started, state):
        def check():
            if started.process.poll() is not None:
                code = started.process.returncode
                raise AssertionError(f"{started.name} ended {code}: {started.text()}")
            found = self._addresses(state)
            return found if found.get("pid") == started.pid else None

        return wait_for(check, f"{started.name}'s address.json")


def operator(state: Path):
    """Return the metadata of an operator of a state directory."""
    return (("outrigger-token", (state / "admin-token").read_text().strip()),)
