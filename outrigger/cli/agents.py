"""`outrigger agents`: what agents do, and sleep and wake by hand."""

import asyncio
from collections.abc import Sequence
from typing import Final

from outrigger.cli import cells, exits
from outrigger.cli.flags import (
    EITHER,
    Call,
    Verb,
    Verbs,
    add_dry_run,
    add_limit,
    add_reason,
    flag_type,
)
from outrigger.cli.fleet import Fleet, Order, fleet_of, named, request_id
from outrigger.cli.output import Column
from outrigger.cli.terminal import Terminal
from outrigger.core import values
from outrigger.core.config import FlagParser
from outrigger.core.errors import Invalid, Refused, TimedOut
from outrigger.core.ids import check_agent_id
from outrigger.v1.agent_pb2 import Agent
from outrigger.v1.fleet_service_pb2 import (
    ExplainAgentRequest,
    PinAgentRequest,
    UnpinAgentRequest,
)
from outrigger.v1.fleet_service_pb2_grpc import FleetServiceStub

_POLL_S: Final = 0.2
_ASLEEP: Final = frozenset({Agent.STATE_ASLEEP, Agent.STATE_FROZEN})
_AWAKE: Final = frozenset({Agent.STATE_AWAKE})


def state_of(agent: Agent) -> str:
    """Return an agent's state in our words."""
    return cells.word(Agent.State.Name, agent.state)


_LIST: Final = (
    Column("AGENT", lambda a: cells.words(a.agent_id)),
    Column("STATE", state_of),
    Column("PINNED", lambda a: "yes" if a.pinned else cells.NONE),
    Column("EPOCH", lambda a: str(a.epoch), right=True),
    Column("GENERATION", lambda a: cells.count(a.generation), right=True),
    Column("CPU", lambda a: f"{a.load.cpu_ratio:.2f}", right=True),
    Column("PSS", lambda a: cells.size(a.load.pss_bytes), right=True),
    Column("IDLE", lambda a: cells.span(a.load, "idle"), right=True),
    Column("LETTERS", lambda a: cells.count(a.load.live_letters), right=True),
    Column("REASON", lambda a: cells.words(a.reason)),
)
_ONE: Final = (
    Column("agent", lambda a: cells.words(a.agent_id)),
    Column("state", state_of),
    Column("reason", lambda a: cells.words(a.reason)),
    Column("since", lambda a: cells.moment(a, "state_time")),
    Column("group", lambda a: cells.words(a.group)),
    Column("pinned", lambda a: "yes" if a.pinned else "no"),
    Column("epoch", lambda a: str(a.epoch)),
    Column("generation", lambda a: cells.count(a.generation)),
    Column("state digest", lambda a: cells.digest(a.state_digest)),
    Column("woken digest", lambda a: cells.digest(a.woken_digest)),
    Column("pid", lambda a: cells.count(a.pid)),
    Column("sleeps", lambda a: str(a.sleep_count)),
    Column("wakes", lambda a: str(a.wake_count)),
    Column("last wake", lambda a: f"{a.last_wake_s:.3f}s"),
    Column("cpu", lambda a: f"{a.load.cpu_ratio:.2f}"),
    Column("pss", lambda a: cells.size(a.load.pss_bytes)),
    Column("rss", lambda a: cells.size(a.load.rss_bytes)),
    Column("processes", lambda a: str(a.load.process_count)),
    Column("calls out", lambda a: str(a.load.outbound_in_flight)),
    Column("calls in", lambda a: str(a.load.inbound_in_flight)),
    Column("leases", lambda a: str(a.load.keep_awake_leases)),
    Column("idle", lambda a: cells.span(a.load, "idle")),
    Column("live letters", lambda a: str(a.load.live_letters)),
    Column("outbound", lambda a: cells.words(a.addresses.outbound)),
    Column("api", lambda a: cells.words(a.addresses.api)),
    Column("api tcp", lambda a: cells.words(a.addresses.api_tcp)),
    Column("inbound", lambda a: cells.words(a.addresses.inbound)),
    Column("reported", lambda a: cells.span(a, "report_age")),
)
_EXPLAINED: Final = (
    Column("agent", lambda e: cells.words(e.agent.agent_id)),
    Column("state", lambda e: state_of(e.agent)),
    Column("decision", lambda e: cells.words(e.decision)),
    Column("reason", lambda e: cells.words(e.reason)),
)
_TRANSITIONS: Final = (
    Column("TIME", lambda t: cells.moment(t, "event_time")),
    Column("BEFORE", lambda t: cells.words(t.transition.before)),
    Column("AFTER", lambda t: cells.words(t.transition.after)),
    Column("EPOCH", lambda t: str(t.transition.epoch), right=True),
    Column("REASON", lambda t: cells.words(t.transition.reason)),
)


def run(argv: Sequence[str], terminal: Terminal) -> int:
    """Run one verb on agents."""
    verbs = Verbs("agents", "What agents do, and sleep and wake by hand.", EITHER)
    add_limit(verbs.add("list", _list, "list agents"))
    _add_agent(verbs.add("get", _get, "show one agent"))
    _add_order(verbs, "sleep", _sleep, "put an agent to sleep")
    _add_order(verbs, "wake", _wake, "wake an agent")
    pin = verbs.add("pin", _pin, "keep an agent awake, whatever the scheduler says")
    _add_agent(pin)
    add_reason(pin, required=True)
    add_dry_run(pin)
    unpin = verbs.add("unpin", _unpin, "end a pin")
    _add_agent(unpin)
    add_dry_run(unpin)
    _add_agent(verbs.add("explain", _explain, "say why it is awake or asleep"))
    return verbs.run(argv, terminal)


def _add_agent(parser: FlagParser) -> None:
    parser.add_argument(
        "agent_id",
        metavar="ID",
        nargs="?",
        type=flag_type(check_agent_id),
        help="the agent; may be left out with --api",
    )


def _add_order(verbs: Verbs, name: str, verb: Verb, about: str) -> None:
    parser = verbs.add(name, verb, about)
    _add_agent(parser)
    add_reason(parser, required=False)
    add_dry_run(parser)
    parser.add_argument(
        "--seen-epoch",
        type=flag_type(values.between(values.integer, 0)),
        default=0,
        metavar="EPOCH",
        help="refuse if the agent's epoch is another one",
    )
    parser.add_argument("--wait", action="store_true", help="wait until it is done")
    parser.add_argument(
        "--wait-timeout",
        type=flag_type(values.between(values.seconds, 0.1)),
        default=60.0,
        metavar="TIME",
        help="longest to wait (default 60s)",
    )


async def _list(call: Call) -> int:
    agents = fleet_of(call.session).agents(call.flags.limit)
    await call.printer.rows(agents, _LIST)
    return exits.OK


async def _get(call: Call) -> int:
    agent = await fleet_of(call.session).agent(call.flags.agent_id or "")
    call.printer.one(agent, _ONE)
    return exits.OK


async def _sleep(call: Call) -> int:
    fleet = fleet_of(call.session)
    begun = await fleet.sleep(call.flags.agent_id or "", _order(call))
    return await _see_through(call, fleet, begun, _ASLEEP)


async def _wake(call: Call) -> int:
    fleet = fleet_of(call.session)
    begun = await fleet.wake(call.flags.agent_id or "", _order(call))
    return await _see_through(call, fleet, begun, _AWAKE)


def _order(call: Call) -> Order:
    return Order(
        seen_epoch=call.flags.seen_epoch,
        reason=call.flags.reason or "",
        validate_only=call.flags.dry_run,
    )


async def _see_through(
    call: Call, fleet: Fleet, begun: Agent, goal: frozenset[int]
) -> int:
    """Print the agent, after it has arrived if that was asked for."""
    if call.flags.wait and not call.flags.dry_run:
        begun = await _arrived(call, fleet, begun, goal)
    call.printer.one(begun, _ONE[:8])
    return exits.OK


async def _arrived(
    call: Call, fleet: Fleet, begun: Agent, goal: frozenset[int]
) -> Agent:
    """Poll until the agent is where it was sent.

    Raises:
        Refused: GIVEN_UP when it went back, AGENT_FAILED.
        TimedOut: STILL_ON_ITS_WAY.
    """
    agent = begun
    try:
        async with asyncio.timeout(call.flags.wait_timeout):
            while not _is_there(agent, begun, goal):
                _check_under_way(agent, begun)
                await call.clock.sleep(_POLL_S)
                agent = await fleet.agent(begun.agent_id)
    except TimeoutError as error:
        raise TimedOut(
            "STILL_ON_ITS_WAY",
            f"{begun.agent_id} is still {state_of(agent)} after"
            f" {call.flags.wait_timeout:g} s: it goes on by itself; look again with"
            " 'outrigger agents get'",
        ) from error
    return agent


def _is_there(agent: Agent, begun: Agent, goal: frozenset[int]) -> bool:
    # A report from before the command has a lower epoch and proves nothing.
    return agent.state in goal and agent.epoch >= begun.epoch


def _check_under_way(agent: Agent, begun: Agent) -> None:
    if agent.epoch < begun.epoch:
        return
    if agent.state == Agent.STATE_FAILED:
        raise Refused(
            "AGENT_FAILED",
            f"{agent.agent_id} failed: {agent.reason}; see its sidecar's log, then"
            " 'outrigger agents wake' it",
        )
    # The command had moved it before it was answered: it has turned back.
    if agent.state in _AWAKE and begun.state not in _AWAKE:
        raise Refused(
            "GIVEN_UP",
            f"the sleep of {agent.agent_id} was given up: {agent.reason}; try again"
            " when it is idle",
        )


async def _pin(call: Call) -> int:
    stub = FleetServiceStub(call.session.channel)
    request = PinAgentRequest(
        agent_id=_controlled(call),
        reason=call.flags.reason,
        validate_only=call.flags.dry_run,
        request_id=request_id(),
    )
    agent = (await call.session.call(stub.PinAgent, request)).agent
    call.printer.one(agent, _ONE[:8])
    return exits.OK


async def _unpin(call: Call) -> int:
    stub = FleetServiceStub(call.session.channel)
    request = UnpinAgentRequest(
        agent_id=_controlled(call),
        validate_only=call.flags.dry_run,
        request_id=request_id(),
    )
    agent = (await call.session.call(stub.UnpinAgent, request)).agent
    call.printer.one(agent, _ONE[:8])
    return exits.OK


async def _explain(call: Call) -> int:
    stub = FleetServiceStub(call.session.channel)
    request = ExplainAgentRequest(agent_id=_controlled(call))
    found = await call.session.call(stub.ExplainAgent, request)
    call.printer.one(found, _EXPLAINED)
    for line in found.would_change:
        call.printer.say(f"would change: {cells.words(line)}")
    if call.printer.for_people and found.transitions:
        call.printer.table(_TRANSITIONS, found.transitions)
    return exits.OK


def _controlled(call: Call) -> str:
    """Return the agent named, for verbs that only a controller has.

    Raises:
        Invalid: NEEDS_CONTROLLER, NO_AGENT.
    """
    if call.session.server.kind != "controller":
        raise Invalid(
            "NEEDS_CONTROLLER",
            f"'agents {call.flags.verb}' is the controller's: leave --api out",
        )
    return named(call.flags.agent_id or "")
