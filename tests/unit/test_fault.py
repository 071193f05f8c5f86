import pytest

from outrigger.core.errors import Invalid, NotFound, Overloaded
from sidecar.policy.fault import MOST_RULES, FaultRule, Faults


def delay(match="*", **given):
    """A rule that waits a second."""
    return FaultRule(match=match, kind="delay", delay_s=1.0, ttl_s=60.0, **given)


def abort(match="*", **given):
    """A rule that answers UNAVAILABLE."""
    return FaultRule(
        match=match, kind="abort", code=14, message="on purpose", ttl_s=60.0, **given
    )


def drop(match="*", **given):
    """A rule that swallows calls."""
    return FaultRule(match=match, kind="drop", ttl_s=60.0, **given)


def in_force(*rules):
    """Return faults with these rules injected at 0."""
    faults = Faults()
    for rule in rules:
        faults.inject(rule, 0.0)
    return faults


def picked(faults, count, method="/shop.Cart/Add", upstream="shop"):
    """Return the kinds of fault that calls in a row get."""
    found = (faults.pick(upstream, method, 1.0) for _ in range(count))
    return [rule.kind if rule else "" for rule in found]


def test_without_rules_nothing_happens():
    """Off by default, and known to be without a look."""
    faults = Faults()

    assert faults.is_empty
    assert faults.pick("shop", "/shop.Cart/Add", 0.0) is None
    assert faults.rules(0.0) == ()


@pytest.mark.parametrize(
    ("match", "hits"),
    [
        ("*", ["/shop.Cart/Add", "/shop.Cart/AddAll", "/shop.CartOld/Add", "/x.Y/Z"]),
        ("/shop.Cart/*", ["/shop.Cart/Add", "/shop.Cart/AddAll"]),
        ("/shop.Cart/Add", ["/shop.Cart/Add"]),
    ],
)
def test_a_rule_is_for_the_methods_it_matches(match, hits):
    """A method, a whole service, or all; not what merely begins alike."""
    faults = in_force(drop(match))
    methods = ("/shop.Cart/Add", "/shop.Cart/AddAll", "/shop.CartOld/Add", "/x.Y/Z")

    assert [one for one in methods if faults.pick("shop", one, 1.0)] == hits


def test_a_rule_may_be_for_one_upstream():
    """Others are left alone."""
    faults = in_force(drop(upstream="shop"))

    assert picked(faults, 1, upstream="shop") == ["drop"]
    assert picked(faults, 1, upstream="bank") == [""]


def test_a_tenth_is_every_tenth_call():
    """Exactly, over and over; ten times the float 0.1 is not quite one."""
    kinds = picked(in_force(drop(share=0.1)), 1000)

    assert [number for number, kind in enumerate(kinds, 1) if kind] == list(
        range(10, 1001, 10)
    )


def test_delays_come_before_aborts_before_drops():
    """One call gets one fault, in whatever order the rules came."""
    faults = in_force(drop(), abort(), delay())
    assert [view.rule.kind for view in faults.rules(1.0)] == ["delay", "abort", "drop"]

    assert picked(faults, 2) == ["delay", "delay"]


def test_a_rule_that_was_passed_over_gets_its_share_all_the_same():
    """A half delayed and a quarter aborted of the same calls is three quarters."""
    kinds = picked(in_force(delay(share=0.5), abort(share=0.25)), 1001)

    assert kinds.count("delay") == 500
    assert kinds.count("abort") == 250


def test_a_rule_that_never_had_its_turn_does_not_save_up():
    """When the one before it is gone it hits its share, not all that it missed."""
    faults = in_force(delay(), drop(share=0.1))
    picked(faults, 1000)
    faults.clear("fault-1")

    assert picked(faults, 100).count("drop") <= 12


def test_rules_end_by_themselves():
    """A forgotten trial does not last."""
    faults = in_force(drop())

    assert faults.pick("shop", "/x.Y/Z", 59.9)
    assert faults.pick("shop", "/x.Y/Z", 60.0) is None
    assert faults.is_empty
    assert faults.rules(60.0) == ()


def test_a_listed_rule_says_what_it_did():
    """Id, end, calls it was asked about and calls it hit."""
    faults = in_force(abort(share=0.5))
    picked(faults, 5)

    (view,) = faults.rules(1.0)

    assert (view.fault_id, view.expires) == ("fault-1", 60.0)
    assert (view.matched, view.hit) == (5, 2)
    assert view.rule.message == "on purpose"


def test_a_cleared_rule_ends_at_once():
    """The others stay, and no id is given twice."""
    faults = in_force(delay(), drop())
    faults.clear("fault-1")

    assert picked(faults, 1) == ["drop"]
    assert faults.inject(delay(), 1.0) == "fault-3"


def test_clearing_what_is_not_there_says_so():
    """Also when it has ended by itself in the meantime."""
    faults = in_force(drop())
    faults.rules(61.0)
    with pytest.raises(NotFound, match="list those in force") as caught:
        faults.clear("fault-1")

    assert caught.value.reason == "UNKNOWN_FAULT"


def test_all_can_be_cleared_at_once():
    """The way out for somebody whose trial went wrong."""
    faults = in_force(delay(), drop())
    faults.clear_all()

    assert faults.is_empty
    assert picked(faults, 1) == [""]


def test_there_are_never_more_than_the_bound():
    """One too many is refused until another has gone."""
    faults = in_force(*[drop()] * MOST_RULES)
    with pytest.raises(Overloaded, match="clear some") as caught:
        faults.inject(drop(), 10.0)

    assert caught.value.reason == "TOO_MANY_FAULTS"
    assert caught.value.retry_after_s == 50.0
    assert faults.inject(drop(), 60.0) == "fault-33"


WRONG = {
    "match must be": {"match": "shop.Cart"},
    "upstream name": {"upstream": "No Good"},
    "kind must be": {"kind": "explode"},
    "share must be": {"share": 0.0},
    "ttl_s must be": {"ttl_s": 3600.1},
    "delay_s is for a delay": {"delay_s": 1.0},
    "code and message are for an abort": {"code": 14},
    "at most 1024 characters": {"message": "x" * 1025},
}
MORE = [
    ("match must be", {"match": "/shop.Cart/**"}),
    ("share must be", {"share": 1.1}),
    ("share must be", {"share": float("nan")}),
    ("ttl_s must be", {"ttl_s": 0.0}),
    ("delay_s must be", {"kind": "delay"}),
    ("delay_s must be", {"kind": "delay", "delay_s": 300.1}),
    ("from 1 to 16", {"kind": "abort"}),
    ("from 1 to 16", {"kind": "abort", "code": 17}),
]


@pytest.mark.parametrize(("mistake", "wrong"), [*WRONG.items(), *MORE])
def test_each_mistake_of_a_rule_is_named(mistake, wrong):
    """Before anything is inflicted on anybody."""
    rule = {"match": "*", "kind": "drop", "ttl_s": 60.0} | wrong
    with pytest.raises(Invalid, match=mistake) as caught:
        FaultRule(**rule)

    assert caught.value.reason == "BAD_FAULT"


def test_all_mistakes_of_a_rule_are_named_at_once():
    """Mending them takes one round."""
    wrong = {key: value for one in WRONG.values() for key, value in one.items()}
    with pytest.raises(Invalid) as caught:
        FaultRule(**wrong)

    assert all(mistake in caught.value.message for mistake in WRONG)
