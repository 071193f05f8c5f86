"""How calls are treated, from a file: for all upstreams, for one, for a method."""

import math

import pytest

from outrigger.core.errors import Invalid
from sidecar.call.routes import MethodRule
from sidecar.call.standing import GuardSettings, UpstreamPolicy
from sidecar.config import from_file
from sidecar.policy.budget import BudgetSettings
from sidecar.policy.circuit_settings import CircuitSettings
from sidecar.policy.gradient import GradientSettings
from sidecar.policy.retry import RetrySettings

ENV = {"HOME": "/home/agent"}
TARGET = "target = '127.0.0.1:1'\n"
SHOP = f"[upstreams.shop]\n{TARGET}"


@pytest.fixture
def config(tmp_path):
    """Read a file's text."""

    def read(text, environ=ENV):
        path = tmp_path / "sidecar.toml"
        path.write_text(text)
        return from_file(str(path), environ)

    return read


@pytest.fixture
def told(config):
    """Read a file's text that is wrong, and return the mistakes."""

    def read(text):
        with pytest.raises(Invalid) as caught:
            config(text)
        return caught.value.metadata["mistakes"].split("\n")

    return read


def test_without_a_word_the_defaults_hold(config):
    """Also for an upstream with a table that says nothing about calls."""
    guard = config(SHOP).guard

    assert guard == GuardSettings()
    assert guard.of("shop") is guard


def test_the_top_level_holds_for_every_upstream(config):
    """Tables and plain keys alike; times with a unit or without."""
    guard = config("""
concurrency = 10
queue = 5
queue_max_s = "250ms"
[circuit]
failure_ratio = 0.25
slow_s = "off"
shadow = true
learn = true
[retry]
base_s = 0.1
throttle_cap_s = "1m"
[budget]
ratio = 1
""").guard

    assert guard == GuardSettings(
        concurrency=10,
        queue=5,
        queue_max_s=0.25,
        circuit=CircuitSettings(
            failure_ratio=0.25, slow_s=math.inf, shadow=True, learn=True
        ),
        retry=RetrySettings(base_s=0.1, throttle_cap_s=60.0),
        budget=BudgetSettings(ratio=1.0),
    )


def test_an_upstream_takes_over_what_it_does_not_say(config):
    """Key by key, not table by table; other upstreams see nothing of it."""
    guard = config(f"""
concurrency = 10
queue = 5
[circuit]
open_s = 2
min_calls = 30
[budget]
minimum = 3
{SHOP}
queue = 0
[upstreams.shop.circuit]
open_s = 3
[upstreams.mail]
{TARGET}
""").guard

    assert guard.of("shop") == UpstreamPolicy(
        concurrency=10,
        queue=0,
        circuit=CircuitSettings(open_s=3.0, min_calls=30),
        budget=BudgetSettings(minimum=3),
    )
    assert guard.of("mail") is guard
    assert guard.circuit == CircuitSettings(open_s=2.0, min_calls=30)


def test_an_adaptive_limit_is_asked_for_and_then_bounded(config):
    """The top level's bounds are for those who ask, and only they have a gradient."""
    guard = config(f"""
[adaptive]
most = 64
{SHOP}
limit = "adaptive"
[upstreams.shop.adaptive]
least = 2
""").guard

    assert guard.adaptive is None
    assert guard.of("shop").adaptive == GradientSettings(least=2, most=64)


def test_one_upstream_may_stay_fixed(config):
    """Where all others are adaptive, by a key, a variable or a flag."""
    environ = {**ENV, "OUTRIGGER_LIMIT": "adaptive"}
    guard = config(f"{SHOP}limit = 'fixed'\nconcurrency = 3", environ).guard

    assert guard.adaptive == GradientSettings()
    assert guard.of("shop") == UpstreamPolicy(concurrency=3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[upstreams.shop.adaptive]\nleast = 1",
            'upstreams.shop.adaptive: is of no use without limit = "adaptive"',
        ),
        (
            "limit = 'adaptive'\nconcurrency = 9",
            'upstreams.shop.concurrency: is of no use with limit = "adaptive";',
        ),
        (
            "limit = 'learnt'\n[upstreams.shop.adaptive]\nleast = 1",
            "upstreams.shop.limit: got the text 'learnt'; expected \"fixed\" or",
        ),
        ("queue = -1", "upstreams.shop.queue: -1 is less than 0"),
        ("concurrency = 0", "upstreams.shop.concurrency: 0 is less than 1"),
        ("circuit = 3", "upstreams.shop.circuit: got the number 3; expected a table"),
        (
            "[upstreams.shop.circuit]\nfailure_ratio = 7",
            "upstreams.shop.circuit.failure_ratio: 7 is more than 1",
        ),
        (
            "[upstreams.shop.circuit]\nopen_s = 16",
            "upstreams.shop.circuit.open_max_s: 15 is less than open_s, which is 16",
        ),
        ("[circuit.open_s]", "circuit.open_s: got a table; expected a time such as"),
        ("[retry]\ncap_s = 0", "retry.cap_s: 0 is not more than 0"),
        ("[budget]\nratio = 2", "budget.ratio: 2 is more than 1"),
        ("[adaptive]\nleast = 0", "adaptive.least: 0 is less than 1"),
    ],
)
def test_a_mistake_is_told_with_its_place(told, text, said):
    """In one line, which says what it is and what it should be."""
    (line,) = told(SHOP + text)

    assert line.startswith(said)


def test_a_mistake_of_the_top_level_is_not_told_again_for_each_upstream(told):
    """Though every upstream takes it over."""
    assert told(f"""
[circuit]
failure_ratio = 7
open_s = 20
{SHOP}
[upstreams.shop.circuit]
min_calls = 3
""") == [
        "circuit.failure_ratio: 7 is more than 1",
        "circuit.open_max_s: 15 is less than open_s, which is 20",
    ]


def test_a_wrong_option_spoils_no_upstream(told):
    """What a policy takes over from an option that is wrong is not looked at."""
    lines = told(f"queue = 'many'\nlimit = 'x'\n{SHOP}[upstreams.shop.adaptive]\n")

    assert [line.partition(":")[0] for line in lines] == [
        "key queue 'many'",
        "key limit 'x'",
    ]


def test_a_method_rule_has_all_its_keys(config):
    """Names of statuses, times with units, and "off" for a slowness without end."""
    (rule,) = config("""
[[methods]]
match = "/shop.Orders/Place"
idempotent = true
letter = "always"
timeout_s = "5s"
max_attempts = 4
retry_on = ["UNAVAILABLE", "ABORTED"]
backoff_s = "100ms"
backoff_max_s = 2
hedge_s = 0.5
slow_s = "off"
shadow = true
""").rules

    assert rule == MethodRule(
        match="/shop.Orders/Place",
        idempotent=True,
        letter="always",
        timeout_s=5.0,
        max_attempts=4,
        retry_on=("UNAVAILABLE", "ABORTED"),
        backoff_s=0.1,
        backoff_max_s=2.0,
        hedge_s=0.5,
        slow_s=math.inf,
        shadow=True,
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[methods]]", 'methods[1].match: is missing; give match = "/package.Ser'),
        ("methods = [3]", "methods[1]: got the number 3; expected a table"),
        ("[[methods]]\nmatch = 3", "methods[1].match: got the number 3; expected a"),
        (
            "[[methods]]\nmatch = '*'\n[[methods]]\nmatch = '*'",
            "methods[2].match: '*' has a rule in methods[1]",
        ),
        (
            "[[methods]]\nmatch = '*'\nretry_on = ['unavailble']",
            "methods[1].retry_on: entry 1: got the text 'unavailble'; expected the",
        ),
        (
            "[[methods]]\nmatch = '*'\nhedge_s = 1",
            "methods[1].hedge_s: it sends twice: say idempotent = true",
        ),
        (
            "[[methods]]\nmatch='*'\nidempotent=true\nhedge_s=1\nmax_attempts=1",
            "methods[1].hedge_s: it needs max_attempts of 2 or more",
        ),
    ],
)
def test_a_mistake_of_a_method_rule_is_told_with_its_place(told, text, said):
    """Rules are counted from 1."""
    lines = told(text)

    assert lines[0].startswith(said)
    assert lines[1:] == []


def test_a_rule_without_a_match_is_looked_at_all_the_same(told):
    """Its other mistakes are told too."""
    lines = told("[[methods]]\nmax_attempts = 9\nunsafe = 1")

    assert [line.partition(":")[0] for line in lines] == [
        "methods[1].unsafe",
        "methods[1].max_attempts",
        "methods[1].match",
    ]
