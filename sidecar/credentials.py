"""The secrets a sidecar holds: its agent's, the controller's, its own certificate."""

import grpc

from outrigger.core import names
from outrigger.core.errors import Invalid, Refused
from outrigger.core.rpc.server import read_secret
from outrigger.core.state_dir import StateDirectory, read_token
from sidecar.config import SidecarConfig


def agent_token(config: SidecarConfig, state: StateDirectory) -> str:
    """Return a new secret for an agent that we start; else the one it read before.

    Raises:
        Denied: TOKEN_NOT_PRIVATE.
        Transient: STATE_UNUSABLE.
    """
    if config.command:
        return state.new_token(names.TOKEN_FILE)
    return state.token(names.TOKEN_FILE)


def join_token(config: SidecarConfig) -> str:
    """Return the controller's join token; empty without a controller.

    Raises:
        Denied: TOKEN_NOT_PRIVATE.
        Invalid: BAD_JOIN_TOKEN_FILE.
    """
    path = config.join_token_file
    try:
        return read_token(path) if path else ""
    except OSError as error:
        raise _bad_join_token(f"cannot read {path}: {error.strerror}") from error
    except Refused as error:
        raise _bad_join_token(f"{path} holds no token") from error


def _bad_join_token(what: str) -> Invalid:
    return Invalid(
        "BAD_JOIN_TOKEN_FILE",
        f"--join-token-file: {what}: name the file 'join-token' of the controller's"
        " state directory, or a copy of it",
    )


def towards_controller(config: SidecarConfig) -> grpc.ChannelCredentials | None:
    """Return TLS where we have an authority to trust; None is plaintext.

    Raises:
        Invalid: BAD_TLS_FILE.
    """
    if config.tls is None or config.tls.ca is None:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=read_secret(config.tls.ca, "--tls-ca"),
        private_key=read_secret(config.tls.key, "--tls-key"),
        certificate_chain=read_secret(config.tls.cert, "--tls-cert"),
    )
