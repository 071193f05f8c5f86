"""Which server a command talks to, and with which token.

A sidecar is reached directly (`--api`, or the address it keeps in its state
directory) or through the controller (`--agent`). Tokens come from a file that
nobody else can read, and go to another machine over TLS only.
"""

import argparse
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from outrigger.core import names, values
from outrigger.core.config import Option, add_flags, resolve, state_home
from outrigger.core.errors import Denied, Invalid, Refused, Transient
from outrigger.core.ids import check_agent_id
from outrigger.core.state_dir import read_token

_ADDRESS_FILE: Final = "address.json"
_CONTROLLER_KEY: Final = "admin"
_SIDECAR_KEYS: Final = ("api", "api_tcp")
_TOKEN_CHARS: Final = 4096

_API: Final = Option(
    "api", values.address, None, "Sidecar API to call directly.", "ADDRESS"
)
_AGENT: Final = Option(
    "agent", check_agent_id, None, "Agent whose sidecar to call, by way of the"
    " controller.", "ID"
)  # fmt: skip
_COMMON: Final = (
    Option(
        "controller",
        values.address,
        None,
        f"Admin listener of the controller; {names.DEFAULT_CONTROLLER_ADMIN} if it"
        " has left no address in its state directory.",
        "ADDRESS",
        env="OUTRIGGER_ADMIN",  # OUTRIGGER_CONTROLLER is a sidecar's, another port
    ),
    Option("state_dir", values.path, None, "State directory of the server.", "DIR"),
    Option("token_file", values.path, None, "File with the token to bring.", "FILE"),
    Option("tls_ca", values.path, None, "Certificate that signed theirs.", "FILE"),
    Option("tls_cert", values.path, None, "Own certificate, if they ask.", "FILE"),
    Option("tls_key", values.path, None, "Key of --tls-cert.", "FILE"),
    Option(
        "timeout",
        values.between(values.seconds, 0.1, 3600.0),
        10.0,
        "Longest an answer may take; transfers may take 60 times that.",
        "TIME",
    ),
)
CONTROLLER_OPTIONS: Final = _COMMON
EITHER_OPTIONS: Final = (_API, *_COMMON)
SIDECAR_OPTIONS: Final = (_AGENT, _API, *_COMMON)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """PEM files for connections."""

    ca: Path
    cert: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What the command line and the environment say about the server."""

    api: str | None = None
    agent: str | None = None
    controller: str | None = None
    state_dir: Path | None = None
    token_file: Path | None = None
    tls: ClientTls | None = None
    timeout_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server to call and how."""

    address: str
    kind: str
    """"controller" or "sidecar"."""
    token: str = field(repr=False)
    agent_id: str = ""
    """Set when the controller passes calls on to this agent's sidecar."""
    tls: ClientTls | None = None
    timeout_s: float = 10.0

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of every call."""
        token = (names.TOKEN_METADATA, self.token)
        if not self.agent_id:
            return (token,)
        return (token, (names.AGENT_METADATA, self.agent_id))


def add_connection_flags(
    parser: argparse.ArgumentParser, options: tuple[Option, ...]
) -> None:
    """Add the flags that say which server to call."""
    group = parser.add_argument_group("which server")
    add_flags(cast("argparse.ArgumentParser", group), options)


def where_of(
    flags: argparse.Namespace, environ: Mapping[str, str], options: tuple[Option, ...]
) -> Where:
    """Return what flags and OUTRIGGER_* variables say; flags win as a whole.

    Raises:
        Invalid: BAD_CONFIG with every mistake, BAD_USAGE for flags that exclude
            each other.
    """
    given = {name: value for name, value in vars(flags).items() if value is not None}
    if "api" in given and "agent" in given:
        raise Invalid(
            "BAD_USAGE",
            "--api calls a sidecar directly and --agent by way of the controller:"
            " give one of them",
        )
    found = resolve(options, given, environ)
    # A variable does not overrule the server that a flag names another way.
    if {"agent", "state_dir", "controller"} & set(given) and "api" not in given:
        found["api"] = None
    if {"api", "state_dir"} & set(given) and "agent" not in given:
        found["agent"] = None
    return Where(
        api=cast("str | None", found.get("api")),
        agent=cast("str | None", found.get("agent")),
        controller=cast("str | None", found["controller"]),
        state_dir=cast("Path | None", found["state_dir"]),
        token_file=cast("Path | None", found["token_file"]),
        tls=_tls(found),
        timeout_s=cast("float", found["timeout"]),
    )


def find_sidecar(where: Where, environ: Mapping[str, str]) -> Server:
    """Return the sidecar to call, or the controller that passes calls on.

    Raises:
        Invalid: NO_SERVER when nothing says which, NO_TOKEN_FILE, BAD_TOKEN_FILE,
            NEEDS_TLS.
        Refused: NOT_ITS_STATE when the directory is not a sidecar's.
        Transient: NOT_RUNNING when the sidecar has left no address.
        Denied: TOKEN_NOT_PRIVATE, TOKEN_UNREADABLE.
    """
    if where.api is not None:
        nearby = _beside(where.api)
        return _server(where, environ, where.api, "sidecar", nearby)
    if where.agent is not None:
        return find_controller(where, environ)
    if where.state_dir is not None:
        address = _sidecar_address(where.state_dir)
        return _server(where, environ, address, "sidecar", where.state_dir)
    raise Invalid(
        "NO_SERVER",
        "which sidecar? Give --agent ID to go through the controller, --api ADDRESS"
        " to call it directly, or --state-dir DIR of a sidecar on this machine",
    )


def find_controller(where: Where, environ: Mapping[str, str]) -> Server:
    """Return the controller to call.

    Raises:
        Invalid: NO_TOKEN_FILE, BAD_TOKEN_FILE, NEEDS_TLS.
        Refused: NOT_ITS_STATE when the directory is not a controller's.
        Transient: NOT_RUNNING when no controller has left a token.
        Denied: TOKEN_NOT_PRIVATE, TOKEN_UNREADABLE.
    """
    state = where.state_dir
    if state is None and not (where.controller and where.token_file):
        state = state_home(environ) / "controller"
    known = announced(state) if state else {}
    if where.state_dir is not None and known and _CONTROLLER_KEY not in known:
        raise _not_its_state(where.state_dir, "controller")
    address = (
        where.controller or known.get(_CONTROLLER_KEY) or names.DEFAULT_CONTROLLER_ADMIN
    )
    # The token of this machine's controller is of no use to another machine's,
    # and no business of it.
    nearby = state if where.state_dir or stays_here(address) else None
    return _server(where, environ, address, "controller", nearby)


def stays_here(address: str) -> bool:
    """Say whether an address is surely on this machine, whatever names resolve to."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _server(
    where: Where,
    environ: Mapping[str, str],
    address: str,
    kind: str,
    nearby: Path | None,
) -> Server:
    if where.tls is None and not stays_here(address):
        raise Invalid(
            "NEEDS_TLS",
            f"{address} is not on this machine, so the token needs TLS: give --tls-ca"
            " with the certificate that signed the server's",
        )
    return Server(
        address=address,
        kind=kind,
        token=_token(where, environ, kind, nearby),
        agent_id=where.agent or "" if kind == "controller" else "",
        tls=where.tls,
        timeout_s=where.timeout_s,
    )


def _tls(found: Mapping[str, object]) -> ClientTls | None:
    ca, cert, key = (
        cast("Path | None", found[name]) for name in ("tls_ca", "tls_cert", "tls_key")
    )
    if (cert is None) != (key is None):
        raise Invalid("BAD_USAGE", "--tls-cert and --tls-key go together: give both")
    if ca is None:
        if cert is not None:
            raise Invalid("BAD_USAGE", "--tls-cert needs --tls-ca: give it as well")
        return None
    return ClientTls(ca=ca, cert=cert, key=key)


def _token(
    where: Where, environ: Mapping[str, str], kind: str, nearby: Path | None
) -> str:
    if where.token_file is not None:
        return _read(where.token_file)
    path = nearby / names.ADMIN_TOKEN_FILE if nearby else None
    if path is not None and _exists(path):
        return _read(path)
    given = environ.get(names.ENV_TOKEN, "")
    if kind == "sidecar" and given:
        return _checked(given, names.ENV_TOKEN)
    if path is not None:
        raise Transient(
            "NOT_RUNNING",
            f"no {kind} has been started with the state directory {path.parent} (it"
            f" has no {names.ADMIN_TOKEN_FILE}): start one, or name another with"
            " --state-dir DIR, or give its address and --token-file FILE",
        )
    raise Invalid(
        "NO_TOKEN_FILE",
        f"calling a {kind} needs its admin token: give --token-file FILE, or"
        " --state-dir DIR if its state is on this machine",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:
        return True  # reading it says why it cannot be used


def _read(path: Path) -> str:
    try:
        return _checked(read_token(path), str(path))
    except PermissionError as error:
        raise Denied(
            "TOKEN_UNREADABLE",
            f"the token file {path} cannot be read by this user: run as the user that"
            " started the server, or give another --token-file",
        ) from error
    except OSError as error:
        raise Invalid(
            "NO_TOKEN_FILE",
            f"the token file {path} cannot be read: {error.strerror}; give the"
            " admin-token file of the server's state directory",
        ) from error
    except Refused as error:
        if error.reason == "TOKEN_MALFORMED":
            raise _bad_token(str(path)) from error
        raise


def _checked(token: str, source: str) -> str:
    if len(token) > _TOKEN_CHARS or not (token.isascii() and token.isalnum()):
        raise _bad_token(source)
    return token


def _bad_token(source: str) -> Invalid:
    return Invalid(
        "BAD_TOKEN_FILE",
        f"{source} does not hold a token: expected one word of letters and digits",
    )


def _beside(address: str) -> Path | None:
    """Return the state directory that a Unix socket lies in."""
    if not address.startswith("unix:"):
        return None
    return Path(address.removeprefix("unix:")).parent


def _sidecar_address(state: Path) -> str:
    known = announced(state)
    for key in _SIDECAR_KEYS:
        if known.get(key):
            return known[key]
    if known:
        raise _not_its_state(state, "sidecar")
    socket = state / names.API_SOCKET
    if not socket.exists():
        raise Transient(
            "NOT_RUNNING",
            f"no sidecar has left its address in {state}: start one with this --state"
            " directory, or name another --state-dir",
        )
    return f"unix:{socket}"


def _not_its_state(state: Path, kind: str) -> Refused:
    return Refused(
        "NOT_ITS_STATE",
        f"{state} is not the state directory of a {kind}: its {_ADDRESS_FILE} names no"
        f" listener of one; give another --state-dir",
    )


def announced(state: Path) -> dict[str, str]:
    """Return the addresses a server left; none when there is no such file.

    Raises:
        Refused: BAD_ADDRESS_FILE when there is one that cannot be understood.
    """
    path = state / _ADDRESS_FILE
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise Refused(
            "BAD_ADDRESS_FILE",
            f"{path} cannot be read ({error}): restart the server, or give its address"
            " with --controller or --api",
        ) from error
    return {
        key: value
        for key, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, str)
    }
