"""A short soak: after two thousand calls, one in ten cancelled, nothing is left."""

import asyncio

from bench.soak_load import Echo, Load
from tests.support.bad_site import open_site, sockets
from tests.support.echo_upstream import start, stopped, until

CALLS = 2000


async def test_cancelled_calls_leave_no_task_and_no_descriptor_behind():
    """Every shape of call through the real relay, many at a time."""
    server, target = await start(Echo())
    async with open_site(target) as site:
        await until(lambda: site.targets.get("bad").is_ready, 20)
        load = Load(site.channel)
        await load.run(100)  # what is opened once is open from here on
        await until(lambda: site.guard.counts.in_flight == 0)
        ours, tasks, open_before = len(site.tasks), _tasks(), sockets()

        await load.run(CALLS)

        assert load.cancelled == (CALLS + 100) / 10
        await until(lambda: site.guard.counts.in_flight == 0)
        await until(lambda: len(site.tasks) == ours)
        await until(lambda: _tasks() <= tasks)
        await until(lambda: sockets() <= open_before)
        assert site.guard.counts.cancelled > CALLS / 20
        assert site.reports == []
    await stopped(server)


def _tasks():
    return len(asyncio.all_tasks())
