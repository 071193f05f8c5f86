from pathlib import Path

import pytest

from controller.config import ControllerConfig, Listen, from_args
from outrigger.core.errors import Invalid

HOME = {"XDG_STATE_HOME": "/var/state"}


def test_the_defaults():
    """Default listeners may move, and the state has a home."""
    config = from_args([], HOME)

    assert config == ControllerConfig(
        state=Path("/var/state/outrigger/controller"),
        listen=Listen(address="127.0.0.1:7600", may_move=True),
        connect=Listen(address="127.0.0.1:7601", may_move=True),
        keep_alive_s=300.0,
        report_interval_s=1.0,
    )


def test_what_is_given_stands_and_never_moves(tmp_path):
    """Flags stand before the environment, which stands before the file."""
    file = tmp_path / "c.toml"
    file.write_text('keep_alive = "9m"\nconnect = "127.0.0.1:3"\nstate = "/a"\n')

    config = from_args(
        ["--listen", "127.0.0.1:1", "--config", str(file), "--keep-alive", "5s"],
        {"OUTRIGGER_CONNECT": "127.0.0.1:2", "OUTRIGGER_KEEP_ALIVE": "7s"},
    )

    assert config.listen == Listen(address="127.0.0.1:1")
    assert config.connect == Listen(address="127.0.0.1:2")
    assert (config.state, config.keep_alive_s) == (Path("/a"), 5.0)


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["--listen", "nowhere"], "--listen 'nowhere': expected HOST:PORT"),
        (["--keep-alive", "0.5s"], "at least 1 s"),
        (["--report-interval-s", "9"], "at most 2.0"),
        (["--tls-cert", "x.pem"], "both --tls-cert and --tls-key"),
        (["--listen", "0.0.0.0:1"], "has no TLS"),
        (["--connect", "0.0.0.0:1"], "--connect: 0.0.0.0:1 is reachable"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_a_bad_command_line_is_refused_with_what_was_expected(argv, why):
    """Each flag by its name."""
    with pytest.raises(Invalid, match=why.replace("(", r"\(")):
        from_args(argv, HOME)


def test_tls_lets_a_listener_beyond_loopback():
    """The files are read when it listens."""
    config = from_args(
        ["--listen", "0.0.0.0:1", "--tls-cert", "c", "--tls-key", "k"], HOME
    )

    assert config.tls.cert.name == "c"
    assert config.tls.ca is None


def test_a_struct_made_by_hand_is_checked_too(tmp_path):
    """Tests and embedders do not pass the flags."""
    with pytest.raises(Invalid, match="report interval"):
        ControllerConfig(
            state=tmp_path,
            listen=Listen(address="127.0.0.1:0"),
            connect=Listen(address="127.0.0.1:0"),
            report_interval_s=10.0,
        )
