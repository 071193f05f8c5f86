import pytest

from sidecar.call.descriptor import (
    Answer,
    Finish,
    GivenUp,
    Letter,
    LetterRefused,
    LetterTaken,
    Origin,
    Resumed,
    Retry,
)
from sidecar.call.guard import GuardSettings
from tests.support.guard_rig import (
    DEADLINE_EXCEEDED,
    METHOD,
    UNAVAILABLE,
    GuardRig,
    trailers_of,
)

TRANSPORT, LOCAL = Origin.TRANSPORT, Origin.LOCAL
PUSHBACK = "grpc-retry-pushback-ms"


@pytest.fixture
def rig():
    """A guard with the default settings and no rules."""
    return GuardRig()


LETTERS = {"match": METHOD, "letter": "on", "max_attempts": 1}
ASKED = (("outrigger-letter", "on"),)


@pytest.mark.parametrize(
    ("rule", "asked", "is_taken"),
    [
        ("off", None, False),
        ("off", "on", True),
        ("off", "off", False),
        ("off", "perhaps", False),
        ("on", None, True),
        ("on", "off", False),
        ("on", "perhaps", True),
        ("always", None, True),
        ("always", "off", False),
    ],
)
def test_who_wants_a_letter(rule, asked, is_taken):
    """The method's rule or the caller; the caller's `off` wins."""
    rig = GuardRig({"match": METHOD, "letter": rule, "max_attempts": 1})
    metadata = () if asked is None else (("outrigger-letter", asked),)

    result = rig.end(rig.go(metadata=metadata), UNAVAILABLE)

    assert isinstance(result, Letter) is is_taken


def test_a_letter_carries_the_call_without_secrets():
    """What is ours and what opens doors is not stored."""
    rig = GuardRig(LETTERS)
    go = rig.go(
        call_id="c-1",
        metadata=(
            ("a", "1"),
            ("authorization", "Bearer x"),
            ("proxy-authorization", "x"),
            ("cookie", "x"),
            ("x-api-key", "x"),
            ("openai-apikey", "x"),
            ("x-goog-iam-authorization-token", "x"),
            ("session-token-bin", b"x"),
            ("client-secret", "x"),
            ("x-forwarded", "bEaReR abc"),
            ("outrigger-token", "x"),
            ("tokenizer", "bpe"),
            ("b-bin", b"\xff"),
        ),
    )

    letter = rig.end(go, UNAVAILABLE)

    assert letter.metadata == (
        ("a", "1"),
        ("tokenizer", "bpe"),
        ("b-bin", b"\xff"),
        ("idempotency-key", "c-1"),
    )
    assert (letter.upstream, letter.idempotency_key) == ("shop", "c-1")
    assert (letter.code, letter.message) == (UNAVAILABLE, "as it said")
    assert letter.permit is go.permit


def taken(rig, letter, letter_id="L-1"):
    """Tell the guard that the letter is on disk."""
    return rig.guard.resolved(letter.token, LetterTaken(letter_id), rig.now)


def letter_refused(rig, letter, reason="JOURNAL_FULL"):
    """Tell the guard that no letter was taken."""
    return rig.guard.resolved(letter.token, LetterRefused(reason), rig.now)


def test_a_taken_letter_changes_no_status():
    """The failing status, the id, and a no to the caller's own retries."""
    rig = GuardRig(LETTERS | {"max_attempts": 2})
    go = rig.retry(rig.go())
    upstreams = (("x", "y"), (PUSHBACK, "abc"))
    letter = rig.end(go, UNAVAILABLE, trailers=upstreams)
    assert rig.guard.counts.in_flight == 1

    finish = taken(rig, letter)

    assert finish.trailers == ()
    assert (finish.answer.code, finish.answer.message) == (UNAVAILABLE, "as it said")
    assert trailers_of(finish.answer) == {
        "x": "y",
        "outrigger-letter-id": "L-1",
        "outrigger-attempts": "2",
        PUSHBACK: "-1",
    }
    counts = rig.guard.counts
    assert (counts.letters, counts.failed, counts.in_flight) == (1, 1, 0)


def test_a_refused_letter_leaves_the_answer_and_says_why():
    """The upstream's status and trailers, and one more."""
    rig = GuardRig(LETTERS)
    letter = rig.end(rig.go(), UNAVAILABLE, trailers=(("x", "y"),))

    finish = letter_refused(rig, letter)

    assert (finish.answer.code, finish.answer.message) == (UNAVAILABLE, "as it said")
    assert trailers_of(finish.answer) == {
        "x": "y",
        "outrigger-letter-refused": "JOURNAL_FULL",
    }
    counts = rig.guard.counts
    assert (counts.letters, counts.failed) == (0, 1)


def test_a_refusal_by_a_circuit_becomes_a_letter():
    """Nothing was sent, nothing is lost, and the caller hears of both."""
    rig = GuardRig(LETTERS)
    for _ in range(5):
        letter_refused(rig, rig.fail(code=13))

    letter = rig.letter(call_id="c-7")
    finish = taken(rig, letter)

    assert (letter.code, letter.idempotency_key) == (UNAVAILABLE, "c-7")
    assert trailers_of(finish.answer) == {
        "outrigger-refused-by": "circuit",
        "outrigger-letter-id": "L-1",
        "outrigger-attempts": "0",
        PUSHBACK: "-1",
    }
    assert rig.guard.counts.refused == {"circuit": 1}
    assert rig.guard.counts.in_flight == 0


def test_a_refusal_whose_letter_was_refused_keeps_its_push_back():
    """The caller may come back by itself after all."""
    rig = GuardRig(settings=GuardSettings(concurrency=1))
    rig.go()

    finish = letter_refused(rig, rig.letter(metadata=ASKED))

    assert finish.answer.code == 8
    assert trailers_of(finish.answer) == {
        "outrigger-refused-by": "limit",
        PUSHBACK: "100",
        "outrigger-letter-refused": "JOURNAL_FULL",
    }


def test_a_retry_that_is_not_made_becomes_a_letter():
    """The circuit opened during the wait: the call is failed for good."""
    rig = GuardRig(LETTERS | {"max_attempts": 3})
    go = rig.go()
    assert isinstance(rig.end(go, UNAVAILABLE), Retry)
    rig.guard.isolate("shop", "broken", rig.now)

    letter = rig.guard.attempt(go.permit, rig.now)

    assert isinstance(letter, Letter)
    assert (letter.code, letter.message) == (UNAVAILABLE, "as it said")


@pytest.mark.parametrize("code", [1, 3, 5, 6, 7, 9, 10, 11, 12, 15, 16])
def test_definite_answers_never_become_letters(code):
    """Invalid, Denied and their kind would be the same tomorrow."""
    rig = GuardRig(LETTERS)

    assert rig.fail(code=code) == Finish(None, ())


def test_a_call_that_goes_nowhere_never_becomes_a_letter(rig):
    """There is nobody to deliver it to."""
    rig.refused(metadata=(*ASKED, ("outrigger-upstream", "nobody")))


def test_a_message_the_relay_refused_never_becomes_a_letter():
    """It would be refused again."""
    rig = GuardRig(LETTERS)

    assert rig.fail(code=8, origin=LOCAL) == Finish(None, ())


def test_an_unsafe_method_never_becomes_a_letter_and_says_so():
    """A letter is sent again, which unsafe forbids."""
    rig = GuardRig({"match": METHOD, "unsafe": True})
    reason = ("outrigger-letter-refused", "UNSAFE_METHOD")

    assert rig.end(rig.go(metadata=ASKED), UNAVAILABLE) == Finish(None, (reason,))

    rig.guard.isolate("shop", "broken", rig.now)
    assert reason in rig.refused(metadata=ASKED).trailers


def test_a_committed_call_becomes_no_letter_and_says_so():
    """Part of the response was passed on, or the request outgrew its buffer."""
    rig = GuardRig(LETTERS)

    finish = rig.fail(committed=True)

    assert finish.trailers == (("outrigger-letter-refused", "COMMITTED"),)


@pytest.mark.parametrize(
    ("timeout_s", "attempt_s"),
    [(100.0, 99.5), (5.0, 4.5), (2.0, 1.8), (0.2, 0.15), (0.06, 0.03)],
)
def test_attempts_end_before_the_deadline_so_that_the_id_arrives(timeout_s, attempt_s):
    """A tenth of the time, 50 to 500 ms, never more than half of it."""
    rig = GuardRig(LETTERS)

    assert rig.go(timeout_s=timeout_s).timeout_s == pytest.approx(attempt_s)


def test_an_unsafe_method_keeps_all_its_time():
    """No letter will be taken, so nothing is kept back for one."""
    rig = GuardRig({"match": METHOD, "unsafe": True})

    assert rig.go(timeout_s=2.0, metadata=ASKED).timeout_s == 2.0


def test_a_black_hole_becomes_a_letter_before_the_deadline():
    """The attempt timed out in time for the letter's id."""
    rig = GuardRig(LETTERS)
    go = rig.go(timeout_s=2.0)
    rig.now += go.timeout_s

    letter = rig.end(go, DEADLINE_EXCEEDED, origin=LOCAL)

    assert isinstance(letter, Letter)
    assert letter.code == DEADLINE_EXCEEDED


@pytest.mark.parametrize(("rule", "is_taken"), [("on", False), ("always", True)])
def test_after_the_deadline_only_always_takes_a_letter(rule, is_taken):
    """No trailer reaches the caller then; `always` wants it nevertheless."""
    rig = GuardRig(LETTERS | {"letter": rule})
    late = rig.go(timeout_s=1.0)
    rig.now += 1.0

    assert isinstance(rig.end(late, UNAVAILABLE), Letter) is is_taken
    assert isinstance(rig.begin(timeout_s=-0.5), Letter) is is_taken


def test_too_late_says_so():
    """The trailer is there for whoever logs it."""
    rig = GuardRig(LETTERS)
    late = rig.go(timeout_s=1.0)
    rig.now += 1.0

    finish = rig.end(late, UNAVAILABLE)

    assert finish.trailers == (("outrigger-letter-refused", "DEADLINE_PASSED"),)


def test_calls_waiting_for_letters_are_bounded():
    """A slow disk does not fill the memory; the caller is told."""
    rig = GuardRig(LETTERS, settings=GuardSettings(parked_max=1))
    waiting = rig.fail()

    finish = rig.fail()

    assert isinstance(waiting, Letter)
    assert finish.trailers == (("outrigger-letter-refused", "TOO_MANY_WAITING"),)


def test_a_call_waiting_for_its_letter_holds_no_place_at_the_upstream():
    """The upstream is done with it; the disk is another matter."""
    rig = GuardRig(LETTERS, settings=GuardSettings(concurrency=1))
    rig.fail()

    rig.go()


def test_a_caller_that_goes_away_before_its_letter_is_on_disk_is_forgotten():
    """The answer that comes later finds nobody."""
    rig = GuardRig(LETTERS)
    letter = rig.fail()
    rig.guard.cancelled(letter.permit, rig.now)

    assert taken(rig, letter) == Finish(None)
    counts = rig.guard.counts
    assert (counts.cancelled, counts.letters, counts.in_flight) == (1, 0, 0)


def test_a_parked_call_may_be_given_up_or_resumed_with_its_failure():
    """Words meant for held calls end an outbound one properly, too."""
    rig = GuardRig(LETTERS)
    answer = Answer(13, "gone")

    first, second = rig.fail(), rig.fail()

    assert rig.guard.resolved(first.token, GivenUp(answer), rig.now).answer == answer
    resumed = rig.guard.resolved(second.token, Resumed(), rig.now)
    assert resumed.answer.code == UNAVAILABLE
