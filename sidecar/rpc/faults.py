"""FaultService: what is to go wrong on purpose, for operators who were let."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import grpc.aio

from outrigger.core.access import Role, Rule
from outrigger.core.clock import Clock
from outrigger.core.errors import NotFound, Refused
from outrigger.core.rpc.events import timestamp
from outrigger.v1 import fault_pb2, fault_service_pb2_grpc
from outrigger.v1 import fault_service_pb2 as pb
from sidecar.call.faults import FaultLayer
from sidecar.policy.fault import FaultRule, FaultView
from sidecar.rpc.wire import duration, page_after, page_size, page_token

_SERVICE: Final = "/outrigger.v1.FaultService/"
_OPERATORS: Final = frozenset({Role.OPERATOR})
ACCESS: Final = {
    _SERVICE + "InjectFault": Rule(roles=_OPERATORS, mutating=True),
    _SERVICE + "ListFaults": Rule(roles=_OPERATORS),
    _SERVICE + "ClearFaults": Rule(roles=_OPERATORS, mutating=True),
}
_KINDS: Final = {
    "delay": fault_pb2.Fault.KIND_DELAY,
    "abort": fault_pb2.Fault.KIND_ABORT,
    "drop": fault_pb2.Fault.KIND_DROP,
}
_WORDS: Final = {number: word for word, number in _KINDS.items()}

_Context = grpc.aio.ServicerContext[Any, Any]


class FaultServicer(fault_service_pb2_grpc.FaultServiceServicer):
    """Serves the faults of one guard."""

    def __init__(
        self,
        layer: FaultLayer,
        clock: Clock,
        *,
        allowed: bool,
        upstreams: Collection[str],
    ) -> None:
        """Prepare.

        Args:
            layer: puts faults into the guard.
            clock: that of the layer.
            allowed: the sidecar was started with --allow-faults.
            upstreams: names that a fault may be for.
        """
        self._layer = layer
        self._clock = clock
        self._allowed = allowed
        self._upstreams = upstreams

    async def InjectFault(
        self, request: pb.InjectFaultRequest, context: _Context
    ) -> pb.InjectFaultResponse:
        """Put a fault in force."""
        self._check_allowed()
        rule = _rule(request.fault)
        self._check_upstream(rule)
        if request.validate_only:
            return pb.InjectFaultResponse(fault=_of_rule(rule))
        return pb.InjectFaultResponse(fault=self._message(self._layer.inject(rule)))

    async def ListFaults(
        self, request: pb.ListFaultsRequest, context: _Context
    ) -> pb.ListFaultsResponse:
        """Return a page of the faults in force, oldest first."""
        self._check_allowed()
        size = page_size(request.page_size)
        after = _age(page_after(request.page_token))
        views = sorted(self._layer.views(), key=lambda view: _age(view.fault_id))
        rest = [view for view in views if _age(view.fault_id) > after]
        page = rest[:size]
        token = page_token(page[-1].fault_id) if len(rest) > size else ""
        return pb.ListFaultsResponse(
            faults=[self._message(view) for view in page], next_page_token=token
        )

    async def ClearFaults(
        self, request: pb.ClearFaultsRequest, context: _Context
    ) -> pb.ClearFaultsResponse:
        """End one fault, or all."""
        self._check_allowed()
        if request.fault_id:
            self._clear(request.fault_id, validate_only=request.validate_only)
            return pb.ClearFaultsResponse(cleared_count=1)
        count = len(self._layer.views())
        if not request.validate_only:
            count = self._layer.clear_all()
        return pb.ClearFaultsResponse(cleared_count=count)

    def _clear(self, fault_id: str, *, validate_only: bool) -> None:
        if not validate_only:
            self._layer.clear(fault_id)
        elif fault_id not in {view.fault_id for view in self._layer.views()}:
            raise NotFound(
                "UNKNOWN_FAULT",
                f"there is no fault {fault_id!r}, or no longer: list those in force",
                metadata={"fault": fault_id},
            )

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise Refused(
                "FAULTS_NOT_ALLOWED",
                "this sidecar makes nothing go wrong on purpose: start it with"
                " --allow-faults, and not where the work of others depends on it",
            )

    def _check_upstream(self, rule: FaultRule) -> None:
        if rule.upstream is not None and rule.upstream not in self._upstreams:
            raise NotFound(
                "UNKNOWN_UPSTREAM",
                f"there is no upstream {rule.upstream!r}: name one of"
                f" {', '.join(sorted(self._upstreams))}, or none for any",
                metadata={"upstream": rule.upstream},
            )

    def _message(self, view: FaultView) -> fault_pb2.Fault:
        message = _of_rule(view.rule)
        message.name = f"faults/{view.fault_id}"
        message.fault_id = view.fault_id
        left_s = view.expires - self._clock.monotonic()
        message.expire_time.CopyFrom(timestamp(self._clock.wall() + left_s))
        message.matched_count = view.matched
        message.hit_count = view.hit
        return message


def _rule(message: fault_pb2.Fault) -> FaultRule:
    """Return the rule that is asked for.

    Raises:
        Invalid: BAD_FAULT, naming every mistake.
    """
    return FaultRule(
        match=message.match,
        kind=_WORDS.get(message.kind, ""),
        ttl_s=message.ttl.ToMicroseconds() / 1_000_000,
        upstream=message.upstream or None,
        share=message.share or 1.0,
        delay_s=message.delay.ToMicroseconds() / 1_000_000,
        code=message.status_code,
        message=message.message,
    )


def _of_rule(rule: FaultRule) -> fault_pb2.Fault:
    return fault_pb2.Fault(
        match=rule.match,
        upstream=rule.upstream or "",
        kind=_KINDS[rule.kind],
        share=rule.share,
        delay=duration(rule.delay_s) if rule.delay_s else None,
        status_code=rule.code,
        message=rule.message,
        ttl=duration(rule.ttl_s),
    )


def _age(fault_id: str) -> tuple[int, str]:
    """Return what sorts ids by the order they were given in: fault-9, fault-10."""
    return len(fault_id), fault_id
