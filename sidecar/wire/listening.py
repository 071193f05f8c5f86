"""The listeners of a wire: bound, kept alive, and ended.

grpc.aio decodes the path of every call as UTF-8 in its accept loop, and one that is
not ends that loop for good (1.85.1), before anything of ours is asked. So the server is
looked at a few times a second, and a new one takes its addresses. Calls in flight on
the old one go on: it is kept until the end, because it ends them when it is collected.
"""

import asyncio
import dataclasses
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import grpc
import grpc.aio

from outrigger.core.clock import Clock
from outrigger.core.errors import Bug
from outrigger.core.rpc.server import bind
from outrigger.core.tasks import Tasks, finish
from sidecar.wire.options import RELAY_SERVER_OPTIONS, Listener

_LOOK_S: Final = 0.25


class Listening:
    """One server on some addresses, for as long as it is wanted."""

    def __init__(
        self,
        handler: grpc.GenericRpcHandler,
        listen: Sequence[Listener],
        *,
        clock: Clock,
        tasks: Tasks,
    ) -> None:
        self._handler = handler
        self._listen = tuple(listen)
        self._clock = clock
        self._tasks = tasks
        self._server: grpc.aio.Server | None = None
        self._ended: list[grpc.aio.Server] = []
        self._keeping: asyncio.Task[None] | None = None
        self.addresses: list[str] = []
        """As bound, in the order given."""

    async def start(self) -> None:
        """Bind every address and begin to accept calls.

        Raises:
            Invalid: an address cannot be listened on.
            Refused: PORT_TAKEN or SOCKET_TAKEN.
        """
        self._server = await self._serving(self._listen)
        if self._listen:
            self._keeping = self._tasks.spawn_forever("wire.listen", self._keep)

    async def stop(self, grace_s: float) -> None:
        """Accept no more calls, wait for those in flight, then cancel them."""
        if self._keeping is not None:
            await finish(self._keeping)
            self._keeping = None
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None
        for server in self._ended:
            with suppress(Exception):  # it raises what ended it, and is no news
                await server.stop(0)
            # Or it would schedule one more shutdown when it is collected.
            vars(server).pop("_server", None)
        self._ended.clear()

    async def _serving(self, listen: Sequence[Listener]) -> grpc.aio.Server:
        server = grpc.aio.server(
            handlers=(self._handler,), options=RELAY_SERVER_OPTIONS
        )
        self.addresses = [
            bind(server, one.address, one.flag, tls=one.tls, may_move=one.may_move)
            for one in listen
        ]
        await server.start()
        return server

    async def _keep(self) -> None:
        """Wait until the server has ended by itself; listen again.

        Raises:
            Bug: LISTENER_ENDED, so that it is recorded.
            OutriggerError: it cannot be bound again yet; the next run tries.
        """
        while self._server is not None and _is_running(self._server):
            await self._clock.sleep(_LOOK_S)
        if self._server is not None:
            self._ended.append(self._server)
            self._server = None
        self._server = await self._serving(
            [
                dataclasses.replace(one, address=address, may_move=False)
                for one, address in zip(self._listen, self.addresses, strict=True)
            ]
        )
        raise Bug(
            "LISTENER_ENDED",
            "the listeners of the relay had ended by themselves and listen again: a"
            " call with a path that is not UTF-8 does that",
        )


def _is_running(server: grpc.aio.Server) -> bool:
    # No public way says that it has ended by itself.
    return bool(vars(server)["_server"].is_running())
