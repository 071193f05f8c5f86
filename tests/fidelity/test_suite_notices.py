import pytest

from tests.fidelity.test_fidelity import LISTS
from tests.support import fidelity_upstream
from tests.support.fidelity_cases import CASES, observe
from tests.support.fidelity_differences import as_relayed
from tests.support.fidelity_naive import naive_wire

NOTICED = {
    "headers at once": "trailers_only_stay_trailers_only[14]",
    "one value for each key": "metadata_pass_in_every_direction[repeated]",
    "no trailers": "status_of_a_unary_call[5]",
    "no details": "status_messages_pass[unicode]",
    "no deadline": "callee_is_told_the_time_left[100]",
    "drops empty messages": "empty_messages[up]",
    "reads ahead": "slow_reader_holds_its_callee_back",
    "forgets to cancel": "caller_cancels_before_headers[unary]",
    "waits for the half-close": "ping_pong[small]",
}
"""What a relay may get wrong, and the case that notices."""

HANGS = {"forgets to cancel", "waits for the half-close"}
"""Mistakes that show in a peer that waits in vain."""

assert LISTS


async def observed(name, wire):
    """Run a case; None if a peer waited in vain."""
    try:
        return await observe(CASES[name], wire)
    except TimeoutError:
        return None


@pytest.mark.parametrize("wrong", NOTICED)
async def test_a_wrong_relay_is_noticed(wrong, monkeypatch):
    """Each mistake makes its case fail, and the same relay without it does not."""
    name = NOTICED[wrong]
    direct = as_relayed(await observe(CASES[name]))
    assert await observed(name, naive_wire(None)) == direct
    if wrong in HANGS:
        monkeypatch.setattr(fidelity_upstream, "LIMIT_S", 0.3)
    found = await observed(name, naive_wire(wrong))
    assert found != direct
    assert (found is None) == (wrong in HANGS)
