"""What every test of fidelity has."""

import pytest

from tests.support.fidelity_wires import WIRES


@pytest.fixture(params=sorted(WIRES))
def wire(request):
    """Each wire there is."""
    return WIRES[request.param]
