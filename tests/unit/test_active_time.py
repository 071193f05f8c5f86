import pytest

from sidecar.policy.active_time import GAP_S, ActiveTime


def ticked(time, until, step=0.25):
    """Tick as an owner does, from where it was."""
    now = 0.0
    while now <= until:
        time.tick(now)
        now += step
    return now - step


def test_time_that_is_ticked_passes():
    """A process that runs lives through every second."""
    time = ActiveTime()
    now = ticked(time, 100.0)

    assert time.at(now) == now
    assert time.stops == 0


@pytest.mark.parametrize("first", ["at", "tick"])
def test_a_stop_is_left_out_whoever_notices_it(first):
    """A result may be the first thing that is heard after SIGCONT, or a tick."""
    time = ActiveTime()
    now = ticked(time, 10.0)

    assert getattr(time, first)(now + 3600.0) == pytest.approx(now + 0.25)
    assert time.stops == 1
    assert time.stopped_s == pytest.approx(3600.0 - 0.25)
    assert time.tick(now + 3601.0) == pytest.approx(now + 1.25)
    assert time.stops == 1


def test_a_busy_loop_is_no_stop():
    """A tick that comes a second late was lived through."""
    time = ActiveTime()
    time.tick(0.0)

    assert time.at(GAP_S - 0.01) == GAP_S - 0.01
    assert time.stops == 0


def test_without_ticks_nothing_is_left_out():
    """Who never ticks cannot be told apart from one that was stopped."""
    time = ActiveTime()

    assert time.at(10.0) == 10.0
    assert time.at(10_000.0) == 10_000.0


def test_a_moment_is_shown_in_todays_seconds():
    """What happened a second of life ago is shown as a second ago."""
    time = ActiveTime()
    now = ticked(time, 5.0)
    active = time.at(now)
    later = time.tick(now + 100.0)

    assert time.when(later) == now + 100.0
    assert time.when(active) == pytest.approx(now + 100.0 - (later - active))


def test_a_process_that_is_busy_knows_that_it_is_slow_itself():
    """A tick a tenth of a second late: each call waits ten times for its turn."""
    time = ActiveTime()
    time.tick(0.0)
    time.tick(0.25)
    assert time.own_delay_s == 0.0

    time.tick(0.6)

    assert time.own_delay_s == pytest.approx(1.0)
    for tick in range(10):
        time.tick(0.85 + tick / 4)
    assert time.own_delay_s < 0.01
