import json
import os
import stat

import pytest

from outrigger.core.errors import Denied, Refused, Transient
from outrigger.core.state_dir import StateDirectory, read_token


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_what_it_makes_is_private(tmp_path):
    """Directory 0700, tokens 0600, whatever the umask."""
    before = os.umask(0)
    try:
        with StateDirectory(tmp_path / "a" / "b") as state:
            state.token("admin-token")
            state.announce({"admin": "127.0.0.1:1"})
    finally:
        os.umask(before)

    assert mode(tmp_path / "a" / "b") == 0o700
    assert mode(tmp_path / "a" / "b" / "admin-token") == 0o600
    assert json.loads((tmp_path / "a" / "b" / "address.json").read_text()) == {
        "admin": "127.0.0.1:1"
    }


def test_a_token_stays_the_same_until_a_new_one_is_asked_for(tmp_path):
    """Operators keep their token over restarts; agents get a new one each time."""
    with StateDirectory(tmp_path / "s") as state:
        first = state.token("admin-token")
        agent = state.new_token("token")
    with StateDirectory(tmp_path / "s") as state:
        assert state.token("admin-token") == first
        assert state.new_token("token") != agent
    assert len(first) == 64


def test_a_second_process_is_refused(tmp_path):
    """Two owners of one directory would steal each other's sockets."""
    with (
        StateDirectory(tmp_path / "s"),
        pytest.raises(Refused, match="in use by another process"),
    ):
        StateDirectory(tmp_path / "s").__enter__()

    with StateDirectory(tmp_path / "s"):
        pass


def test_a_directory_that_others_may_enter_is_refused(tmp_path):
    """The mode and the mend stand in the message."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o755)

    with pytest.raises(Denied, match="chmod 700"):
        StateDirectory(tmp_path / "s").__enter__()


def test_a_token_that_others_may_read_is_refused(tmp_path):
    """A leaked secret is not used silently."""
    with StateDirectory(tmp_path / "s") as state:
        state.token("admin-token")
        (tmp_path / "s" / "admin-token").chmod(0o644)
        with pytest.raises(Denied, match="chmod 600"):
            state.token("admin-token")


def test_an_empty_token_is_refused(tmp_path):
    """An empty secret would let everybody in."""
    path = tmp_path / "token"
    path.touch(mode=0o600)

    with pytest.raises(Refused) as caught:
        read_token(path)

    assert caught.value.reason == "TOKEN_EMPTY"


def test_a_file_in_the_way_is_named(tmp_path):
    """A path that is no directory is refused with what to do."""
    (tmp_path / "s").write_text("file")

    with pytest.raises(Transient, match="cannot use"):
        StateDirectory(tmp_path / "s").__enter__()


@pytest.mark.parametrize("step", ["token", "new_token", "announce"])
def test_a_directory_that_went_away_is_named(tmp_path, step):
    """Each write that fails ends in one clear error."""
    with StateDirectory(tmp_path / "s") as state:
        (tmp_path / "s" / "lock").unlink()
        (tmp_path / "s").rmdir()
        with pytest.raises(Transient) as caught:
            getattr(state, step)({} if step == "announce" else "t")

    assert caught.value.reason == "STATE_UNUSABLE"


def test_a_filesystem_without_locks_is_named(tmp_path, monkeypatch):
    """Where flock does not work we do not start."""

    def no_locks(fd, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)

    with pytest.raises(Transient, match="Operation not supported"):
        StateDirectory(tmp_path / "s").__enter__()
