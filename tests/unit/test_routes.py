import pytest

from outrigger.core.errors import Invalid, NotFound
from sidecar.call.routes import MethodRule, Routes, Upstream

SHOP = Upstream("shop", "127.0.0.1:1")
DEFAULT = Upstream("default", "127.0.0.1:2")
BANK = Upstream("bank", "127.0.0.1:3")
PREFIXES = {"acme": "shop", "acme.bank": "bank", "/acme.bank.Teller/": "default"}
METHOD = "/acme.Orders/Place"


def named(name):
    """Metadata that names an upstream."""
    return (("user-agent", "x"), ("outrigger-upstream", name))


def test_the_caller_may_name_the_upstream():
    """Metadata wins over every prefix."""
    routes = Routes([SHOP, DEFAULT, BANK], prefixes=PREFIXES)

    assert routes.resolve(METHOD, named("bank")).upstream == "bank"
    assert routes.route(METHOD, "default").upstream == "default"
    assert routes.resolve(METHOD, (*named("bank"), *named("shop"))).upstream == "shop"


@pytest.mark.parametrize(
    ("method", "upstream"),
    [
        ("/acme.Orders/Place", "shop"),
        ("/acme.bank.Loans/Ask", "bank"),
        ("/acme.bank.Teller/Pay", "default"),
        ("/acme.banking.Loans/Ask", "shop"),
        ("/acmeville.Orders/Place", "default"),
        ("/other.Orders/Place", "default"),
        ("/Orders/Place", "default"),
    ],
)
def test_the_longest_prefix_of_whole_words_decides(method, upstream):
    """`acme.bank` covers `acme.bank.Loans` but not `acme.banking.Loans`."""
    routes = Routes([SHOP, DEFAULT, BANK], prefixes=PREFIXES)

    assert routes.resolve(method).upstream == upstream


def test_the_only_upstream_is_the_default_whatever_its_name():
    """One upstream needs no routing."""
    assert Routes([SHOP]).resolve(METHOD).upstream == "shop"


def test_an_unknown_upstream_is_refused_with_the_list():
    """The caller reads which names it may use."""
    with pytest.raises(NotFound, match="one of bank, shop") as caught:
        Routes([SHOP, BANK]).resolve(METHOD, named("shopp"))

    assert caught.value.reason == "UNKNOWN_UPSTREAM"


def test_without_a_default_the_caller_must_name_one():
    """Two upstreams, neither called default, and no prefix fits."""
    with pytest.raises(Invalid, match="belongs to no upstream") as caught:
        Routes([SHOP, BANK]).resolve(METHOD)

    assert caught.value.reason == "NO_UPSTREAM"


def test_without_any_upstream_every_call_is_refused():
    """A sidecar that relays nothing says so."""
    with pytest.raises(Invalid, match="none is configured"):
        Routes([]).resolve(METHOD)


def test_the_most_exact_rule_wins():
    """The method, then its service, then the star, then no rule at all."""
    exact = MethodRule(match=METHOD, idempotent=True)
    service = MethodRule(match="/acme.Orders/*", unsafe=True)
    star = MethodRule(match="*", max_attempts=5)
    routes = Routes([SHOP], [star, service, exact])

    assert routes.resolve(METHOD).rule is exact
    assert routes.resolve("/acme.Orders/Cancel").rule is service
    assert routes.resolve("/acme.OrdersTwo/Place").rule is star
    assert Routes([SHOP], [exact]).resolve("/a.B/C").rule == MethodRule(match="*")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"upstreams": [SHOP, SHOP]}, "DOUBLE_UPSTREAM"),
        (
            {"upstreams": [SHOP], "rules": [MethodRule(match="*")] * 2},
            "DOUBLE_METHOD_RULE",
        ),
        ({"upstreams": [SHOP], "prefixes": {"a": "bank"}}, "UNKNOWN_UPSTREAM"),
    ],
)
def test_what_contradicts_itself_is_refused_at_the_start(given, reason):
    """Not at the first call that runs into it."""
    with pytest.raises(Invalid) as caught:
        Routes(**given)

    assert caught.value.reason == reason


def test_an_upstream_needs_a_proper_name():
    """Names become circuit ids and metrics."""
    with pytest.raises(Invalid) as caught:
        Upstream("Not a name", "x:1")

    assert caught.value.reason == "BAD_UPSTREAM_NAME"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"match": "acme.Orders/Place"}, "must be /package.Service/Method"),
        ({"match": "/acme.Orders"}, "must be /package.Service/Method"),
        ({"match": "/acme.*/Place"}, "must be /package.Service/Method"),
        ({"match": "/*"}, "must be /package.Service/Method"),
        ({"match": ""}, "must be /package.Service/Method"),
        ({"letter": "maybe"}, "letter: 'maybe' must be one of off, on, always"),
        ({"timeout_s": 0.0}, "timeout_s: 0 is not more than 0"),
        ({"timeout_s": -1.0}, "timeout_s: -1 is not more than 0"),
        ({"max_attempts": 0}, "max_attempts: 0 is less than 1"),
        ({"max_attempts": 6}, "max_attempts: 6 is more than 5"),
        ({"unsafe": True, "idempotent": True}, "not both"),
        ({"unsafe": True, "letter": "on"}, "which unsafe forbids"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(wrong, said):
    """Each mistake is named by what was expected."""
    with pytest.raises(Invalid, match=said) as caught:
        MethodRule(**({"match": METHOD} | wrong))

    assert caught.value.reason == "BAD_METHOD_RULE"


def test_every_mistake_of_a_rule_is_named_at_once():
    """Nobody wants to mend one only to read of the next."""
    with pytest.raises(Invalid, match=r"letter.*timeout_s.*max_attempts"):
        MethodRule(match="*", letter="x", timeout_s=0.0, max_attempts=9)
