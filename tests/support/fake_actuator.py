"""A process that does as it is told, in no time."""

import asyncio

from sidecar.agent.records import ProcessId


class FakeActuator:
    """Keeps what was done; `end` is the process ending by itself."""

    def __init__(self, on_exit):
        self.on_exit = on_exit
        self.done = []
        self.pid = 0
        self.is_ending = False
        self.dies_of_kill = True
        self.freezes = True
        self.former = None
        self.stopped = False

    @property
    def process(self):
        return ProcessId(self.pid, 1, "boot") if self.pid else None

    def spawn(self):
        assert not self.pid, "a second life beside the first"
        self.done.append("spawn")
        self.pid = 100 + len(self.done)
        self.is_ending = False
        self.stopped = False
        return self.pid

    def end(self, code):
        ended, self.pid, self.is_ending = self.is_ending, 0, False
        self.on_exit(code, ended)

    def freeze(self):
        self.done.append("freeze")
        self.stopped = True

    def thaw(self):
        self.done.append("thaw")
        self.stopped = False

    def kill(self):
        self.done.append("kill")
        self.is_ending = True

    async def wait_frozen(self):
        await until(lambda: self.freezes and self.stopped)

    async def wait_running(self):
        await until(lambda: not self.stopped)

    async def wait_gone(self):
        await until(lambda: not self.pid)

    async def stop(self, grace_s):
        self.is_ending = True
        if self.pid:
            self.end(143)

    async def end_leftovers(self, former):
        self.former = former


async def until(condition):
    """Wait without a clock."""
    while not condition():
        await asyncio.sleep(0.001)
