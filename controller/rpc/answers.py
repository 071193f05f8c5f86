"""Answers kept by request id, so that a request sent again is not done again.

They are kept in memory: a controller that restarts forgets them. That is enough,
because a sleep done twice is refused by its epoch and a wake done twice is the
same as once.

Race: two requests with one id at the same time share one doing; should the first
caller go away, the doing goes on for the second.
"""

import asyncio
import uuid
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

from outrigger.core.errors import Invalid
from outrigger.core.tasks import Tasks
from outrigger.v1 import agent_pb2

_MOST: Final = 1024

Doing = Callable[[], Coroutine[Any, Any, agent_pb2.Agent]]
_Key = tuple[str, str]


def check_request_id(request_id: str) -> str:
    """Return a request id in its one spelling; empty stays empty.

    Raises:
        Invalid: BAD_REQUEST_ID.
    """
    if not request_id:
        return ""
    try:
        return str(uuid.UUID(request_id))
    except ValueError as error:
        raise Invalid(
            "BAD_REQUEST_ID",
            "request_id is not a UUID: send a new one for each thing you want, or"
            " leave it empty",
        ) from error


class Answers:
    """The newest answers by method and request id; failures are not kept."""

    def __init__(self, tasks: Tasks, *, most: int = _MOST) -> None:
        self._tasks = tasks
        self._most = most
        self._kept: OrderedDict[_Key, tuple[bytes, asyncio.Future[agent_pb2.Agent]]] = (
            OrderedDict()
        )

    async def once(
        self, method: str, request_id: str, asked: bytes, do: Doing
    ) -> agent_pb2.Agent:
        """Return what `do` returned for this id the first time.

        Args:
            method: what is asked for; ids of different methods differ.
            request_id: empty does it always.
            asked: the request; the same id must come with the same one.
            do: does it.

        Raises:
            Invalid: BAD_REQUEST_ID or REQUEST_ID_REUSED.
        """
        checked = check_request_id(request_id)
        if not checked:
            return await do()
        key = (method, checked)
        if key not in self._kept:
            self._begin(key, asked, do)
        before, answer = self._kept[key]
        if before != asked:
            raise Invalid(
                "REQUEST_ID_REUSED",
                f"request_id {checked} was sent before with another request: send a"
                " new one for each thing you want",
            )
        return await asyncio.shield(answer)

    def _begin(self, key: _Key, asked: bytes, do: Doing) -> None:
        answer: asyncio.Future[agent_pb2.Agent] = (
            asyncio.get_running_loop().create_future()
        )
        self._kept[key] = (asked, answer)
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        _ = self._tasks.spawn("request", self._do(key, answer, do), subject=key[1])

    async def _do(
        self, key: _Key, answer: asyncio.Future[agent_pb2.Agent], do: Doing
    ) -> None:
        try:
            answer.set_result(await do())
        except BaseException as error:
            self._kept.pop(key, None)
            if isinstance(error, Exception):
                answer.set_exception(error)
                answer.exception()  # the caller may have gone away
                return
            answer.cancel()
            raise
