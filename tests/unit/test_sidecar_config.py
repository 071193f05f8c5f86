import pytest

from outrigger.core.errors import Invalid
from sidecar.config import OPTIONS, from_args

ENV = {"HOME": "/home/agent", "XDG_STATE_HOME": "/var/state"}
LEAST = ["--agent-id", "a-1"]


def parse(*words, env=ENV):
    return from_args([*LEAST, *words], env)


def refused(*words, env=ENV):
    with pytest.raises(Invalid) as caught:
        parse(*words, env=env)
    return caught.value.message


def toml(tmp_path, text):
    path = tmp_path / "sidecar.toml"
    path.write_text(text)
    return ["--config", str(path)]


def test_the_least_one_can_say():
    """An id is enough: default listeners that may move, state under XDG."""
    config = parse()

    assert str(config.state) == "/var/state/outrigger/agents/a-1"
    assert (config.outbound.address, config.outbound.may_move) == (
        "127.0.0.1:7700",
        True,
    )
    assert config.inbound is None
    assert config.command == ()


def test_what_follows_two_dashes_is_the_agent():
    """Flags of the agent's own are not ours."""
    config = parse("--inbound", "127.0.0.1:0", "--", "python", "--agent-id", "other")

    assert config.command == ("python", "--agent-id", "other")
    assert config.agent_id == "a-1"
    assert config.inbound.may_move is False


def test_upstreams_come_from_flags_and_file(tmp_path):
    """A flag wins over the file for the same name."""
    words = toml(
        tmp_path,
        """
[upstreams.shop]
target = "127.0.0.1:1"
services = ["shop.Orders"]
[upstreams.mail]
target = "unix:/run/mail.sock"
[[methods]]
match = "/shop.Orders/*"
letter = "on"
idempotent = true
""",
    )
    config = parse(*words, "--upstream", "shop=127.0.0.1:2")

    assert {name: spec.targets for name, spec in config.upstreams.items()} == {
        "shop": ("127.0.0.1:2",),
        "mail": ("unix:/run/mail.sock",),
    }
    assert config.services == {"shop.Orders": "shop"}
    assert [(rule.match, rule.letter) for rule in config.rules] == [
        ("/shop.Orders/*", "on")
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("agent_idd = 'x'", "did you mean agent_id?"),
        ("[upstreams]\nshop = 1", "upstreams.shop: got the number 1; expected a table"),
        ("upstreams = 3", "upstreams: got the number 3; expected a table"),
        ("[upstreams.shop]\ntarget = 'nowhere'", "upstreams.shop.target: got the text"),
        (
            "[upstreams.shop]\ntarget = '127.0.0.1:1'\nport = 3",
            "shop.port: is not known here; known are",
        ),
        (
            "[upstreams.shop]\ntarget = '127.0.0.1:1'\nservices = 'x'",
            "upstreams.shop.services: got the text 'x'; expected a list such as",
        ),
        ("methods = 3", "expected [[methods]] entries"),
        ("[[methods]]\nletter = 'on'", "methods[1].match: is missing"),
        (
            "[[methods]]\nmatch = '*'\nletters = 'on'",
            "letters: is not known here; did you mean letter?",
        ),
        ("[[methods]]\nmatch = '*'\nletter = 'maybe'", '"always", or true or false'),
        (
            "[[methods]]\nmatch = '*'\ntimeout_s = 'x'",
            "methods[1].timeout_s: got the text",
        ),
        ("[[methods]]\nmatch = 'shop'", "methods[1].match: 'shop' must be"),
        (
            "[[methods]]\nmatch = '*'\nidempotent = true\nunsafe = true",
            "methods[1].unsafe: it is",
        ),
    ],
)
def test_a_wrong_file_is_told_what_was_expected(tmp_path, text, expected):
    """Each mistake in the file names its place and the mend."""
    assert expected in refused(*toml(tmp_path, text))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--inbound", "127.0.0.1:0"], "--inbound needs --app"),
        (["--controller", "127.0.0.1:1"], "--join-token-file"),
        (["--join-token-file", "x"], "of no use without --controller"),
        (["--tls-cert", "x"], "TLS needs both"),
        (["--outbound", "0.0.0.0:7700"], "has no TLS"),
        (["--upstream", "shop"], "expected NAME=TARGET"),
        (["--letters-live-max", "0"], "at least 1"),
        (["--sleep-mode", "doze"], "process or freeze"),
        (["--nonsense"], "--nonsense"),
        (["--redis", "127.0.0.1:6379"], "expected redis://HOST:PORT/0"),
        (["--redis", "redis://127.0.0.1/letters"], "expected a number"),
    ],
)
def test_wrong_flags_are_told_what_was_expected(words, expected):
    """Each wrong flag names itself and the mend."""
    assert expected in refused(*words)


CONTROLLED = ["--join-token-file", "join-token", "--controller"]


@pytest.mark.parametrize(
    "target",
    [
        "10.0.0.5:7601",
        "controller:7601",
        "127.0.0.1.example:7601",
        "[2001:db8::1]:7601",
        "dns:///controller:7601",
        "dns:controller:7601",
        "dns://10.0.0.5/localhost:7601",
        "dns:::1:7601",
        "ipv4:127.0.0.1:7601,10.0.0.5:7601",
        "ipv6:[2001:db8::1]:7601",
        "vsock:2:7601",
    ],
)
def test_tokens_do_not_leave_the_machine_in_clear(target):
    """A controller elsewhere needs an authority to trust; a certificate is not one."""
    files = ["--tls-cert", "cert.pem", "--tls-key", "key.pem"]
    for words in ([], files):
        with pytest.raises(
            Invalid, match="so the tokens sent there need TLS"
        ) as caught:
            parse(*CONTROLLED, target, *words)
        assert caught.value.reason == "NEEDS_TLS"

    trusting = parse(*CONTROLLED, target, *files, "--tls-ca", "ca.pem")
    assert trusting.controller == target


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:7601",
        "127.9.9.9:7601",
        "localhost:7601",
        "[::1]:7601",
        "unix:/run/controller.sock",
        "unix-abstract:controller",
        "dns:///localhost:7601",
        "dns:localhost",
        "ipv4:127.0.0.1:7601,127.0.0.2:7601",
        "ipv6:[::1]:7601",
    ],
)
def test_a_controller_on_this_machine_needs_no_tls(target):
    """Nobody else sees what is sent there."""
    assert parse(*CONTROLLED, target).controller == target


def test_the_agent_inherits_none_of_our_settings():
    """Least of all those with a password in them; everything else it does."""
    ours = {option.variable: "" for option in OPTIONS}
    ours["OUTRIGGER_REDIS"] = "redis://:secret@r:6379"
    given = {**ENV, "OUTRIGGER_DEBUG": "1", "PATH": "/bin"}

    config = parse(env={**given, **ours})

    assert config.redis == ours["OUTRIGGER_REDIS"]
    assert config.environment == given


def test_a_password_in_a_redis_url_is_not_repeated():
    """A mistake in a URL is told without the URL."""
    told = refused("--redis", "redis://:hunter2@127.0.0.1/letters")

    assert "--redis" in told
    assert "hunter2" not in told


def test_letter_may_be_written_as_true_or_false(tmp_path):
    """The plain words mean on and off."""
    words = toml(
        tmp_path,
        "[[methods]]\nmatch = '/s/A'\nletter = true\n"
        "[[methods]]\nmatch = '/s/B'\nletter = false\n",
    )

    assert [rule.letter for rule in parse(*words).rules] == ["on", "off"]


def test_a_service_of_an_unknown_upstream_is_refused(tmp_path):
    """The service table cannot point at nothing; a lone agent id is not enough."""
    with pytest.raises(Invalid, match="--agent-id is missing"):
        from_args([], ENV)


def test_the_environment_counts_less_than_a_flag():
    """Flags over OUTRIGGER_*."""
    env = {**ENV, "OUTRIGGER_GROUP": "blue", "OUTRIGGER_SLEEP_MODE": "freeze"}
    config = parse("--group", "green", env=env)

    assert (config.group, config.sleep_mode) == ("green", "freeze")


def test_faults_and_the_token_are_off_unless_asked_for():
    """Neither may come as a surprise."""
    config = parse()
    assert (config.allow_faults, config.outbound_token) == (False, False)

    config = parse("--allow-faults", "--outbound-token")
    assert (config.allow_faults, config.outbound_token) == (True, True)


def test_the_replay_buffer_may_be_as_large_as_a_letter():
    """256 KiB unless said; more than a letter would be of no use."""
    assert parse().replay_bytes == 256 * 1024
    assert parse("--replay-bytes", "3840KiB").replay_bytes == 3840 * 1024
    assert "--replay-bytes" in refused("--replay-bytes", "3841KiB")


def test_limits_of_all_upstreams_are_flags_too():
    """A sidecar without a file has them as well."""
    words = ["--concurrency", "9", "--queue", "3", "--queue-max-s", "100ms"]
    guard = parse(*words, "--limit", "adaptive").guard

    assert (guard.concurrency, guard.queue, guard.queue_max_s) == (9, 3, 0.1)
    assert guard.adaptive is not None
    assert parse(*words).guard.adaptive is None
