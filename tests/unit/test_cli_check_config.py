"""`outrigger check --config FILE`: a sidecar's file read without a start."""

import json

from outrigger.cli import check_config
from outrigger.cli.finding import FAIL, OK
from tests.support.command import run_here

ENV = {"HOME": "/home/agent"}


def findings(path, environ=ENV):
    return list(check_config.configuration(str(path), environ))


def test_a_right_file_is_told_in_a_line(tmp_path):
    """Its upstreams by name and its rules by number."""
    path = tmp_path / "sidecar.toml"
    path.write_text("""
[upstreams.shop]
target = "127.0.0.1:1"
[upstreams.mail]
target = "127.0.0.1:2"
queue = 3
[[methods]]
match = "*"
""")

    (found,) = findings(path)

    assert found.verdict == OK
    assert found.detail == (
        "upstreams: mail, shop; with a policy of their own: mail; method rules: 1"
    )


def test_an_empty_file_is_right(tmp_path):
    """A sidecar can be told everything by flags, its agent's id too."""
    path = tmp_path / "sidecar.toml"
    path.touch()

    (found,) = findings(path)

    assert found.verdict == OK
    assert "upstreams: none; with a policy of their own: none" in found.detail


def test_each_mistake_is_a_failure(tmp_path):
    """Also of the agent's id, if the file has one."""
    path = tmp_path / "sidecar.toml"
    path.write_text("agent_id = 'No'\nqueue = -1\n[circuit]\nfailure_ratio = 7")

    found = findings(path)

    assert {one.verdict for one in found} == {FAIL}
    assert [one.detail.partition(":")[0] for one in found] == [
        "key agent_id",
        "key queue -1",
        "circuit.failure_ratio",
    ]


def test_what_is_no_mistake_of_a_key_is_a_failure_too(tmp_path):
    """A file that is not there, and an address that needs TLS."""
    (found,) = findings(tmp_path / "no.toml")
    assert "cannot be read" in found.detail

    path = tmp_path / "sidecar.toml"
    path.write_text("outbound = '0.0.0.0:7700'")
    (found,) = findings(path)
    assert "has no TLS" in found.detail


def test_variables_count_as_at_a_start(tmp_path):
    """A target may come from one."""
    path = tmp_path / "sidecar.toml"
    path.write_text("[upstreams.shop]\nqueue = 3")

    (without,) = findings(path)
    (given,) = findings(path, {**ENV, "OUTRIGGER_UPSTREAM": "shop=127.0.0.1:1"})

    assert without.detail.startswith("upstreams.shop: has no target")
    assert given.verdict == OK


def test_the_command_fails_if_a_file_is_wrong(tmp_path):
    """With one row per mistake, for people and for programs."""
    path = tmp_path / "sidecar.toml"
    path.write_text("[circuit]\nfailure_ratio = 7\nopen_s = 'x'")
    words = ("check", "--config", path, "-o", "jsonl")
    state_home = {"XDG_STATE_HOME": str(tmp_path)}

    result = run_here(*words, environ=state_home)
    rows = [json.loads(line) for line in result.out.splitlines()]

    assert result.code == 1
    assert [
        row["detail"].partition(":")[0]
        for row in rows
        if row["check"].startswith("configuration ")
    ] == ["circuit.open_s", "circuit.failure_ratio"]
    path.write_text("")
    assert run_here(*words, environ=state_home).code == 0
