"""Real gRPC servers whose every answer a test writes down beforehand."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from outrigger.core.errors import OutriggerError, Unauthenticated
from outrigger.core.rpc.errors import details_metadata, status_code
from outrigger.core.state_dir import StateDirectory
from outrigger.v1 import (
    checkpoint_service_pb2,
    checkpoint_service_pb2_grpc,
    circuit_service_pb2,
    circuit_service_pb2_grpc,
    fault_service_pb2,
    fault_service_pb2_grpc,
    fleet_service_pb2,
    fleet_service_pb2_grpc,
    letter_service_pb2,
    letter_service_pb2_grpc,
    sidecar_service_pb2,
    sidecar_service_pb2_grpc,
    tap_service_pb2,
    tap_service_pb2_grpc,
    upstream_service_pb2,
    upstream_service_pb2_grpc,
)

_SERVICES = {
    "CheckpointService": (checkpoint_service_pb2, checkpoint_service_pb2_grpc),
    "CircuitService": (circuit_service_pb2, circuit_service_pb2_grpc),
    "FaultService": (fault_service_pb2, fault_service_pb2_grpc),
    "FleetService": (fleet_service_pb2, fleet_service_pb2_grpc),
    "LetterService": (letter_service_pb2, letter_service_pb2_grpc),
    "SidecarService": (sidecar_service_pb2, sidecar_service_pb2_grpc),
    "TapService": (tap_service_pb2, tap_service_pb2_grpc),
    "UpstreamService": (upstream_service_pb2, upstream_service_pb2_grpc),
}


@dataclass(frozen=True)
class Seen:
    """A call as the server got it; a stream of requests is a list."""

    method: str
    request: Any
    metadata: dict[str, Any]


class ScriptedApi:
    """A sidecar's or a controller's API on loopback, a socket and a state directory.

    `answers` maps "Service.Method" to a response, an OutriggerError, a function of
    the request that returns one of these, or a list of responses for a stream,
    where an error may stand among them. A list under a unary method is its answers
    in order, the last one again and again. A method without an answer is
    unimplemented, as for any other server.
    """

    def __init__(self, state: Path, announce: Callable[[int], dict[str, object]]):
        self.answers: dict[str, Any] = {}
        self.seen: list[Seen] = []
        self.stopping = threading.Event()
        self.state = state
        with StateDirectory(state) as directory:
            self.token = directory.token("admin-token")
            self._server = grpc.server(ThreadPoolExecutor(4))
            for service in _SERVICES:
                self._add(service)
            self.port = self._server.add_insecure_port("127.0.0.1:0")
            self._server.add_insecure_port(f"unix:{state}/api.sock")
            directory.announce(announce(self.port))
        self._server.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def last(self, method: str) -> Seen:
        return next(seen for seen in reversed(self.seen) if seen.method == method)

    def close(self) -> None:
        self.stopping.set()
        self._server.stop(None).wait()

    def _add(self, service: str) -> None:
        pb2, grpc_module = _SERVICES[service]
        base = getattr(grpc_module, f"{service}Servicer")
        methods = pb2.DESCRIPTOR.services_by_name[service].methods
        body = {method.name: self._handler(service, method) for method in methods}
        servicer = type(f"Scripted{service}", (base,), body)()
        getattr(grpc_module, f"add_{service}Servicer_to_server")(servicer, self._server)

    def _handler(self, service: str, method: Any) -> Callable[..., Any]:
        name = f"{service}.{method.name}"

        def unary(_self: object, request: Any, context: grpc.ServicerContext) -> Any:
            answer = self._answer(name, request, context)
            if isinstance(answer, list):
                answer = answer.pop(0) if len(answer) > 1 else answer[0]
            return self._say(answer, context)

        def stream(
            _self: object, request: Any, context: grpc.ServicerContext
        ) -> Iterator[Any]:
            for item in self._answer(name, request, context):
                yield self._say(item, context)

        return stream if method.server_streaming else unary

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        metadata = dict(context.invocation_metadata())
        requests = request if hasattr(request, "DESCRIPTOR") else list(request)
        self.seen.append(Seen(name, requests, metadata))
        if metadata.get("outrigger-token") != self.token:
            self._say(Unauthenticated("BAD_TOKEN", "the token is not known"), context)
        answer = self.answers.get(name)
        if callable(answer):
            answer = answer(requests)
        if answer is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no answer is scripted")
        return answer

    def _say(self, answer: Any, context: grpc.ServicerContext) -> Any:
        if isinstance(answer, OutriggerError):
            context.set_trailing_metadata(details_metadata(answer))
            context.abort(status_code(answer), answer.message)
        return answer


def scripted_sidecar(state: Path) -> ScriptedApi:
    """Start the API of a sidecar."""
    return ScriptedApi(
        state,
        lambda port: {"api": f"unix:{state}/api.sock", "api_tcp": f"127.0.0.1:{port}"},
    )


def scripted_controller(state: Path) -> ScriptedApi:
    """Start the API of a controller, with the sidecars' services passed through."""
    return ScriptedApi(state, lambda port: {"admin": f"127.0.0.1:{port}"})
