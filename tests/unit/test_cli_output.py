"""Results as people and programs get them."""

import io
import json
from dataclasses import dataclass

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.cli import cells
from outrigger.cli.output import Column, Printer, aligned, as_dict
from outrigger.cli.terminal import Terminal
from outrigger.v1.agent_pb2 import Agent, Load
from outrigger.v1.letter_pb2 import Letter
from tests.support.command import Screen

COLUMNS = (
    Column("AGENT", lambda a: cells.words(a.agent_id)),
    Column("EPOCH", lambda a: str(a.epoch), right=True),
)
AGENTS = [Agent(agent_id="a", epoch=7), Agent(agent_id="longer", epoch=12345)]


async def feed(things):
    for thing in things:
        yield thing


def printer(form: str, stdout: io.StringIO) -> Printer:
    return Printer(Terminal({}, stdout, io.StringIO()), form)


async def test_piped_table_is_plain_and_aligned():
    """Without a terminal: titles, columns at fixed places, no blanks at the end."""
    out = io.StringIO()
    assert await printer("table", out).rows(feed(AGENTS), COLUMNS) == 2
    assert out.getvalue() == "AGENT   EPOCH\na           7\nlonger  12345\n"


async def test_empty_table_still_has_its_titles():
    """No rows: the titles say what there would have been."""
    out = io.StringIO()
    assert await printer("table", out).rows(feed([]), COLUMNS) == 0
    assert out.getvalue() == "AGENT  EPOCH\n"


async def test_table_on_a_terminal_is_drawn():
    """On a terminal rich draws a rule under the titles; all cells are there."""
    out = Screen()
    await printer("table", out).rows(feed(AGENTS), COLUMNS)
    assert "─" in out.getvalue()
    for word in ("AGENT", "EPOCH", "longer", "12345"):
        assert word in out.getvalue()


async def test_markup_of_others_is_not_obeyed():
    """What looks like rich markup is printed as it is."""
    out = Screen()
    odd = Agent(agent_id="[red]x[/red]")
    await printer("table", out).rows(feed([odd]), COLUMNS)
    assert "[red]x[/red]" in out.getvalue()


async def test_json_is_one_array_with_stable_keys():
    """Fields that are not set are there too, under the proto's names."""
    out = io.StringIO()
    await printer("json", out).rows(feed(AGENTS), COLUMNS)
    first, second = json.loads(out.getvalue())
    assert first.keys() == second.keys()
    assert first["agent_id"] == "a"
    assert first["epoch"] == "7"
    assert first["pinned"] is False
    assert first["state"] == "STATE_UNSPECIFIED"


async def test_json_lines_go_out_one_by_one():
    """Each line is whole before the next thing is asked for."""
    out = io.StringIO()

    async def slowly():
        for agent in AGENTS:
            yield agent
            assert json.loads(out.getvalue().splitlines()[-1])["agent_id"] == (
                agent.agent_id
            )

    assert await printer("jsonl", out).rows(slowly(), COLUMNS) == 2
    assert len(out.getvalue().splitlines()) == 2


def test_one_thing_is_a_line_per_value():
    """A single thing has its titles at the left; JSON has all its fields."""
    out = io.StringIO()
    printer("table", out).one(AGENTS[0], COLUMNS)
    assert out.getvalue() == "AGENT  a\nEPOCH  7\n"
    for form in ("json", "jsonl"):
        out = io.StringIO()
        printer(form, out).one(AGENTS[0], COLUMNS)
        assert json.loads(out.getvalue()) == as_dict(AGENTS[0])


def test_one_thing_on_a_terminal_has_no_header():
    """Rich draws the lines without a rule."""
    out = Screen()
    printer("table", out).one(AGENTS[0], COLUMNS)
    assert "AGENT" in out.getvalue()
    assert "─" not in out.getvalue()


def test_remarks_are_for_people_only():
    """Programs get nothing but the result."""
    for form, expected in (("table", "done\n"), ("json", ""), ("jsonl", "")):
        out = io.StringIO()
        printer(form, out).say("done")
        assert out.getvalue() == expected


def test_event_is_a_line_in_either_form():
    """People get the sentence, programs the event."""
    out = io.StringIO()
    printer("table", out).event(AGENTS[0], "it happened")
    printer("jsonl", out).event(AGENTS[0], "it happened")
    first, second = out.getvalue().splitlines()
    assert first == "it happened"
    assert json.loads(second)["agent_id"] == "a"


def test_dataclass_is_printed_like_a_message():
    """Our own records have their field names as keys."""

    @dataclass
    class Point:
        x: int

    assert as_dict(Point(3)) == {"x": 3}


def test_alignment_of_nothing_is_nothing():
    """Without titles and rows there are no lines."""
    assert aligned([Column("", str)], []) == []


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (cells.words("a\x1b[1mb\nc"), "a?[1mb c"),
        (cells.words(""), "-"),
        (cells.word(Letter.State.Name, Letter.STATE_IN_FLIGHT), "in_flight"),
        (cells.word(Letter.State.Name, 99), "unknown(99)"),
        (cells.count(0), "-"),
        (cells.count(3), "3"),
        (cells.elapsed(0.25), "0.2s"),
        (cells.elapsed(61), "1m01s"),
        (cells.elapsed(3700), "1h01m"),
        (cells.elapsed(90000), "1.0d"),
        (cells.size(0), "0 B"),
        (cells.size(1536), "1.5 KiB"),
        (cells.size(5 << 50), "5120.0 TiB"),
        (cells.digest(bytes(32)), "000000000000"),
        (cells.digest(b""), "-"),
        (cells.moment(Agent(), "state_time"), "-"),
        (
            cells.moment(Agent(state_time=Timestamp(seconds=86400)), "state_time"),
            "1970-01-02 00:00:00Z",
        ),
        (
            cells.moment(Agent(state_time=Timestamp(seconds=1 << 60)), "state_time"),
            f"unreadable({1 << 60})",
        ),
        (cells.span(Load(), "idle"), "-"),
        (cells.span(Load(idle={"seconds": 2, "nanos": 500_000_000}), "idle"), "2.5s"),
    ],
)
def test_cells_are_short_and_safe(shown, expected):
    """Each kind of value has one form in tables."""
    assert shown == expected
