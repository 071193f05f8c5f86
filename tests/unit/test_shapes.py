from sidecar.wire.shapes import RequestShapes


def test_what_is_not_known_is_waited_for_as_told():
    """The first request of a method."""
    assert RequestShapes(0.001).patience_s("/a.B/C") == 0.001


def test_a_method_of_single_messages_is_waited_for_longer():
    """Its half-close will come; sending it as one piece is worth some patience."""
    shapes = RequestShapes(0.001)
    shapes.learn("/a.B/C", was_single=True)

    assert shapes.patience_s("/a.B/C") > 0.001
    assert shapes.patience_s("/a.B/D") == 0.001


def test_a_method_that_talks_both_ways_is_not_waited_for():
    """The newest request decides."""
    shapes = RequestShapes(0.001)
    shapes.learn("/a.B/C", was_single=True)
    shapes.learn("/a.B/C", was_single=False)

    assert shapes.patience_s("/a.B/C") == 0.0


def test_made_up_names_do_not_fill_the_memory():
    """A thousand methods are remembered, not a million."""
    shapes = RequestShapes(0.001)
    for number in range(5000):
        shapes.learn(f"/a.B/M{number}", was_single=True)

    assert len(shapes._patience_s) <= 1000
