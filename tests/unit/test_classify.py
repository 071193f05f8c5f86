import pytest

from sidecar.call.descriptor import Origin
from sidecar.policy import classify
from sidecar.policy.classify import Code, Repeat, Verdict

LOCAL, TRANSPORT = Origin.LOCAL, Origin.TRANSPORT
UPSTREAM, UNKNOWN = Origin.UPSTREAM, Origin.UNKNOWN
SUCCESS, HARD = Verdict.SUCCESS, Verdict.HARD
SOFT, IGNORED, ANSWERED = Verdict.SOFT, Verdict.IGNORED, Verdict.ANSWERED

METHOD = {
    Code.OK: SUCCESS,
    Code.CANCELLED: IGNORED,
    Code.UNKNOWN: HARD,
    Code.INVALID_ARGUMENT: ANSWERED,
    Code.DEADLINE_EXCEEDED: HARD,
    Code.NOT_FOUND: ANSWERED,
    Code.ALREADY_EXISTS: ANSWERED,
    Code.PERMISSION_DENIED: IGNORED,
    Code.RESOURCE_EXHAUSTED: SOFT,
    Code.FAILED_PRECONDITION: ANSWERED,
    Code.ABORTED: ANSWERED,
    Code.OUT_OF_RANGE: ANSWERED,
    Code.UNIMPLEMENTED: IGNORED,
    Code.INTERNAL: HARD,
    Code.UNAVAILABLE: HARD,
    Code.DATA_LOSS: HARD,
    Code.UNAUTHENTICATED: IGNORED,
}
OUTAGE = {
    Code.UNKNOWN,
    Code.DEADLINE_EXCEEDED,
    Code.RESOURCE_EXHAUSTED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
}
IDEMPOTENT = {
    Code.UNKNOWN,
    Code.DEADLINE_EXCEEDED,
    Code.RESOURCE_EXHAUSTED,
    Code.ABORTED,
    Code.INTERNAL,
    Code.UNAVAILABLE,
}
FAILURES = [code for code in Code if code is not Code.OK]


def of_method(code, origin, patience_s=60.0, median_s=None):
    """Classify for the method's circuit."""
    return classify.of_method(code, origin, patience_s=patience_s, median_s=median_s)


def retryable(code, repeat, origin=UPSTREAM):
    """Ask whether it may be sent again."""
    return classify.is_retryable(code, origin, classify.retryable_codes(repeat))


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("origin", [UPSTREAM, UNKNOWN])
def test_every_status_has_its_verdict_at_the_methods_circuit(code, origin):
    """The table of the module, cell by cell."""
    assert of_method(code, origin) is METHOD[code]


@pytest.mark.parametrize("code", FAILURES)
def test_the_transport_never_counts_against_a_method(code):
    """That nobody can be reached says nothing about one method."""
    assert of_method(code, TRANSPORT) is IGNORED


@pytest.mark.parametrize("code", FAILURES)
def test_what_the_relay_refuses_counts_nowhere(code):
    """Except running out of time on an attempt that was made."""
    expected = HARD if code is Code.DEADLINE_EXCEEDED else IGNORED

    assert of_method(code, LOCAL) is expected
    assert classify.of_upstream(code, LOCAL) is IGNORED


@pytest.mark.parametrize("code", list(Code))
def test_an_answer_of_the_callee_proves_that_it_can_be_reached(code):
    """Whatever the answer is."""
    assert classify.of_upstream(code, UPSTREAM) is SUCCESS


@pytest.mark.parametrize("code", FAILURES)
def test_the_transports_failures_count_at_the_upstreams_circuit(code):
    """Those that are failures; a cancelled stream is none."""
    expected = HARD if METHOD[code] is HARD else IGNORED

    assert classify.of_upstream(code, TRANSPORT) is expected
    assert classify.of_upstream(code, UNKNOWN) is IGNORED


@pytest.mark.parametrize("origin", list(Origin))
def test_success_is_success_wherever_it_comes_from(origin):
    """Status 0 counts for both circuits."""
    assert of_method(Code.OK, origin) is SUCCESS
    assert classify.of_upstream(Code.OK, origin) is SUCCESS


@pytest.mark.parametrize(
    ("patience_s", "median_s", "verdict"),
    [
        (0.1, 0.5, IGNORED),
        (0.5, 0.5, HARD),
        (2.0, 0.5, HARD),
        (0.001, None, HARD),
    ],
)
@pytest.mark.parametrize("origin", [LOCAL, UPSTREAM, UNKNOWN])
def test_a_hasty_deadline_is_the_callers_fault(origin, patience_s, median_s, verdict):
    """Shorter than the method usually takes: not counted; else a black hole is."""
    code = Code.DEADLINE_EXCEEDED

    assert of_method(code, origin, patience_s, median_s) is verdict


@pytest.mark.parametrize("code", list(Code))
@pytest.mark.parametrize("origin", list(Origin))
def test_unsafe_is_never_sent_again(code, origin):
    """No status through this wire proves that the callee did not see the call."""
    assert not retryable(code, Repeat.UNSAFE, origin)


@pytest.mark.parametrize("code", list(Code))
def test_by_default_only_unavailable_is_sent_again(code):
    """AIP-194."""
    assert retryable(code, Repeat.DEFAULT) is (code is Code.UNAVAILABLE)


@pytest.mark.parametrize("code", list(Code))
def test_idempotent_methods_are_sent_again_for_more(code):
    """Everything that may have been an accident of the moment."""
    assert retryable(code, Repeat.IDEMPOTENT) is (code in IDEMPOTENT)


def test_only_a_busy_callee_throttles():
    """Such retries wait longer and cost less."""
    throttles = [code for code in Code if classify.is_throttle(code)]

    assert throttles == [Code.RESOURCE_EXHAUSTED]


def test_what_the_relay_refused_is_not_sent_again():
    """It would refuse again; an attempt of ours that timed out is another matter."""
    assert not retryable(Code.UNAVAILABLE, Repeat.IDEMPOTENT, LOCAL)
    assert retryable(Code.DEADLINE_EXCEEDED, Repeat.IDEMPOTENT, LOCAL)


@pytest.mark.parametrize("code", list(Code))
def test_only_outages_become_letters(code):
    """A definite answer would be the same tomorrow."""
    assert classify.is_outage(code, UPSTREAM) is (code in OUTAGE)
    assert classify.is_outage(code, TRANSPORT) is (code in OUTAGE)
    assert classify.is_outage(code, LOCAL) is (code is Code.DEADLINE_EXCEEDED)


def test_refusals_that_pass_by_themselves_become_letters():
    """Circuits, limits and time; never a kill switch, nor a call that goes nowhere."""
    layers = ("circuit", "limit", "deadline", "kill_switch", "route")

    assert [layer for layer in layers if classify.may_be_letter(layer)] == [
        "circuit",
        "limit",
        "deadline",
    ]
