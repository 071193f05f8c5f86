import math

import pytest

from controller.policy.sleep_policies.fixed import (
    KEEP_ALIVE_S,
    check_keep_alive,
    remaining_s,
)
from outrigger.core.errors import Invalid


@pytest.mark.parametrize(
    ("idle_s", "left_s"), [(0.0, 300.0), (299.0, 1.0), (300.0, 0.0), (9e9, 0.0)]
)
def test_the_rest_of_a_keep_alive(idle_s, left_s):
    """It ends at 0 and stays there."""
    assert remaining_s(idle_s, KEEP_ALIVE_S) == left_s


@pytest.mark.parametrize("keep_alive_s", [0.0, 0.99, -1.0, 1e9, math.nan, math.inf])
def test_a_keep_alive_out_of_bounds_is_refused(keep_alive_s):
    """With a sentence that names the bounds."""
    with pytest.raises(Invalid, match="at least 1 s") as caught:
        check_keep_alive(keep_alive_s)
    assert caught.value.reason == "BAD_KEEP_ALIVE"


def test_a_good_keep_alive_is_returned():
    """The shortest is still allowed."""
    assert check_keep_alive(1.0) == 1.0
