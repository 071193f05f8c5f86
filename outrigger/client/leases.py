"""Keep-awake leases: held by renewing, let go by ending or by dying."""

import logging
import threading
from typing import Final

import grpc
from google.protobuf.duration_pb2 import Duration

from outrigger.client.errors import error_of
from outrigger.client.surroundings import CallIn, Pending
from outrigger.core.errors import Invalid
from outrigger.v1.attach_service_pb2 import KeepAwakeRequest, ReleaseKeepAwakeRequest
from outrigger.v1.attach_service_pb2_grpc import AttachServiceStub

_log = logging.getLogger("outrigger.client")

_TIMEOUT_S: Final = 10.0
_RENEWALS_PER_TTL: Final = 3
"""Two renewals may fail before the lease is lost."""


class Lease:
    """One lease. It is renewed until it is released, or the process is gone."""

    def __init__(
        self,
        stub: AttachServiceStub,
        metadata: tuple[tuple[str, str], ...],
        call_in: CallIn,
    ) -> None:
        self._stub = stub
        self._metadata = metadata
        self._call_in = call_in
        self._lock = threading.Lock()
        self._request = KeepAwakeRequest()
        self._next: Pending | None = None
        self._released = False

    def take(self, ttl_s: float, reason: str) -> None:
        """Take the lease.

        Raises:
            OutriggerError: what the sidecar answered.
        """
        ttl = Duration()
        ttl.FromMilliseconds(int(ttl_s * 1000))
        self._request = KeepAwakeRequest(ttl=ttl, reason=reason)
        try:
            self._ask()
        except grpc.RpcError as error:
            raise error_of(error) from error
        self._schedule()

    def release(self) -> None:
        """End the lease. One that cannot be ended now ends by itself."""
        with self._lock:
            self._released = True
            if self._next is not None:
                self._next.cancel()
        self._let_go()

    def _renew(self) -> None:
        try:
            self._ask()
        except grpc.RpcError as error:
            problem = error_of(error)
            _log.warning("a keep-awake lease was not renewed: %r", problem)
            if isinstance(problem, Invalid):
                # A sidecar that was restarted may not know it: take a new one.
                self._request.lease_id = ""
        self._schedule()
        if self._released:
            # Released while this renewal was under way, which took it again.
            self._let_go()

    def _ask(self) -> None:
        answer = self._stub.KeepAwake(
            self._request, timeout=_TIMEOUT_S, metadata=self._metadata
        )
        self._request.lease_id = answer.lease_id

    def _schedule(self) -> None:
        pause_s = self._request.ttl.ToMilliseconds() / 1000 / _RENEWALS_PER_TTL
        with self._lock:
            if not self._released:
                self._next = self._call_in(self._renew, pause_s)

    def _let_go(self) -> None:
        request = ReleaseKeepAwakeRequest(lease_id=self._request.lease_id)
        try:
            self._stub.ReleaseKeepAwake(
                request, timeout=_TIMEOUT_S, metadata=self._metadata
            )
        except grpc.RpcError as error:
            _log.warning("a keep-awake lease was not released: %r", error_of(error))
