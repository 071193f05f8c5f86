import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrigger.core.errors import Bug
from sidecar.policy.lane import Lane
from sidecar.policy.letter import (
    GONE,
    LIVE,
    REDRIVABLE,
    TRANSITIONS,
    Ledger,
    Letter,
    LetterInput,
    LetterLimits,
    LetterState,
    delivery_metadata,
    moved,
    short,
)
from sidecar.policy.verdict import (
    Class,
    SendResult,
    backoff_s,
    classify,
    crashed,
    judge,
    status_name,
)

LIMITS = LetterLimits(max_attempts=3, backoff_base_s=1.0, backoff_max_s=60.0)
NOW = 1_000_000.0
TABLE = """
            claim     deliver   retry   hold release park   expire  crash   redrive discard
pending     in_flight -         -       held -       parked expired -       -       discarded
held        -         -         -       -    pending parked expired -       pending discarded
in_flight   -         delivered pending held -       parked expired pending -       -
delivered   -         -         -       -    -       -      -       -       -       -
parked      -         -         -       -    -       -      -       -       pending discarded
expired     -         -         -       -    -       -      -       -       pending discarded
discarded   -         -         -       -    -       -      -       -       -       -
"""  # noqa: E501 - a table


def cells():
    """The table above as (state, input, state after or None)."""
    head, *rows = [line.split() for line in TABLE.strip().splitlines()]
    for state, *afters in rows:
        for what, after in zip(head, afters, strict=True):
            yield state, what, None if after == "-" else after


def a_letter(**fields):
    """A letter in flight."""
    given = {
        "letter_id": "0190-1",
        "agent_id": "a",
        "upstream": "tool",
        "method": "/p.S/M",
        "idempotency_key": "0190-1",
        "metadata": (("x", "1"), ("idempotency-key", "other"), ("b-bin", b"\x00")),
        "request": b"r",
        "request_size_bytes": 1,
        "request_digest": b"",
        "accept_wall_s": NOW - 10,
        "ttl_s": 100.0,
        "state": LetterState.IN_FLIGHT,
        "expire_wall_s": NOW + 90,
    }
    return Letter(**(given | fields))


def verdict(code, *, draw=0.5, peers=False, letter=None, **fields):
    """The verdict on one result."""
    return judge(
        letter or a_letter(),
        SendResult(code=code, **fields),
        LIMITS,
        draw=draw,
        peers_succeed=peers,
        now_wall_s=NOW,
    )


@pytest.mark.parametrize(("state", "what", "after"), list(cells()))
def test_every_cell_of_the_table(state, what, after):
    """A pair in the table moves as drawn; any other raises and changes nothing."""
    pair = LetterState(state), LetterInput(what)
    if after is None:
        with pytest.raises(Bug) as raised:
            moved(*pair)
        assert raised.value.reason == "ILLEGAL_LETTER_MOVE"
    else:
        assert moved(*pair) is LetterState(after)


def test_the_table_drawn_has_every_state_and_every_input():
    """No cell is forgotten."""
    drawn = {(state, what) for state, what, _ in cells()}

    assert drawn == {
        (state.value, what.value)
        for state, what in itertools.product(LetterState, LetterInput)
    }
    assert len(TRANSITIONS) == 20


def test_the_sets_of_states_divide_them():
    """Live, and two kinds of ended ones; what can be redriven is never gone."""
    assert not LIVE & GONE
    assert not REDRIVABLE & GONE
    assert set(LetterState) == LIVE | GONE | REDRIVABLE


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (0, Class.OK),
        (1, Class.TRANSIENT),
        (2, Class.TRANSIENT),
        (3, Class.PERMANENT),
        (4, Class.TRANSIENT),
        (5, Class.PERMANENT),
        (6, Class.PERMANENT),
        (7, Class.DENIED),
        (8, Class.THROTTLE),
        (9, Class.PERMANENT),
        (10, Class.TRANSIENT),
        (11, Class.PERMANENT),
        (12, Class.PERMANENT),
        (13, Class.TRANSIENT),
        (14, Class.OUTAGE),
        (15, Class.PERMANENT),
        (16, Class.DENIED),
        (99, Class.TRANSIENT),
        (-1, Class.TRANSIENT),
    ],
)
def test_every_status_has_its_class(code, kind):
    """A broken connection makes any failure an outage, and never a success one."""
    assert classify(SendResult(code=code)) is kind
    broken = classify(SendResult(code=code, broken=True))
    assert broken is (Class.OK if code == 0 else Class.OUTAGE)


def test_statuses_are_named():
    """Reasons are words of gRPC; an unknown number is shown as such."""
    assert status_name(14) == "UNAVAILABLE"
    assert status_name(16) == "UNAUTHENTICATED"
    assert status_name(17) == "STATUS_17"
    assert status_name(-1) == "STATUS_-1"


def test_success_delivers():
    """OK is the end."""
    assert verdict(0).what is LetterInput.DELIVER


@pytest.mark.parametrize("code", [3, 5, 6, 9, 11, 12, 15])
def test_a_definite_no_parks_at_once(code):
    """Trying again would only ask the same question."""
    result = verdict(code)

    assert (result.what, result.reason) == (LetterInput.PARK, status_name(code))


@pytest.mark.parametrize("code", [7, 16])
def test_a_denial_holds_and_counts_nothing(code):
    """It is the configuration's fault, not the letter's."""
    result = verdict(code)

    assert (result.what, result.counts) == (LetterInput.HOLD, False)


@pytest.mark.parametrize("code", [1, 2, 4, 10, 13, 99])
def test_a_transient_failure_uses_an_attempt_up(code):
    """The last one parks."""
    last = a_letter(attempt_count=2)

    assert verdict(code).what is LetterInput.RETRY
    assert verdict(code).counts
    assert verdict(code, letter=last).what is LetterInput.PARK
    assert verdict(code, letter=last).reason == "ATTEMPTS_EXHAUSTED"


@pytest.mark.parametrize(("code", "broken"), [(14, False), (13, True), (8, False)])
def test_an_outage_uses_up_no_attempt(code, broken):
    """However often it comes, the letter stays."""
    tired = a_letter(attempt_count=2, failure_count=1000)
    result = verdict(code, letter=tired, broken=broken)

    assert (result.what, result.counts) == (LetterInput.RETRY, False)


def test_an_outage_while_peers_succeed_is_the_letters_own():
    """Its upstream is there for others, so this counts, and parks in the end."""
    assert verdict(14, peers=True).counts
    tired = a_letter(attempt_count=2)
    assert verdict(14, letter=tired, peers=True).what is LetterInput.PARK
    assert not verdict(8, peers=True).counts


def test_a_letter_past_its_age_expires_instead_of_waiting():
    """Also in an outage; but a delivery that came through counts."""
    old = a_letter(expire_wall_s=NOW)

    assert verdict(14, letter=old).what is LetterInput.EXPIRE
    assert verdict(13, letter=old).what is LetterInput.EXPIRE
    assert verdict(0, letter=old).what is LetterInput.DELIVER
    assert verdict(14, letter=a_letter(expire_wall_s=None)).what is LetterInput.RETRY


def test_the_upstreams_wish_is_a_lower_bound():
    """Longer than our pause it holds; shorter it does not shorten ours."""
    assert verdict(8, pushback_s=30.0).delay_s == 30.0
    assert verdict(8, draw=1.0, pushback_s=0.1).delay_s == 1.0
    assert verdict(8, pushback_s=-1.0).delay_s == 60.0
    assert verdict(8, pushback_s=1e9).delay_s == LIMITS.throttle_max_s


@given(
    failures=st.integers(0, 10_000),
    draw=st.floats(0, 1, exclude_max=True),
    cap=st.floats(0.01, 1e6),
)
def test_backoff_is_full_jitter_within_its_cap(failures, draw, cap):
    """Between 0 and the doubled base, never past the cap, linear in the draw."""
    pause = backoff_s(0.5, cap, failures, draw)

    assert 0 <= pause <= min(cap, 0.5 * 2 ** min(failures, 20))
    assert backoff_s(0.5, cap, failures, draw / 2) == pytest.approx(pause / 2)


def test_transient_failures_wait_longer_than_outages():
    """The circuit waits an outage out; a letter's own fault is the letter's wait."""
    tired = a_letter(failure_count=30)

    assert verdict(14, draw=1.0, letter=tired).delay_s == LIMITS.outage_backoff_max_s
    assert verdict(13, draw=1.0, letter=tired).delay_s == LIMITS.backoff_max_s


def test_a_letter_that_was_out_in_three_crashes_in_a_row_is_poison():
    """Two may be chance."""
    assert crashed(a_letter(crash_count=1), LIMITS).what is LetterInput.CRASH
    third = crashed(a_letter(crash_count=2), LIMITS)
    assert (third.what, third.reason) == (LetterInput.PARK, "CRASH_POISON")


def test_the_idempotency_key_goes_out_once():
    """The record's key is the one that counts."""
    assert delivery_metadata(a_letter()) == (
        ("x", "1"),
        ("b-bin", b"\x00"),
        ("idempotency-key", "0190-1"),
    )


def test_messages_are_cut_and_made_storable():
    """No status message can make a record unwritable."""
    assert len(short("x" * 10_000)) == 500
    assert short("a\ud800b") == "a?b"


def test_lost_is_what_does_not_add_up():
    """Anything but 0 is a defect."""
    ledger = Ledger(accepted=10, delivered=4, parked=1, expired=1, discarded=1, live=3)

    assert ledger.lost == 0
    assert Ledger(accepted=2, live=1).lost == 1


def test_a_lane_begins_narrow_and_doubles_per_success():
    """An upstream that just came back is not run over."""
    lane = Lane(16)
    seen = []
    for _ in range(6):
        seen.append(lane.free(0.0))
        lane.began()
        lane.ended(Class.OK, 0.0, 0.5)

    assert seen == [1, 2, 4, 8, 16, 16]
    assert lane.successes == 6


def test_a_lane_counts_what_is_out():
    """Never more than allowed."""
    lane = Lane(4)
    for _ in range(3):
        lane.began()
        lane.ended(Class.OK, 0.0, 0.5)
    lane.began()

    assert (lane.in_flight, lane.free(0.0)) == (1, 3)


def test_an_outage_narrows_a_lane_and_pauses_it_longer_each_time():
    """Up to the cap; a nudge ends the pause; any answer ends the series."""
    lane = Lane(16)
    for _ in range(3):
        lane.began()
        lane.ended(Class.OK, 0.0, 0.5)
    pauses = []
    for _ in range(8):
        lane.nudged()
        lane.began()
        lane.ended(Class.OUTAGE, 100.0, 1.0)
        pauses.append(round(lane.paused_until - 100.0, 6))

    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert lane.free(104.9) == 0
    assert lane.free(105.0) == 1
    lane.nudged()
    assert lane.free(100.0) == 1
    lane.began()
    lane.ended(Class.PERMANENT, 106.0, 1.0)
    lane.began()
    lane.ended(Class.OUTAGE, 106.0, 1.0)
    assert lane.paused_until == pytest.approx(106.2)


def test_a_throttle_halves_a_lane_and_a_refusal_pauses_it():
    """Neither is an outage."""
    lane = Lane(16)
    for _ in range(4):
        lane.began()
        lane.ended(Class.OK, 0.0, 0.5)
    lane.began()
    lane.ended(Class.THROTTLE, 0.0, 0.5)
    assert lane.free(0.0) == 8
    lane.began()
    lane.ended(None, 0.0, 0.0)
    assert lane.free(0.0) == 0
    assert lane.free(0.05) == 8
