import pytest

from outrigger.core.errors import Bug, Invalid
from sidecar.call.limits import ConcurrencyLimit


def test_it_admits_so_many_and_no_more():
    """A place that is given back is free for the next."""
    limit = ConcurrencyLimit("shop", 2)
    assert [limit.enter() for _ in range(3)] == [True, True, False]

    limit.leave()

    assert limit.enter()
    assert limit.in_flight == 2


def test_by_default_it_admits_1024():
    """The number the design fixes."""
    limit = ConcurrencyLimit("shop")

    assert sum(limit.enter() for _ in range(2000)) == 1024


def test_its_refusal_says_when_to_come_back():
    """Which limit, how many, and a time."""
    refusal = ConcurrencyLimit("shop", 2).refusal()

    assert refusal.reason == "CONCURRENCY_LIMIT"
    assert refusal.status == "RESOURCE_EXHAUSTED"
    assert refusal.retry_after_s == 0.1
    assert refusal.metadata == {"upstream": "shop", "limit": "2"}


def test_leaving_twice_is_a_defect():
    """Forgiven silently it would let more in than the limit says."""
    limit = ConcurrencyLimit("shop")
    limit.enter()
    limit.leave()

    with pytest.raises(Bug) as caught:
        limit.leave()

    assert caught.value.reason == "LEFT_TWICE"


def test_a_limit_of_nothing_is_refused():
    """It would refuse every call and say that 0 are in flight."""
    with pytest.raises(Invalid) as caught:
        ConcurrencyLimit("shop", 0)

    assert caught.value.reason == "BAD_LIMIT"
