"""Every RPC we define has a row in the table of the server that serves it."""

import pytest

from controller.rpc.servers import ADMIN_TABLE, CONNECT_TABLE
from outrigger.core.access import Role
from outrigger.v1 import (
    attach_service_pb2,
    checkpoint_service_pb2,
    circuit_service_pb2,
    connect_service_pb2,
    fault_service_pb2,
    fleet_service_pb2,
    letter_service_pb2,
    sidecar_service_pb2,
    tap_service_pb2,
    upstream_service_pb2,
)
from sidecar.rpc.server import ACCESS

SIDECAR = (
    attach_service_pb2,
    checkpoint_service_pb2,
    circuit_service_pb2,
    fault_service_pb2,
    letter_service_pb2,
    sidecar_service_pb2,
    tap_service_pb2,
    upstream_service_pb2,
)


def methods(*modules):
    return {
        f"/{service.full_name}/{method.name}"
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def own(table):
    return {name for name in table if name.startswith("/outrigger.")}


@pytest.mark.parametrize(
    ("table", "modules"),
    [
        (ACCESS, SIDECAR),
        (CONNECT_TABLE, (connect_service_pb2,)),
    ],
)
def test_the_table_names_exactly_the_methods_served(table, modules):
    """A new RPC without a row, and a row without an RPC, fail here."""
    assert own(table) == methods(*modules)


def test_the_controllers_table_names_its_methods_and_those_it_passes_on():
    """Attach is the agent's own and is never passed on."""
    passed_on = methods(*SIDECAR) - methods(attach_service_pb2)

    assert own(ADMIN_TABLE) == methods(fleet_service_pb2) | passed_on


@pytest.mark.parametrize("table", [ACCESS, ADMIN_TABLE, CONNECT_TABLE])
def test_only_health_and_reflection_are_public(table):
    """Nothing of ours is open to callers without a token."""
    public = {name for name, rule in table.items() if rule.public}

    assert all(name.startswith("/grpc.") for name in public)


def test_agents_may_change_nothing_but_their_own():
    """What an agent's token opens, in full: a longer list must be argued for."""
    open_to_agents = {
        name.rpartition("/")[2]
        for name, rule in ACCESS.items()
        if Role.AGENT in rule.roles
    }

    assert open_to_agents == {
        "Attach",
        "KeepAwake",
        "ReleaseKeepAwake",
        "SaveCheckpoint",
        "RestoreCheckpoint",
        "QueryBlocks",
        "GetCheckpoint",
        "ListCheckpoints",
        "VerifyCheckpoint",
        "DeliverCall",
        "GetLetter",
        "ListLetters",
        "GetLedger",
        "GetSidecar",
    }
