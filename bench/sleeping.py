"""Sleep and wake of a real agent: the RPC's answer, and the work's end."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bench.figures import Figure, median, percentile
from outrigger.v1 import agent_pb2
from outrigger.v1 import sidecar_service_pb2 as pb
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import ROOT, Stack, operator, wait_for

ROUNDS = 10
RPC_LIMIT_S = 2.0
AGENT = (sys.executable, "-P", str(ROOT / "examples" / "echo_agent.py"))


def measure(folder: Path) -> Iterator[Figure]:
    """Yield RPC and completion times."""
    with Stack(folder) as stack:
        sidecar = stack.sidecar("sleeper", upstream="127.0.0.1:1", command=AGENT)
        stub = SidecarServiceStub(stack.channel(sidecar.addresses["api_tcp"]))
        token = operator(sidecar.state)

        def reached(state: int) -> bool:
            found = stub.GetSidecar(pb.GetSidecarRequest(), metadata=token)
            return found.agent.state == state

        wait_for(lambda: reached(agent_pb2.Agent.STATE_AWAKE), "awake")
        rounds = [_round(stub, token, reached) for _ in range(ROUNDS)]
    sleep_rpc, asleep, wake_rpc, awake = zip(*rounds, strict=True)
    yield _rpc("SleepAgent answers", sleep_rpc)
    yield _rpc("WakeAgent answers", wake_rpc)
    yield Figure("sleep", "asleep, process gone, p50", median(asleep), "s")
    yield Figure("sleep", "awake, state proven, p50", median(awake), "s")
    yield Figure("sleep", "awake, state proven, max", max(awake), "s")


def _rpc(what: str, times: tuple[float, ...]) -> Figure:
    worst = percentile(times, 0.99)
    return Figure(
        "sleep",
        f"{what}, p99 of {len(times)}",
        worst,
        "s",
        bound="< 2 s",
        holds=worst < RPC_LIMIT_S,
    )


def _round(
    stub: SidecarServiceStub, token: tuple, reached: object
) -> tuple[float, float, float, float]:
    began = time.perf_counter()
    stub.SleepAgent(pb.SidecarServiceSleepAgentRequest(reason="bench"), metadata=token)
    sleep_rpc = time.perf_counter() - began
    wait_for(lambda: reached(agent_pb2.Agent.STATE_ASLEEP), "asleep")
    asleep = time.perf_counter() - began
    began = time.perf_counter()
    stub.WakeAgent(pb.SidecarServiceWakeAgentRequest(reason="bench"), metadata=token)
    wake_rpc = time.perf_counter() - began
    wait_for(lambda: reached(agent_pb2.Agent.STATE_AWAKE), "awake")
    return sleep_rpc, asleep, wake_rpc, time.perf_counter() - began
