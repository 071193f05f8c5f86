"""Checks of a Redis that is to hold a second copy of letters.

Imported only with --redis: the redis package costs 10 MiB.
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any, Final
from urllib.parse import urlsplit

import redis

from outrigger.cli.finding import Finding, bad, doubtful, good
from outrigger.core.errors import Invalid

_OLDEST: Final = (6, 2)


def examine(url: str, timeout_s: float) -> Iterator[Finding]:
    """Yield how a Redis server is set.

    Raises:
        Invalid: BAD_REDIS_URL.
    """
    try:
        # Whoever pasted a password into the URL must not find it in a report.
        check = f"redis at {urlsplit(url).hostname}"
        client = redis.Redis.from_url(
            url, socket_timeout=timeout_s, socket_connect_timeout=timeout_s
        )
    except ValueError as error:
        raise Invalid(
            "BAD_REDIS_URL",
            "--redis: expected redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER],"
            " rediss://... or unix://...",
        ) from error
    with closing(client):
        try:
            yield from _settings(check, client)
        except redis.RedisError as error:
            yield bad(check, str(error), "start it, or mend address and password")


def _settings(check: str, client: Any) -> Iterator[Finding]:  # noqa: ANN401 - redis types it as sync or async
    version = str(client.info("server")["redis_version"])
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < _OLDEST:
        yield bad(check, f"version {version}", "use Redis 6.2 or newer")
    else:
        yield good(check, f"version {version}")
    memory = client.info("memory")
    yield _eviction(check, str(memory.get("maxmemory_policy", "unknown")))
    persistence = client.info("persistence")
    if persistence.get("aof_enabled"):
        yield good(check, "appends to disk")
    else:
        yield doubtful(
            check,
            "does not append to disk (appendonly no)",
            "set 'appendonly yes', or count on the sidecars' journals alone",
        )


def _eviction(check: str, policy: str) -> Finding:
    if policy == "noeviction":
        return good(check, "evicts nothing")
    return bad(
        check,
        f"maxmemory-policy is {policy}: it may throw letters away",
        "set 'maxmemory-policy noeviction'",
    )
