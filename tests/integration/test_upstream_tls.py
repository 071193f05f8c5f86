"""TLS towards upstreams: who is believed, what a caller is told, and new files."""

import asyncio
import os
import shutil

import grpc
import pytest

from outrigger.core.errors import Invalid
from outrigger.core.events import Alerted, Recovered
from outrigger.core.tasks import Tasks
from sidecar.call.descriptor import Origin
from sidecar.policy.classify import Verdict, of_upstream
from sidecar.wire.peer_tls import PeerTls
from sidecar.wire.rotation import Rotation
from sidecar.wire.upstreams import UpstreamChannels, UpstreamSpec
from tests.support.echo_upstream import until
from tests.support.peer_certificates import Authority
from tests.support.relay import SERVICE, open_relay
from tests.support.upstream_rig import (
    ScriptedNames,
    callees,
    open_channels,
    surroundings,
)


@pytest.fixture
def authority():
    """Who signs the certificates of a test."""
    return Authority()


@pytest.fixture
def server_files(authority, tmp_path):
    """Files of a callee at 127.0.0.1."""
    return authority.issue(tmp_path / "server")


@pytest.fixture
def client_files(authority, tmp_path):
    """Files of us, by the same authority."""
    return authority.issue(tmp_path / "client", "client.example")


def spec_of(callee, files, **given):
    """Return the spec of an upstream over TLS that is believed by our files."""
    return UpstreamSpec(targets=(callee.target,), tls=True, ca=files.ca, **given)


def mutual(callee, files, **given):
    """Return the same where we bring a certificate too."""
    return spec_of(callee, files, cert=files.cert, key=files.key, **given)


async def test_calls_over_tls(server_files, client_files):
    """A callee whose certificate our authority signed is called."""
    async with (
        callees(1, files=server_files) as (callee,),
        open_channels(up=spec_of(callee, client_files)) as channels,
    ):
        assert channels.states() == ["READY"]
        assert await channels.call() == 0
        assert channels.view().tls == "tls"


async def test_calls_over_mutual_tls(server_files, client_files):
    """A callee that asks who we are is shown our certificate."""
    given = {"files": server_files, "asks_for_certificate": True}
    async with (
        callees(1, **given) as (callee,),
        open_channels(up=mutual(callee, client_files)) as channels,
    ):
        assert await channels.call() == 0
        assert channels.view().tls == "mutual"


async def test_another_name_may_be_expected(authority, client_files, tmp_path):
    """A callee known by another name than it is dialled by is believed by that one."""
    files = authority.issue(tmp_path / "named", "shop.example")
    async with callees(1, files=files) as (callee,):
        spec = spec_of(callee, client_files, authority="shop.example")
        async with open_channels(up=spec) as channels:
            assert await channels.call() == 0


async def test_a_name_looked_up_is_the_name_expected(authority, client_files, tmp_path):
    """Addresses of a name must show a certificate for the name, not the address."""
    files = authority.issue(tmp_path / "named", "shop.example")
    async with callees(2, files=files) as made:
        spec = UpstreamSpec(
            targets=("dns:///shop.example:80",),
            balance="round_robin",
            tls=True,
            ca=client_files.ca,
        )
        names = ScriptedNames(shop=tuple(one.address for one in made))
        outside = surroundings(resolve=names)
        async with open_channels(up=spec, outside=outside) as channels:
            await until(lambda: channels.states() == ["READY"] * 2)
            for _ in range(4):
                assert await channels.call() == 0
            assert [one.calls for one in made] == [2, 2]


@pytest.mark.parametrize(
    "failure", ["wrong CA", "wrong name", "expired", "no client certificate", "plain"]
)
async def test_a_handshake_that_fails_is_a_failure_of_the_transport(
    authority, client_files, tmp_path, failure
):
    """The caller is told UNAVAILABLE at once, and the upstream's circuit counts it."""
    signer = Authority() if failure == "wrong CA" else authority
    name = "other.example" if failure == "wrong name" else "127.0.0.1"
    files = signer.issue(tmp_path / "server", name, expired=failure == "expired")
    given = {
        "files": None if failure == "plain" else files,
        "asks_for_certificate": failure == "no client certificate",
    }
    async with (
        callees(1, **given) as (callee,),
        open_relay(specs={"up": spec_of(callee, client_files)}) as relay,
    ):
        call = relay.channel.unary_unary(SERVICE + "Join")(b"x", timeout=30)
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        (outcome,) = relay.guard.outcomes
        assert outcome.origin is Origin.TRANSPORT
        assert of_upstream(outcome.code, outcome.origin) is Verdict.HARD
        assert relay.ready == []
        assert callee.calls == 0


async def test_a_callee_over_tls_that_comes_back_is_found(server_files, client_files):
    """Its absence of three seconds does not make the channel wait long."""
    async with (
        callees(1, files=server_files) as (callee,),
        open_channels(up=spec_of(callee, client_files)) as channels,
    ):
        await callee.down()
        await until(lambda: channels.states() == ["TRANSIENT_FAILURE"])
        await asyncio.sleep(3)
        await callee.up()
        await until(lambda: channels.states() == ["READY"])
        assert await channels.call() == 0
        assert channels.ready == ["up", "up"]


# New files.


def replace(old, new):
    """Put new files in the place of old ones, one after the other."""
    for name in ("ca", "cert", "key"):
        fresh = getattr(old, name).with_suffix(".new")
        shutil.copy(getattr(new, name), fresh)
        fresh.replace(getattr(old, name))


async def test_new_files_are_used_without_losing_a_call(
    authority, server_files, client_files, tmp_path
):
    """A call in flight ends on the old channel; new calls show the new certificate."""
    shown = []

    async def who(echo, context):
        shown.append(context.auth_context()["x509_subject_alternative_name"])
        await echo.join(context)

    async def slow(echo, context):
        await echo.gate.wait()
        await echo.join(context)

    given = {"files": server_files, "asks_for_certificate": True}
    async with callees(1, **given) as (callee,):
        callee.extra |= {"Who": who, "Slow": slow}
        async with open_relay(
            specs={"up": mutual(callee, client_files)}, surroundings=surroundings()
        ) as relay:
            old = relay.targets.get("up")
            assert await relay.unary("Who") == b"hello"
            calling = asyncio.ensure_future(relay.unary("Slow", timeout=30))
            await until(lambda: callee.calls == 2)
            renewed = authority.issue(tmp_path / "renewed", "new.example")
            replace(client_files, renewed)
            await until(lambda: relay.targets.get("up") is not old)
            assert await relay.unary("Who") == b"hello"
            assert shown == [[b"client.example"], [b"new.example"]]
            assert not calling.done()
            callee.gate.set()
            assert await calling == b"hello"
            await until(lambda: old.state.name == "SHUTDOWN")


async def test_new_files_that_do_not_belong_together_wait(
    authority, server_files, client_files, tmp_path
):
    """Between the two replacements the old credentials serve; people are told once."""
    renewed = authority.issue(tmp_path / "renewed", "new.example")
    given = {"files": server_files, "asks_for_certificate": True}
    async with (
        callees(1, **given) as (callee,),
        open_channels(up=mutual(callee, client_files)) as channels,
    ):
        old = channels.pick()
        shutil.copy(renewed.cert, client_files.cert)
        alert = await channels.told(Alerted, "client/cert.pem")
        assert alert.name == "UPSTREAM_TLS_UNUSABLE"
        assert "the old ones stay in use" in alert.message
        await asyncio.sleep(0.2)
        assert len(channels.events) == 1
        assert channels.pick() is old
        assert await channels.call() == 0
        shutil.copy(renewed.key, client_files.key)
        await channels.told(Recovered, "TLS files of up")
        await until(lambda: channels.pick() is not old)
        assert await channels.call() == 0
        secret = client_files.key.read_text().splitlines()[1]
        assert secret not in str(channels.events)


async def test_files_that_vanish_leave_the_old_credentials(server_files, client_files):
    """A file taken away is told of, and calls go on."""
    async with (
        callees(1, files=server_files) as (callee,),
        open_channels(up=spec_of(callee, client_files)) as channels,
    ):
        client_files.ca.unlink()
        await channels.told(Alerted, "ca.pem")
        assert await channels.call() == 0


async def test_files_touched_but_whole_cost_one_new_channel(server_files, client_files):
    """A time of change that moves is a change; then all is quiet again."""
    async with (
        callees(1, files=server_files) as (callee,),
        open_channels(up=spec_of(callee, client_files)) as channels,
    ):
        old = channels.pick()
        os.utime(client_files.ca, ns=(1, 1))
        await until(lambda: channels.pick() is not old)
        new = channels.pick()
        await asyncio.sleep(0.2)
        assert channels.pick() is new
        assert channels.events == []


# Files that are wrong from the start.


def mistakes(**given):
    """Return what is wrong with a spec over TLS."""
    return UpstreamSpec(targets=("127.0.0.1:1",), **{"tls": True, **given}).mistakes()


def test_files_are_named_when_they_cannot_be_used(client_files, tmp_path):
    """Missing files, garbage and files that do not belong together say which."""
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no PEM at all")
    missing = tmp_path / "missing.pem"
    files = client_files
    assert mistakes(ca=files.ca, cert=files.cert, key=files.key) == []
    assert mistakes(ca=missing) == [
        f"ca: cannot read {missing}: No such file or directory"
    ]
    (line,) = mistakes(ca=garbage)
    assert f"ca {garbage} holds no certificate" in line
    (line,) = mistakes(cert=garbage, key=files.key)
    assert f"cert {garbage} and key {files.key} are not" in line
    (line,) = mistakes(cert=files.cert, key=garbage)
    assert "are not a certificate and its key" in line
    assert len(mistakes(ca=garbage, cert=garbage, key=garbage)) == 2
    assert len(mistakes(ca=missing, cert=missing, key=files.key)) == 2
    assert mistakes(cert=files.cert) == ["cert without key: give both for mutual TLS"]
    assert mistakes(key=files.key) == ["key without cert: give both for mutual TLS"]


def test_the_authorities_of_the_library_do_for_public_upstreams():
    """TLS without any file is no mistake."""
    assert mistakes() == []
    credentials, stamp = PeerTls().load()
    assert (type(credentials), stamp) == (grpc.ChannelCredentials, ())


def test_no_secret_is_told(client_files):
    """Neither a spec nor an error shows what is in the files."""
    key = client_files.key.read_text()
    spec = UpstreamSpec(
        targets=("127.0.0.1:1",), tls=True, cert=client_files.ca, key=client_files.key
    )
    secret = key.splitlines()[1]
    assert secret not in repr(spec)
    (line,) = spec.mistakes()
    assert secret not in line


@pytest.mark.parametrize("when", ["before", "during", "gone"])
async def test_files_that_change_while_they_are_read_are_not_believed(
    client_files, monkeypatch, when
):
    """What was read half before and half after a change is refused."""
    tls = PeerTls(ca=client_files.ca)
    read = PeerTls._contents

    def contents(self):
        found = read(self)
        if when == "gone":
            client_files.ca.unlink()
        elif when == "during":
            os.utime(client_files.ca, ns=(1, 1))
        return found

    monkeypatch.setattr(PeerTls, "_contents", contents)
    if when == "before":
        client_files.ca.unlink()
    with pytest.raises(Invalid) as caught:
        tls.load()
    assert caught.value.reason == "BAD_TLS_FILE"
    assert ("changed while" in str(caught.value)) == (when != "before")


async def test_a_file_that_vanishes_between_two_looks_is_named(
    client_files, monkeypatch
):
    """An error of the file system becomes one that says which file."""
    monkeypatch.setattr(PeerTls, "mistakes", lambda self: [])
    client_files.ca.unlink()
    with pytest.raises(Invalid, match=str(client_files.ca)):
        Rotation("up", PeerTls(ca=client_files.ca), lambda: None, surroundings())


async def test_files_changed_between_check_and_start_fail_the_start(client_files):
    """What was right when it was checked is checked again where it is used."""
    reports = []
    spec = UpstreamSpec(targets=("127.0.0.1:1",), tls=True, ca=client_files.ca)
    channels = UpstreamChannels(
        {"up": spec}, lambda name: None, tasks=Tasks(reports.append, None)
    )
    client_files.ca.write_text("no PEM")
    with pytest.raises(Invalid) as caught:
        await channels.start()
    assert caught.value.reason == "BAD_TLS_FILE"
    await channels.close()
