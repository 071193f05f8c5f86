"""The arithmetic of the resilience bench, on made-up timelines."""

import math

import pytest

from bench.resilience import timelines
from bench.resilience.outages import returned, swallowed
from bench.resilience.parties import ENVOY, OURS
from bench.resilience.plot import by_second
from bench.resilience.storms import Ill, of_ill
from bench.resilience.timelines import Made

UNAVAILABLE = 14


def good(begun, took=0.0):
    """A call that was answered."""
    return Made(begun, begun + took, 0)


def bad(begun, took=0.0, **told):
    """A call that failed."""
    return Made(begun, begun + took, UNAVAILABLE, **told)


def test_the_first_success_is_of_a_call_begun_after_the_return():
    """One that hung in the outage and ends well after it says nothing."""
    calls = [good(9.0, 1.5), bad(10.0), good(11.0, 0.5), good(10.5, 3.0)]

    assert timelines.first_success_s(calls, 10.0) == 1.5


def test_without_a_success_there_is_no_first():
    """It is told as infinite, which holds no bound."""
    assert timelines.first_success_s([bad(11.0)], 10.0) == math.inf


def test_success_lasts_from_the_last_call_that_failed():
    """A lucky one before it does not count; failures of before do not either."""
    calls = [bad(9.0), good(11.0), bad(12.0), good(13.0), good(14.0)]

    assert timelines.lasting_success_s(calls, 10.0) == 2.0
    assert timelines.lasting_success_s(calls[3:], 10.0) == 0.0


@pytest.mark.parametrize("calls", [[], [good(11.0), bad(12.0)]])
def test_nothing_lasts_that_has_not_begun(calls):
    """No call at all, or a newest one that failed, is no recovery."""
    assert timelines.lasting_success_s(calls, 10.0) == math.inf


def test_the_rest_left_is_what_the_newest_refusal_said():
    """One second after it said three, two are left; none after it is over."""
    calls = [bad(5.0, pushback_s=60.0), bad(9.0, pushback_s=3.0), bad(9.5)]

    assert timelines.slot_s(calls, 10.0) == 2.0
    assert timelines.slot_s(calls, 13.0) == 0.0
    assert timelines.slot_s([bad(9.0)], 10.0) == 0.0


def test_a_circuit_is_open_when_it_first_refuses():
    """What another layer refused, or what came before, does not count."""
    calls = [
        bad(1.0, refused_by="circuit"),
        bad(11.0, refused_by="limit"),
        bad(12.0, 0.5, refused_by="circuit"),
        bad(13.0, refused_by="circuit"),
    ]

    assert timelines.opened_s(calls, 10.0) == 2.5


def test_goodput_is_back_when_every_second_since_has_its_share():
    """Second 0 has half of it, second 1 all, second 2 too little, then all."""
    seconds = [(0, 5), (1, 10), (2, 9), (3, 10), (4, 10)]
    calls = [
        (good if number < answered else bad)(10.0 + second + number / 10)
        for second, answered in seconds
        for number in range(10)
    ]

    assert timelines.goodput_back_s(calls, 10.0, 0.95) == 3.0
    assert timelines.goodput_back_s(calls, 10.0, 0.9) == 1.0
    assert timelines.goodput_back_s(calls, 13.0, 0.95) == 0.0
    assert timelines.goodput_back_s(calls[:30], 10.0, 0.95) == math.inf
    assert timelines.goodput_back_s([], 10.0, 0.95) == math.inf


def test_the_load_is_attempts_per_call():
    """Three attempts for two calls; and no division by no calls."""
    assert timelines.amplification([1.0, 2.0, 3.0], [good(1.0), bad(2.0)]) == 1.5
    assert timelines.amplification([], []) == 0.0


def test_only_failures_are_waited_for_in_vain():
    """The 99th percentile of two waits is the longer."""
    calls = [good(1.0, 9.0), bad(1.0, 1.0), bad(1.0, 2.0)]

    assert timelines.waited_p99_s(calls) == 2.0
    assert timelines.waited_p99_s([good(1.0)]) == 0.0


@pytest.mark.parametrize(("back", "holds"), [(11.0, True), (12.5, False)])
def test_a_return_has_its_bound(back, holds):
    """One second and the rest that was left."""
    calls = [bad(9.5, pushback_s=1.0), bad(back - 0.25), good(back)]

    figures = list(returned(OURS, calls, 10.0, 60.0))

    assert [figure.holds for figure in figures] == [holds, holds]
    assert all(one.holds is None for one in returned(ENVOY, calls, 10.0, 60.0))


class Way:
    """A load as far as a figure looks at it."""

    def __init__(self, name, made):
        self.party = self
        self.name = name
        self.made = made


def test_a_black_hole_is_found_and_left_in_time():
    """Open after three seconds, one call of two stuck, well again at once."""
    calls = [good(11.0, 20.0), bad(13.0, refused_by="circuit"), good(31.0)]

    figures = list(swallowed(Way(OURS, calls), 20.0, 10.0, 30.0))

    assert [(figure.value, figure.holds) for figure in figures] == [
        (3.0, True),
        (1, None),
        (0.0, True),
    ]
    assert figures[1].unit == "of 2"
    late = list(swallowed(Way(OURS, calls[::2]), 20.0, 10.0, 30.0))
    assert late[0].holds is False


@pytest.mark.parametrize(("attempts", "holds"), [(12, True), (13, False)])
def test_the_load_on_an_ill_callee_has_its_bound(attempts, holds):
    """Ten calls may be twelve attempts; those after the recovery do not count."""
    calls = [bad(10.0 + number / 10) for number in range(10)] + [good(20.0)]
    ill = Ill(OURS, 10.0, 20.0, calls, [11.0] * attempts + [21.0] * 50)

    figures = list(of_ill(ill))

    assert figures[0].holds is holds
    assert figures[0].against == f"{attempts} of 10"
    assert figures[-1].value == 0.0
    assert figures[-1].holds is True


def test_a_line_of_the_plot_leaves_out_the_second_that_is_not_whole():
    """Two in the first second, none in the next, one in the third."""
    assert by_second([9.0, 10.0, 10.5, 12.0, 13.1], 10.0) == ([0, 1, 2], [2, 0, 1])
