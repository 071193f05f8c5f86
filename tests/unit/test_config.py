"""Configuration: which source wins, and how every mistake is told."""

import argparse
from collections.abc import Mapping
from pathlib import Path

import pytest

from outrigger.core.config import (
    CONFIG_OPTION,
    REQUIRED,
    FlagParser,
    Option,
    add_flags,
    gather,
    read_config,
    resolve,
    split_command,
    state_home,
)
from outrigger.core.errors import Invalid
from outrigger.core.ids import check_agent_id
from outrigger.core.values import (
    Wrong,
    address,
    between,
    boolean,
    choice,
    integer,
    named_target,
    number,
    path,
    seconds,
    size_bytes,
    target,
    text,
)

OPTIONS = (
    Option("agent_id", check_agent_id, "a1", "Name of the agent.", "ID"),
    Option("idle_after", seconds, 5.0, "When to sleep.", "TIME"),
    Option("upstream", named_target, (), "Whom to call.", "NAME=TARGET", multiple=True),
    Option("shadow", boolean, False, "Count only, 100 %."),
    Option("redis", text, "redis://:pw@h", "Where Redis is.", "URL", secret=True),
    CONFIG_OPTION,
)


def resolve_from(
    argv: list[str] | None = None,
    environ: Mapping[str, str] | None = None,
    toml: bytes | None = None,
) -> dict[str, object]:
    parser = FlagParser(prog="t")
    add_flags(parser, OPTIONS)
    return resolve(OPTIONS, vars(parser.parse_args(argv or [])), environ or {}, toml)


def mistakes_of(error: pytest.ExceptionInfo[Invalid]) -> list[str]:
    assert error.value.reason == "BAD_CONFIG"
    return error.value.metadata["mistakes"].split("\n")


def test_default_stands_when_nothing_is_given():
    """An option that nobody sets has its default, unparsed."""
    found = resolve_from()
    assert found["agent_id"] == "a1"
    assert found["idle_after"] == 5.0
    assert found["upstream"] == ()
    assert found["config"] is None


@pytest.mark.parametrize(
    ("argv", "environ", "toml", "expected"),
    [
        (["--idle-after", "1"], {"OUTRIGGER_IDLE_AFTER": "2"}, b"idle_after = 3", 1.0),
        ([], {"OUTRIGGER_IDLE_AFTER": "2"}, b"idle_after = 3", 2.0),
        ([], {"OUTRIGGER_IDLE_AFTER": " "}, b"idle_after = 3", 3.0),
        ([], {}, b"idle_after = '300ms'", 0.3),
    ],
)
def test_flag_beats_variable_beats_file(argv, environ, toml, expected):
    """The first source that has a value wins; an empty variable has none."""
    assert resolve_from(argv, environ, toml)["idle_after"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("argv", "environ", "toml"),
    [
        (["--upstream", "a=h:1", "--upstream", "b=h:2"], {}, None),
        ([], {"OUTRIGGER_UPSTREAM": "a=h:1  b=h:2"}, None),
        ([], {}, b'upstream = ["a=h:1", "b=h:2"]'),
    ],
)
def test_repeated_option_keeps_its_order(argv, environ, toml):
    """An option that may be repeated is a tuple from every source."""
    found = resolve_from(argv, environ, toml)
    assert found["upstream"] == (("a", "h:1"), ("b", "h:2"))


@pytest.mark.parametrize(
    ("argv", "environ", "toml", "expected"),
    [
        (["--shadow"], {}, None, True),
        (["--no-shadow"], {"OUTRIGGER_SHADOW": "yes"}, None, False),
        ([], {"OUTRIGGER_SHADOW": "yes"}, None, True),
        ([], {}, b"shadow = true", True),
    ],
)
def test_switch_can_be_turned_on_and_off(argv, environ, toml, expected):
    """A switch has a flag for each side and plain words elsewhere."""
    assert resolve_from(argv, environ, toml)["shadow"] is expected


def test_every_mistake_is_named_by_its_source():
    """One refusal lists the flag, the variable, the key and the unknown key."""
    with pytest.raises(Invalid) as error:
        resolve_from(
            ["--idle-after", "soon"],
            {"OUTRIGGER_AGENT_ID": "Not OK"},
            b"upstream = ['x', 'y=http://z']\nshadow = 3\nidle_aftr = 1\nzzz = 1",
        )
    lines = mistakes_of(error)
    assert lines[0] == "key idle_aftr: did you mean idle_after?"
    assert lines[1] == "key zzz: it is not known here"
    assert lines[2].startswith("OUTRIGGER_AGENT_ID: agent id 'Not OK' is not valid")
    assert lines[3].startswith("--idle-after 'soon': expected a time such as")
    assert lines[4].startswith("key upstream 'x': expected NAME=TARGET, for example")
    assert lines[5].startswith("key upstream 'y=http://z': expected HOST:PORT")
    assert lines[6] == "key shadow 3: expected true or false"
    assert len(lines) == 7
    assert "7 mistakes: " in error.value.message
    assert "\n" not in error.value.message


def test_broken_file_does_not_hide_other_mistakes():
    """A file that is not TOML is one mistake among the others."""
    with pytest.raises(Invalid) as error:
        resolve_from(["--idle-after", "x"], {}, b"a = \xff")
    assert len(mistakes_of(error)) == 2
    with pytest.raises(Invalid, match=r"not valid TOML: .*line 2"):
        resolve_from([], {}, b"a = 1\nb = ]")


def test_table_where_a_value_belongs_is_a_mistake():
    """A table, an array or a date is not a single value."""
    for toml in (b"[idle_after]\nx = 1", b"idle_after = [1]", b"idle_after=2020-01-01"):
        with pytest.raises(Invalid, match=r"key idle_after = .*: expected one TIME"):
            resolve_from([], {}, toml)


def test_secret_is_never_shown():
    """The value of a secret option stays out of mistakes and help."""
    with pytest.raises(Invalid) as error:
        resolve_from([], {}, b'redis = ["hunter2"]')
    assert "hunter2" not in error.value.message
    assert "(hidden)" in error.value.message
    parser = FlagParser(prog="t")
    add_flags(parser, OPTIONS)
    assert "pw@h" not in parser.format_help()


def test_help_names_variable_and_default():
    """Help says where else a value may come from, and what it is by default."""
    parser = FlagParser(prog="t")
    add_flags(parser, (*OPTIONS, Option("must", text, REQUIRED, "Be there.")))
    help_text = " ".join(parser.format_help().split())
    assert "(also OUTRIGGER_IDLE_AFTER; default 5.0)" in help_text
    assert "(also OUTRIGGER_UPSTREAM; may be repeated)" in help_text
    assert "(also OUTRIGGER_MUST; required)" in help_text
    assert "Count only, 100 %." in help_text


def test_required_option_must_be_given():
    """A missing value is a mistake that says how to give it."""
    option = Option("agent_id", check_agent_id, REQUIRED, "Name the agent.", "ID")
    with pytest.raises(Invalid, match=r"--agent-id is missing: Name the agent. Give"):
        resolve([option], {}, {})


def test_config_key_is_not_a_setting_of_the_file():
    """The file cannot name another file."""
    with pytest.raises(Invalid, match="key config"):
        resolve_from([], {}, b"config = 'x'")


def test_tables_are_handed_on_as_they_are():
    """A table's reader gets the raw table; an absent one leaves no entry."""
    toml = b"[[methods]]\nmatch='a'\n[[methods]]\nmatch='b'"
    found = gather([], {}, {}, toml, tables=("methods", "upstreams"))
    assert found.tables == {"methods": [{"match": "a"}, {"match": "b"}]}
    found.check()


def test_mistakes_of_tables_are_told_with_all_others():
    """What a table's reader found joins what was found before it."""
    found = gather([], {}, {}, b"[a]\n[c]", tables=("a",))
    found.mistakes.append("a.b: 7 is more than 1")
    with pytest.raises(Invalid) as error:
        found.check()
    assert mistakes_of(error) == [
        "key c: it is not known here",
        "a.b: 7 is more than 1",
    ]


def test_parser_raises_instead_of_leaving():
    """Unknown and shortened flags are refused in one line with a hint."""
    for argv in (["--nope"], ["--idle", "3"], ["--idle-after"]):
        with pytest.raises(Invalid) as error:
            resolve_from(argv)
        assert error.value.reason == "BAD_USAGE"
        assert error.value.message.endswith("see 't --help'")
        assert "\n" not in error.value.message


def test_plain_argparse_takes_the_flags_too():
    """Options can be added to any parser."""
    parser = argparse.ArgumentParser()
    add_flags(parser, OPTIONS)
    assert parser.parse_args(["--agent-id", "x"]).agent_id == "x"


def test_config_file_is_found_by_flag_then_variable(tmp_path: Path):
    """The flag's file wins; no name means no file."""
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    environ = {"OUTRIGGER_CONFIG": str(two)}
    assert read_config({"config": str(one)}, environ) == b"1"
    assert read_config({"config": None}, environ) == b"2"
    assert read_config({}, {}) is None


def test_unreadable_config_file_is_refused(tmp_path: Path):
    """A file that is not there names the flag or variable that named it."""
    with pytest.raises(Invalid, match=r"--config '.*none' cannot be read: No such"):
        read_config({"config": str(tmp_path / "none")}, {})
    with pytest.raises(Invalid, match=r"OUTRIGGER_CONFIG '.*' cannot be read: Is a"):
        read_config({}, {"OUTRIGGER_CONFIG": str(tmp_path)})
    with pytest.raises(Invalid, match="null"):
        read_config({"config": "a\0b"}, {})


def test_command_stands_after_two_dashes():
    """The first `--` parts the flags from the command, once."""
    assert split_command(["--a", "1", "--", "cmd", "--", "x"]) == (
        ["--a", "1"],
        ["cmd", "--", "x"],
    )
    assert split_command(["--a"]) == (["--a"], [])


def test_state_home_follows_the_xdg_rule():
    """An absolute XDG_STATE_HOME, else ~/.local/state, else a refusal."""
    home = {"HOME": "/h"}
    assert state_home({"XDG_STATE_HOME": "/x", **home}) == Path("/x/outrigger")
    assert state_home({"XDG_STATE_HOME": "x", **home}) == Path(
        "/h/.local/state/outrigger"
    )
    with pytest.raises(Invalid, match="give --state DIR"):
        state_home({})


@pytest.mark.parametrize(
    ("parse", "given", "expected"),
    [
        (seconds, "1.5", 1.5),
        (seconds, "300ms", 0.3),
        (seconds, "2m", 120.0),
        (seconds, "1 h", 3600.0),
        (seconds, "1d", 86400.0),
        (size_bytes, "4096", 4096),
        (size_bytes, "64MiB", 64 << 20),
        (size_bytes, "1.5gib", 3 << 29),
        (size_bytes, "10MB", 10**7),
        (integer, "-12", -12),
        (number, "1e3", 1000.0),
        (boolean, "ON", True),
        (boolean, "0", False),
        (path, "/a/b", Path("/a/b")),
        (path, "~", Path.home()),
        (address, "127.0.0.1:0", "127.0.0.1:0"),
        (address, "[::1]:80", "[::1]:80"),
        (address, "unix:/a b", "unix:/a b"),
        (target, "dns:///svc.x:80", "dns:///svc.x:80"),
        (target, "ipv4:1.2.3.4:80,1.2.3.5:80", "ipv4:1.2.3.4:80,1.2.3.5:80"),
        (target, "unix:/run/x", "unix:/run/x"),
        (named_target, "t=unix:/a=b", ("t", "unix:/a=b")),
        (choice("a", "b"), "b", "b"),
        (between(integer, 1, 3), "3", 3),
        (between(integer, 1), "99", 99),
        (text, "x y", "x y"),
    ],
)
def test_value_is_read_as_a_person_writes_it(parse, given, expected):
    """Each parser takes the forms it names."""
    assert parse(given) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("parse", "given", "expected"),
    [
        (seconds, "-1", "a time such as"),
        (seconds, "inf", "a time such as"),
        (seconds, "5 weeks", "a time such as"),
        (size_bytes, "64 parsecs", "a size such as"),
        (size_bytes, "", "a size such as"),
        (integer, "1.5", "a whole number"),
        (number, "x", "a number"),
        (number, "nan", "a finite number"),
        (boolean, "maybe", "true or false"),
        (path, "", "a path"),
        (path, "~no-such-user-here/x", "names a user"),
        (address, "nohost", "HOST:PORT"),
        (address, ":80", "HOST:PORT"),
        (address, "h:99999", "a port from 0 to 65535"),
        (address, "unix:", "a path after unix:"),
        (target, "a b:1", "without white space"),
        (target, "http://h:1", "not a URL"),
        (target, "dns:///", "a name after dns:"),
        (target, "h:0", "from 1 to 65535"),
        (named_target, "x", "NAME=TARGET"),
        (choice("a", "b"), "c", "a or b"),
        (between(seconds, 1.0, 3.0), "4", "at least 1.0 and at most 3.0"),
        (between(integer, 1), "0", "at least 1"),
        (text, "  ", "not empty"),
    ],
)
def test_bad_value_is_told_what_was_expected(parse, given, expected):
    """Each parser refuses with a line that says what it takes."""
    with pytest.raises(Wrong, match="expected ") as error:
        parse(given)
    assert expected in error.value.lines[0]


def test_named_target_refuses_a_bad_name():
    """The name of an upstream follows the rule for names."""
    with pytest.raises(Invalid) as error:
        named_target("A!=h:1")
    assert error.value.reason == "BAD_UPSTREAM_NAME"
