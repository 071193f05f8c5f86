"""The demo's own gRPC services, described in code.

They speak in google.protobuf types only, so that they need no proto of their own;
the descriptor is made here and put into the default pool, where reflection finds
it and grpcurl with it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct
from google.protobuf.wrappers_pb2 import StringValue
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

PACKAGE: Final = "outrigger.demo"
TOOLS: Final = f"{PACKAGE}.Tools"
INDEX: Final = f"{PACKAGE}.Index"


@dataclass(frozen=True, slots=True)
class Method:
    """One method: where it is and what it takes. All answer with a Struct."""

    service: str
    name: str
    request: type[Message]
    streams: bool = False

    @property
    def path(self) -> str:
        """Full name, "/package.Service/Method"."""
        return f"/{self.service}/{self.name}"

    def on(self, channel: grpc.Channel) -> Callable[..., Any]:
        """Return the method as a function on a channel."""
        make = channel.unary_stream if self.streams else channel.unary_unary
        return make(
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=Struct.FromString,
        )


ANALYZE: Final = Method(TOOLS, "Analyze", StringValue)
"""Count the words of a passage and name the commonest."""
TERMS: Final = Method(TOOLS, "Terms", StringValue, streams=True)
"""Every word of a passage with its count, commonest first, one by one."""
SEEN: Final = Method(TOOLS, "Seen", Empty)
"""How many different idempotency keys came, and how many calls."""
LOOKUP: Final = Method(INDEX, "Lookup", StringValue)
"""The passages that hold a word."""
DIGEST: Final = Method(INDEX, "Digest", Empty)
"""What the index holds and the digest of its state."""

_METHODS: Final = (ANALYZE, TERMS, SEEN, LOOKUP, DIGEST)


def struct(**fields: Any) -> Struct:  # noqa: ANN401 - whatever JSON can hold
    """Return the fields as a Struct."""
    made = Struct()
    made.update(fields)
    return made


def serve(
    server: grpc.Server, handlers: Mapping[Method, Callable[[Any, Any], Any]]
) -> None:
    """Add the handlers, and reflection for their services, to a server."""
    _describe()
    services = sorted({method.service for method in handlers})
    for service in services:
        rows = {
            method.name: _handler(method, function)
            for method, function in handlers.items()
            if method.service == service
        }
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, rows),)
        )
    reflection.enable_server_reflection((*services, reflection.SERVICE_NAME), server)


def _handler(method: Method, function: Callable[[Any, Any], Any]) -> Any:  # noqa: ANN401 - grpc's handler types are generic over both messages
    make = (
        grpc.unary_stream_rpc_method_handler
        if method.streams
        else grpc.unary_unary_rpc_method_handler
    )
    return make(
        function,
        request_deserializer=method.request.FromString,
        response_serializer=Struct.SerializeToString,
    )


def _describe() -> None:
    pool = descriptor_pool.Default()
    file = descriptor_pb2.FileDescriptorProto(
        name="outrigger/demo/demo.proto",
        package=PACKAGE,
        syntax="proto3",
        dependency=[
            "google/protobuf/empty.proto",
            "google/protobuf/struct.proto",
            "google/protobuf/wrappers.proto",
        ],
    )
    for service in (TOOLS, INDEX):
        described = file.service.add(name=service.rpartition(".")[2])
        for method in _METHODS:
            if method.service == service:
                described.method.add(
                    name=method.name,
                    input_type=f".{method.request.DESCRIPTOR.full_name}",
                    output_type=f".{Struct.DESCRIPTOR.full_name}",
                    server_streaming=method.streams,
                )
    pool.AddSerializedFile(file.SerializeToString())
