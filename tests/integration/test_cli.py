"""The command against real servers: what it asks, prints and refuses."""

import hashlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.core.blocks import StateDigest
from outrigger.core.errors import (
    Conflict,
    Corrupt,
    Denied,
    NotFound,
    Overloaded,
    Refused,
)
from outrigger.v1.agent_pb2 import Agent
from outrigger.v1.checkpoint_pb2 import Checkpoint
from outrigger.v1.checkpoint_service_pb2 import (
    ListCheckpointsResponse,
    PruneCheckpointsResponse,
    RestoreCheckpointResponse,
    SaveCheckpointResponse,
    VerifyCheckpointResponse,
)
from outrigger.v1.circuit_pb2 import Circuit
from outrigger.v1.circuit_service_pb2 import (
    IsolateCircuitResponse,
    ListCircuitsResponse,
    RestoreCircuitResponse,
)
from outrigger.v1.event_pb2 import Event
from outrigger.v1.fleet_service_pb2 import (
    AuditRecord,
    DisableSchedulerResponse,
    EnableSchedulerResponse,
    ExplainAgentResponse,
    FleetServiceWatchResponse,
    GetAgentResponse,
    GetSchedulerResponse,
    ListAgentsResponse,
    ListAuditRecordsResponse,
    PinAgentResponse,
    Scheduler,
    SleepAgentResponse,
    TransitionRecord,
    UnpinAgentResponse,
    WakeAgentResponse,
)
from outrigger.v1.letter_pb2 import Ledger, Letter
from outrigger.v1.letter_service_pb2 import (
    DiscardLettersResponse,
    ExportLettersResponse,
    GetLedgerResponse,
    GetLetterResponse,
    ImportLettersResponse,
    ListLettersResponse,
    RedriveLettersResponse,
)
from outrigger.v1.sidecar_service_pb2 import (
    GetSidecarResponse,
    SidecarServiceSleepAgentResponse,
    SidecarServiceWakeAgentResponse,
    SidecarServiceWatchResponse,
)
from tests.support.command import assert_one_line, command_line, run_apart, run_here
from tests.support.scripted_api import scripted_controller, scripted_sidecar


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


def to(api) -> tuple[str, Path]:
    return ("--state-dir", api.state)


def agent(state: str, epoch: int = 7, **fields: object) -> Agent:
    number = Agent.State.Value(f"STATE_{state.upper()}")
    return Agent(agent_id="a1", state=number, epoch=epoch, **fields)


# ---- agents


def test_agents_are_listed_over_all_pages(controller):
    """Every page is fetched; the table has a line per agent."""
    controller.answers["FleetService.ListAgents"] = [
        ListAgentsResponse(agents=[agent("awake")], next_page_token="p2"),
        ListAgentsResponse(agents=[Agent(agent_id="b2", reason="gone\x1b[2J")]),
    ]
    result = run_here("agents", "list", *to(controller))
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].split()[:3] == ["AGENT", "STATE", "PINNED"]
    assert lines[1].split()[:4] == ["a1", "awake", "-", "7"]
    assert lines[2].endswith("gone?[2J")
    first, second = controller.seen
    assert (first.request.page_token, second.request.page_token) == ("", "p2")
    assert first.metadata["outrigger-token"] == controller.token
    assert "outrigger-agent" not in first.metadata


def test_limit_ends_the_paging(controller):
    """No page is asked for beyond the limit, and none larger than what is left."""
    controller.answers["FleetService.ListAgents"] = ListAgentsResponse(
        agents=[agent("awake")] * 3, next_page_token="more"
    )
    result = run_here("agents", "list", "--limit", 2, "-o", "jsonl", *to(controller))
    assert len(result.out.splitlines()) == 2
    (seen,) = controller.seen
    assert seen.request.page_size == 2


def test_page_that_repeats_is_a_defect(controller):
    """A server that sends us round in circles is left."""
    controller.answers["FleetService.ListAgents"] = ListAgentsResponse(
        next_page_token="x"
    )
    result = run_here("agents", "list", *to(controller))
    assert result.code == 1
    assert "[SAME_PAGE]" in result.err


def test_real_command_prints_json(controller):
    """The command as a process: JSON on stdout, nothing on stderr, 0."""
    controller.answers["FleetService.ListAgents"] = ListAgentsResponse(
        agents=[agent("asleep")]
    )
    result = run_apart("agents", "list", "-o", "json", *to(controller))
    assert (result.code, result.err) == (0, "")
    (found,) = json.loads(result.out)
    assert (found["agent_id"], found["state"]) == ("a1", "STATE_ASLEEP")


def test_one_agent_is_shown(controller):
    """Through the controller the id is asked for; unknown ones end with 2."""
    controller.answers["FleetService.GetAgent"] = GetAgentResponse(agent=agent("awake"))
    result = run_here("agents", "get", "a1", *to(controller))
    assert "state         awake\n" in result.out
    unnamed = run_here("agents", "get", *to(controller))
    assert (unnamed.code, "[NO_AGENT]" in unnamed.err) == (2, True)
    controller.answers["FleetService.GetAgent"] = NotFound(
        "UNKNOWN_AGENT", "there is no agent 'zz'"
    )
    result = run_here("agents", "get", "zz", *to(controller))
    assert result.code == 2
    assert result.err == "outrigger: agents: there is no agent 'zz' [UNKNOWN_AGENT]\n"


def test_sleep_carries_what_was_said(controller):
    """Reason, epoch, dry run and a request id reach the controller."""
    controller.answers["FleetService.SleepAgent"] = SleepAgentResponse(
        agent=agent("quiescing")
    )
    words = ("--reason", "night", "--seen-epoch", 6, "--dry-run", "--wait")
    result = run_here("agents", "sleep", "a1", *words, *to(controller))
    assert result.code == 0
    request = controller.last("FleetService.SleepAgent").request
    assert (request.agent_id, request.reason, request.seen_epoch) == ("a1", "night", 6)
    assert request.validate_only
    assert len(request.request_id) == 36
    assert len(controller.seen) == 1, "a dry run waits for nothing"


def test_sleep_is_seen_through(controller):
    """Waiting polls until the agent sleeps; reports from before prove nothing."""
    controller.answers["FleetService.SleepAgent"] = SleepAgentResponse(
        agent=agent("quiescing", 8)
    )
    controller.answers["FleetService.GetAgent"] = [
        GetAgentResponse(agent=agent("asleep", 7)),
        GetAgentResponse(agent=agent("awake", 7)),
        GetAgentResponse(agent=agent("checkpointing", 8)),
        GetAgentResponse(agent=agent("asleep", 8)),
    ]
    result = run_here("agents", "sleep", "a1", "--wait", *to(controller))
    assert result.code == 0
    assert "state       asleep" in result.out
    assert len(controller.seen) == 5


@pytest.mark.parametrize(
    ("then", "code", "reason"),
    [
        (agent("awake", 8, reason="it is busy"), 1, "GIVEN_UP"),
        (agent("failed", 8, reason="disk full"), 1, "AGENT_FAILED"),
        (agent("quiescing", 8), 3, "STILL_ON_ITS_WAY"),
    ],
)
def test_sleep_that_does_not_come_is_told(controller, then, code, reason):
    """A sleep given up, failed or too slow ends the wait, and says which."""
    controller.answers["FleetService.SleepAgent"] = SleepAgentResponse(
        agent=agent("quiescing", 8)
    )
    controller.answers["FleetService.GetAgent"] = GetAgentResponse(agent=then)
    words = ("--wait", "--wait-timeout", "300ms")
    result = run_here("agents", "sleep", "a1", *words, *to(controller))
    assert (result.code, f"[{reason}]" in result.err) == (code, True)
    assert then.reason in result.err


def test_wake_is_seen_through(controller):
    """An agent that is awake already needs no poll."""
    controller.answers["FleetService.WakeAgent"] = WakeAgentResponse(
        agent=agent("awake")
    )
    result = run_here("agents", "wake", "a1", "--wait", *to(controller))
    assert (result.code, len(controller.seen)) == (0, 1)


def test_stale_epoch_is_told(controller):
    """Somebody was faster: what was asked was not done, code 1."""
    controller.answers["FleetService.WakeAgent"] = Conflict(
        "STALE_EPOCH", "the epoch is 9, not 8"
    )
    result = run_here("agents", "wake", "a1", "--seen-epoch", 8, *to(controller))
    assert (result.code, "[STALE_EPOCH]" in result.err) == (1, True)


def test_agent_of_a_sidecar_needs_no_controller(sidecar):
    """With --api the sidecar itself lists, shows, sleeps and wakes its agent."""
    sidecar.answers |= {
        "SidecarService.GetSidecar": GetSidecarResponse(agent=agent("awake")),
        "SidecarService.SleepAgent": SidecarServiceSleepAgentResponse(
            agent=agent("asleep", 8)
        ),
        "SidecarService.WakeAgent": SidecarServiceWakeAgentResponse(
            agent=agent("awake", 9)
        ),
    }
    api = ("--api", f"unix:{sidecar.state}/api.sock")
    assert "a1" in run_here("agents", "list", *api).out
    assert run_here("agents", "get", *api).code == 0
    asleep = run_here("agents", "sleep", "--wait", "--reason", "x", *api)
    assert "asleep" in asleep.out
    assert sidecar.last("SidecarService.SleepAgent").request.reason == "x"
    assert run_here("agents", "wake", "a1", *api).code == 0
    other = run_here("agents", "sleep", "b2", *api)
    assert (other.code, "has agent 'a1', not 'b2'" in other.err) == (2, True)
    pin = run_here("agents", "pin", "a1", "--reason", "x", *api)
    assert (pin.code, "[NEEDS_CONTROLLER]" in pin.err) == (2, True)


def test_pins_and_explanations(controller):
    """Pin and unpin reach the controller; explain tells why, and what would change."""
    controller.answers |= {
        "FleetService.PinAgent": PinAgentResponse(agent=agent("awake", pinned=True)),
        "FleetService.UnpinAgent": UnpinAgentResponse(agent=agent("awake")),
        "FleetService.ExplainAgent": ExplainAgentResponse(
            agent=agent("awake"),
            decision="nothing",
            reason="It is pinned.",
            would_change=["Unpinning it."],
            transitions=[
                TransitionRecord(
                    transition={"before": "waking", "after": "awake", "epoch": 7}
                )
            ],
        ),
    }
    pin = run_here("agents", "pin", "a1", "--reason", "demo", *to(controller))
    assert "pinned      yes" in pin.out
    assert controller.last("FleetService.PinAgent").request.reason == "demo"
    unpin = run_here("agents", "unpin", "a1", "--dry-run", *to(controller))
    assert unpin.code == 0
    assert controller.last("FleetService.UnpinAgent").request.validate_only
    told = run_here("agents", "explain", "a1", *to(controller)).out
    for words in ("It is pinned.", "would change: Unpinning it.", "waking", "awake"):
        assert words in told
    as_json = run_here("agents", "explain", "a1", "-o", "json", *to(controller)).out
    assert json.loads(as_json)["would_change"] == ["Unpinning it."]


def test_scheduler_is_shown_and_set(controller):
    """Show, enable with a time, and disable."""
    scheduler = Scheduler(enabled=True, keep_alive={"seconds": 90}, sleep_count=2)
    controller.answers |= {
        "FleetService.GetScheduler": GetSchedulerResponse(scheduler=scheduler),
        "FleetService.EnableScheduler": EnableSchedulerResponse(scheduler=scheduler),
        "FleetService.DisableScheduler": DisableSchedulerResponse(),
    }
    shown = run_here("scheduler", "show", *to(controller)).out
    assert shown == "enabled     yes\nkeep alive  1m30s\nsleeps      2\n"
    run_here("scheduler", "enable", "--keep-alive", "90", *to(controller))
    request = controller.last("FleetService.EnableScheduler").request
    assert request.keep_alive.seconds == 90
    run_here("scheduler", "enable", *to(controller))
    request = controller.last("FleetService.EnableScheduler").request
    assert not request.HasField("keep_alive")
    result = run_here("scheduler", "disable", "--dry-run", *to(controller))
    assert "enabled     no" in result.out
    assert controller.last("FleetService.DisableScheduler").request.validate_only


def test_audit_names_who_asked_what(controller):
    """Records have the status by name; unknown numbers stay numbers."""
    controller.answers["FleetService.ListAuditRecords"] = ListAuditRecordsResponse(
        records=[
            AuditRecord(sequence=1, principal="admin", method="/x/Y", status_code=9),
            AuditRecord(sequence=2, status_code=99),
        ]
    )
    lines = run_here("audit", "list", *to(controller)).out.splitlines()
    assert lines[1].split()[2:] == ["admin", "/x/Y", "-", "FAILED_PRECONDITION", "-"]
    assert lines[2].split()[-2:] == ["99", "-"]


# ---- watch


def event(sequence: int, **payload: object) -> Event:
    return Event(
        sequence=sequence,
        event_time=Timestamp(seconds=86400),
        agent_id="a1",
        **payload,
    )


def test_watch_tells_events_as_they_happen(controller):
    """One line per event of each kind; --limit ends it."""
    events = [
        event(1, error={"boundary": "b", "reason": "R", "cause_chain": "x\ny"}),
        event(2, circuit={"circuit": "tools", "before": "closed", "after": "open"}),
        event(3, letter={"letter_id": "L", "after": "pending", "method": "/s/M"}),
        event(4, checkpoint={"generation": 3, "action": "saved"}),
        event(5, transition={"before": "awake", "after": "quiescing", "epoch": 2}),
        event(6, recovery={"subject": "circuit", "elapsed_s": 2.5}),
        event(7, alert={"name": "DISK", "message": "full"}),
        event(9),
    ]
    controller.answers["FleetService.Watch"] = [
        FleetServiceWatchResponse(event=each) for each in events
    ]
    result = run_here("watch", *to(controller))
    told = [line[48:] for line in result.out.splitlines()]
    assert told[0] == "b R : x y"
    assert told[1] == "tools closed -> open:"
    assert told[2] == "L /s/M new -> pending:"
    assert told[3] == "generation 3 saved (0 B):"
    assert told[4].startswith("awake -> quiescing at epoch 2")
    assert told[5] == "circuit after 2.5s"
    assert told[6] == "DISK: full"
    assert "unknown" in result.out.splitlines()[7]
    assert result.err == "", "a controller's numbers may have gaps"
    short = run_here("watch", "--limit", 2, "-o", "jsonl", *to(controller))
    assert [json.loads(line)["sequence"] for line in short.out.splitlines()] == [
        "1",
        "2",
    ]


def test_watch_of_a_sidecar_tells_what_it_missed(sidecar, controller):
    """Directly or by way of the controller; a gap in the numbers is told."""
    answers = [SidecarServiceWatchResponse(event=event(n)) for n in (1, 4)]
    for api in (sidecar, controller):
        api.answers["SidecarService.Watch"] = answers
    direct = run_here("watch", "--api", f"unix:{sidecar.state}/api.sock")
    assert direct.err == "outrigger: watch: 2 events missed\n"
    passed = run_here("watch", "--agent", "a1", *to(controller))
    assert (passed.out, passed.err) == (direct.out, direct.err)
    seen = controller.last("SidecarService.Watch")
    assert seen.metadata["outrigger-agent"] == "a1"


def test_interrupt_ends_a_watch(controller):
    """Ctrl-C ends the real command with 130 and no traceback."""

    def events(_request):
        yield FleetServiceWatchResponse(event=event(1))
        controller.stopping.wait(30)

    controller.answers["FleetService.Watch"] = events
    with subprocess.Popen(
        command_line("watch", *to(controller)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert b"a1" in child.stdout.readline()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=30)
    assert (child.returncode, out, err) == (130, b"", b"")


# ---- letters


def letter(number: int, **fields: object) -> Letter:
    request = bytes([number]) * number
    return Letter(
        letter_id=f"id-{number}",
        state=Letter.STATE_PARKED,
        upstream="tools",
        method="/p.S/M",
        request=request,
        request_size_bytes=len(request),
        request_digest=hashlib.sha256(request).digest(),
        **fields,
    )


FILTERS = ("--state", "parked", "--state", "held", "--upstream", "tools")
MORE = ("--method", "/p.S/M", "--id", "id-1", "--id", "id-2")


def test_letters_are_listed_by_filter(controller):
    """All filters reach the agent's sidecar by way of the controller."""
    controller.answers["LetterService.ListLetters"] = ListLettersResponse(
        letters=[letter(1, last_status_code=14)]
    )
    words = ("--agent", "a1", *FILTERS, *MORE)
    result = run_here("letters", "list", *words, *to(controller))
    assert result.code == 0
    assert result.out.splitlines()[1].split()[:4] == [
        "id-1",
        "parked",
        "tools",
        "/p.S/M",
    ]
    assert "UNAVAILABLE" in result.out
    seen = controller.last("LetterService.ListLetters")
    assert seen.metadata["outrigger-agent"] == "a1"
    wanted = seen.request.filter
    assert list(wanted.states) == [Letter.STATE_PARKED, Letter.STATE_HELD]
    assert (wanted.upstream, wanted.method) == ("tools", "/p.S/M")
    assert list(wanted.letter_ids) == ["id-1", "id-2"]


def test_one_letter_is_shown_whole(sidecar):
    """Metadata, request and attempts are shown; a large request is cut."""
    found = letter(
        100,
        metadata=[{"key": "k-bin", "value": b"\xff"}],
        attempts=[{"status_code": 14, "status_message": "gone"}],
    )
    sidecar.answers["LetterService.GetLetter"] = GetLetterResponse(letter=found)
    shown = run_here("letters", "show", "id-100", *to(sidecar)).out
    assert "64646464 64646464" in shown
    assert "...\n" in shown
    for words in ("k-bin", r"\xff", "UNAVAILABLE", "gone"):
        assert words in shown
    as_json = run_here("letters", "show", "id-100", "-o", "json", *to(sidecar)).out
    assert json.loads(as_json)["request_size_bytes"] == "100"
    sidecar.answers["LetterService.GetLetter"] = NotFound("UNKNOWN_LETTER", "no such")
    assert run_here("letters", "show", "x", *to(sidecar)).code == 2


def test_redrive_and_discard_say_what_they_do(sidecar):
    """Filter, reason and dry run reach the sidecar; counts come back."""
    sidecar.answers |= {
        "LetterService.RedriveLetters": RedriveLettersResponse(redriven_count=3),
        "LetterService.DiscardLetters": DiscardLettersResponse(discarded_count=2),
    }
    redriven = run_here("letters", "redrive", "--all", "--dry-run", *to(sidecar))
    assert redriven.out == "redriven  3\nnothing was changed: this was a dry run\n"
    request = sidecar.last("LetterService.RedriveLetters").request
    assert (request.all, request.validate_only) == (True, True)
    discarded = run_here(
        "letters", "discard", "--id", "id-1", "--reason", "spam", *to(sidecar)
    )
    assert discarded.out == "discarded  2\n"
    request = sidecar.last("LetterService.DiscardLetters").request
    assert (request.reason, request.all, request.validate_only) == (
        "spam",
        False,
        False,
    )


@pytest.mark.parametrize("words", [(), ("--all", "--state", "parked")])
def test_changing_letters_needs_one_selection(sidecar, words):
    """Nothing named, or everything and something: nothing is asked."""
    result = run_here("letters", "redrive", *words, *to(sidecar))
    assert (result.code, "[NO_SELECTION]" in result.err) == (2, True)
    assert sidecar.seen == []


def test_letters_travel_from_one_sidecar_to_another(sidecar, tmp_path):
    """Export to a file, import from it: every letter arrives as it was."""
    letters = [letter(1), letter(200)]
    sidecar.answers |= {
        "LetterService.ExportLetters": [
            ExportLettersResponse(letter=each) for each in letters
        ],
        "LetterService.ImportLetters": ImportLettersResponse(
            imported_count=1, known_count=1
        ),
    }
    path = tmp_path / "letters.jsonl"
    words = ("--file", path, "--state", "parked")
    result = run_apart("letters", "export", *words, *to(sidecar))
    assert (result.code, result.err) == (0, "")
    assert result.out == f"2 letters exported to {path}\n"
    again = run_here("letters", "export", "--file", path, *to(sidecar))
    assert (again.code, "[FILE_EXISTS]" in again.err) == (2, True)
    printed = run_here("letters", "export", *to(sidecar)).out
    assert printed == path.read_text()
    result = run_here("letters", "import", path, *to(sidecar))
    assert result.out == "imported       1\nknown already  1\n"
    sent = sidecar.last("LetterService.ImportLetters").request
    assert [each.letter for each in sent] == letters


def test_damaged_import_is_refused_before_anything_is_sent(sidecar, tmp_path):
    """The line is named, code 1, and the sidecar hears nothing."""
    sidecar.answers["LetterService.ExportLetters"] = [
        ExportLettersResponse(letter=letter(n)) for n in (1, 2, 3)
    ]
    path = tmp_path / "letters.jsonl"
    run_here("letters", "export", "--file", path, *to(sidecar))
    path.write_text(path.read_text().replace("id-2", "id-9"))
    sidecar.seen.clear()
    result = run_apart("letters", "import", path, *to(sidecar))
    assert result.code == 1
    assert f"{path} line 3 is damaged: its SHA-256" in result.err
    assert_one_line(result)
    assert sidecar.seen == []


def test_import_that_goes_bad_midway_is_given_up(sidecar, tmp_path, monkeypatch):
    """What breaks while letters are sent is told, not hidden by the transport."""
    sidecar.answers["LetterService.ExportLetters"] = [
        ExportLettersResponse(letter=letter(n)) for n in (1, 2)
    ]
    sidecar.answers["LetterService.ImportLetters"] = ImportLettersResponse()
    path = tmp_path / "letters.jsonl"
    run_here("letters", "export", "--file", path, *to(sidecar))

    def broken():
        yield letter(1)
        raise Corrupt("DAMAGED_EXPORT", "it changed meanwhile")

    passes = iter((iter(()), broken()))
    monkeypatch.setattr("outrigger.cli.letters.letters_in", lambda _path: next(passes))
    result = run_here("letters", "import", path, *to(sidecar))
    assert result.code == 1
    assert "it changed meanwhile [DAMAGED_EXPORT]" in result.err


def test_refused_import_is_told(sidecar, tmp_path):
    """A sidecar that takes no more says so in its own words."""
    sidecar.answers["LetterService.ExportLetters"] = []
    sidecar.answers["LetterService.ImportLetters"] = Overloaded(
        "JOURNAL_FULL", "no more letters are taken"
    )
    path = tmp_path / "letters.jsonl"
    assert run_here("letters", "export", "--file", path, *to(sidecar)).code == 0
    result = run_here("letters", "import", path, *to(sidecar))
    assert (result.code, "[JOURNAL_FULL]" in result.err) == (3, True)


def test_export_that_breaks_off_leaves_no_file(sidecar, tmp_path):
    """A stream that fails midway leaves nothing that looks whole."""
    sidecar.answers["LetterService.ExportLetters"] = [
        ExportLettersResponse(letter=letter(1)),
        Corrupt("BAD_RECORD", "a record does not verify"),
    ]
    path = tmp_path / "letters.jsonl"
    result = run_here("letters", "export", "--file", path, *to(sidecar))
    assert (result.code, "[BAD_RECORD]" in result.err) == (1, True)
    assert not list(tmp_path.glob("*letters*"))


def test_ledger_that_does_not_add_up_fails(sidecar):
    """All accounted for is 0; a lost letter is told and ends with 1."""
    sidecar.answers["LetterService.GetLedger"] = GetLedgerResponse(
        ledger=Ledger(accepted_count=5, live_count=5, refused_counts={"TOO_LARGE": 2})
    )
    result = run_here("letters", "ledger", *to(sidecar))
    assert result.code == 0
    assert "accepted     5\n" in result.out
    assert result.out.endswith("refused since start: TOO_LARGE 2\n")
    sidecar.answers["LetterService.GetLedger"] = GetLedgerResponse(
        ledger=Ledger(accepted_count=5, live_count=4, lost_count=1)
    )
    result = run_here("letters", "ledger", "-o", "json", *to(sidecar))
    assert (result.code, "[LETTERS_LOST]" in result.err) == (1, True)
    assert json.loads(result.out)["lost_count"] == "1"


# ---- circuits and checkpoints


def test_circuits_are_listed_isolated_and_restored(sidecar):
    """State and counts are shown; the verbs carry id and reason."""
    circuit = Circuit(circuit_id="tools", state=Circuit.STATE_HALF_OPEN, open_count=2)
    sidecar.answers |= {
        "CircuitService.ListCircuits": ListCircuitsResponse(circuits=[circuit]),
        "CircuitService.IsolateCircuit": IsolateCircuitResponse(circuit=circuit),
        "CircuitService.RestoreCircuit": RestoreCircuitResponse(circuit=circuit),
    }
    listed = run_here("circuits", "list", *to(sidecar)).out
    assert listed.splitlines()[1].split()[:2] == ["tools", "half_open"]
    words = ("tools", "--reason", "bad day", "--dry-run")
    assert run_here("circuits", "isolate", *words, *to(sidecar)).code == 0
    request = sidecar.last("CircuitService.IsolateCircuit").request
    assert (request.circuit_id, request.reason) == ("tools", "bad day")
    assert request.validate_only
    assert run_here("circuits", "restore", "tools", *to(sidecar)).code == 0
    assert sidecar.last("CircuitService.RestoreCircuit").request.circuit_id == "tools"


STATE = bytes(range(256)) * 5000  # 1.28 MB: two chunks, five blocks


def digest(data: bytes) -> bytes:
    made = StateDigest()
    made.update(data)
    return made.digest()


def checkpoint(generation: int = 4) -> Checkpoint:
    return Checkpoint(
        agent_id="a1",
        generation=generation,
        raw_size_bytes=len(STATE),
        state_digest=digest(STATE),
    )


def test_checkpoint_is_saved_from_a_file(controller, tmp_path):
    """Begin, chunks of at most 1 MiB, commit with size and digest."""
    path = tmp_path / "state"
    path.write_bytes(STATE)
    controller.answers["CheckpointService.SaveCheckpoint"] = SaveCheckpointResponse(
        checkpoint=checkpoint()
    )
    words = ("save", path, "--schema", "v1", "--agent", "a1")
    result = run_apart("checkpoints", *words, *to(controller))
    assert (result.code, result.err) == (0, "")
    begin, *chunks, commit = controller.last("CheckpointService.SaveCheckpoint").request
    assert (begin.begin.agent_id, begin.begin.schema) == ("a1", "v1")
    assert b"".join(each.chunk for each in chunks) == STATE
    assert max(len(each.chunk) for each in chunks) == 1 << 20
    assert commit.commit.raw_size_bytes == len(STATE)
    assert commit.commit.state_digest == digest(STATE)


def test_interrupt_ends_a_save(sidecar, tmp_path):
    """Ctrl-C while a state is sent ends with 130, not with a defect."""

    def interrupt(_requests):
        os.kill(os.getpid(), signal.SIGINT)
        sidecar.stopping.wait(30)

    sidecar.answers["CheckpointService.SaveCheckpoint"] = interrupt
    path = tmp_path / "state"
    path.write_bytes(STATE)
    result = run_here("checkpoints", "save", path, *to(sidecar))
    assert (result.code, result.err) == (130, "")


def test_file_that_cannot_be_read_is_not_saved(sidecar, tmp_path):
    """The reason is told, not the cancelled call."""
    sidecar.answers["CheckpointService.SaveCheckpoint"] = SaveCheckpointResponse()
    result = run_here("checkpoints", "save", tmp_path / "no", *to(sidecar))
    assert (result.code, "[CANNOT_READ]" in result.err) == (2, True)


def restored(*chunks: bytes) -> list[RestoreCheckpointResponse]:
    return [
        RestoreCheckpointResponse(checkpoint=checkpoint()),
        *(RestoreCheckpointResponse(chunk=chunk) for chunk in chunks),
    ]


def test_checkpoint_is_restored_to_a_file(sidecar, tmp_path):
    """The bytes are checked against the digest before the file has its name."""
    sidecar.answers["CheckpointService.RestoreCheckpoint"] = restored(
        STATE[:1000], STATE[1000:]
    )
    path = tmp_path / "state"
    words = ("restore", path, "--generation", 4)
    result = run_here("checkpoints", *words, *to(sidecar))
    assert result.code == 0
    assert result.out.endswith(f"{len(STATE)} bytes restored to {path}\n")
    assert path.read_bytes() == STATE
    assert sidecar.last("CheckpointService.RestoreCheckpoint").request.generation == 4


@pytest.mark.parametrize(
    "chunks",
    [(STATE[:-1],), (STATE[:-1] + b"x",), (STATE, b"x"), ()],
    ids=["short", "changed", "long", "empty"],
)
def test_bytes_that_do_not_match_are_not_kept(sidecar, tmp_path, chunks):
    """What arrives otherwise than it was saved becomes no file."""
    sidecar.answers["CheckpointService.RestoreCheckpoint"] = restored(*chunks)
    path = tmp_path / "state"
    result = run_here("checkpoints", "restore", path, *to(sidecar))
    assert (result.code, "[BAD_RESTORE]" in result.err) == (1, True)
    assert not list(tmp_path.glob("*state*"))


def test_checkpoints_are_listed_verified_and_pruned(sidecar):
    """Each verb prints what the sidecar answers; damage ends with 1."""
    sidecar.answers |= {
        "CheckpointService.ListCheckpoints": ListCheckpointsResponse(
            checkpoints=[checkpoint(5), checkpoint(4)]
        ),
        "CheckpointService.VerifyCheckpoint": VerifyCheckpointResponse(
            checkpoint=checkpoint()
        ),
        "CheckpointService.PruneCheckpoints": PruneCheckpointsResponse(
            removed_generations=[1, 2], freed_bytes=2048
        ),
    }
    listed = run_here("checkpoints", "list", *to(sidecar)).out
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["5", "4"]
    verified = run_here("checkpoints", "verify", "--generation", 4, *to(sidecar))
    assert verified.code == 0
    assert sidecar.last("CheckpointService.VerifyCheckpoint").request.generation == 4
    pruned = run_here("checkpoints", "prune", "--keep", 2, "--dry-run", *to(sidecar))
    assert pruned.out.splitlines() == [
        "removed  1, 2",
        "freed    2.0 KiB",
        "nothing was removed: this was a dry run",
    ]
    sidecar.answers["CheckpointService.VerifyCheckpoint"] = Corrupt(
        "BAD_BLOCK", "block 3 does not match"
    )
    damaged = run_here("checkpoints", "verify", *to(sidecar))
    assert (damaged.code, "[BAD_BLOCK]" in damaged.err) == (1, True)


# ---- refusals of every command


def test_wrong_token_is_denied(sidecar, tmp_path):
    """A token the server does not know: one line, 4."""
    path = tmp_path / "token"
    path.write_text("0" * 64)
    path.chmod(0o600)
    result = run_apart(
        "letters", "list", "--api", sidecar.address, "--token-file", path
    )
    assert (result.code, "[BAD_TOKEN]" in result.err) == (4, True)
    assert_one_line(result)


def test_forbidden_is_denied(sidecar):
    """A token that is not good for this: 4."""
    sidecar.answers["LetterService.GetLedger"] = Denied("FORBIDDEN", "not for you")
    assert run_here("letters", "ledger", *to(sidecar)).code == 4


def test_loose_token_file_is_denied(sidecar):
    """A token that others may read is not sent: 4."""
    (sidecar.state / "admin-token").chmod(0o644)
    result = run_apart("letters", "list", *to(sidecar))
    assert (result.code, "[TOKEN_NOT_PRIVATE]" in result.err) == (4, True)
    assert_one_line(result)
    assert sidecar.seen == []


def test_nobody_there_is_unavailable(sidecar):
    """A port where nobody listens: one line that names it, 3."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    token = ("--token-file", sidecar.state / "admin-token")
    result = run_apart("agents", "list", "--controller", address, *token)
    assert result.code == 3
    assert f"{address} does not answer: expected a controller there" in result.err
    assert_one_line(result)


def test_silence_is_unavailable(sidecar):
    """A server that does not answer in time: 3, and what to do."""

    def never(_request):
        sidecar.stopping.wait(30)

    sidecar.answers["LetterService.GetLedger"] = never
    result = run_here("letters", "ledger", "--timeout", "200ms", *to(sidecar))
    assert (result.code, "[NO_ANSWER_IN_TIME]" in result.err) == (3, True)
    assert "within 0.2 s" in result.err


def test_server_of_another_kind_is_told(sidecar):
    """A method that the server does not have: 2, and what was expected there."""
    token = ("--token-file", sidecar.state / "admin-token")
    result = run_here("agents", "list", "--controller", sidecar.address, *token)
    assert (result.code, "[NOT_OFFERED]" in result.err) == (2, True)


def test_tls_files_are_read(sidecar, tmp_path):
    """A certificate that is not there is named; one that is wrong gets no answer."""
    words = ("--api", sidecar.address, "--token-file", sidecar.state / "admin-token")
    missing = run_here("letters", "ledger", *words, "--tls-ca", tmp_path / "no")
    assert (missing.code, "--tls-ca: cannot read" in missing.err) == (2, True)
    pem = tmp_path / "ca.pem"
    pem.write_text("not a certificate")
    files = ("--tls-ca", pem, "--tls-cert", pem, "--tls-key", pem)
    wrong = run_here("letters", "ledger", *words, *files)
    assert (wrong.code, "[NO_ANSWER]" in wrong.err) == (3, True)


# ---- check


def test_check_of_running_servers(sidecar, controller):
    """Ledger, newest checkpoint and the fleet are looked at; doubts are no failures."""
    sidecar.answers |= {
        "SidecarService.GetSidecar": GetSidecarResponse(agent=agent("awake")),
        "LetterService.GetLedger": GetLedgerResponse(ledger=Ledger(parked_count=1)),
        "CheckpointService.VerifyCheckpoint": NotFound("NO_CHECKPOINT", "none"),
    }
    result = run_apart("check", *to(sidecar))
    assert result.code == 0, result.out
    for words in ("agent a1 is awake", "1 parked", "there is none yet"):
        assert words in result.out
    controller.answers["FleetService.ListAgents"] = ListAgentsResponse(
        agents=[agent("unknown", reason="no report"), agent("awake")]
    )
    result = run_here("check", *to(controller))
    assert result.code == 0, result.out
    assert "unknown: no report" in result.out
    assert "answers; 2 agents" in result.out


def test_check_fails_on_lost_letters_and_rotten_checkpoints(sidecar):
    """Each is told with what to do, and the code is 1."""
    sidecar.answers |= {
        "SidecarService.GetSidecar": GetSidecarResponse(agent=agent("awake")),
        "LetterService.GetLedger": GetLedgerResponse(ledger=Ledger(lost_count=2)),
        "CheckpointService.VerifyCheckpoint": Corrupt("BAD_BLOCK", "block 3 is bad"),
    }
    words = ("--api", sidecar.address, "--token-file", sidecar.state / "admin-token")
    result = run_here("check", "-o", "json", *words)
    assert result.code == 1
    failed = [f["detail"] for f in json.loads(result.out) if f["verdict"] == "fail"]
    assert failed == ["2 are accounted for nowhere", "block 3 is bad"]


def test_check_passes_on_good_checkpoints(controller):
    """By way of the controller too; a verified checkpoint is told."""
    controller.answers |= {
        "SidecarService.GetSidecar": GetSidecarResponse(agent=agent("awake")),
        "LetterService.GetLedger": GetLedgerResponse(ledger=Ledger(accepted_count=3)),
        "CheckpointService.VerifyCheckpoint": VerifyCheckpointResponse(
            checkpoint=checkpoint()
        ),
    }
    words = ("--controller", controller.address, "--token-file")
    token = controller.state / "admin-token"
    result = run_here("check", "--agent", "a1", *words, token)
    assert result.code == 0, result.out
    assert "generation 4, every byte verified" in result.out
    controller.answers["FleetService.ListAgents"] = ListAgentsResponse()
    result = run_here("check", *words, token)
    assert "answers; 0 agents" in result.out


def test_check_of_a_server_that_is_named_and_silent_fails(tmp_path):
    """A named server must answer; one left over from before need not."""
    state = tmp_path / "outrigger" / "controller"
    api = scripted_controller(state)
    api.close()
    named = run_here("check", *to(api))
    assert named.code == 1
    assert "does not answer" in named.out
    found = run_here("check", environ={"XDG_STATE_HOME": str(tmp_path)})
    assert found.code == 0, found.out
    assert "does not answer" in found.out


def test_check_without_a_usable_token(sidecar, tmp_path):
    """A server whose token cannot be used is a failure when it is named."""
    result = run_here("check", "--api", sidecar.address)
    assert result.code == 1
    assert "needs its admin token" in result.out
    (tmp_path / "outrigger" / "agents").mkdir(parents=True)
    (tmp_path / "outrigger" / "agents" / "a1").symlink_to(sidecar.state)
    (sidecar.state / "admin-token").unlink()
    (sidecar.state / "address.json").write_text('{"api_tcp": "127.0.0.1:1"}')
    result = run_here("check", environ={"XDG_STATE_HOME": str(tmp_path)})
    assert result.code == 0, result.out
    assert "has no admin-token" in result.out
    (sidecar.state / "address.json").write_text("{")
    broken = run_here("check", *to(sidecar))
    assert broken.code == 1
    assert "address.json cannot be read" in broken.out


def test_refusal_of_a_running_sidecar_is_told(sidecar):
    """A sidecar that answers with an error fails the check."""
    sidecar.answers["SidecarService.GetSidecar"] = Refused("NOT_READY", "starting")
    result = run_here("check", *to(sidecar))
    assert result.code == 1
    assert "starting" in result.out
