"""The log of a serving process: lines, and tracebacks only of defects."""

import io
import logging

import pytest

from outrigger.cli.log import logging_to
from outrigger.core.clock import SystemClock
from outrigger.core.errors import Transient
from outrigger.core.event_log import EventLog
from outrigger.core.events import Alerted, CheckpointMoved, ErrorSeen, Recovered
from outrigger.core.tasks import Tasks


def logged(*payloads):
    """Publish events and return what the log made of them."""
    stream = io.StringIO()
    with logging_to(stream, "sidecar"):
        log = EventLog(agent_id="a", clock=SystemClock())
        for payload in payloads:
            log.publish(payload)
    return stream.getvalue()


def test_events_are_told_in_sentences():
    """Where, about what, why, and the reason to search for."""
    seen = ErrorSeen(boundary="b", reason="R", causes=("one", "two"), subject="s")

    assert logged(seen) == "outrigger: sidecar: b (s): one; two [R]\n"
    assert logged(Alerted(name="A", message="look")) == (
        "outrigger: sidecar: look [A]\n"
    )
    fell = CheckpointMoved(generation=3, action="fell_back", reason="4 is bad")
    assert logged(fell) == "outrigger: sidecar: checkpoint 3 fell back: 4 is bad\n"


def test_what_is_no_trouble_is_not_told():
    """A log of every letter would hide the line that matters."""
    saved = CheckpointMoved(generation=3, action="saved")

    assert logged(saved, Recovered(subject="x", elapsed_s=1.0)) == ""


def test_a_message_from_elsewhere_stays_one_line():
    """Neither line breaks nor escape sequences act on the reader's terminal."""
    assert logged(Alerted(name="A", message="a\nb\x1b[2J")).count("\n") == 1


@pytest.mark.parametrize(
    ("error", "lines", "traces"),
    [(Transient("GONE", "it is gone"), 1, 0), (ValueError("a defect"), 2, 1)],
)
async def test_only_a_defect_has_a_traceback(error, lines, traces):
    """An error with a reason is told once, by its event."""
    stream = io.StringIO()
    clock = SystemClock()

    async def fail():
        raise error

    with logging_to(stream, "sidecar"):
        log = EventLog(agent_id="a", clock=clock)
        tasks = Tasks(log.publish, clock)
        await tasks.spawn("work", fail())

    told = stream.getvalue()
    assert told.count("outrigger: sidecar: work") == lines
    assert told.count("Traceback (most recent call last)") == traces


def test_another_record_keeps_its_words_and_an_expected_error_no_trace():
    """Records of other modules are told as they are."""
    stream = io.StringIO()
    with logging_to(stream, "controller"):
        log = logging.getLogger("outrigger.rpc")
        log.error("%s failed", "Get", exc_info=Transient("GONE", "it is gone"))
        log.warning("plain")

    assert stream.getvalue() == (
        "outrigger: controller: Get failed\noutrigger: controller: plain\n"
    )


def test_after_the_block_nothing_is_written():
    """The stream may be closed by then."""
    stream = io.StringIO()
    with logging_to(stream, "sidecar"):
        pass
    logging.getLogger("outrigger.rpc").warning("late")

    assert stream.getvalue() == ""
