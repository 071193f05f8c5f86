"""The log of a process that serves: one line on stderr per thing worth a look."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TextIO

from outrigger.cli.terminal import one_line
from outrigger.core.errors import OutriggerError
from outrigger.core.events import Alerted, CheckpointMoved, ErrorSeen

_TASKS: Final = "outrigger.tasks"


class _Lines(logging.Formatter):
    """One line per record; only a defect of ours has a traceback after it."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without the newline at its end."""
        line = one_line(f"outrigger: {self._process}: {_words(record)}")
        failure = record.exc_info[1] if record.exc_info else None
        if record.exc_info is None or isinstance(failure, OutriggerError):
            return line
        return f"{line}\n{self.formatException(record.exc_info)}"


@contextmanager
def logging_to(stream: TextIO, process: str) -> Iterator[None]:
    """Send warnings and worse of this process to `stream` for the length of a block."""
    handler = logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Lines(process))
    handler.addFilter(_is_news)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


def _is_news(record: logging.LogRecord) -> bool:
    """Drop what the error's own event says in the next line."""
    failure = record.exc_info[1] if record.exc_info else None
    return not (record.name == _TASKS and isinstance(failure, OutriggerError))


def _words(record: logging.LogRecord) -> str:
    payload = record.args[0] if isinstance(record.args, tuple) and record.args else None
    if isinstance(payload, ErrorSeen):
        subject = f" ({payload.subject})" if payload.subject else ""
        causes = "; ".join(payload.causes)
        return f"{payload.boundary}{subject}: {causes} [{payload.reason}]"
    if isinstance(payload, Alerted):
        return f"{payload.message} [{payload.name}]"
    if isinstance(payload, CheckpointMoved):
        kept = f"checkpoint {payload.generation} {payload.action.replace('_', ' ')}"
        return f"{kept}: {payload.reason}"
    return record.getMessage()
