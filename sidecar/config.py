"""What a sidecar may be told: flags over OUTRIGGER_* over TOML."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from outrigger.core import names
from outrigger.core.config import (
    CONFIG_OPTION,
    FlagParser,
    Option,
    add_flags,
    gather,
    read_config,
    split_command,
    state_home,
)
from outrigger.core.errors import Invalid
from outrigger.core.rpc.server import TlsFiles, check_listen, is_loopback
from sidecar.call.routes import MethodRule
from sidecar.call.standing import GuardSettings
from sidecar.method_config import method_rules
from sidecar.options import OPTIONS
from sidecar.policy_config import (
    ALL_TABLES,
    PolicyGiven,
    guard_settings,
    read_tables,
)
from sidecar.toml_table import Given
from sidecar.upstream_config import read_upstreams
from sidecar.wire.upstream_spec import UpstreamSpec

_TABLES: Final = ("upstreams", "methods", *ALL_TABLES)
_POLICY_OPTIONS: Final = ("concurrency", "queue", "queue_max_s", "limit")
_AS_GIVEN: Final = (
    "app",
    "controller",
    "join_token_file",
    "redis",
    "group",
    "sleep_mode",
    "frozen_keep_s",
    "hold_max_s",
    "wake_timeout_s",
    "letters_live_max",
    "letters_bytes_max",
    "replay_bytes",
    "allow_faults",
    "outbound_token",
    "report_interval_s",
    "measure",
)
"""Options whose values are fields as they are."""
_UNIX_TARGETS: Final = ("unix:", "unix-abstract:")
_ADDRESS_TARGETS: Final = re.compile(r"(dns:///|dns:(?!//)|ipv4:|ipv6:)")
_HAS_PORT: Final = re.compile(r"(\[.*\]|[^:]*):\d+")


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
    upstreams: Mapping[str, UpstreamSpec]
    """How to reach each."""
    services: Mapping[str, str] = field(default_factory=dict)
    """Service prefix to upstream name."""
    rules: tuple[MethodRule, ...] = ()
    guard: GuardSettings = field(default_factory=GuardSettings)
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
    replay_bytes: int = 256 * 1024
    allow_faults: bool = False
    outbound_token: bool = False
    report_interval_s: float = 1.0
    measure: bool = True
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What the agent inherits; the sidecar's own settings are not its business."""

    def __post_init__(self) -> None:
        """Check what must not leave the machine in clear, and paths that are too long.

        Raises:
            Invalid: NEEDS_TLS, and as `check_listen`.
        """
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
    return _config(OPTIONS, vars(parser.parse_args(words)), tuple(command), environ)


def from_file(path: str, environ: Mapping[str, str]) -> SidecarConfig:
    """Return the configuration of a sidecar told nothing but this file.

    The agent's id may be missing: it mostly comes from the command line.

    Raises:
        Invalid: BAD_CONFIG.
    """
    options = [
        replace(one, default="any") if one.name == "agent_id" else one
        for one in OPTIONS
    ]
    return _config(options, {CONFIG_OPTION.name: path}, ("any",), environ)


def _config(
    options: Sequence[Option],
    flags: Mapping[str, object],
    command: tuple[str, ...],
    environ: Mapping[str, str],
) -> SidecarConfig:
    toml = read_config(flags, environ)
    given = gather(options, flags, environ, toml, tables=_TABLES)
    found, mistakes = given.values, given.mistakes
    mistakes.extend(_contradictions(found, command))
    calls = _calls(found, given.tables, mistakes)
    guard = guard_settings(calls, mistakes)
    upstreams = read_upstreams(
        given.tables.get("upstreams", {}), _listed(found), calls, mistakes
    )
    rules = method_rules(given.tables.get("methods", []), mistakes)
    given.check()
    agent_id = cast("str", found["agent_id"])
    state = cast("Path | None", found["state"])
    app = cast("str | None", found["app"])
    inbound = cast("str | None", found["inbound"])
    return SidecarConfig(
        agent_id=agent_id,
        state=(state or state_home(environ) / "agents" / agent_id).absolute(),
        upstreams=upstreams.specs,
        services=upstreams.services,
        rules=rules,
        guard=replace(guard, upstreams=upstreams.policies),
        outbound=_listen(found["outbound"], names.DEFAULT_OUTBOUND),
        api=_listen(found["api"], names.DEFAULT_API_TCP),
        inbound=_listen(inbound, names.DEFAULT_INBOUND) if inbound or app else None,
        tls=_tls(found),
        command=command,
        checkpoint_quota_bytes=cast("int", found["checkpoint_quota"]),
        environment=_inherited(environ),
        **{name: cast("Any", found[name]) for name in _AS_GIVEN},
    )


def _listed(found: Mapping[str, object]) -> dict[str, str]:
    """Return the targets of flags by name; those that are wrong are told already."""
    given = cast("tuple[tuple[str, str] | None, ...]", found["upstream"])
    return dict(one for one in given if one is not None)


def _calls(
    found: Mapping[str, object], tables: Mapping[str, object], mistakes: list[str]
) -> PolicyGiven:
    """Return what was said about the calls of all upstreams."""
    plain = {key: found[key] for key in _POLICY_OPTIONS if found[key] is not None}
    wrong = frozenset(_POLICY_OPTIONS) - plain.keys()
    return PolicyGiven(
        plain=Given(plain, wrong), tables=read_tables("", tables, mistakes)
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
    if cert is None or key is None:
        return None
    return TlsFiles(cert=cert, key=key, ca=cast("Path | None", found["tls_ca"]))


def _contradictions(
    found: Mapping[str, object], command: tuple[str, ...]
) -> Iterator[str]:
    """Yield what no single value shows."""
    if found["inbound"] and not (found["app"] or command):
        yield "--inbound needs --app TARGET or a COMMAND that serves"
    if found["controller"] and not found["join_token_file"]:
        yield "--controller needs --join-token-file FILE"
    if found["join_token_file"] and not found["controller"]:
        yield "--join-token-file is of no use without --controller TARGET"
    files = [found[name] for name in ("tls_cert", "tls_key", "tls_ca")]
    if any(files) and not all(files[:2]):
        yield "TLS needs both --tls-cert and --tls-key; one is missing"


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
