import asyncio

import pytest

from tests.fidelity import (
    cases_arity,
    cases_cancel,
    cases_deadline,
    cases_load,
    cases_metadata,
    cases_order,
    cases_retry,
    cases_size,
    cases_status,
)
from tests.support.fidelity_cases import CASES, observe
from tests.support.fidelity_differences import as_relayed

LISTS = (
    cases_arity,
    cases_order,
    cases_metadata,
    cases_status,
    cases_deadline,
    cases_cancel,
    cases_size,
    cases_load,
    cases_retry,
)
"""Importing a list adds its cases."""


@pytest.mark.parametrize("name", CASES)
async def test_the_wire_is_not_noticed(name, wire):
    """Whatever caller and upstream do, both observe the same with a wire between."""
    async with asyncio.TaskGroup() as group:  # much of a case is waiting
        directly = group.create_task(observe(CASES[name]))
        through = group.create_task(observe(CASES[name], wire))
    assert through.result() == as_relayed(directly.result())


def test_the_list_is_whole():
    """No list of cases is forgotten, and none is empty."""
    came_from = {case.act.__module__ for case in CASES.values()}
    assert came_from == {module.__name__ for module in LISTS}
