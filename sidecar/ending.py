"""The end of a process in steps: one that fails holds up none of the others."""

from collections.abc import Awaitable, Callable, Iterable

from outrigger.core.tasks import Report, describe

Step = tuple[str, Callable[[], Awaitable[object]]]
"""A boundary's name and what is done in it."""


async def end_all(steps: Iterable[Step], report: Report) -> None:
    """Take every step in order; what one lets escape is recorded."""
    for boundary, step in steps:
        try:
            await step()
        except Exception as error:  # noqa: BLE001 - this is the boundary
            report(describe(boundary, error))
