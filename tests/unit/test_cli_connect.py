"""Which server is called, with which token, and what is refused beforehand."""

import argparse
import json
from pathlib import Path

import pytest

from outrigger.cli.connect import (
    CONTROLLER_OPTIONS,
    EITHER_OPTIONS,
    SIDECAR_OPTIONS,
    Where,
    announced,
    find_controller,
    find_sidecar,
    stays_here,
    where_of,
)
from outrigger.core.errors import Denied, Invalid, OutriggerError, Refused, Transient

TOKEN = "0123abc"


def token_file(directory: Path, mode: int = 0o600, content: str = TOKEN + "\n") -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / "admin-token"
    path.write_text(content)
    path.chmod(mode)
    return path


def state(directory: Path, **addresses: str) -> Path:
    token_file(directory)
    if addresses:
        (directory / "address.json").write_text(json.dumps(addresses))
    return directory


def where(
    *argv: str, environ: dict[str, str] | None = None, options=SIDECAR_OPTIONS
) -> Where:
    parser = argparse.ArgumentParser()
    for name in ("api", "agent", "controller", "state-dir", "token-file", "timeout"):
        parser.add_argument(f"--{name}")
    for name in ("tls-ca", "tls-cert", "tls-key"):
        parser.add_argument(f"--{name}")
    return where_of(parser.parse_args(argv), environ or {}, options)


def refusal(find, *args) -> OutriggerError:
    with pytest.raises(OutriggerError) as error:
        find(*args)
    return error.value


def test_sidecar_by_its_socket_finds_the_token_beside_it(tmp_path):
    """A socket lies in the state directory, and the token with it."""
    state(tmp_path / "s")
    address = f"unix:{tmp_path}/s/api.sock"
    server = find_sidecar(where("--api", address), {})
    assert (server.address, server.kind, server.token) == (address, "sidecar", TOKEN)
    assert server.metadata == (("outrigger-token", TOKEN),)


def test_sidecar_by_its_state_directory(tmp_path):
    """The socket it announced is preferred to its port; else the usual socket."""
    both = state(tmp_path / "b", api="unix:/x/api.sock", api_tcp="127.0.0.1:1")
    assert find_sidecar(Where(state_dir=both), {}).address == "unix:/x/api.sock"
    port = state(tmp_path / "p", api_tcp="127.0.0.1:1")
    assert find_sidecar(Where(state_dir=port), {}).address == "127.0.0.1:1"
    plain = state(tmp_path / "q")
    (plain / "api.sock").touch()
    assert find_sidecar(Where(state_dir=plain), {}).address == f"unix:{plain}/api.sock"


def test_sidecar_by_its_port_needs_a_token_file(tmp_path):
    """A port says nothing about a token; a file or the state directory does."""
    error = refusal(find_sidecar, Where(api="127.0.0.1:1"), {})
    assert (type(error), error.reason) == (Invalid, "NO_TOKEN_FILE")
    path = token_file(tmp_path / "s")
    assert find_sidecar(Where(api="127.0.0.1:1", token_file=path), {}).token == TOKEN


def test_agent_may_use_its_own_token():
    """Inside an agent's environment its token serves for its own sidecar."""
    environ = {"OUTRIGGER_API": "unix:/nowhere/api.sock", "OUTRIGGER_TOKEN": "agent1"}
    server = find_sidecar(where(environ=environ), environ)
    assert (server.address, server.token) == ("unix:/nowhere/api.sock", "agent1")
    bad = refusal(find_sidecar, Where(api="[::1]:1"), {"OUTRIGGER_TOKEN": "a b"})
    assert bad.reason == "BAD_TOKEN_FILE"


def test_agent_by_way_of_the_controller(tmp_path):
    """The controller's address and token, and the agent in the metadata."""
    controller = state(tmp_path / "c", admin="127.0.0.1:5")
    server = find_sidecar(Where(agent="a1", state_dir=controller), {})
    assert (server.address, server.kind) == ("127.0.0.1:5", "controller")
    assert ("outrigger-agent", "a1") in server.metadata


def test_controller_is_found_where_it_keeps_its_state(tmp_path):
    """Under XDG_STATE_HOME; its address from address.json, else the default."""
    home = {"XDG_STATE_HOME": str(tmp_path)}
    kept = tmp_path / "outrigger" / "controller"
    kept.parent.mkdir()
    state(kept)
    assert find_controller(Where(), home).address == "127.0.0.1:7600"
    state(kept, admin="127.0.0.1:5")
    assert find_controller(Where(), home).address == "127.0.0.1:5"
    named = find_controller(Where(controller="localhost:6"), home)
    assert (named.address, named.token) == ("localhost:6", TOKEN)


def test_nothing_names_a_sidecar():
    """Without any of the three ways the line says which there are."""
    error = refusal(find_sidecar, Where(), {})
    assert (type(error), error.reason) == (Invalid, "NO_SERVER")
    for flag in ("--agent", "--api", "--state-dir"):
        assert flag in error.message


def test_nothing_runs(tmp_path):
    """No token or no address: a server has not been started there."""
    empty = tmp_path / "empty"
    empty.mkdir()
    home = {"XDG_STATE_HOME": str(tmp_path)}
    for find, what in (
        (find_controller, Where()),
        (find_controller, Where(state_dir=empty)),
        (find_sidecar, Where(state_dir=empty)),
        (find_sidecar, Where(state_dir=tmp_path / "none")),
        (find_sidecar, Where(api=f"unix:{empty}/api.sock")),
    ):
        error = refusal(find, what, home)
        assert (type(error), error.reason) == (Transient, "NOT_RUNNING")
        assert "--state-dir" in error.message


def test_directory_of_the_other_kind_is_refused(tmp_path):
    """A controller's directory is no sidecar's, and the other way round."""
    controller = state(tmp_path / "c", admin="127.0.0.1:5")
    sidecar = state(tmp_path / "s", api_tcp="127.0.0.1:6")
    for find, path in ((find_sidecar, controller), (find_controller, sidecar)):
        error = refusal(find, Where(state_dir=path), {})
        assert (type(error), error.reason) == (Refused, "NOT_ITS_STATE")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_loose_token_file_is_refused_with_the_reason(tmp_path, mode):
    """A token that others may read or write is not used."""
    path = token_file(tmp_path / "s", mode)
    error = refusal(find_controller, Where(token_file=path), {"HOME": "/none"})
    assert (type(error), error.reason) == (Denied, "TOKEN_NOT_PRIVATE")
    assert f"mode {mode:o}" in error.message
    assert "chmod 600" in error.message


def test_unusable_token_files_say_why(tmp_path, monkeypatch):
    """Missing, empty, not a token, not text, not for this user."""
    home = {"HOME": "/none"}
    missing = refusal(find_controller, Where(token_file=tmp_path / "no"), home)
    assert missing.reason == "NO_TOKEN_FILE"
    empty = token_file(tmp_path / "e", content="")
    assert refusal(find_controller, Where(token_file=empty), home).reason == (
        "TOKEN_EMPTY"
    )
    for content in ("two words", "x" * 5000, "tökén"):
        path = token_file(tmp_path / "b", content=content)
        error = refusal(find_controller, Where(token_file=path), home)
        assert error.reason == "BAD_TOKEN_FILE"
        assert content not in error.message
    path.write_bytes(b"\xff\xfe")
    assert refusal(find_controller, Where(token_file=path), home).reason == (
        "BAD_TOKEN_FILE"
    )

    def closed(*_args: object, **_kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", closed)
    error = refusal(find_controller, Where(token_file=path), home)
    assert (type(error), error.reason) == (Denied, "TOKEN_UNREADABLE")
    error = refusal(find_sidecar, Where(api="unix:/x/api.sock"), home)
    assert error.reason == "TOKEN_UNREADABLE"


def test_other_machines_need_tls_and_a_token_named(tmp_path):
    """A token never leaves this machine in the clear, nor by accident."""
    home = {"XDG_STATE_HOME": str(tmp_path)}
    (tmp_path / "outrigger").mkdir()
    state(tmp_path / "outrigger" / "controller")
    path = token_file(tmp_path / "t")
    for address in ("10.0.0.1:1", "127.0.0.1.example:1", "example.org:1"):
        plain = Where(controller=address, token_file=path)
        assert refusal(find_controller, plain, home).reason == "NEEDS_TLS"
        tls = where("--controller", address, "--tls-ca", "/ca.pem").tls
        unnamed = Where(controller=address, tls=tls)
        assert refusal(find_controller, unnamed, home).reason == "NO_TOKEN_FILE"
        named = Where(controller=address, tls=tls, token_file=path)
        assert find_controller(named, home).token == TOKEN


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("unix:/a", True),
        ("localhost:1", True),
        ("127.8.8.8:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("127.0.0.1.example:1", False),
    ],
)
def test_loopback_is_told_by_the_address_itself(address, expected):
    """A name that only begins like a loopback address is another machine."""
    assert stays_here(address) is expected


def test_flags_overrule_what_variables_say():
    """A server named by a flag is not mixed with one named by a variable."""
    environ = {"OUTRIGGER_API": "h:1", "OUTRIGGER_AGENT": "b", "OUTRIGGER_TIMEOUT": "3"}
    by_agent = where("--agent", "a", environ=environ)
    assert (by_agent.api, by_agent.agent, by_agent.timeout_s) == (None, "a", 3.0)
    by_api = where("--api", "h:2", environ=environ)
    assert (by_api.api, by_api.agent) == ("h:2", None)
    by_state = where("--state-dir", "/s", environ=environ)
    assert (by_state.api, by_state.agent) == (None, None)
    by_controller = where("--controller", "h:3", environ=environ)
    assert (by_controller.api, by_controller.agent) == (None, "b")
    neither = where(environ=environ, options=CONTROLLER_OPTIONS)
    assert (neither.api, neither.agent) == (None, None)
    assert where(environ=environ, options=EITHER_OPTIONS).agent is None


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--api", "h:1", "--agent", "a"], "give one of them"),
        (["--api", "http://h"], "--api 'http://h': expected HOST:PORT"),
        (["--agent", "A B"], "--agent: agent id 'A B' is not valid"),
        (["--timeout", "0"], "--timeout '0': expected at least 0.1"),
        (["--tls-cert", "x"], "go together"),
        (["--tls-cert", "x", "--tls-key", "y"], "needs --tls-ca"),
    ],
)
def test_bad_connection_flags_are_refused(argv, told):
    """Each names the flag and what was expected."""
    with pytest.raises(Invalid) as error:
        where(*argv)
    assert told in error.value.message


def test_broken_address_file_is_refused(tmp_path):
    """A file that cannot be understood is not passed over."""
    path = tmp_path / "address.json"
    path.write_text("{")
    assert refusal(announced, tmp_path).reason == "BAD_ADDRESS_FILE"
    path.write_text("[1]")
    assert announced(tmp_path) == {}
    path.unlink()
    path.mkdir()
    assert refusal(announced, tmp_path).reason == "BAD_ADDRESS_FILE"


def test_token_is_not_shown():
    """A server in a log does not give its token away."""
    environ = {"OUTRIGGER_TOKEN": "hunter2"}
    assert "hunter2" not in repr(find_sidecar(Where(api="[::1]:1"), environ))
