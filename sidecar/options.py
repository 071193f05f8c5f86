"""The options of a sidecar: each is a flag, a variable and a TOML key."""

from typing import Final

from outrigger.core import names, values
from outrigger.core.config import CONFIG_OPTION, REQUIRED, Option
from outrigger.core.ids import check_agent_id
from sidecar.call.standing import UpstreamPolicy
from sidecar.policy.letter import LetterLimits
from sidecar.policy_config import ADAPTIVE, FIXED
from sidecar.wire.options import WireOptions

_POLICY: Final = UpstreamPolicy()
_SLEEP_MODES: Final = ("process", "freeze")

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
        "queue",
        values.between(values.integer, 0),
        _POLICY.queue,
        "Most calls per upstream that wait for a place.",
        "COUNT",
    ),
    Option(
        "queue_max_s",
        values.between(values.seconds, 0.001),
        _POLICY.queue_max_s,
        "Longest that one waits.",
        "TIME",
    ),
    Option(
        "limit",
        values.choice(FIXED, ADAPTIVE),
        FIXED,
        "fixed: at most --concurrency calls; adaptive: learnt from how long they take.",
        "KIND",
    ),
    Option(
        "replay_bytes",
        values.between(values.size_bytes, 0, LetterLimits().max_request_bytes),
        WireOptions().replay_bytes,
        "Most of a request that is kept for a retry or a letter.",
        "SIZE",
    ),
    Option(
        "allow_faults",
        values.boolean,
        False,
        "Operators may inject faults into the agent's calls.",
    ),
    Option(
        "outbound_token",
        values.boolean,
        False,
        "Calls that arrive at --outbound must bring the agent's token.",
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
