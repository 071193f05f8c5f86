"""Whether the agent's own listener accepts connections."""

import asyncio
from contextlib import suppress
from typing import Final

_LIMIT_S: Final = 1.0
_SCHEMES: Final = ("dns:///", "dns:", "ipv4:", "ipv6:")


async def accepts(target: str) -> bool:
    """Connect once to a gRPC target and say whether somebody took the call.

    Takes `unix:PATH`, `unix:///PATH` and `HOST:PORT` with or without a scheme;
    anything else accepts nothing. Nothing is sent.
    """
    try:
        async with asyncio.timeout(_LIMIT_S):
            writer = await _connect(target)
    except (OSError, ValueError):  # TimeoutError is an OSError
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


async def _connect(target: str) -> asyncio.StreamWriter:
    if target.startswith("unix:"):
        path = target.removeprefix("unix:").removeprefix("//")
        return (await asyncio.open_unix_connection(path))[1]
    for scheme in _SCHEMES:
        target = target.removeprefix(scheme)
    host, _, port = target.rpartition(":")
    return (await asyncio.open_connection(host.strip("[]"), int(port)))[1]
