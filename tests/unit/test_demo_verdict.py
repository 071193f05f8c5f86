"""The demo's verdict: it must be able to fail on every count."""

import io

import pytest
from rich.console import Console

from outrigger.demo.screen import Screen, mib
from outrigger.demo.verdict import AgentFacts, Facts, judge
from tests.support.clock import FakeClock


def _good() -> Facts:
    agents = [
        AgentFacts(
            f"reader-{number}",
            sent=10,
            buffered=4,
            delivered=4,
            handed_over=2,
            sleeps=1,
            wakes=1,
            passages=10,
            digest_before="d",
            digest_saved="d",
            digest_woken="d",
            digest_after="d",
            pids=(1, 2),
            awake_bytes=5 * 2**20,
        )
        for number in (1, 2)
    ]
    return Facts(
        agents=agents,
        total=20,
        seen_distinct=20,
        seen_calls=21,
        redis=True,
        kills=1,
        circuit_opened=True,
        answered_from_sleep=True,
    )


def _failed(facts: Facts) -> set[str]:
    return {claim.text for claim in judge(facts) if not claim.holds}


def test_good_run_holds():
    """A run in which everything came out right holds in every claim."""
    assert not _failed(_good())


def test_empty_run_holds_in_nothing_that_counts():
    """A run in which nothing happened is not a success."""
    assert len(_failed(Facts())) >= 6


@pytest.mark.parametrize(
    ("field", "value", "claim"),
    [
        ("seen_distinct", 19, "every passage reached the tool server"),
        ("kills", 0, "the outage made letters and opened a circuit"),
        ("circuit_opened", False, "the outage made letters and opened a circuit"),
        (
            "answered_from_sleep",
            False,
            "a call for a sleeping agent woke it and was answered",
        ),
    ],
)
def test_claims_on_the_whole_can_fail(field, value, claim):
    """Each fact of the whole run carries its own claim."""
    facts = _good()
    setattr(facts, field, value)
    assert _failed(facts) == {claim}


@pytest.mark.parametrize(
    ("field", "value", "claim"),
    [
        ("lost", 1, "no letter is lost"),
        ("lost", -1, "no letter is lost"),
        ("live", 1, "every call that became a letter was delivered"),
        ("delivered", 3, "every call that became a letter was delivered"),
        ("passages", 9, "every passage is in an index"),
        ("letters", 5, "every letter an agent knows of is in a journal"),
        ("sleeps", 0, "every agent slept and woke"),
        ("wakes", 0, "every agent slept and woke"),
        ("pids", (1, 1), "asleep means the process is gone"),
        ("survived_sleep", True, "asleep means the process is gone"),
        ("digest_before", "x", "every index is byte for byte what it was"),
        ("digest_saved", "x", "every index is byte for byte what it was"),
        ("digest_woken", "", "every index is byte for byte what it was"),
        ("digest_after", "x", "every index is byte for byte what it was"),
        ("asleep_bytes", 1, "asleep its memory is free"),
    ],
)
def test_claims_on_agents_can_fail(field, value, claim):
    """Each fact of one agent carries its own claim, whatever the others did."""
    facts = _good()
    setattr(facts.agents[1], field, value)
    assert _failed(facts) == {claim}


def test_redis_claim_can_fail():
    """Redis is spoken of only where there is one, and then it must hold letters."""
    facts = _good()
    for agent in facts.agents:
        agent.handed_over = 0
    assert _failed(facts) == {"Redis was given letters"}
    facts.redis = False
    assert not _failed(facts)


@pytest.mark.parametrize("terminal", [True, False])
def test_screen_shows_the_numbers(terminal):
    """Events, the summary and every verdict are printed; the table only moves live."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=80)
    facts = _good()
    facts.agents[0].lost = 7
    with Screen(console, FakeClock()) as screen:
        screen.say("something happened")
        screen.show([("a", "awake", "1", "2", "3", "4", "5", "6", "half_open")])
        screen.summarize(facts, list(judge(facts)))
    text = out.getvalue()
    assert "0.0 s  something happened" in text
    assert "reader-2" in text
    assert "FAILED" in text
    assert "lost = 7" in text
    assert ("half_open" in text) is terminal
    assert mib(3 * 2**19) == "1.5"
