"""Reports and agents for tests of the controller's policy."""

from dataclasses import replace

from controller.policy.agent import Load, Report, State
from controller.policy.fleet import Fleet, Greeted, Reported

LOAD = Load(sample_wall_s=1.7e9, pss_bytes=1 << 20, process_count=1)


def report(agent_id="otter", *, state=State.AWAKE, idle_s=0.0, **changes):
    """A report that can be true; its load sample can be changed by `load`."""
    load = changes.pop("load", replace(LOAD, idle_s=idle_s))
    return Report(
        agent_id=agent_id,
        state=state,
        epoch=changes.pop("epoch", 1),
        sidecar_instance=changes.pop("sidecar_instance", "i-1"),
        load=load,
        **changes,
    )


def idle_fleet(*agent_ids, idle_s=10_000.0, now=0.0):
    """Agents that have been awake and idle since `now`."""
    fleet = Fleet()
    for agent_id in agent_ids:
        fleet.introduce(Greeted(report(agent_id, idle_s=idle_s)), now)
    return fleet


def heard(fleet, now, *, elapsed_s=1.0, **changes):
    """Every agent reports once more at `now`, with a fresh load sample."""
    for agent_id, agent in list(fleet.items()):
        load = changes.get("load", agent.report.load)
        if load is not None:
            load = replace(load, sample_wall_s=1.7e9 + now)
        said = replace(agent.report, **{**changes, "load": load})
        fleet.apply(agent_id, Reported(agent.sequence + 1, elapsed_s, said), now)
    return fleet
