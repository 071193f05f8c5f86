"""Configuration: flags win over the environment, which wins over a TOML file.

A process lists its options once; flags, variables, keys, help and checks follow
from that list. An option named `api_tcp` is the flag --api-tcp, the variable
OUTRIGGER_API_TCP and the TOML key api_tcp. Every mistake is reported at once, so
that one start of the process is enough to mend them all.
"""

import argparse
import difflib
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from outrigger.core import names
from outrigger.core.errors import Invalid, OutriggerError
from outrigger.core.values import Wrong, boolean

REQUIRED: Final = object()
"""Default of an option that must be given."""


@dataclass(frozen=True, slots=True)
class Option:
    """One setting of a process."""

    name: str
    """snake_case; flag, variable and key are made from it."""
    parse: Callable[[str], object]
    """Text to value; raises Wrong, ValueError or an OutriggerError."""
    default: object
    """The value when nothing is given, never parsed; or REQUIRED."""
    help: str
    """One sentence."""
    metavar: str = "VALUE"
    multiple: bool = False
    """May be repeated: the value is a tuple of parsed values. A variable separates
    them by white space, a TOML key holds an array."""
    secret: bool = False
    """The value is never shown in a mistake."""
    in_file: bool = True
    """May stand in the TOML file."""
    env: str = ""
    """The variable's name, where the one made from `name` means something else."""

    @property
    def flag(self) -> str:
        """Return the flag, with its dashes."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Return the environment variable."""
        return self.env or names.ENV_PREFIX + self.name.upper()


CONFIG_OPTION: Final = Option(
    "config", Path, None, "TOML file with any of these settings.", "FILE", in_file=False
)
"""The option that names the TOML file; `read_config` reads it."""


class FlagParser(argparse.ArgumentParser):
    """argparse that raises instead of ending the process, and guesses no flags."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - argparse's
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            Invalid: BAD_USAGE.
        """
        line = " ".join(message.split())
        raise Invalid("BAD_USAGE", f"{line}; see '{self.prog} --help'")


def add_flags(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add one flag per option; values stay text, so that `resolve` checks all."""
    for option in options:
        text = _help(option)
        if option.parse is boolean:
            _add_switch(parser, option, text)
            continue
        parser.add_argument(
            option.flag,
            dest=option.name,
            action="append" if option.multiple else "store",
            metavar=option.metavar,
            help=text,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was given, right or wrong; see `gather`."""

    values: dict[str, object]
    """By option; None where it was wrong, REQUIRED where it is missing."""
    tables: dict[str, object]
    """What tomllib made of each table that was given."""
    mistakes: list[str]
    """One line each; whoever reads the tables adds to it."""

    def check(self) -> None:
        """Refuse what has any mistake.

        Raises:
            Invalid: BAD_CONFIG, naming every mistake.
        """
        if self.mistakes:
            raise _refusal(self.mistakes)


def resolve(
    options: Sequence[Option],
    flags: Mapping[str, object | None],
    environ: Mapping[str, str],
    toml: bytes | None = None,
) -> dict[str, object]:
    """Return every option's value by name; see `gather`.

    Raises:
        Invalid: BAD_CONFIG, naming every mistake by flag, variable or key.
    """
    found = gather(options, flags, environ, toml)
    found.check()
    return found.values


def gather(
    options: Sequence[Option],
    flags: Mapping[str, object | None],
    environ: Mapping[str, str],
    toml: bytes | None = None,
    *,
    tables: Collection[str] = (),
) -> Found:
    """Return every option's value, every table that was given, and every mistake.

    Args:
        options: what may be set.
        flags: text by option name, as `vars(parser.parse_args())`; None and names
            that are no options are passed over.
        environ: the environment; an empty variable counts as not set.
        toml: contents of the TOML file, if there is one.
        tables: names of the tables that may stand in it. They are not looked into:
            their reader may have to know the values, and all mistakes are told
            together.
    """
    mistakes: list[str] = []
    document = _parse_toml(toml, mistakes)
    _check_keys(options, tables, document, mistakes)
    values = {
        option.name: _value(option, flags, environ, document, mistakes)
        for option in options
    }
    given = {name: document[name] for name in tables if name in document}
    return Found(values=values, tables=given, mistakes=mistakes)


def read_config(
    flags: Mapping[str, object | None], environ: Mapping[str, str]
) -> bytes | None:
    """Return the bytes of the file named by CONFIG_OPTION; None when none is.

    Raises:
        Invalid: BAD_CONFIG when it cannot be read.
    """
    flag = flags.get(CONFIG_OPTION.name)
    source = CONFIG_OPTION.flag if flag else CONFIG_OPTION.variable
    name = flag or environ.get(CONFIG_OPTION.variable)
    if not name:
        return None
    try:
        return Path(str(name)).read_bytes()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise _refusal(
            [f"{source} '{name}' cannot be read: {why}; name a TOML file"]
        ) from error


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what stands before the first `--` and the command after it."""
    words = list(argv)
    if "--" not in words:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def state_home(environ: Mapping[str, str]) -> Path:
    """Return where state goes when --state is not given.

    XDG_STATE_HOME counts only if absolute, as its specification says.

    Raises:
        Invalid: BAD_CONFIG when neither it nor HOME is set.
    """
    given = environ.get("XDG_STATE_HOME", "")
    if Path(given).is_absolute():
        return Path(given) / "outrigger"
    home = environ.get("HOME", "")
    if not home:
        raise _refusal(["neither XDG_STATE_HOME nor HOME is set: give --state DIR"])
    return Path(home) / ".local" / "state" / "outrigger"


def _add_switch(parser: argparse.ArgumentParser, option: Option, text: str) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        option.flag, dest=option.name, action="store_const", const="true", help=text
    )
    group.add_argument(
        "--no-" + option.flag.removeprefix("--"),
        dest=option.name,
        action="store_const",
        const="false",
        help=argparse.SUPPRESS,
    )


def _help(option: Option) -> str:
    extra = [f"also {option.variable}"]
    if option.default is REQUIRED:
        extra.append("required")
    elif option.default not in (None, (), "") and not option.secret:
        extra.append(f"default {option.default}")
    if option.multiple:
        extra.append("may be repeated")
    return f"{option.help} ({'; '.join(extra)})".replace("%", "%%")


def _parse_toml(toml: bytes | None, mistakes: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads((toml or b"").decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        mistakes.append(f"the configuration file is not valid TOML: {error}")
        return {}


def _check_keys(
    options: Sequence[Option],
    tables: Collection[str],
    document: Mapping[str, object],
    mistakes: list[str],
) -> None:
    known = [option.name for option in options if option.in_file] + list(tables)
    for key in document:
        if key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "it is not known here"
            mistakes.append(f"key {key}: {hint}")


def _value(
    option: Option,
    flags: Mapping[str, object | None],
    environ: Mapping[str, str],
    document: Mapping[str, object],
    mistakes: list[str],
) -> object:
    """Return the value from the first source that has one."""
    flag = flags.get(option.name)
    if flag is not None:
        return _parsed(option, option.flag, flag, mistakes)
    text = environ.get(option.variable, "").strip()
    if text:
        given: object = text.split() if option.multiple else text
        return _parsed(option, option.variable, given, mistakes)
    if option.in_file and option.name in document:
        raw = document[option.name]
        return _parsed(option, f"key {option.name}", raw, mistakes)
    if option.default is REQUIRED:
        mistakes.append(
            f"{option.flag} is missing: {option.help} Give {option.flag}"
            f" {option.metavar} or set {option.variable}"
        )
    return option.default


def _parsed(option: Option, source: str, given: object, mistakes: list[str]) -> object:
    """Return the parsed value; a mistake is noted and leaves None."""
    if not option.multiple:
        return _parsed_one(option, source, given, mistakes)
    items = given if isinstance(given, list | tuple) else [given]
    return tuple(_parsed_one(option, source, item, mistakes) for item in items)


def _parsed_one(
    option: Option, source: str, given: object, mistakes: list[str]
) -> object:
    shown = "(hidden)" if option.secret else repr(given)
    text = _text(given)
    if text is None:
        mistakes.append(f"{source} = {shown}: expected one {option.metavar}")
        return None
    return _checked(source, f" {shown}", option.parse, text, mistakes)


def _text(given: object) -> str | None:
    """Return a scalar as it would be written on the command line."""
    if isinstance(given, bool):
        return str(given).lower()
    return str(given) if isinstance(given, str | int | float | Path) else None


def _checked(
    source: str,
    shown: str,
    parse: Callable[[str], object],
    text: str,
    mistakes: list[str],
) -> object:
    try:
        return parse(text)
    except Wrong as error:
        mistakes.extend(f"{source}{shown}: {line}" for line in error.lines)
    except OutriggerError as error:
        mistakes.append(f"{source}: {error.message}")
    except ValueError as error:
        mistakes.append(f"{source}{shown}: {error}")
    return None


def _refusal(mistakes: Sequence[str]) -> Invalid:
    count = len(mistakes)
    lead = "" if count == 1 else f"{count} mistakes: "
    flat = [" ".join(line.split()) for line in mistakes]
    return Invalid(
        "BAD_CONFIG",
        f"the configuration is not valid: {lead}{'; '.join(flat)}",
        metadata={"mistakes": "\n".join(flat)},
    )
