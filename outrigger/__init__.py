"""Outrigger: a gRPC sidecar for agents, its controller, client and command."""

__version__ = "0.1.0"
