"""Shares of faults are exact, alone and together."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.fault import FaultRule, Faults

KINDS = ("delay", "abort", "drop")


def rule(kind, share):
    """Return a valid rule of a kind."""
    how = {"delay": {"delay_s": 1.0}, "abort": {"code": 14}, "drop": {}}[kind]
    return FaultRule(match="*", kind=kind, share=share, ttl_s=60.0, **how)


@given(thousandths=st.integers(1, 1000), calls=st.integers(1, 500))
def test_a_rule_alone_hits_the_whole_part_of_its_share(thousandths, calls):
    """After every call, not only in the end."""
    faults = Faults()
    faults.inject(rule("drop", thousandths / 1000), 0.0)
    hits = 0
    for number in range(1, calls + 1):
        hits += faults.pick("a", "/x.Y/Z", 0.0) is not None

        assert hits == Fraction(thousandths, 1000) * number // 1


@given(
    parts=st.lists(st.integers(1, 10), min_size=1, max_size=3),
    rest=st.integers(0, 20),
    kinds=st.permutations(KINDS),
    calls=st.integers(1, 500),
)
def test_rules_together_get_their_shares(parts, rest, kinds, calls):
    """As long as they are no more than the whole, each but for one or two."""
    whole = sum(parts) + rest
    shares = {
        kind: round(part / whole - 0.0005, 3) or 0.001
        for kind, part in zip(kinds, parts, strict=False)
    }
    faults = Faults()
    for kind, share in shares.items():
        faults.inject(rule(kind, share), 0.0)
    hits = dict.fromkeys(KINDS, 0)
    for _ in range(calls):
        found = faults.pick("a", "/x.Y/Z", 0.0)
        if found is not None:
            hits[found.kind] += 1

    for kind, share in shares.items():
        assert abs(hits[kind] - share * calls) <= 2
