"""Where upstreams are and how to reach them, from a file and from flags."""

import pytest

from outrigger.core.errors import Invalid
from sidecar.config import from_args
from sidecar.policy.outlier import OutlierSettings
from sidecar.wire.upstream_spec import UpstreamSpec
from tests.support.peer_certificates import Authority

ENV = {"HOME": "/home/agent"}


@pytest.fixture
def config(tmp_path):
    """Read a file's text, with words of the command line."""

    def read(text, *words):
        path = tmp_path / "sidecar.toml"
        path.write_text(text)
        return from_args(["--agent-id", "a-1", "--config", str(path), *words], ENV)

    return read


@pytest.fixture
def told(config):
    """Read a file's text that is wrong, and return the mistakes."""

    def read(text, *words):
        with pytest.raises(Invalid) as caught:
            config(text, *words)
        return caught.value.metadata["mistakes"].split("\n")

    return read


def test_every_key_of_the_way_to_an_upstream_is_read(config, tmp_path):
    """Files as paths, times in seconds, lists as tuples."""
    files = Authority().issue(tmp_path / "shop")
    found = config(f"""
[upstreams.shop]
addresses = ["10.0.0.1:50051", "dns:///shop:50051"]
services = ["shop.Orders", "shop.Carts"]
balance = "round_robin"
tls = true
tls_ca = "{files.ca}"
tls_cert = "{files.cert}"
tls_key = "{files.key}"
tls_name = "shop.internal"
keepalive_s = "10m"
keepalive_timeout_s = 5
warm_up = 2
resolve_s = "1m"
[upstreams.shop.outlier]
failures = 3
""")

    assert found.upstreams["shop"] == UpstreamSpec(
        targets=("10.0.0.1:50051", "dns:///shop:50051"),
        balance="round_robin",
        tls=True,
        ca=files.ca,
        cert=files.cert,
        key=files.key,
        authority="shop.internal",
        keepalive_s=600.0,
        keepalive_timeout_s=5.0,
        warm_up=2,
        resolve_s=60.0,
        outlier=OutlierSettings(failures=3),
    )
    assert found.services == {"shop.Orders": "shop", "shop.Carts": "shop"}


def test_a_target_alone_leaves_the_wire_its_own_defaults(config):
    """In the file as by a flag."""
    found = config("[upstreams.shop]\ntarget = 'a:1'", "--upstream", "mail=b:1")

    assert found.upstreams == {
        "shop": UpstreamSpec(targets=("a:1",)),
        "mail": UpstreamSpec(targets=("b:1",)),
    }


def test_outliers_are_ejected_as_all_upstreams_or_this_one_says(config):
    """Upstreams of flags take over what holds for all; a guard does not care."""
    found = config(
        """
[outlier]
base_s = 2
max_s = "20s"
[upstreams.shop]
target = "a:1"
[upstreams.shop.outlier]
base_s = "3s"
""",
        "--upstream",
        "mail=b:1",
    )

    assert found.upstreams["shop"].outlier == OutlierSettings(base_s=3.0, max_s=20.0)
    assert found.upstreams["mail"].outlier == OutlierSettings(base_s=2.0, max_s=20.0)
    assert found.guard.upstreams == {}


def test_files_that_cannot_be_used_are_told_with_all_else(told):
    """Not one start later."""
    lines = told("""
[upstreams.shop]
target = "a:1"
tls = true
tls_ca = "/no/ca.pem"
[upstreams.mail]
target = "a:1"
resolve_s = 0
""")

    assert lines == [
        "upstreams.shop: ca: cannot read /no/ca.pem: No such file or directory",
        "upstreams.mail.resolve_s: 0 is less than 1",
    ]


def test_other_mistakes_of_an_upstream_hide_nothing(told):
    """What is in order is looked at further, whatever else is not."""
    lines = told("""
[upstreams.shop]
target = "a:1"
addresses = ["b:1"]
services = ["shop.Orders"]
[upstreams.mail]
target = "a:1"
services = ["shop.Orders"]
resolve_s = 0
tls = true
tls_ca = "/no/ca.pem"
""")

    assert [line.partition(": ")[0] for line in lines] == [
        "upstreams.shop.addresses",
        "upstreams.mail.resolve_s",
        "upstreams.mail",
        "upstreams.mail.services",
    ]


def test_pings_can_be_turned_off(config):
    """For a callee, or something on the way, that takes none at all."""
    found = config("[upstreams.shop]\ntarget = 'a:1'\nkeepalive_s = 'off'")

    assert found.upstreams["shop"].keepalive_s is None


def test_a_flag_gives_the_target_of_a_table_that_has_none(config):
    """What else the table says holds."""
    found = config("[upstreams.shop]\ntls = true\nqueue = 3", "--upstream", "shop=a:1")

    assert found.upstreams == {"shop": UpstreamSpec(targets=("a:1",), tls=True)}
    assert found.guard.of("shop").queue == 3


def test_a_flag_wins_over_all_addresses(config):
    """One callee is tried in place of a set of them."""
    found = config(
        "[upstreams.shop]\naddresses = ['b:1', 'c:1']", "--upstream", "shop=a:1"
    )

    assert found.upstreams["shop"].targets == ("a:1",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "queue = 3",
            "upstreams.shop: has no target; give target, addresses, or --upstream shop",
        ),
        ("addresses = []", "upstreams.shop: has no target; give target"),
        (
            "target = 'a:1'\naddresses = ['b:1']",
            "upstreams.shop.addresses: there is a target as well: give one of them",
        ),
        (
            "addresses = ['b:1', 'a:1', 'b:1']",
            "upstreams.shop.addresses: b:1 is listed twice",
        ),
        (
            "addresses = ['b:1', 'a']",
            "upstreams.shop.addresses: entry 2: got the text 'a'; expected HOST:PORT",
        ),
        ("target = 'a'", "upstreams.shop.target: got the text 'a'; expected HOST:PORT"),
        (
            "target = 'a:1'\ntls = true\ntls_cert = 'c'",
            "upstreams.shop.tls_cert: is of no use without tls_key: give both",
        ),
        (
            "target = 'a:1'\ntls = true\ntls_key = 'c'",
            "upstreams.shop.tls_key: is of no use without tls_cert: give both",
        ),
        (
            "target = 'a:1'\ntls_ca = 'c'",
            "upstreams.shop.tls_ca: is of no use without tls = true",
        ),
        (
            "target = 'a:1'\nkeepalive_s = 5",
            "upstreams.shop.keepalive_s: 5 is less than 10",
        ),
        (
            "target = 'a:1'\nkeepalive_timeout_s = 0",
            "upstreams.shop.keepalive_timeout_s: 0 is not more than 0",
        ),
        ("target = 'a:1'\nwarm_up = -1", "upstreams.shop.warm_up: -1 is less than 0"),
        (
            "target = 'a:1'\nresolve_s = 0.5",
            "upstreams.shop.resolve_s: 0.5 is less than 1",
        ),
        (
            "target = 'a:1'\nbalance = 'random'",
            "upstreams.shop.balance: got the text 'random'; expected \"pick_first\" or",
        ),
    ],
)
def test_a_mistake_is_told_with_its_place(told, text, said):
    """In one line, which says what it is and what it should be."""
    (line,) = told(f"[upstreams.shop]\n{text}")

    assert line.startswith(said)


def test_a_bad_name_is_told_where_it_stands(told):
    """Names become circuit ids and metrics."""
    (line,) = told("[upstreams.'My Shop']\ntarget = 'a:1'")

    assert line.startswith("upstreams.\"My Shop\": upstream name 'My Shop' is not")


def test_a_service_belongs_to_one_upstream(told):
    """Not to whichever comes last."""
    assert told("""
[upstreams.shop]
target = "a:1"
services = ["shop.Orders"]
[upstreams.mail]
target = "b:1"
services = ["shop.Orders", "mail.Box"]
""") == ["upstreams.mail.services: shop.Orders belongs to shop already"]


def test_a_wrong_flag_does_not_hide_what_is_wrong_in_the_file(told):
    """Flags, variables, keys and contradictions are told together."""
    lines = told(
        "[upstreams.shop]\ntarget = 'a:1'\nresolve_s = 0",
        *("--upstream", "shop", "--tls-cert", "c", "--inbound", "127.0.0.1:0"),
        *("--join-token-file", "t", "--queue", "-1"),
    )

    assert [line.partition(" ")[0] for line in lines] == [
        "--upstream",
        "--queue",
        "--inbound",
        "--join-token-file",
        "TLS",
        "upstreams.shop.resolve_s:",
    ]
