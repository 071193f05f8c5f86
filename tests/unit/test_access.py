import pytest

from outrigger.core.access import (
    Principal,
    RateLimit,
    Role,
    Rule,
    Tokens,
    authorise,
)
from outrigger.core.errors import Denied, Overloaded, Unauthenticated

TABLE = {
    "/s/Open": Rule(public=True),
    "/s/Operate": Rule(roles=frozenset({Role.OPERATOR}), mutating=True),
}


def test_a_missing_row_is_refused_even_to_operators():
    """Deny by default: a method nobody listed is nobody's."""
    with pytest.raises(Denied) as caught:
        authorise(TABLE, "/s/New", Principal(Role.OPERATOR))

    assert caught.value.reason == "NO_RULE"


def test_the_wrong_role_is_refused_and_told_who_may():
    """An agent may not do an operator's work."""
    with pytest.raises(Denied, match="it is for operator"):
        authorise(TABLE, "/s/Operate", Principal(Role.AGENT, "a"))


def test_no_token_is_unauthenticated_where_one_is_needed():
    """A caller nobody knows is asked for a token."""
    with pytest.raises(Unauthenticated):
        authorise(TABLE, "/s/Operate", Principal(None))


def test_public_methods_need_no_token():
    """Health and reflection are for everybody on the listener."""
    assert authorise(TABLE, "/s/Open", Principal(None)).public


def test_a_wrong_token_is_refused_even_where_none_is_needed():
    """A token that is given must be right."""
    tokens = Tokens({"good": Principal(Role.OPERATOR)})

    with pytest.raises(Unauthenticated) as caught:
        tokens.principal("bad")

    assert caught.value.reason == "BAD_TOKEN"
    assert tokens.principal("good") == Principal(Role.OPERATOR)
    assert tokens.principal(None) == Principal(None)


def test_principals_have_names_for_the_audit():
    """The audit says which agent it was."""
    assert Principal(None).name == "anonymous"
    assert Principal(Role.AGENT, "a-1").name == "agent/a-1"
    assert Principal(Role.OPERATOR).name == "operator"


def test_the_rate_limit_lets_a_burst_through_and_then_the_rate():
    """One token a second after the burst, per principal."""
    limit = RateLimit(rate_per_s=1, burst=2)
    limit.take("a", 0.0)
    limit.take("a", 0.0)

    with pytest.raises(Overloaded) as caught:
        limit.take("a", 0.5)
    assert caught.value.retry_after_s == pytest.approx(0.5)

    limit.take("b", 0.5)
    limit.take("a", 1.0)
