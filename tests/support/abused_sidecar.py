"""A sidecar process that bad callers are let loose on, and what it weighs."""

import asyncio
import contextlib

import grpc
import grpc.aio
import psutil

from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.circuit_service_pb2 import ListCircuitsRequest
from outrigger.v1.circuit_service_pb2_grpc import CircuitServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.echo_upstream import until
from tests.support.processes import operator

METHOD = "/test.Ledger/Call"
PATIENCE_S = 30
_OK = grpc.StatusCode.OK
OWN = 3
"""Its connections to upstreams that were away come and go by themselves."""
GROWN_BYTES = 128 << 20
"""Most by which its memory may grow; each abuse would grow it far more if kept."""


class Abused:
    """A sidecar with upstreams `default`, `hole` (the same) and `flood`."""

    def __init__(self, stack):
        good = stack.upstream()
        self.flood = f"unix:{stack.folder}/flood.sock"
        self.running = stack.sidecar(
            "abused",
            *("--upstream", f"default={good.target}"),
            *("--upstream", f"hole={good.target}"),
            *("--upstream", f"flood={self.flood}"),
        )
        self.address = self.running.addresses["outbound"]
        self.process = psutil.Process(self.running.pid)
        api = stack.channel(self.running.addresses["api_tcp"])
        self._sidecar, self._circuits = SidecarServiceStub(api), CircuitServiceStub(api)
        self._token = operator(self.running.state)
        # What is open for good is open before anything is counted.
        self.in_flight()
        call = stack.channel(self.address).unary_unary(METHOD)
        for name in ("default", "hole"):
            call(b"x", timeout=20, metadata=(("outrigger-upstream", name),))

    def memory(self):
        """Return resident bytes."""
        return self.process.memory_info().rss

    def connections(self):
        """Return how many sockets it has open."""
        return len(self.process.net_connections("all"))

    def in_flight(self):
        """Return the calls its guard has in flight."""
        request = sidecar_pb.GetSidecarRequest()
        found = self._sidecar.GetSidecar(request, metadata=self._token, timeout=20)
        return found.calls.in_flight_count

    def circuits(self):
        """Return the ids of the circuits its guard keeps."""
        found, token = [], ""
        while True:
            page = self._circuits.ListCircuits(
                ListCircuitsRequest(page_size=1000, page_token=token),
                metadata=self._token,
                timeout=20,
            )
            found += [circuit.circuit_id for circuit in page.circuits]
            token = page.next_page_token
            if not token:
                return found

    async def serve_others(self):
        """Call the good upstream again and again, until cancelled."""
        async with grpc.aio.insecure_channel(self.address) as channel:
            call = channel.unary_unary(METHOD)
            while True:
                assert await call(b"other", timeout=PATIENCE_S) == b"other"
                await asyncio.sleep(0.005)

    async def reaches(self, upstream):
        """Call an upstream until it answers."""
        metadata = (("outrigger-upstream", upstream),)
        async with (
            asyncio.timeout(PATIENCE_S),
            grpc.aio.insecure_channel(self.address) as channel,
        ):
            call = channel.unary_unary("/test.v1.Echo/Echo")
            while await call(b"", timeout=5, metadata=metadata).code() is not _OK:
                await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def abused(self):
        """Meanwhile others are served; afterwards nothing of it is left."""
        memory, connections = self.memory(), self.connections()
        others = asyncio.create_task(self.serve_others())
        try:
            yield
            assert not others.done(), others.exception()
        finally:
            others.cancel()
            await asyncio.gather(others, return_exceptions=True)
        await until(lambda: self.in_flight() == 0, PATIENCE_S)
        await until(lambda: self.connections() <= connections + OWN, PATIENCE_S)
        assert self.memory() - memory < GROWN_BYTES
        assert self.running.process.poll() is None
        log = self.running.text()
        assert "Traceback" not in log
        assert "xception" not in log
