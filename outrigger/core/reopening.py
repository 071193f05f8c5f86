"""Keeps a database open: reopens it after a failure, until that works."""

from collections.abc import Callable
from typing import Final

from outrigger.core.clock import Clock
from outrigger.core.database import Database
from outrigger.core.errors import OutriggerError, Refused
from outrigger.core.events import Alerted, Payload, Recovered

_LOOK_S: Final = 1.0
_PAUSE_MAX_S: Final = 30.0


async def keep_open(
    database: Database, *, clock: Clock, publish: Callable[[Payload], object]
) -> None:
    """Look once a second; alert, reopen and tell of the recovery. Runs until closed."""
    while True:
        failure = database.failure
        if failure is not None:
            publish(Alerted(name="STORE_FAILED", message=failure.message))
            began = clock.monotonic()
            if not await _reopened(database, clock, publish):
                return
            elapsed_s = clock.monotonic() - began
            publish(Recovered(subject="store", elapsed_s=elapsed_s))
        await clock.sleep(_LOOK_S)


async def _reopened(
    database: Database, clock: Clock, publish: Callable[[Payload], object]
) -> bool:
    """Try until it works, less and less often; False when the store was closed."""
    pause_s = _LOOK_S
    while True:
        try:
            await database.reopen()
        except Refused:
            return False
        except OutriggerError as error:
            publish(Alerted(name="STORE_NOT_REOPENED", message=error.message))
        else:
            return True
        await clock.sleep(pause_s)
        pause_s = min(pause_s * 2, _PAUSE_MAX_S)
