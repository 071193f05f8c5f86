from sidecar.policy.median import Median


def test_few_durations_say_nothing():
    """Seven are chance; eight are a beginning."""
    median = Median()
    for _ in range(7):
        median.add(1.0)
    assert median.value_s() is None

    median.add(1.0)

    assert median.value_s() == 1.0


def test_one_slow_call_does_not_move_it():
    """It is the median and not the mean."""
    median = Median()
    for duration in (*[0.1] * 10, 600.0):
        median.add(duration)

    assert median.value_s() == 0.1


def test_only_the_newest_count():
    """A method that became slower is known to be slower after 64 calls."""
    median = Median()
    for duration in (*[0.1] * 1000, *[5.0] * 64):
        median.add(duration)
    assert median.value_s() == 5.0

    for _ in range(64):
        median.add(0.1)
    assert median.value_s() == 0.1
