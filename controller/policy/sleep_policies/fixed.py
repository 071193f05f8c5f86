"""Fixed keep-alive: sleep after a set idle time, the same for every agent.

With agents whose waits are mostly hours, sleeping after 5 to 15 minutes catches
nearly all that sleep can save.
"""

import math
from typing import Final

from outrigger.core.errors import Invalid

KEEP_ALIVE_S: Final = 300.0
SHORTEST_S: Final = 1.0
LONGEST_S: Final = 30 * 86_400.0


def check_keep_alive(keep_alive_s: float) -> float:
    """Return a keep-alive that can be used, in seconds.

    Raises:
        Invalid: BAD_KEEP_ALIVE.
    """
    if not (math.isfinite(keep_alive_s) and SHORTEST_S <= keep_alive_s <= LONGEST_S):
        raise Invalid(
            "BAD_KEEP_ALIVE",
            f"a keep-alive of {keep_alive_s:g} s is not valid: give at least"
            f" {SHORTEST_S:g} s and at most {LONGEST_S:g} s",
        )
    return keep_alive_s


def remaining_s(idle_s: float, keep_alive_s: float) -> float:
    """Return how much longer an agent idle for `idle_s` stays awake; 0 when due."""
    return max(0.0, keep_alive_s - idle_s)
