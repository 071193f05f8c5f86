"""`make chaos`: kill each part ten times and time what works again, and when.

Before each fault the agent is put to sleep (but for its own death) and a call is
handed over as a letter. From the moment of the kill three clocks run until the
first good call through the relay, the first answer of the agent to a call that
has to wake it, and the delivery of the letter. Meanwhile a healthy upstream is
called all the time; the share of answers is kept. The killed part is started
again by this script at once, as a service manager would; the agent by its sidecar.
"""

import argparse
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from rich.progress import Progress

from bench.figures import Figure, keep, median, show
from outrigger.v1 import agent_pb2, fleet_service_pb2, letter_service_pb2
from outrigger.v1 import sidecar_service_pb2 as sidecar_pb
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub
from outrigger.v1.letter_service_pb2_grpc import LetterServiceStub
from outrigger.v1.sidecar_service_pb2_grpc import SidecarServiceStub
from tests.support.processes import ROOT, Running, Stack, operator, wait_for
from tests.support.redis_server import RedisServer

ROUNDS = 10
LIMIT_S = 30.0
DOWN_S = 1.0
STABLE_S = 10.0
PROBE_PAUSE_S = 0.02
AGENT = (sys.executable, "-P", str(ROOT / "examples" / "serving_agent.py"))


@dataclass(slots=True)
class Healthy:
    """Calls to the upstream that nobody harms."""

    call: Callable[[], object]
    asked: int = 0
    answered: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Call until stopped."""
        while not self._stop.wait(PROBE_PAUSE_S):
            self.asked += 1
            try:
                self.call()
            except grpc.RpcError:
                continue
            self.answered += 1

    def stop(self) -> None:
        """End it."""
        self._stop.set()


class Scene:
    """Everything that is there before a fault."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        folder = stack.folder / "redis"
        folder.mkdir()
        self.redis = RedisServer(folder).start()
        self.upstream = stack.upstream()
        self.healthy = stack.upstream("healthy")
        self.controller = stack.controller()
        self.sidecar = self.start_sidecar()
        api = stack.channel(self.sidecar.addresses["api_tcp"])
        self.api = SidecarServiceStub(api)
        self.letters = LetterServiceStub(api)
        self.fleet = FleetServiceStub(stack.channel(self.controller.addresses["admin"]))
        self.out = stack.channel(self.sidecar.addresses["outbound"])
        self.inward = stack.channel(self.sidecar.addresses["inbound"])
        self.token = operator(self.sidecar.state)
        self.admin = operator(self.controller.state)

    def close(self) -> None:
        """End what the stack does not own."""
        self.redis.kill()

    def start_sidecar(self) -> Running:
        """Start the sidecar, on the same ports as before."""
        controller = self.controller
        return self.stack.sidecar(
            "agent",
            "--upstream",
            f"default={self.upstream.target}",
            "--upstream",
            f"healthy={self.healthy.target}",
            "--controller",
            controller.addresses["connect"],
            "--join-token-file",
            str(controller.state / "join-token"),
            "--inbound",
            self._inbound(),
            "--redis",
            self.redis.url,
            command=AGENT,
        )

    def _inbound(self) -> str:
        known = getattr(self, "sidecar", None)
        return known.addresses["inbound"] if known else "127.0.0.1:0"

    def call(self) -> object:
        """Make one call to the upstream that is harmed."""
        return self.out.unary_unary("/test.Ledger/Call")(b"x", timeout=1)

    def call_healthy(self) -> object:
        """Make one call to the upstream that is not."""
        return self.out.unary_unary("/test.Ledger/Call")(
            b"h", timeout=1, metadata=(("outrigger-upstream", "healthy"),)
        )

    def call_agent(self) -> object:
        """Call the agent; wakes it."""
        return self.inward.unary_unary("/examples.Echo/Echo")(b"hello", timeout=20)

    def agent(self) -> agent_pb2.Agent:
        """Return the agent as its sidecar knows it."""
        request = sidecar_pb.GetSidecarRequest()
        return self.api.GetSidecar(request, metadata=self.token, timeout=2).agent

    def is_stable(self) -> bool:
        """Say whether the agent is awake for so long that its crashes are forgotten.

        Without that each round would wait out a longer pause before the restart.
        """
        agent = self.agent()
        awake_s = time.time() - agent.state_time.ToMicroseconds() / 1e6
        return agent.state == agent_pb2.Agent.STATE_AWAKE and awake_s > STABLE_S

    def sleep(self) -> None:
        """Put the agent to sleep and wait until its process is gone."""
        wait_for(lambda: self.agent().state == agent_pb2.Agent.STATE_AWAKE, "awake")
        self.api.SleepAgent(
            sidecar_pb.SidecarServiceSleepAgentRequest(reason="chaos"),
            metadata=self.token,
        )
        wait_for(lambda: self.agent().state == agent_pb2.Agent.STATE_ASLEEP, "asleep")

    def hand_over(self) -> str:
        """Hand a call over as a letter; return its key."""
        key = uuid.uuid4().hex
        self.letters.DeliverCall(
            letter_service_pb2.DeliverCallRequest(
                upstream="default",
                method="/test.Ledger/Call",
                request=b"letter",
                idempotency_key=key,
            ),
            metadata=self.token,
            timeout=5,
        )
        return key

    def delivered(self, key: str) -> bool:
        """Say whether the upstream wrote that key down."""
        return key in self.upstream.seen.read_text()

    def known(self) -> bool:
        """Say whether the controller knows the agent's state again."""
        found = self.fleet.GetAgent(
            fleet_service_pb2.GetAgentRequest(agent_id="agent"),
            metadata=self.admin,
            timeout=2,
        )
        return found.agent.state != agent_pb2.Agent.STATE_UNKNOWN


def kill_upstream(scene: Scene) -> str:
    """Kill the upstream; the letter is handed over while it is down."""
    scene.upstream.kill()
    return scene.hand_over()


def kill_sidecar(scene: Scene) -> str:
    """Kill the sidecar right after it acknowledged a letter."""
    key = scene.hand_over()
    scene.sidecar.kill()
    return key


def kill_agent(scene: Scene) -> str:
    """Kill the agent's process; its sidecar starts it again."""
    key = scene.hand_over()
    os.kill(scene.agent().pid, signal.SIGKILL)
    return key


def kill_controller(scene: Scene) -> str:
    """Kill the controller; the sidecar must find it again."""
    key = scene.hand_over()
    scene.controller.kill()
    return key


def kill_redis(scene: Scene) -> str:
    """Kill Redis, the letters' second copy."""
    key = scene.hand_over()
    scene.redis.kill()
    return key


def start_upstream(scene: Scene) -> None:
    """Start it on the same port after a while."""
    time.sleep(DOWN_S)
    scene.upstream = scene.stack.upstream(port=scene.upstream.port)


def start_sidecar(scene: Scene) -> None:
    """Start it at once."""
    scene.sidecar = scene.start_sidecar()


def start_controller(scene: Scene) -> None:
    """Start it at once."""
    scene.controller = scene.stack.controller()


def start_redis(scene: Scene) -> None:
    """Start it on the same port after a while."""
    time.sleep(DOWN_S)
    scene.redis.start()


def start_nothing(_scene: Scene) -> None:
    """Leave that to the sidecar."""


FAULTS = {
    "sidecar": (kill_sidecar, start_sidecar),
    "agent": (kill_agent, start_nothing),
    "controller": (kill_controller, start_controller),
    "upstream": (kill_upstream, start_upstream),
    "redis": (kill_redis, start_redis),
}


def round_of(scene: Scene, name: str) -> tuple[dict[str, float], float]:
    """Return the times to recovery and the share of healthy calls answered."""
    if name == "agent":
        scene.call_agent()
        wait_for(scene.is_stable, "an agent awake for a while")
    else:
        scene.sleep()
    healthy = Healthy(scene.call_healthy)
    caller = threading.Thread(target=healthy.run)
    caller.start()
    kill, restart = FAULTS[name]
    began = time.monotonic()
    try:
        times = _recovered(scene, kill(scene), began, restart)
    finally:
        healthy.stop()
        caller.join()
    return times, healthy.answered / max(healthy.asked, 1)


def _recovered(
    scene: Scene, key: str, began: float, restart: Callable[[Scene], None]
) -> dict[str, float]:
    checks: dict[str, Callable[[], object]] = {
        "first good call": scene.call,
        "first answer of the agent": scene.call_agent,
        "letter delivered": lambda: scene.delivered(key),
        "controller knows the agent": scene.known,
    }
    times: dict[str, float] = {}

    def watch(what: str) -> None:
        wait_for(checks[what], what, timeout_s=2 * LIMIT_S)
        times[what] = time.monotonic() - began

    watchers = [threading.Thread(target=watch, args=(what,)) for what in checks]
    for watcher in watchers:
        watcher.start()
    restart(scene)
    for watcher in watchers:
        watcher.join()
    if len(times) != len(checks):
        missing = ", ".join(sorted(set(checks) - set(times)))
        raise SystemExit(f"not recovered after {2 * LIMIT_S:g} s: {missing}")
    return {what: times[what] for what in checks}


def figures_of(name: str, rounds: list[tuple[dict[str, float], float]]) -> list[Figure]:
    """Return the figures of one fault."""
    found = []
    for what in rounds[0][0]:
        values = [times[what] for times, _ in rounds]
        found.append(
            Figure(
                f"kill -9 {name}",
                f"{what}: p50 of {len(rounds)}",
                median(values),
                "s",
                f"max {max(values):.2f} s",
                bound="max < 30 s",
                holds=max(values) < LIMIT_S,
            )
        )
    share = min(share for _, share in rounds)
    found.append(
        Figure(
            f"kill -9 {name}",
            "calls to a healthy upstream answered meanwhile, worst round",
            share * 100,
            "%",
        )
    )
    return found


def main() -> int:
    """Kill and measure; exit 1 if a bound does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench.chaos")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=FAULTS, action="append")
    args = parser.parse_args()
    chosen = args.only or list(FAULTS)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, Progress() as progress:
        task = progress.add_task("killing", total=len(chosen) * args.rounds)
        with Stack(Path(folder)) as stack:
            scene = Scene(stack)
            try:
                for name in chosen:
                    rounds = []
                    for _ in range(args.rounds):
                        progress.update(task, description=f"kill -9 {name}")
                        rounds.append(round_of(scene, name))
                        progress.advance(task)
                    figures.extend(figures_of(name, rounds))
            finally:
                scene.close()
    show("Time from the kill to recovery", figures)
    if chosen == list(FAULTS):
        keep("chaos", f"make chaos (--rounds {args.rounds})", figures)
    return int(any(figure.holds is False for figure in figures))


if __name__ == "__main__":
    raise SystemExit(main())
