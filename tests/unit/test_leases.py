"""Keep-awake leases: bounded in time, number and words."""

import itertools

import pytest

from outrigger.core.errors import Invalid, NotFound, Overloaded
from sidecar.agent.leases import KeepAwakeLeases


@pytest.fixture
def leases():
    """At most three leases, named 1, 2, 3, ..."""
    numbers = itertools.count(1)
    return KeepAwakeLeases(lambda: str(next(numbers)), most=3)


def test_a_lease_ends_by_itself(leases):
    """A lease counts until its time and not at it."""
    lease = leases.take("", 10.0, "thinking", 100.0)

    assert (lease.until, lease.reason) == (110.0, "thinking")
    assert leases.count(109.9) == 1
    assert leases.count(110.0) == 0


def test_renewing_moves_the_end_and_keeps_the_name(leases):
    """A renewed lease is the same lease with a later end."""
    first = leases.take("", 10.0, "", 100.0)
    again = leases.take(first.lease_id, 10.0, "still", 105.0)

    assert again.lease_id == first.lease_id
    assert leases.held(110.0) == (again,)


def test_a_lease_that_has_ended_cannot_be_renewed(leases):
    """Whoever renews too late is told, so that it knows it was not kept awake."""
    lease = leases.take("", 10.0, "", 100.0)

    with pytest.raises(NotFound) as refused:
        leases.take(lease.lease_id, 10.0, "", 110.0)

    assert refused.value.reason == "NO_SUCH_LEASE"


def test_releasing_is_idempotent(leases):
    """A lease may be released twice, or never have been."""
    lease = leases.take("", 10.0, "", 100.0)

    leases.release(lease.lease_id)
    leases.release(lease.lease_id)
    leases.release("never")

    assert leases.count(100.0) == 0


def test_clearing_ends_all(leases):
    """When the agent is gone its leases are too."""
    leases.take("", 10.0, "", 100.0)
    leases.take("", 10.0, "", 100.0)

    leases.clear()

    assert leases.count(100.0) == 0


def test_more_than_the_most_are_refused_until_one_ends(leases):
    """The number of leases is bounded; ended ones make room, renewals need none."""
    held = [leases.take("", 10.0 + n, "", 100.0) for n in range(3)]

    with pytest.raises(Overloaded) as refused:
        leases.take("", 10.0, "", 100.0)
    leases.take(held[2].lease_id, 10.0, "", 100.0)
    leases.take("", 10.0, "", 110.0)

    assert refused.value.reason == "TOO_MANY_LEASES"


@pytest.mark.parametrize("ttl_s", [0.0, 0.999, 3600.1, -1.0, float("nan")])
def test_times_out_of_bounds_are_refused(leases, ttl_s):
    """A lease holds between a second and an hour."""
    with pytest.raises(Invalid) as refused:
        leases.take("", ttl_s, "", 100.0)

    assert refused.value.reason == "BAD_LEASE_TTL"


@pytest.mark.parametrize("ttl_s", [1.0, 3600.0])
def test_the_bounds_themselves_are_fine(leases, ttl_s):
    """Exactly a second and exactly an hour are allowed."""
    assert leases.take("", ttl_s, "x" * 256, 100.0).until == 100.0 + ttl_s


def test_a_reason_that_is_too_long_is_refused(leases):
    """A reason is a sentence, not a document."""
    with pytest.raises(Invalid) as refused:
        leases.take("", 10.0, "x" * 257, 100.0)

    assert refused.value.reason == "LEASE_REASON_TOO_LONG"
