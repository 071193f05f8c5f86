"""What a controller may be told: flags over OUTRIGGER_* over TOML."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from controller.policy.sleep_policies.fixed import KEEP_ALIVE_S, check_keep_alive
from outrigger.core import names, values
from outrigger.core.config import (
    CONFIG_OPTION,
    FlagParser,
    Option,
    add_flags,
    read_config,
    resolve,
    state_home,
)
from outrigger.core.errors import Invalid
from outrigger.core.rpc.server import TlsFiles, check_listen

REPORT_INTERVAL_S: Final = 1.0
_SHORTEST_REPORT_S: Final = 0.05
_LONGEST_REPORT_S: Final = 2.0


def _keep_alive(value: str) -> float:
    return check_keep_alive(values.seconds(value))


OPTIONS: Final[tuple[Option, ...]] = (
    CONFIG_OPTION,
    Option(
        "listen",
        values.address,
        None,
        f"Where operators call; {names.DEFAULT_CONTROLLER_ADMIN} or a free port.",
        "ADDRESS",
    ),
    Option(
        "connect",
        values.address,
        None,
        f"Where sidecars connect; {names.DEFAULT_CONTROLLER_CONNECT} or a free port.",
        "ADDRESS",
    ),
    Option("state", values.path, None, "State directory.", "DIR"),
    Option("tls_cert", values.path, None, "Certificate of the listeners.", "FILE"),
    Option("tls_key", values.path, None, "Key of the listeners.", "FILE"),
    Option("tls_ca", values.path, None, "Clients need a certificate of it.", "FILE"),
    Option(
        "keep_alive",
        _keep_alive,
        KEEP_ALIVE_S,
        "Idle time before sleep, until an operator sets another.",
        "TIME",
    ),
    Option(
        "report_interval_s",
        values.between(values.seconds, _SHORTEST_REPORT_S, _LONGEST_REPORT_S),
        REPORT_INTERVAL_S,
        "How often sidecars report.",
        "TIME",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """A listener as asked for."""

    address: str
    may_move: bool = False
    """It is a default: take a free port when this one is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """Everything a controller is told."""

    state: Path
    listen: Listen
    connect: Listen
    tls: TlsFiles | None = None
    keep_alive_s: float = KEEP_ALIVE_S
    """Until an operator sets another."""
    report_interval_s: float = REPORT_INTERVAL_S

    def __post_init__(self) -> None:
        """Check the listeners and the times.

        Raises:
            Invalid: BAD_ADDRESS, NEEDS_TLS, SOCKET_PATH_TOO_LONG, BAD_KEEP_ALIVE or
                BAD_CONFIG.
        """
        check_listen(self.listen.address, "--listen", self.tls)
        check_listen(self.connect.address, "--connect", self.tls)
        check_keep_alive(self.keep_alive_s)
        if not _SHORTEST_REPORT_S <= self.report_interval_s <= _LONGEST_REPORT_S:
            raise Invalid(
                "BAD_CONFIG",
                f"a report interval of {self.report_interval_s:g} s is not valid: give"
                f" {_SHORTEST_REPORT_S:g} to {_LONGEST_REPORT_S:g} s",
            )


def from_args(argv: Sequence[str], environ: Mapping[str, str]) -> ControllerConfig:
    """Return the configuration from the words after `outrigger controller`.

    Raises:
        Invalid: BAD_USAGE or BAD_CONFIG, and see `ControllerConfig`.
    """
    parser = FlagParser(
        prog="outrigger controller",
        description="Run the controller of a fleet of sidecars.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_flags(parser, OPTIONS)
    flags = vars(parser.parse_args(list(argv)))
    found = resolve(OPTIONS, flags, environ, read_config(flags, environ))
    state = cast("Path | None", found["state"])
    return ControllerConfig(
        state=(state or state_home(environ) / "controller").absolute(),
        listen=_listen(found["listen"], names.DEFAULT_CONTROLLER_ADMIN),
        connect=_listen(found["connect"], names.DEFAULT_CONTROLLER_CONNECT),
        tls=_tls(found),
        keep_alive_s=cast("float", found["keep_alive"]),
        report_interval_s=cast("float", found["report_interval_s"]),
    )


def _listen(given: object, default: str) -> Listen:
    if given is None:
        return Listen(address=default, may_move=True)
    return Listen(address=cast("str", given))


def _tls(found: Mapping[str, object]) -> TlsFiles | None:
    cert, key, ca = (
        cast("Path | None", found[name]) for name in ("tls_cert", "tls_key", "tls_ca")
    )
    if cert is not None and key is not None:
        return TlsFiles(cert=cert, key=key, ca=ca)
    if cert is None and key is None and ca is None:
        return None
    raise Invalid(
        "BAD_CONFIG", "TLS needs both --tls-cert and --tls-key; one is missing"
    )
