"""The checks: each verdict, and what it tells a person to do."""

import contextlib
import json
import socket
import sqlite3
import sys
from pathlib import Path

import pytest
import redis

from outrigger.cli import check_machine, check_redis, check_state
from outrigger.cli.finding import FAIL, OK, WARN
from outrigger.core.errors import Invalid
from tests.support.command import run_here


def verdicts(findings) -> list[str]:
    return [finding.verdict for finding in findings]


def failing(findings) -> list[str]:
    return [f.detail for f in findings if f.verdict == FAIL]


def test_this_machine_passes():
    """What the tests run on offers everything; busy ports are only doubtful."""
    findings = list(check_machine.machine([]))
    assert FAIL not in verdicts(findings)
    assert len(findings) == 12


def test_old_python_fails():
    """A Python below 3.11 is named with what to install."""
    finding = check_machine.python((3, 10, 1))
    assert (finding.verdict, finding.detail) == (FAIL, "3.10.1")
    assert "3.11" in finding.advice
    assert check_machine.python((3, 12, 0)).verdict == OK


def test_refused_prctl_fails():
    """A sandbox that refuses prctl is found out."""
    assert check_machine.death_signal(lambda *_: -1).verdict == FAIL
    assert check_machine.death_signal(lambda *_: 0).verdict == OK


def test_child_that_cannot_be_stopped_fails(monkeypatch):
    """A child that ends at the signal instead of stopping is found out."""
    monkeypatch.setattr(check_machine.signal, "SIGSTOP", check_machine.signal.SIGTERM)
    finding = check_machine.stopping([sys.executable, "-ISc", "input()"])
    assert finding.verdict == FAIL
    assert "SIGSTOP" in finding.advice


def test_missing_kernel_features_are_doubtful(tmp_path):
    """Without smaps_rollup or lists of children it works, measuring less."""
    assert check_machine.proportional_memory(tmp_path).verdict == WARN
    (tmp_path / "smaps_rollup").write_text("Rss: 1 kB\nPss: 1 kB\n")
    assert check_machine.proportional_memory(tmp_path).verdict == OK
    assert check_machine.child_lists(tmp_path).verdict == WARN
    (tmp_path / "task" / "1").mkdir(parents=True)
    (tmp_path / "task" / "1" / "children").touch()
    assert check_machine.child_lists(tmp_path).verdict == OK


@pytest.mark.parametrize(("limit", "verdict"), [(256, WARN), (4096, OK), (-1, OK)])
def test_few_open_files_are_doubtful(limit, verdict):
    """A low limit of open files is told; no limit is fine."""
    assert check_machine.open_files(limit).verdict == verdict


def test_taken_port_is_doubtful_unless_it_is_ours():
    """A default port gives way, so that a stranger on it is no failure."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"127.0.0.1:{holder.getsockname()[1]}"
        assert check_machine.port("x", address, ours=False).verdict == WARN
        assert check_machine.port("x", address, ours=True).verdict == OK
    assert check_machine.port("x", address, ours=False).verdict == OK


@pytest.fixture
def state_dir(tmp_path) -> Path:
    path = tmp_path / "s"
    path.mkdir(mode=0o700)
    token = path / "admin-token"
    token.touch(mode=0o600)
    with contextlib.closing(sqlite3.connect(path / "sidecar.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE letters (id TEXT, body BLOB)")
        connection.execute("CREATE INDEX by_id ON letters (id)")
        rows = [(str(n), bytes(500)) for n in range(200)]
        connection.executemany("INSERT INTO letters VALUES (?, ?)", rows)
        connection.commit()
    return path


def test_sound_state_directory_passes(state_dir, monkeypatch):
    """A private directory with room and a sound database: all is well."""
    monkeypatch.setattr(check_state.shutil, "disk_usage", lambda _: Usage(1 << 40))
    assert set(verdicts(check_state.state(state_dir))) == {OK}


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.parametrize(
    ("free", "verdict"), [(1 << 20, FAIL), (500 << 20, WARN), (1 << 40, OK)]
)
def test_little_room_is_told(state_dir, monkeypatch, free, verdict):
    """Little room is doubtful, hardly any fails."""
    monkeypatch.setattr(check_state.shutil, "disk_usage", lambda _: Usage(free))
    room = [f for f in check_state.state(state_dir) if "free" in f.detail]
    assert verdicts(room) == [verdict]


def test_loose_modes_fail(state_dir):
    """A directory or token that others may read fails, with the command to run."""
    state_dir.chmod(0o755)
    (state_dir / "admin-token").chmod(0o644)
    assert failing(check_state.state(state_dir)) == [
        "mode 755: others may enter",
        "admin-token has mode 644: others may read it",
    ]


def test_directory_of_another_user_fails(state_dir, monkeypatch):
    """A directory that cannot be written is told."""
    monkeypatch.setattr(check_state.os, "access", lambda *_: False)
    assert "this user may not write it" in failing(check_state.state(state_dir))


def test_missing_directory_fails(tmp_path):
    """A directory that is not there is one failure, not several."""
    assert verdicts(check_state.state(tmp_path / "no")) == [FAIL]


def test_too_long_a_path_fails(tmp_path):
    """Sockets in a deep directory could not be made."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir(mode=0o700)
    assert any("Linux takes 107" in told for told in failing(check_state.state(deep)))


def test_broken_address_file_fails(state_dir):
    """An address file that cannot be understood is told."""
    (state_dir / "address.json").write_text("{")
    assert len(failing(check_state.state(state_dir))) == 1
    (state_dir / "address.json").write_text(json.dumps({"admin": "h:1"}))
    details = [f.detail for f in check_state.state(state_dir)]
    assert "announces admin h:1" in details


def test_damaged_database_fails_and_is_not_touched(state_dir):
    """Zeroed pages and a file that is no database are both found."""
    database = state_dir / "sidecar.db"
    whole = database.read_bytes()
    torn = whole[:8192] + bytes(8192) + whole[16384:]
    for content in (torn, b"not a database at all" * 100):
        database.write_bytes(content)
        told = failing(check_state.state(state_dir))
        assert len(told) == 1
        assert told[0].startswith("sidecar.db is damaged: ")
        assert database.read_bytes() == content


class FakeRedis:
    def __init__(self, version="7.2.0", policy="noeviction", aof=1):
        self._info = {
            "server": {"redis_version": version},
            "memory": {"maxmemory_policy": policy},
            "persistence": {"aof_enabled": aof},
        }

    def info(self, section):
        return self._info[section]

    def close(self):
        pass


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (FakeRedis(), [OK, OK, OK]),
        (FakeRedis(version="6.0.9"), [FAIL, OK, OK]),
        (FakeRedis(policy="allkeys-lru"), [OK, FAIL, OK]),
        (FakeRedis(aof=0), [OK, OK, WARN]),
    ],
)
def test_redis_settings_are_judged(monkeypatch, server, expected):
    """Too old or evicting fails; not writing to disk is doubtful."""
    monkeypatch.setattr(redis.Redis, "from_url", lambda *_a, **_k: server)
    assert verdicts(check_redis.examine("redis://h", 1.0)) == expected


def test_redis_that_does_not_answer_fails_without_its_password():
    """An unreachable Redis is one failure that does not show the URL's secret."""
    (finding,) = check_redis.examine("redis://u:hunter2@127.0.0.1:1/0", 1.0)
    assert finding.verdict == FAIL
    assert "hunter2" not in repr(finding)


@pytest.mark.parametrize("url", ["host:6379", "http://h", "redis://h:port"])
def test_bad_redis_url_is_usage(url):
    """An address that is no Redis URL says how one is written."""
    with pytest.raises(Invalid, match="--redis: expected redis://"):
        list(check_redis.examine(url, 1.0))


def test_check_prints_verdicts_and_counts(state_dir):
    """A sound directory gives 0; a loose one 1, and the table says why."""
    result = run_here("check", "--state-dir", state_dir)
    assert result.code == 0
    assert result.out.endswith(" checks failed\n")
    assert "0 of" in result.out
    state_dir.chmod(0o777)
    result = run_here("check", "--state-dir", state_dir, "-o", "jsonl")
    assert result.code == 1
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [f["advice"] for f in found if f["verdict"] == "fail"] == [
        f"run 'chmod 700 {state_dir}'"
    ]


def test_check_finds_what_this_user_has(tmp_path):
    """Without names, the state directories under XDG_STATE_HOME are examined."""
    for name in ("controller", "agents/a1", "agents/a2"):
        (tmp_path / "outrigger" / name).mkdir(parents=True, mode=0o700)
    result = run_here("check", environ={"XDG_STATE_HOME": str(tmp_path)})
    assert result.code == 0
    for name in ("controller", "agents/a1", "agents/a2"):
        assert f"state {tmp_path}/outrigger/{name} " in result.out


def test_check_of_redis_is_asked_for():
    """With --redis an unreachable server makes the check fail."""
    result = run_here(
        "check", "--redis", "redis://127.0.0.1:1", environ={"HOME": "/nonexistent"}
    )
    assert result.code == 1
    assert "redis at 127.0.0.1" in result.out
