"""What a sidecar may be told: flags over OUTRIGGER_* over TOML."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from outrigger.core import names, values
from outrigger.core.config import (
    CONFIG_OPTION,
    REQUIRED,
    FlagParser,
    Option,
    add_flags,
    read_config,
    resolve,
    split_command,
    state_home,
)
from outrigger.core.errors import Invalid
from outrigger.core.ids import check_agent_id, check_upstream_name
from outrigger.core.rpc.server import TlsFiles, check_listen, is_loopback
from sidecar.call.routes import MethodRule

_LETTERS: Final = ("off", "on", "always")
_SLEEP_MODES: Final = ("process", "freeze")
_RULE_KEYS: Final = frozenset(
    {"match", "idempotent", "unsafe", "letter", "timeout_s", "max_attempts"}
)
_UPSTREAM_KEYS: Final = frozenset({"target", "services"})
_UNIX_TARGETS: Final = ("unix:", "unix-abstract:")
_ADDRESS_TARGETS: Final = re.compile(r"(dns:///|dns:(?!//)|ipv4:|ipv6:)")
_HAS_PORT: Final = re.compile(r"(\[.*\]|[^:]*):\d+")

OPTIONS: Final[tuple[Option, ...]] = (
    CONFIG_OPTION,
    Option("agent_id", check_agent_id, REQUIRED, "Name of the agent.", "ID"),
    Option("group", values.text, "", "Group for policies and budgets.", "NAME"),
    Option(
        "upstream",
        values.named_target,
        (),
        "Callee the agent may reach; a gRPC target.",
        "NAME=TARGET",
        multiple=True,
    ),
    Option(
        "outbound",
        values.address,
        None,
        f"Where the agent's calls arrive; {names.DEFAULT_OUTBOUND} or a free port.",
        "ADDRESS",
    ),
    Option(
        "api",
        values.address,
        None,
        f"Sidecar API beside its socket; {names.DEFAULT_API_TCP} or a free port.",
        "ADDRESS",
    ),
    Option(
        "inbound", values.address, None, "Where calls for the agent arrive.", "ADDRESS"
    ),
    Option("app", values.target, None, "Where the agent itself serves.", "TARGET"),
    Option(
        "controller", values.target, None, "Connect listener of a controller.", "TARGET"
    ),
    Option(
        "join_token_file", values.path, None, "The controller's join token.", "FILE"
    ),
    Option(
        "redis",
        values.redis_url,
        None,
        "Redis for a second copy of letters.",
        "URL",
        secret=True,
    ),
    Option("state", values.path, None, "State directory; per agent by default.", "DIR"),
    Option("tls_cert", values.path, None, "Certificate of the listeners.", "FILE"),
    Option("tls_key", values.path, None, "Key of the listeners.", "FILE"),
    Option("tls_ca", values.path, None, "Clients need a certificate of it.", "FILE"),
    Option(
        "sleep_mode",
        values.choice(*_SLEEP_MODES),
        "process",
        "process: asleep frees the memory; freeze: stopped in memory.",
        "MODE",
    ),
    Option(
        "frozen_keep_s",
        values.seconds,
        0.0,
        "How long to stay frozen before the process is ended.",
        "TIME",
    ),
    Option("hold_max_s", values.seconds, 30.0, "Longest a call is held.", "TIME"),
    Option("wake_timeout_s", values.seconds, 30.0, "Longest a wake may take.", "TIME"),
    Option(
        "letters_live_max",
        values.between(values.integer, 1),
        100_000,
        "Most letters kept: waiting, parked and expired; more are refused.",
        "COUNT",
    ),
    Option(
        "letters_bytes_max",
        values.size_bytes,
        1 << 30,
        "Most bytes of letters kept, counted likewise; more are refused.",
        "SIZE",
    ),
    Option(
        "checkpoint_quota",
        values.size_bytes,
        4 << 30,
        "Most bytes of checkpoints on disk.",
        "SIZE",
    ),
    Option(
        "concurrency",
        values.between(values.integer, 1),
        1024,
        "Most calls in flight per upstream.",
        "COUNT",
    ),
    Option(
        "report_interval_s",
        values.between(values.seconds, 0.1, 60.0),
        1.0,
        "How often the agent's processes are measured.",
        "TIME",
    ),
    Option(
        "measure",
        values.boolean,
        True,
        "Measure the agent's processes; --no-measure to see what that costs.",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """A listener as asked for."""

    address: str
    may_move: bool
    """It is a default: take a free port when this one is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarConfig:
    """Everything a sidecar is told."""

    agent_id: str
    state: Path
    upstreams: Mapping[str, str]
    """Name to gRPC target."""
    services: Mapping[str, str] = field(default_factory=dict)
    """Service prefix to upstream name."""
    rules: tuple[MethodRule, ...] = ()
    outbound: Listen
    api: Listen
    inbound: Listen | None = None
    app: str | None = None
    controller: str | None = None
    join_token_file: Path | None = None
    redis: str | None = None
    tls: TlsFiles | None = None
    group: str = ""
    command: tuple[str, ...] = ()
    """The agent to run; empty means somebody else runs it."""
    sleep_mode: str = "process"
    frozen_keep_s: float = 0.0
    hold_max_s: float = 30.0
    wake_timeout_s: float = 30.0
    letters_live_max: int = 100_000
    letters_bytes_max: int = 1 << 30
    checkpoint_quota_bytes: int = 4 << 30
    concurrency: int = 1024
    report_interval_s: float = 1.0
    measure: bool = True
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the agent inherits; the sidecar's own settings are not its business."""

    def __post_init__(self) -> None:
        """Check what no single value shows.

        Raises:
            Invalid: BAD_CONFIG with every mistake; NEEDS_TLS; and as `check_listen`.
        """
        mistakes = list(_mistakes(self))
        if mistakes:
            raise Invalid(
                "BAD_CONFIG", f"the configuration is not valid: {'; '.join(mistakes)}"
            )
        for flag, listen in self.listeners():
            check_listen(listen.address, flag, self.tls)
        if self.controller:
            _check_controller(self.controller, self.tls)
        # Before the directory is made, and the longer one of its two sockets.
        check_listen(f"unix:{self.state / names.OUTBOUND_SOCKET}", "--state", None)

    def listeners(self) -> tuple[tuple[str, Listen], ...]:
        """Return the TCP listeners by flag."""
        found = [("--outbound", self.outbound), ("--api", self.api)]
        if self.inbound is not None:
            found.append(("--inbound", self.inbound))
        return tuple(found)


def from_args(argv: Sequence[str], environ: Mapping[str, str]) -> SidecarConfig:
    """Return the configuration from the words after `outrigger sidecar`.

    Raises:
        Invalid: BAD_USAGE or BAD_CONFIG.
    """
    words, command = split_command(argv)
    parser = FlagParser(
        prog="outrigger sidecar",
        description="Run one sidecar beside one agent.",
        usage="outrigger sidecar --agent-id ID [--upstream NAME=TARGET]..."
        " [FLAGS] [-- COMMAND ...]",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_flags(parser, OPTIONS)
    flags = vars(parser.parse_args(words))
    found = resolve(
        OPTIONS,
        flags,
        environ,
        read_config(flags, environ),
        tables={"upstreams": _upstream_table, "methods": _method_table},
    )
    return _config(found, tuple(command), environ)


def _config(
    found: Mapping[str, object], command: tuple[str, ...], environ: Mapping[str, str]
) -> SidecarConfig:
    agent_id = cast("str", found["agent_id"])
    listed = cast("tuple[tuple[str, str], ...]", found["upstream"])
    table = cast("dict[str, tuple[str, tuple[str, ...]]]", found.get("upstreams", {}))
    upstreams = {name: target for name, (target, _) in table.items()} | dict(listed)
    services = {
        prefix: name for name, (_, prefixes) in table.items() for prefix in prefixes
    }
    state = cast("Path | None", found["state"])
    app = cast("str | None", found["app"])
    inbound = cast("str | None", found["inbound"])
    return SidecarConfig(
        agent_id=agent_id,
        state=(state or state_home(environ) / "agents" / agent_id).absolute(),
        upstreams=upstreams,
        services=services,
        rules=cast("tuple[MethodRule, ...]", found.get("methods", ())),
        outbound=_listen(found["outbound"], names.DEFAULT_OUTBOUND),
        api=_listen(found["api"], names.DEFAULT_API_TCP),
        inbound=_listen(inbound, names.DEFAULT_INBOUND) if inbound or app else None,
        app=app,
        controller=cast("str | None", found["controller"]),
        join_token_file=cast("Path | None", found["join_token_file"]),
        redis=cast("str | None", found["redis"]),
        tls=_tls(found),
        group=cast("str", found["group"]),
        command=command,
        sleep_mode=cast("str", found["sleep_mode"]),
        frozen_keep_s=cast("float", found["frozen_keep_s"]),
        hold_max_s=cast("float", found["hold_max_s"]),
        wake_timeout_s=cast("float", found["wake_timeout_s"]),
        letters_live_max=cast("int", found["letters_live_max"]),
        letters_bytes_max=cast("int", found["letters_bytes_max"]),
        checkpoint_quota_bytes=cast("int", found["checkpoint_quota"]),
        concurrency=cast("int", found["concurrency"]),
        report_interval_s=cast("float", found["report_interval_s"]),
        measure=cast("bool", found["measure"]),
        environment=_inherited(environ),
    )


def _inherited(environ: Mapping[str, str]) -> dict[str, str]:
    own = {option.variable for option in OPTIONS}
    return {name: value for name, value in environ.items() if name not in own}


def _listen(given: object, default: str) -> Listen:
    if given is None:
        return Listen(address=default, may_move=True)
    return Listen(address=cast("str", given), may_move=False)


def _tls(found: Mapping[str, object]) -> TlsFiles | None:
    cert, key = (cast("Path | None", found[name]) for name in ("tls_cert", "tls_key"))
    ca = cast("Path | None", found["tls_ca"])
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None:
        raise Invalid(
            "BAD_CONFIG", "TLS needs both --tls-cert and --tls-key; one is missing"
        )
    return TlsFiles(cert=cert, key=key, ca=ca)


def _mistakes(config: SidecarConfig) -> list[str]:
    found = []
    if config.inbound is not None and not (config.app or config.command):
        found.append("--inbound needs --app TARGET or a COMMAND that serves")
    if config.controller and not config.join_token_file:
        found.append("--controller needs --join-token-file FILE")
    if config.join_token_file and not config.controller:
        found.append("--join-token-file is of no use without --controller TARGET")
    for prefix, name in config.services.items():
        if name not in config.upstreams:
            found.append(f"service {prefix} names upstream {name}, which is not there")
    return found


def _check_controller(target: str, tls: TlsFiles | None) -> None:
    """Refuse to send tokens to another machine in clear.

    Raises:
        Invalid: NEEDS_TLS.
    """
    if (tls is None or tls.ca is None) and not _stays_here(target):
        raise Invalid(
            "NEEDS_TLS",
            f"--controller: {target} is not on this machine, so the tokens sent there"
            " need TLS: give --tls-ca with the certificate that signed the"
            " controller's, beside --tls-cert and --tls-key",
        )


def _stays_here(target: str) -> bool:
    """Say whether all of a gRPC target is surely on this machine."""
    if target.startswith(_UNIX_TARGETS):
        return True
    parts = _ADDRESS_TARGETS.sub("", target, count=1).split(",")
    return all(
        is_loopback(part if _HAS_PORT.fullmatch(part) else f"{part}:0")
        for part in parts
    )


def _upstream_table(given: object) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Read `[upstreams.NAME]`: target, and services as a list of prefixes."""
    if not isinstance(given, dict):
        raise values.Wrong("expected tables [upstreams.NAME]")
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    wrong: list[str] = []
    for name, entry in given.items():
        try:
            found[check_upstream_name(name)] = _upstream_entry(entry)
        except (values.Wrong, Invalid) as error:
            wrong.append(f"{name}: {error}")
    if wrong:
        raise values.Wrong(*wrong)
    return found


def _upstream_entry(entry: object) -> tuple[str, tuple[str, ...]]:
    if not isinstance(entry, dict) or not isinstance(entry.get("target"), str):
        raise values.Wrong('expected target = "HOST:PORT"')
    unknown = sorted(set(entry) - _UPSTREAM_KEYS)
    if unknown:
        raise values.Wrong(f"unknown keys {', '.join(unknown)}")
    services = entry.get("services", [])
    if not isinstance(services, list) or not all(isinstance(s, str) for s in services):
        raise values.Wrong('expected services = ["package.Service", ...]')
    return values.target(entry["target"]), tuple(services)


def _method_table(given: object) -> tuple[MethodRule, ...]:
    """Read `[[methods]]`: match and what holds for those methods."""
    if not isinstance(given, list):
        raise values.Wrong("expected [[methods]] entries")
    rules: list[MethodRule] = []
    wrong: list[str] = []
    for number, entry in enumerate(given, 1):
        try:
            rules.append(_method_entry(entry))
        except (values.Wrong, Invalid, TypeError) as error:
            wrong.append(f"entry {number}: {error}")
    if wrong:
        raise values.Wrong(*wrong)
    return tuple(rules)


def _method_entry(entry: object) -> MethodRule:
    if not isinstance(entry, dict) or not isinstance(entry.get("match"), str):
        raise values.Wrong('expected match = "/package.Service/Method"')
    unknown = sorted(set(entry) - _RULE_KEYS)
    if unknown:
        raise values.Wrong(f"unknown keys {', '.join(unknown)}")
    checks: dict[str, type | tuple[type, ...]] = {
        "idempotent": bool,
        "unsafe": bool,
        "timeout_s": (int, float),
        "max_attempts": int,
    }
    for key, kind in checks.items():
        if key in entry and not isinstance(entry[key], kind):
            raise values.Wrong(f"{key} = {entry[key]!r} has the wrong type")
    letter = entry.get("letter", "off")
    if isinstance(letter, bool):
        letter = "on" if letter else "off"
    if letter not in _LETTERS:
        raise values.Wrong(f"letter must be true, false or {', '.join(_LETTERS)}")
    return MethodRule(**{**entry, "letter": letter})
