"""The commands that explain calls, against a scripted API: what they ask and print."""

import json
import signal
import subprocess

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.core.errors import Refused
from outrigger.v1.circuit_pb2 import Circuit, CircuitMove, FailedCall
from outrigger.v1.circuit_service_pb2 import (
    CircuitsShown,
    GetCircuitResponse,
    ListCircuitsResponse,
    WatchCircuitsResponse,
)
from outrigger.v1.fault_pb2 import Fault
from outrigger.v1.fault_service_pb2 import (
    ClearFaultsResponse,
    InjectFaultResponse,
    ListFaultsResponse,
)
from outrigger.v1.tap_service_pb2 import TappedCall, TappedMetadata, TapResponse
from outrigger.v1.upstream_pb2 import Upstream, UpstreamAddress
from outrigger.v1.upstream_service_pb2 import ListUpstreamsResponse
from tests.support.command import Screen, command_line, run_here
from tests.support.scripted_api import scripted_controller, scripted_sidecar

DAY = Timestamp(seconds=86400)
MORNING = "1970-01-02 00:00:00Z"


@pytest.fixture
def sidecar(tmp_path):
    api = scripted_sidecar(tmp_path / "sidecar")
    yield api
    api.close()


@pytest.fixture
def controller(tmp_path):
    api = scripted_controller(tmp_path / "controller")
    yield api
    api.close()


def to(api):
    return ("--state-dir", api.state)


# ---- circuits


def troubled(**changes):
    """A circuit in trouble, with its calls and its history."""
    given = {
        "circuit_id": "shop",
        "state": Circuit.STATE_OPEN,
        "reason": "5 failures\x1b[2J in a row",
        "state_time": DAY,
        "trouble_time": DAY,
        "retry_after": Duration(seconds=2),
        "window_call_count": 6,
        "window_failure_count": 5,
        "window_slow_count": 1,
        "consecutive_failure_count": 5,
        "open_count": 1,
        "refused_count": 7,
        "failed_calls": [
            FailedCall(
                call_id="call-1",
                method="/a.B/C",
                count_time=DAY,
                status_code=14,
                origin=FailedCall.ORIGIN_TRANSPORT,
                elapsed=Duration(nanos=1_500_000),
            ),
            FailedCall(
                call_id="call-2",
                method="/a.B/D",
                slow=True,
                origin=FailedCall.ORIGIN_UNKNOWN,
            ),
        ],
        "history": [
            CircuitMove(
                move_time=DAY,
                before=Circuit.STATE_CLOSED,
                after=Circuit.STATE_OPEN,
                reason="5 failures in a row",
            )
        ],
    }
    return Circuit(**(given | changes))


def shown(sidecar, circuit, *flags, **given):
    """Run `circuits show` and return what it prints."""
    sidecar.answers["CircuitService.GetCircuit"] = GetCircuitResponse(circuit=circuit)
    result = run_here("circuits", "show", "shop", *flags, *to(sidecar), **given)
    assert (result.code, result.err) == (0, "")
    return result.out


def test_a_circuit_is_explained_in_sentences_and_tables(sidecar):
    """Why, since when, which calls, and how it came to this."""
    told = shown(sidecar, troubled())
    for words in (
        f"shop is open since {MORNING}: 5 failures?[2J in a row.\n",
        f"It was closed last at {MORNING}.\n",
        "It is probed in 2.0s or sooner.\n",
        "Its window holds 6 calls: 5 failed, 1 slow. Hard failures in a row: 5.\n",
        "it opened once and refused 7 calls.\n",
        "/a.B/C  UNAVAILABLE       transport  1.5ms  call-1\n",
        "/a.B/D  still on its way  unknown    0.0ms  call-2\n",
        f"{MORNING}  closed  open  5 failures in a row\n",
    ):
        assert words in told
    assert sidecar.last("CircuitService.GetCircuit").request.circuit_id == "shop"


def test_each_state_says_what_comes_next(sidecar):
    """An isolation how to end it, a probation what passes, a shadow that it is one."""
    isolated = shown(sidecar, troubled(state=Circuit.STATE_ISOLATED))
    probed = shown(sidecar, troubled(state=Circuit.STATE_HALF_OPEN))
    shadow = shown(sidecar, troubled(shadow=True, open_count=3))
    well = shown(
        sidecar, Circuit(circuit_id="shop", state=Circuit.STATE_CLOSED, state_time=DAY)
    )

    assert "'outrigger circuits restore shop'" in isolated
    assert "A few calls pass as probes" in probed
    assert "It is a shadow" in shadow
    assert "it opened 3 times and would have refused 7 calls" in shadow
    assert well.startswith(f"shop is closed since {MORNING}.\nIts window holds 0")
    assert "newest calls" not in well
    assert "moved" not in well


def test_a_circuit_is_drawn_on_a_terminal_and_whole_for_programs(sidecar):
    """Rich draws the tables; JSON has every field."""
    screen = Screen()
    drawn = shown(sidecar, troubled(), stdout=screen)
    found = json.loads(shown(sidecar, troubled(), "-o", "json"))

    assert "\u2500" in drawn
    assert "still on its way" in drawn
    assert [one["call_id"] for one in found["failed_calls"]] == ["call-1", "call-2"]
    assert found["history"][0]["after"] == "STATE_OPEN"
    assert found["shadow"] is False


def test_a_list_is_narrowed_and_marks_shadows(sidecar):
    """The filter reaches the server; what refuses nothing is told from what does."""
    sidecar.answers["CircuitService.ListCircuits"] = ListCircuitsResponse(
        circuits=[troubled(shadow=True)]
    )
    flags = ("--state", "open", "--state", "half_open", "--upstream", "shop")
    result = run_here("circuits", "list", *flags, *to(sidecar))
    asked = sidecar.last("CircuitService.ListCircuits").request.filter

    assert "shop     open (shadow)" in result.out
    assert list(asked.states) == [Circuit.STATE_OPEN, Circuit.STATE_HALF_OPEN]
    assert asked.upstream == "shop"
    wrong = run_here("circuits", "list", "--state", "ajar", *to(sidecar))
    assert (wrong.code, "[BAD_USAGE]" in wrong.err) == (2, True)


NEWS = [
    WatchCircuitsResponse(present=troubled()),
    WatchCircuitsResponse(
        present=Circuit(circuit_id="bank", state=Circuit.STATE_CLOSED, state_time=DAY)
    ),
    WatchCircuitsResponse(shown=CircuitsShown(shown_count=2, omitted_count=9)),
    *(
        WatchCircuitsResponse(
            move=CircuitMove(
                circuit_id="shop",
                move_time=DAY,
                before=Circuit.STATE_OPEN,
                after=after,
                reason="why",
            ),
            missed_count=missed,
        )
        for after, missed in ((Circuit.STATE_HALF_OPEN, 0), (Circuit.STATE_CLOSED, 3))
    ),
    WatchCircuitsResponse(),
]


def test_a_watch_is_a_line_for_each_thing_it_is_told(sidecar):
    """What is, where that ends, what moves; a gap is told on stderr."""
    sidecar.answers["CircuitService.WatchCircuits"] = NEWS
    result = run_here("circuits", "watch", "--upstream", "shop", *to(sidecar))

    assert result.code == 0
    assert result.out.splitlines() == [
        f"{MORNING}  shop  open since then: 5 failures?[2J in a row",
        f"{MORNING}  bank  closed since then",
        "-- 2 circuits, 9 more are not shown; moves from here on --",
        f"{MORNING}  shop  open -> half_open: why",
        f"{MORNING}  shop  open -> closed: why",
    ]
    assert result.err == "outrigger: circuits: 3 moves missed\n"
    asked = sidecar.last("CircuitService.WatchCircuits").request.filter
    assert asked.upstream == "shop"


def test_a_watch_for_programs_is_json_lines_and_ends_with_its_limit(sidecar):
    """The limit counts moves, not what there was to begin with."""
    sidecar.answers["CircuitService.WatchCircuits"] = NEWS
    flags = ("--limit", 1, "-o", "jsonl")
    result = run_here("circuits", "watch", *flags, *to(sidecar))
    lines = [json.loads(line) for line in result.out.splitlines()]

    assert len(lines) == 4
    assert lines[2]["shown"]["shown_count"] == "2"
    assert lines[3]["move"]["after"] == "STATE_HALF_OPEN"
    wrong = run_here("circuits", "watch", "-o", "json", *to(sidecar))
    assert (wrong.code, "[BAD_USAGE]" in wrong.err) == (2, True)


# ---- tap


CALLS = [
    TapResponse(
        call=TappedCall(
            call_id="call-1",
            end_time=DAY,
            method="/a.B/C",
            upstream="shop",
            elapsed=Duration(nanos=1_500_000),
            attempt_count=1,
            metadata=[TappedMetadata(key="authorization", value="(redacted)")],
        )
    ),
    TapResponse(
        call=TappedCall(
            call_id="call-2",
            end_time=DAY,
            method="/a.B/D\x1b[2J",
            status_code=14,
            elapsed=Duration(seconds=2),
            attempt_count=3,
            refused_by="circuit",
            letter_id="letter-2",
            delivery=True,
            omitted_metadata_count=5,
        ),
        missed_count=4,
    ),
]


def test_a_tap_is_a_line_per_call(controller):
    """Through the controller, by the agent's name alone."""
    controller.answers["TapService.Tap"] = CALLS
    result = run_here("tap", "a1", *to(controller))

    assert result.code == 0
    first, second = result.out.splitlines()
    assert first == (
        f"{MORNING}  OK  1.5ms  /a.B/C  to shop  call call-1  authorization=(redacted)"
    )
    assert second == (
        f"{MORNING}  UNAVAILABLE  2000.0ms  /a.B/D?[2J  to nowhere"
        "  a letter's delivery  3 attempts  refused by circuit"
        "  became letter letter-2  call call-2  and 5 more entries of metadata"
    )
    assert result.err == "outrigger: tap: 4 calls missed\n"
    seen = controller.last("TapService.Tap")
    assert seen.metadata["outrigger-agent"] == "a1"
    assert (seen.request.method_prefix, seen.request.failures_only) == ("", False)


def test_a_tap_carries_its_filter_and_ends_with_its_limit(sidecar):
    """Directly too; for programs a line of JSON per call."""
    sidecar.answers["TapService.Tap"] = CALLS
    flags = ("--method", "/a.B/", "--upstream", "shop", "--failures", "--limit", 1)
    api = ("--api", f"unix:{sidecar.state}/api.sock")
    result = run_here("tap", *flags, "-o", "jsonl", *api)
    (line,) = result.out.splitlines()
    request = sidecar.last("TapService.Tap").request

    assert json.loads(line)["call"]["attempt_count"] == 1
    assert (request.method_prefix, request.upstream) == ("/a.B/", "shop")
    assert request.failures_only


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("a1", "--agent", "b2"), 2, "BAD_USAGE"),
        (("a1", "-o", "json"), 2, "BAD_USAGE"),
        (("Not An Agent",), 2, "BAD_USAGE"),
        ((), 2, "NO_SERVER"),
    ],
)
def test_a_tap_of_nobody_or_of_two_is_refused(words, code, reason):
    """In one line that says what was expected."""
    result = run_here("tap", *words)

    assert (result.code, f"[{reason}]" in result.err) == (code, True)
    assert result.err.count("\n") == 1


def test_both_ways_to_name_an_agent_mean_the_same(controller):
    """Also both at once, if they agree."""
    controller.answers["TapService.Tap"] = CALLS[:1]
    ways = (("a1",), ("--agent", "a1"), ("a1", "--agent", "a1"))
    results = [run_here("tap", *words, *to(controller)) for words in ways]

    assert len({result.out for result in results}) == 1
    assert all(seen.metadata["outrigger-agent"] == "a1" for seen in controller.seen)


def test_an_interrupt_ends_a_tap(controller):
    """Ctrl-C ends the real command with 130 and no traceback."""

    def calls(_request):
        yield CALLS[0]
        controller.stopping.wait(30)

    controller.answers["TapService.Tap"] = calls
    with subprocess.Popen(
        command_line("tap", "a1", *to(controller)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert b"/a.B/C" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, b"", b"")


# ---- faults


ABORT = Fault(
    fault_id="fault-1",
    match="/a.B/*",
    kind=Fault.KIND_ABORT,
    share=0.1,
    status_code=14,
    message="try",
    expire_time=DAY,
    matched_count=20,
    hit_count=2,
)


def test_a_fault_is_asked_for_as_it_was_written(sidecar):
    """Every flag reaches the server; what comes back is shown."""
    sidecar.answers["FaultService.InjectFault"] = InjectFaultResponse(fault=ABORT)
    words = ("--match", "/a.B/*", "--kind", "abort", "--code", "UNAVAILABLE")
    more = ("--share", "0.1", "--ttl", "60s", "--upstream", "shop", "--message", "try")
    result = run_here("faults", "inject", *words, *more, "--dry-run", *to(sidecar))
    request = sidecar.last("FaultService.InjectFault").request
    asked = request.fault

    assert result.code == 0
    assert "FAULT     fault-1\n" in result.out
    assert "EFFECT    abort UNAVAILABLE\n" in result.out
    assert (asked.match, asked.upstream, asked.share) == ("/a.B/*", "shop", 0.1)
    assert (asked.kind, asked.status_code) == (Fault.KIND_ABORT, 14)
    assert (asked.ttl.seconds, asked.message) == (60, "try")
    assert not asked.HasField("delay")
    assert request.validate_only
    assert len(request.request_id) == 36


def test_a_delay_has_its_time(sidecar):
    """Without a share it is for every call."""
    sidecar.answers["FaultService.InjectFault"] = InjectFaultResponse(fault=ABORT)
    words = ("--match", "*", "--kind", "delay", "--delay", "250ms", "--ttl", "1h")
    assert run_here("faults", "inject", *words, *to(sidecar)).code == 0
    asked = sidecar.last("FaultService.InjectFault").request.fault

    assert asked.delay.ToMilliseconds() == 250
    assert (asked.share, asked.status_code, asked.ttl.seconds) == (1.0, 0, 3600)


@pytest.mark.parametrize(
    "words",
    [
        ("--kind", "abort", "--ttl", "60s"),
        ("--match", "*", "--kind", "abort"),
        ("--match", "*", "--kind", "explode", "--ttl", "60s"),
        ("--match", "*", "--kind", "abort", "--code", "OK", "--ttl", "60s"),
        ("--match", "*", "--kind", "drop", "--ttl", "61m"),
        ("--match", "*", "--kind", "drop", "--ttl", "60s", "--share", "0"),
        ("--match", "*", "--kind", "delay", "--ttl", "60s", "--delay", "301s"),
    ],
)
def test_a_fault_that_cannot_be_is_refused_before_it_is_asked_for(sidecar, words):
    """In one line, and nothing is sent."""
    result = run_here("faults", "inject", *words, *to(sidecar))

    assert (result.code, result.err.count("\n")) == (2, 1)
    assert sidecar.seen == []


def test_faults_are_listed_and_cleared(sidecar):
    """One by its id, or all; the table says what each does and did."""
    delay = Fault(
        fault_id="fault-2",
        match="*",
        kind=Fault.KIND_DELAY,
        upstream="shop",
        share=1.0,
        delay=Duration(seconds=2),
    )
    drop = Fault(fault_id="fault-3", match="*", kind=Fault.KIND_DROP, share=1.0)
    sidecar.answers["FaultService.ListFaults"] = ListFaultsResponse(
        faults=[ABORT, delay, drop]
    )
    sidecar.answers["FaultService.ClearFaults"] = ClearFaultsResponse(cleared_count=2)
    lines = run_here("faults", "list", *to(sidecar)).out.splitlines()

    assert lines[1].split() == [
        *("fault-1", "/a.B/*", "any", "abort", "UNAVAILABLE", "0.1"),
        *(*MORNING.split(), "20", "2", "try"),
    ]
    assert lines[2].split()[2:6] == ["shop", "delay", "2.0s", "1"]
    assert lines[3].split()[2:4] == ["any", "drop"]
    assert run_here("faults", "clear", *to(sidecar)).out == "cleared  2\n"
    assert sidecar.last("FaultService.ClearFaults").request.fault_id == ""
    run_here("faults", "clear", "fault-1", "--dry-run", *to(sidecar))
    request = sidecar.last("FaultService.ClearFaults").request
    assert (request.fault_id, request.validate_only) == ("fault-1", True)


def test_a_sidecar_that_allows_no_faults_says_how_to(sidecar):
    """By its own reason, in one line."""
    sidecar.answers["FaultService.ListFaults"] = Refused(
        "FAULTS_NOT_ALLOWED", "start it with --allow-faults"
    )
    result = run_here("faults", "list", *to(sidecar))

    assert (result.code, "[FAULTS_NOT_ALLOWED]" in result.err) == (1, True)


# ---- upstreams


def test_upstreams_are_a_line_per_address_and_whole_for_programs(sidecar):
    """One without an address yet is there all the same."""
    shop = Upstream(
        upstream_id="shop",
        tls=Upstream.TLS_MUTUAL,
        in_flight_count=3,
        in_flight_limit=8,
        addresses=[
            UpstreamAddress(address="10.0.0.1:1", state=UpstreamAddress.STATE_READY),
            UpstreamAddress(
                address="10.0.0.2:1",
                state=UpstreamAddress.STATE_TRANSIENT_FAILURE,
                ejected=True,
                ejected_for=Duration(seconds=5),
                ejection_count=2,
                drop_count=4,
                reason="too many failures",
            ),
        ],
    )
    bare = Upstream(upstream_id="bank", tls=Upstream.TLS_OFF)
    sidecar.answers["UpstreamService.ListUpstreams"] = ListUpstreamsResponse(
        upstreams=[shop, bare]
    )
    lines = run_here("upstreams", "list", *to(sidecar)).out.splitlines()
    found = json.loads(run_here("upstreams", "list", "-o", "json", *to(sidecar)).out)

    assert lines[1].split() == [
        *("shop", "10.0.0.1:1", "ready", "mutual", "-", "-", "-", "-", "3/8", "-")
    ]
    assert lines[2].split() == [
        *("shop", "10.0.0.2:1", "transient_failure", "mutual", "for", "5.0s"),
        *("2", "4", "-", "3/8", "too", "many", "failures"),
    ]
    assert lines[3].split()[:4] == ["bank", "-", "unspecified", "off"]
    assert [len(one["addresses"]) for one in found] == [2, 0]
