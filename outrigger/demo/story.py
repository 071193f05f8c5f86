"""The story the demo plays, step by step, on real processes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from outrigger.core.clock import SystemClock
from outrigger.core.errors import TimedOut
from outrigger.core.names import JOIN_TOKEN_FILE
from outrigger.demo.passages import corpus
from outrigger.demo.peers import ControllerPeer, SidecarPeer, ToolPeer
from outrigger.demo.processes import Processes, is_alive
from outrigger.demo.screen import Screen, mib
from outrigger.demo.verdict import AgentFacts, Facts
from outrigger.v1.agent_pb2 import Agent

AGENTS: Final = 3
_PACE_S: Final = 0.09
"""Between two passages of an agent: about twenty seconds of work each."""
_KILL_AT_RATIO: Final = 0.25
"""Share of the passages after which the tool server is killed."""
_OUTAGE_S: Final = 6.0
_IDLE_S: Final = 2.0
_TICK_S: Final = 0.3
_START_LIMIT_S: Final = 20.0
_WORK_LIMIT_S: Final = 45.0
_MOVE_LIMIT_S: Final = 15.0
_WHOLE_LIMIT_S: Final = 57.0
"""The demo ends within a minute, well or not."""
_WORD: Final = "light"


class Story:
    """Starts the processes, plays, and collects what they say of themselves."""

    def __init__(
        self, folder: Path, processes: Processes, screen: Screen, clock: SystemClock
    ) -> None:
        self._folder = folder
        self._processes = processes
        self._screen = screen
        self._clock = clock
        self._end = clock.monotonic() + _WHOLE_LIMIT_S
        self._open = ExitStack()
        self.sidecars: list[SidecarPeer] = []
        self.facts = Facts(total=len(corpus()))

    def close(self) -> None:
        """Close the channels."""
        self._open.close()

    def begin(self, redis: str | None) -> None:
        """Start the controller, the tool server and the agents with their sidecars."""
        self.facts.redis = redis is not None
        processes = self._processes
        module = "outrigger.cli.main"
        processes.start(
            "controller", module, "controller", "--state", self._state("controller"),
            "--listen", "127.0.0.1:0", "--connect", "127.0.0.1:0",
            "--report-interval-s", "0.5",
        )  # fmt: skip
        self._start_tool("127.0.0.1:0")
        addresses = processes.addresses("controller", _START_LIMIT_S)
        state = self._folder / "controller"
        self.controller = self._open.enter_context(ControllerPeer(state, addresses))
        self._tool_address = self._tool_listens()
        self.tool = self._open.enter_context(ToolPeer(self._tool_address))
        names = [f"reader-{number}" for number in range(1, AGENTS + 1)]
        for number, name in enumerate(names, start=1):
            self._start_sidecar(number, name, redis)
        for name in names:
            found = processes.addresses(name, _START_LIMIT_S)
            peer = SidecarPeer(self._folder / name, found)
            self.sidecars.append(self._open.enter_context(peer))
        self.facts.agents = [AgentFacts(name) for name in names]
        self._until(lambda: self._all_in(Agent.STATE_AWAKE), "all awake")
        self._screen.say(
            f"a controller, a tool server and {AGENTS} agents with their sidecars are"
            f" up; {self.facts.total} passages to read"
        )

    def read(self) -> None:
        """Let the agents read; kill the tool server meanwhile and bring it back."""
        back_at = None
        deadline = self._deadline(_WORK_LIMIT_S)
        while not self._has_read():
            now = self._clock.monotonic()
            if not self.facts.kills and self._is_time_to_kill():
                self._processes.kill("tools")
                self.facts.kills += 1
                back_at = now + _OUTAGE_S
                self._screen.say("the tool server is killed with SIGKILL")
            elif back_at is not None and now >= back_at:
                back_at = None
                self._start_tool(self._tool_address)
                self._screen.say("the tool server is started again")
            if now > deadline:
                raise _stalled("every passage read and every letter delivered")
            self._clock.pause(_TICK_S)
        self._screen.say("every passage is read, every letter delivered")

    def sleep(self) -> None:
        """Put the idle agents to sleep and look whether they are gone."""
        for peer, agent in self._pairs():
            held = peer.digest()
            agent.digest_before = str(held["digest"])
            agent.passages = int(held["passages"])
            agent.letters = int(held["letters"])
        self._clock.pause(_IDLE_S)
        for agent, known in self._known():
            agent.pids = (known.pid,)
            agent.awake_bytes = known.load.rss_bytes
            self.controller.sleep(agent.name)
        self._until(lambda: self._all_in(Agent.STATE_ASLEEP), "all asleep")
        for agent, known in self._known():
            agent.survived_sleep = is_alive(agent.pids[0])
            agent.digest_saved = known.state_digest.hex()
        self._until(self._memory_is_free, "a report without memory")
        freed = mib(sum(agent.awake_bytes for agent in self.facts.agents))
        self._screen.say(f"all agents are asleep, their processes gone: {freed} MiB")

    def wake(self) -> None:
        """Wake one agent by calling it and the others by command."""
        first, *others = self.sidecars
        began = self._clock.monotonic()
        count = first.lookup(_WORD)
        took_s = self._clock.monotonic() - began
        self.facts.answered_from_sleep = count > 0
        self._screen.say(
            f"a call for {first.name} woke it: {_WORD!r} occurs {count} times,"
            f" answered in {took_s:.1f} s"
        )
        for peer in others:
            self.controller.wake(peer.name)
        self._until(lambda: self._all_in(Agent.STATE_AWAKE), "all awake again")
        for (peer, agent), (_, known) in zip(self._pairs(), self._known(), strict=True):
            agent.digest_after = str(peer.digest()["digest"])
            agent.digest_woken = known.woken_digest.hex()
            agent.pids = (*agent.pids, known.pid)
            agent.wake_s = known.last_wake_s
        self._look()
        self._note_seen()
        self._screen.say("all agents are awake again")

    def _start_tool(self, listen: str) -> None:
        port_file = self._folder / "tools.port"
        port_file.unlink(missing_ok=True)
        self._processes.start(
            "tools", "outrigger.demo.tool_server", "--listen", listen,
            "--port-file", str(port_file), "--seen", str(self._folder / "tools.seen"),
        )  # fmt: skip

    def _tool_listens(self) -> str:
        path = self._folder / "tools.port"
        port = self._processes.wait_for(
            "tools",
            "port",
            lambda: path.read_text().strip() if path.exists() else None,
            _START_LIMIT_S,
        )
        return f"127.0.0.1:{port}"

    def _start_sidecar(self, number: int, name: str, redis: str | None) -> None:
        shared = () if redis is None else ("--redis", redis)
        self._processes.start(
            name, "outrigger.cli.main", "sidecar", "--agent-id", name,
            "--group", "demo", "--upstream", f"tools={self._tool_address}",
            "--controller", self.controller.connect,
            "--join-token-file", str(self._folder / "controller" / JOIN_TOKEN_FILE),
            "--outbound", "127.0.0.1:0", "--api", "127.0.0.1:0",
            "--inbound", "127.0.0.1:0", "--state", self._state(name),
            "--report-interval-s", "0.5", *shared,
            "--", sys.executable, "-P", "-m", "outrigger.demo.agent",
            "--share", f"{number}/{AGENTS}", "--pace-s", str(_PACE_S),
        )  # fmt: skip

    def _state(self, name: str) -> str:
        return str(self._folder / name)

    def _pairs(self) -> Iterator[tuple[SidecarPeer, AgentFacts]]:
        return zip(self.sidecars, self.facts.agents, strict=True)

    def _known(self) -> list[tuple[AgentFacts, Agent]]:
        known = self.controller.agents()
        return [(agent, known[agent.name]) for agent in self.facts.agents]

    def _all_in(self, state: Agent.State.ValueType) -> bool:
        known = self.controller.agents()
        return len(known) == AGENTS and all(
            agent.state == state for agent in known.values()
        )

    def _memory_is_free(self) -> bool:
        known = self._known()
        for agent, now in known:
            agent.asleep_bytes = now.load.rss_bytes
        return not any(agent.asleep_bytes for agent, _ in known)

    def _is_time_to_kill(self) -> bool:
        self._note_seen()
        return self.facts.seen_distinct >= self.facts.total * _KILL_AT_RATIO

    def _has_read(self) -> bool:
        is_busy = self._look()
        self._note_seen()
        has_all = self.facts.seen_distinct >= self.facts.total
        return has_all and not is_busy

    def _note_seen(self) -> None:
        seen = self.tool.seen()
        if seen is not None:
            self.facts.seen_distinct = seen["distinct"]
            self.facts.seen_calls = seen["calls"]

    def _look(self) -> bool:
        """Read every sidecar's counts; return whether anything is under way."""
        rows, is_busy = [], False
        for peer, agent in self._pairs():
            status, ledger = peer.status(), peer.ledger()
            opened, circuit = peer.circuits()
            self.facts.circuit_opened |= opened > 0
            agent.sent = status.calls.begun_count
            agent.retried = status.calls.retry_count
            agent.buffered = ledger.accepted_count
            agent.delivered = ledger.delivered_count
            agent.live = ledger.live_count
            agent.lost = ledger.lost_count
            agent.handed_over = ledger.handed_over_count
            agent.sleeps = status.agent.sleep_count
            agent.wakes = status.agent.wake_count
            is_busy |= bool(ledger.live_count or status.agent.load.keep_awake_leases)
            rows.append((*_row(agent, status.agent), circuit))
        self._screen.show(rows)
        return is_busy

    def _deadline(self, limit_s: float) -> float:
        return min(self._clock.monotonic() + limit_s, self._end)

    def _until(self, is_so: Callable[[], bool], what: str) -> None:
        deadline = self._deadline(_MOVE_LIMIT_S)
        while not is_so():
            if self._clock.monotonic() > deadline:
                raise _stalled(what)
            self._look()
            self._clock.pause(_TICK_S)


def _row(agent: AgentFacts, known: Agent) -> tuple[str, ...]:
    state = Agent.State.Name(known.state).removeprefix("STATE_").lower()
    counts = (known.pid, agent.sent, agent.retried, agent.buffered, agent.live)
    return (agent.name, state, *map(str, counts), mib(known.load.rss_bytes))


def _stalled(what: str) -> TimedOut:
    return TimedOut(
        "DEMO_STALLED",
        f"the demo waited too long for: {what}; the logs of its processes say why",
    )
