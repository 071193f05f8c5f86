"""Starts with bad input, as processes: one clear line, the code, nothing made."""

import signal
import socket
import subprocess

import pytest

from tests.support.certificates import make_certificates
from tests.support.command import run_apart
from tests.support.processes import PYTHON, Stack
from tests.support.refusals import (
    SERVERS,
    contents,
    limited,
    private,
    refused,
    serve,
    start_words,
    unchanged,
)

both = pytest.mark.parametrize("server", SERVERS)


@both
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--nonsense",), "unrecognized arguments: --nonsense; see"),
        (("leftover",), "unrecognized arguments: leftover; see"),
        (("--config",), "argument --config: expected one argument"),
        (("--config", "/nonexistent/f.toml"), "No such file or directory; name a TOML"),
        (("--config", "/"), "Is a directory; name a TOML file"),
        (("--tls-cert", "c.pem"), "TLS needs both --tls-cert and --tls-key"),
    ],
)
def test_wrong_flags_are_usage_errors(tmp_path, server, flags, said):
    """They end with 2 before anything is made."""
    result = refused(server, tmp_path / "s", *flags)

    assert (result.code, said in result.err) == (2, True), result.err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("server", "flag", "value", "said"),
    [
        ("sidecar", "--agent-id", "Über mut", "use 1 to 63 characters of a-z"),
        ("sidecar", "--agent-id", "../../etc", "use 1 to 63 characters of a-z"),
        ("sidecar", "--upstream", "tools", "expected NAME=TARGET, for example"),
        ("sidecar", "--upstream", "t=http://h:1", "not a URL"),
        ("sidecar", "--upstream", "t=h:0", "nobody answers on port 0"),
        ("sidecar", "--upstream", "T!=h:1", "upstream name 'T!' is not valid"),
        ("sidecar", "--outbound", "here", "expected HOST:PORT"),
        ("sidecar", "--api", "127.0.0.1:70000", "expected a port from 0 to 65535"),
        ("sidecar", "--api", "0.0.0.0:0", "give --tls-cert and --tls-key"),
        ("sidecar", "--app", "127.0.0.1", "expected HOST:PORT"),
        ("sidecar", "--controller", "127.0.0.1:1", "needs --join-token-file FILE"),
        ("sidecar", "--sleep-mode", "doze", "expected process or freeze"),
        ("sidecar", "--letters-live-max", "0", "expected at least 1"),
        ("sidecar", "--checkpoint-quota", "much", "expected a size such as"),
        ("sidecar", "--hold-max-s", "-1s", "expected one argument"),
        ("controller", "--listen", "here", "expected HOST:PORT"),
        ("controller", "--connect", "[::]:0", "give --tls-cert and --tls-key"),
        ("controller", "--keep-alive", "never", "expected a time such as"),
        ("controller", "--report-interval-s", "1d", "expected at least"),
    ],
)
def test_a_wrong_value_is_told_with_its_flag(tmp_path, server, flag, value, said):
    """Each says which flag, what was expected, and ends with 2."""
    result = refused(server, tmp_path / "s", flag, value)

    assert (result.code, said in result.err, flag in result.err) == (2, True, True), (
        result.err
    )
    assert not (tmp_path / "s").exists()


TOML = {
    "not TOML": (b"= = =", "not valid TOML: Invalid statement (at line 1"),
    "not text": (b"\xff\xfe\x00", "not valid TOML: 'utf-8' codec can't decode"),
    "an unknown key": (b"statee = '/x'", "key statee: did you mean state?"),
    "an unknown table": (b"[zebra]\na = 1", "key zebra: it is not known here"),
    "a wrong type": (b"state = ['x']", "key state = ['x']: expected one DIR"),
}


@both
@pytest.mark.parametrize("case", TOML)
def test_a_bad_file_of_settings_is_refused(tmp_path, server, case):
    """The line names the key, and 2 is the code."""
    content, said = TOML[case]
    (tmp_path / "f.toml").write_bytes(content)

    words = start_words(server, tmp_path / "s")[:-2]
    result = run_apart(*words, "--config", tmp_path / "f.toml")

    assert (result.code, result.err.count("\n"), said in result.err) == (2, 1, True), (
        result.err
    )


def test_every_mistake_of_a_file_is_told_at_once(tmp_path):
    """One start is enough to mend them all."""
    (tmp_path / "f.toml").write_text(
        'agent_idd = "x"\n[upstreams.a]\ntarget = "h:1"\ncolour = 1\n'
        '[[methods]]\nmatch = "/p.S/M"\nletter = "maybe"\n'
    )
    result = refused("sidecar", tmp_path / "s", "--config", tmp_path / "f.toml")

    assert result.code == 2
    letters = '"off" or "on" or "always"'
    for said in ("3 mistakes", "did you mean agent_id?", "colour", letters):
        assert said in result.err


@pytest.mark.parametrize("server", SERVERS)
def test_without_the_command_it_is_the_same(tmp_path, server):
    """`python -m sidecar` and `python -m controller` have the same codes."""
    cases = {
        ("--nonsense",): 2,
        ("--state", "/proc/outrigger"): 3,
    }
    for flags, code in cases.items():
        words = [*start_words(server, tmp_path / "s", *flags)][1:]
        done = subprocess.run(
            [*PYTHON, server, *map(str, words)],
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stderr.count(b"\n")) == (code, 1), done.stderr


# The state directory.


@both
def test_a_file_in_the_place_of_the_directory_is_named(tmp_path, server):
    """It is left as it was, and 3 says that there was nothing to work in."""
    (tmp_path / "s").write_text("mine")

    for state in (tmp_path / "s", tmp_path / "s" / "below"):
        result = refused(server, state)
        assert (result.code, "STATE_UNUSABLE" in result.err) == (3, True)
    assert "not a directory" in result.err.lower()
    assert (tmp_path / "s").read_text() == "mine"


@both
def test_a_directory_that_cannot_be_made_is_named(server):
    """Even root makes nothing in /proc."""
    result = refused(server, "/proc/outrigger")

    assert (result.code, "another --state" in result.err) == (3, True)


@both
def test_a_directory_that_others_may_enter_is_refused(tmp_path, server):
    """Denied, with the command that mends it, and nothing is put in it."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o755)

    result = refused(server, tmp_path / "s")

    assert (result.code, f"chmod 700 {tmp_path / 's'}" in result.err) == (4, True)
    assert list((tmp_path / "s").iterdir()) == []


@pytest.mark.parametrize("length", [80, 300])
def test_a_directory_too_deep_for_a_socket_is_not_even_made(tmp_path, length):
    """Linux takes 107 bytes; the line says so, and how many these are."""
    state = tmp_path / "x" / ("d" * length)
    result = refused("sidecar", state)

    assert (result.code, "Linux takes 107" in result.err) == (2, True)
    assert not (tmp_path / "x").exists()


@both
def test_a_second_process_with_the_same_directory_is_refused(tmp_path, server):
    """It says that the directory is in use and disturbs nobody."""
    with Stack(tmp_path) as stack:
        first = stack.controller() if server == "controller" else stack.sidecar("a")
        announced = (first.state / "address.json").read_text()
        result = refused(server, first.state)

        assert (result.code, "STATE_IN_USE" in result.err) == (1, True)
        assert (first.state / "address.json").read_text() == announced
        assert first.process.poll() is None


IN_THE_WAY = {
    "sidecar": (
        ("sidecar.db", 3, "STORE_UNOPENABLE"),
        ("checkpoints", 3, "STATE_UNUSABLE"),
        ("admin-token", 3, "STATE_UNUSABLE"),
        ("token", 3, "STATE_UNUSABLE"),
        ("api.sock", 1, "SOCKET_TAKEN"),
        ("outbound.sock", 1, "SOCKET_TAKEN"),
        ("address.json", 3, "STATE_UNUSABLE"),
        ("lock", 3, "STATE_UNUSABLE"),
    ),
    "controller": (
        ("controller.db", 3, "STORE_UNOPENABLE"),
        ("admin-token", 3, "STATE_UNUSABLE"),
        ("join-token", 3, "STATE_UNUSABLE"),
        ("address.json", 3, "STATE_UNUSABLE"),
        ("lock", 3, "STATE_UNUSABLE"),
    ),
}


@pytest.mark.parametrize(
    ("server", "name", "code", "reason"),
    [(server, *case) for server in SERVERS for case in IN_THE_WAY[server]],
)
def test_a_thing_in_the_way_is_named_and_left(tmp_path, server, name, code, reason):
    """A folder where a file is to be, or the other way round."""
    inside = private(tmp_path / "s") / name
    if name == "checkpoints":
        inside.write_text("mine")
    else:
        inside.mkdir()
        (inside / "mine").touch()

    result = refused(server, tmp_path / "s")

    assert (result.code, f"[{reason}]" in result.err) == (code, True), result.err
    assert inside.name in result.err or name == "lock"
    assert inside.read_text() == "mine" if inside.is_file() else list(inside.iterdir())


@both
def test_a_full_disk_at_the_start_is_named(tmp_path, server):
    """No file takes a byte: 3, because it may work later, and it does."""
    command = limited(0, *start_words(server, tmp_path / "s"))
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)

    line = done.stderr.decode()
    assert (done.returncode, line.count("\n")) == (3, 1), line
    assert "not full" in line
    with Stack(tmp_path) as stack:
        serve(stack, *start_words(server, tmp_path / "s"))


# Tokens.


@both
@pytest.mark.parametrize(
    ("content", "mode", "code", "said"),
    [
        (b"", 0o600, 1, "is empty: remove it to have one made [TOKEN_EMPTY]"),
        (b"\xff\xfe\n", 0o600, 1, "remove it to have one made [TOKEN_MALFORMED]"),
        (b"two words\n", 0o600, 1, "one word of visible ASCII"),
        (b"x" * 5000, 0o600, 1, "at most 4096 characters"),
        (b"good\n", 0o640, 4, "chmod 600"),
    ],
)
def test_a_bad_file_of_our_own_token_is_refused(
    tmp_path, server, content, mode, code, said
):
    """It is neither used nor written over."""
    token = private(tmp_path / "s") / "admin-token"
    token.write_bytes(content)
    token.chmod(mode)

    result = refused(server, tmp_path / "s")

    assert (result.code, said in result.err) == (code, True), result.err
    assert token.read_bytes() == content


@pytest.mark.parametrize(
    ("content", "mode", "code", "reason"),
    [
        (None, 0, 2, "BAD_JOIN_TOKEN_FILE"),
        (b"", 0o600, 2, "BAD_JOIN_TOKEN_FILE"),
        (b"\x00\x01", 0o600, 2, "BAD_JOIN_TOKEN_FILE"),
        (b"two words", 0o600, 2, "BAD_JOIN_TOKEN_FILE"),
        (b"good", 0o644, 4, "TOKEN_NOT_PRIVATE"),
        ("folder", 0, 2, "BAD_JOIN_TOKEN_FILE"),
    ],
)
def test_a_bad_join_token_file_is_refused(tmp_path, content, mode, code, reason):
    """The line names the file, and where the right one is."""
    path = tmp_path / "join"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
        path.chmod(mode)

    flags = ("--controller", "127.0.0.1:1", "--join-token-file", path)
    result = refused("sidecar", tmp_path / "s", *flags)

    assert (result.code, f"[{reason}]" in result.err) == (code, True), result.err
    assert str(path) in result.err


# Listeners.


@pytest.fixture
def taken():
    """An address that another program has."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield "{}:{}".format(*holder.getsockname())


@pytest.mark.parametrize(
    ("server", "flag"),
    [
        ("controller", "--listen"),
        ("controller", "--connect"),
        ("sidecar", "--outbound"),
        ("sidecar", "--api"),
        ("sidecar", "--inbound"),
    ],
)
def test_a_taken_port_that_was_asked_for_never_moves(tmp_path, taken, server, flag):
    """The line says whose flag it is and what to do."""
    more = ("--app", "127.0.0.1:1") if flag == "--inbound" else ()
    result = refused(server, tmp_path / "s", flag, taken, *more)

    assert (result.code, "[PORT_TAKEN]" in result.err) == (1, True)
    assert f"{flag}: cannot listen on {taken}" in result.err
    assert "or 0 for a free one" in result.err


def test_a_socket_in_a_folder_that_is_not_there_is_refused(tmp_path):
    """The folder of a socket that was asked for is not made."""
    where = f"unix:{tmp_path}/nowhere/x.sock"
    result = refused("sidecar", tmp_path / "s", "--api", where)

    assert (result.code, "the folder is missing" in result.err) == (1, True)


DEFAULTS = {
    "controller": {"admin": 7600, "connect": 7601},
    "sidecar": {"outbound": 7700, "api_tcp": 7701},
}


@both
def test_a_default_port_gives_way(tmp_path, server):
    """It takes a free one, and says which."""
    holders = []
    with Stack(tmp_path) as stack:
        for port in DEFAULTS[server].values():
            holder = socket.socket()
            holders.append(holder)
            try:
                holder.bind(("127.0.0.1", port))
                holder.listen()
            except OSError:
                continue  # somebody else has it: just as well
        more = ("--agent-id", "a") if server == "sidecar" else ()
        started = serve(stack, server, *more, "--state", tmp_path / "s")
        found = started.addresses
        for name, port in DEFAULTS[server].items():
            assert not found[name].endswith(f":{port}")
            assert found[name] in started.text()
        assert started.text().count("\n") == 1
    for holder in holders:
        holder.close()


@both
def test_files_that_hold_no_certificate_are_named(tmp_path, server):
    """Neither a missing file nor a wrong one is taken for a taken port."""
    (tmp_path / "c").write_text("no PEM")
    cert, key, _ = make_certificates(tmp_path)
    cases = {
        ("/nonexistent", key): "cannot read /nonexistent",
        (tmp_path / "c", key): "are not a certificate and its key",
        (cert, tmp_path / "c"): "are not a certificate and its key",
    }
    for (one, other), said in cases.items():
        flags = ("--tls-cert", one, "--tls-key", other)
        result = refused(server, tmp_path / "s", *flags)
        assert (result.code, said in result.err) == (2, True), result.err
    flags = ("--tls-cert", cert, "--tls-key", key, "--tls-ca", tmp_path / "c")
    result = refused(server, tmp_path / "s", *flags)
    assert (result.code, "holds no certificates" in result.err) == (2, True)


@both
def test_a_refused_start_changes_nothing_that_was_there(tmp_path, taken, server):
    """What a run before had written is byte for byte the same after it."""
    with Stack(tmp_path) as stack:
        first = serve(stack, *start_words(server, tmp_path / "s"))
        first.kill(signal.SIGTERM)
        assert f"{server}.db" in contents(tmp_path / "s")
        with unchanged(tmp_path / "s"):
            flag = "--connect" if server == "controller" else "--api"
            refused(server, tmp_path / "s", flag, taken)
