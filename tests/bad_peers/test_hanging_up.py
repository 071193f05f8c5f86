"""An upstream that greets and hangs up is not dialled in a hot loop."""

import asyncio

from sidecar.wire import channel_handle
from tests.support.bad_site import open_site
from tests.support.bad_upstream import BadUpstream
from tests.support.echo_upstream import until
from tests.support.misbehaviours import ANSWER, serve

WATCHED_S = 0.6
MOST = 12


async def hangs_up(peer):
    await peer.greet()
    await asyncio.sleep(0.002)
    peer.close()


async def test_an_upstream_that_hangs_up_is_dialled_now_and_then():
    """The library's backoff starts anew with each greeting; the relay has its own."""
    async with BadUpstream(hangs_up) as upstream, open_site(upstream.target):
        await asyncio.sleep(WATCHED_S)
        assert 2 <= upstream.connections <= MOST


async def test_a_call_does_not_wait_for_that(monkeypatch):
    """A call asks for the connection at once, and the watcher sees that it came."""
    monkeypatch.setattr(channel_handle, "_REST_S", 1000.0)

    async def second_stays(peer):
        if peer.number == 1:
            await hangs_up(peer)
        else:
            await peer.greet()
            await serve(peer)

    async with BadUpstream(second_stays) as upstream, open_site(upstream.target) as s:
        await until(lambda: s.targets.get("bad").drops == 1)
        code, answers = await s.unary(b"x", 20)
        assert (code.name, answers) == ("OK", [ANSWER])
        upstream.drop()
        await until(lambda: s.targets.get("bad").drops == 2)
