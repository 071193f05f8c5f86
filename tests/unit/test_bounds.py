"""Settings out of their bounds: what is told, and of which fields."""

from types import SimpleNamespace

import pytest

from outrigger.core.errors import Invalid
from sidecar.policy.bounds import (
    BadSettings,
    Mistake,
    above,
    at_least,
    at_most,
    below,
    ordered,
    refuse,
)
from sidecar.policy.circuit_settings import CircuitSettings
from sidecar.policy.gradient import GradientSettings
from sidecar.policy.retry import RetrySettings

NAN = float("nan")


def told(mistakes):
    return [str(mistake) for mistake in mistakes]


@pytest.mark.parametrize(
    ("check", "bad", "good", "said"),
    [
        (above, 0.0, 0.5, "a: 0 is not more than 0"),
        (at_least, -1, 0, "a: -1 is less than 0"),
        (at_most, 0.5, 0, "a: 0.5 is more than 0"),
        (below, 0, -1, "a: 0 is not less than 0"),
        (above, NAN, 1.0, "a: nan is not more than 0"),
        (at_least, NAN, 1.0, "a: nan is less than 0"),
        (at_most, NAN, -1.0, "a: nan is more than 0"),
        (below, NAN, -1.0, "a: nan is not less than 0"),
    ],
)
def test_a_bound_names_the_fields_that_are_out_of_it(check, bad, good, said):
    """A field within the bound or without a value is passed over."""
    settings = SimpleNamespace(a=bad, b=good, c=None)

    assert told(check(settings, 0, "a", "b", "c")) == [said]


def test_an_order_names_both_fields_and_places_the_mistake_at_the_upper():
    """Equal is in order, and so is what is not set."""
    settings = SimpleNamespace(low=2, high=1.5, same=2.0, none=None)

    (mistake,) = ordered(settings, "low", "high")
    assert mistake == (("high", "low"), "1.5 is less than low, which is 2")
    assert not list(ordered(settings, "low", "none"))
    assert not list(ordered(settings, "none", "low"))
    assert not list(ordered(settings, "low", "same"))


def test_settings_without_a_mistake_are_let_be():
    """Nothing is raised for nothing."""
    refuse("BAD_THING", "the thing is not possible", iter(()))


def test_a_refusal_lists_the_mistakes_for_people_and_for_readers_of_files():
    """It is an Invalid like any other, with the parts at hand."""
    listed = [Mistake(("a",), "1 is odd"), Mistake(("b", "a"), "2 is even")]

    with pytest.raises(Invalid) as caught:
        refuse("BAD_THING", "the thing is not possible", listed)

    assert isinstance(caught.value, BadSettings)
    assert caught.value.reason == "BAD_THING"
    assert caught.value.message == (
        "the thing is not possible: a: 1 is odd; b: 2 is even"
    )
    assert caught.value.mistakes == tuple(listed)


@pytest.mark.parametrize(
    ("settings", "wrong", "fields"),
    [
        (
            CircuitSettings,
            {"failure_ratio": 7.0, "slow_in_a_row": 0, "window_s": 0.0, "open_s": 20.0},
            ["slow_in_a_row", "window_s", "failure_ratio", "open_max_s"],
        ),
        (
            RetrySettings,
            {"base_s": 0.0, "throttle_cap_s": 0.5, "pushback_max_s": -1.0},
            ["base_s", "pushback_max_s", "throttle_cap_s"],
        ),
        (
            GradientSettings,
            {"initial": 2, "most": 1, "smoothing": 0.0, "tolerance": 0.5},
            ["tolerance", "smoothing", "initial", "most"],
        ),
    ],
)
def test_settings_name_each_mistake_by_its_field(settings, wrong, fields):
    """Not one sentence about all bounds there are."""
    with pytest.raises(BadSettings) as caught:
        settings(**wrong)

    assert [one.fields[0] for one in caught.value.mistakes] == fields
