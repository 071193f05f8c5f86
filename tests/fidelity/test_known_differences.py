import asyncio
import socket

import grpc
import pytest

from tests.fidelity import cases_size
from tests.fidelity.cases_cancel import cancelled
from tests.fidelity.cases_retry import RETRIES
from tests.support.fidelity_caller import Caller
from tests.support.fidelity_cases import CASES, Case, Setting, observe
from tests.support.fidelity_differences import DIFFERENCES
from tests.support.fidelity_observation import Observation
from tests.support.fidelity_raw import answer_bytes, answer_frames
from tests.support.fidelity_upstream import SERVICE, UNLIMITED, Upstream

PATH = SERVICE + "Any"


@pytest.fixture
def both(wire):
    """Return a function that runs an act directly and through a wire."""

    async def run(act, **setting):
        case = Case("difference", act, Setting(**setting))
        return await observe(case), await observe(case, wire)

    return run


def test_each_difference_has_its_test():
    """Nothing is listed that no test holds, and nothing is held that is not listed."""
    prefix = "test_difference_"
    found = {name.removeprefix(prefix) for name in globals() if name.startswith(prefix)}
    assert found == set(DIFFERENCES)


def end(code=0, details="", *trailers, headers=None):
    """Return a script that reads all and ends."""

    async def script(call):
        await call.read_all()
        if headers is not None:
            await call.headers(*headers)
        call.end(code, details, *trailers)

    return script


async def test_difference_previous_attempts(both):
    """The callee sees as many attempts, and in none of them the caller's number."""

    async def act(caller, upstream):
        upstream.script = end(14, "always")
        return [await caller.unary(b"x").response()]

    direct, relayed = await both(act, caller=RETRIES)
    key = "grpc-previous-rpc-attempts"
    assert [call["metadata"] for call in direct.upstream] == [
        (),
        ((key, "1"),),
        ((key, "2"),),
    ]
    assert [call["metadata"] for call in relayed.upstream] == [(), (), ()]


async def test_difference_request_metadata_of_ours(both):
    """Keys of the sidecar end there, and no others."""
    sent = (
        ("outrigger-upstream", "up"),
        ("x-a", "1"),
        ("outrigger-letter", "off"),
        ("outrigger-anything", "2"),
        ("x-outrigger-b", "3"),
    )

    async def act(caller, upstream):
        upstream.script = end()
        return [await caller.download(b"x", metadata=sent).rest()]

    direct, relayed = await both(act)
    assert direct.upstream[0]["metadata"] == sent
    assert relayed.upstream[0]["metadata"] == (("x-a", "1"), ("x-outrigger-b", "3"))
    assert relayed.caller == direct.caller


async def test_difference_trailers_of_ours(both):
    """A callee's trailers of our own names are left out; all else stays in order."""
    sent = (
        ("x-a", "1"),
        ("outrigger-letter-id", "made up"),
        ("outrigger-letter-refused", "made up"),
        ("outrigger-refused-by", "made up"),
        ("outrigger-attempts", "9"),
        ("outrigger-fault", "made up"),
        ("outrigger-other", "2"),
    )

    async def act(caller, upstream):
        upstream.script = end(5, "no", *sent)
        return [await caller.unary(b"x").response()]

    direct, relayed = await both(act)
    kept = (("x-a", "1"), ("outrigger-other", "2"))
    assert direct.caller == [[("status", "NOT_FOUND", "no", (), sent)]]
    assert relayed.caller == [[("status", "NOT_FOUND", "no", (), kept)]]


async def test_difference_user_agent(both):
    """What a caller puts before its library's name does not reach the callee."""

    async def act(caller, upstream):
        upstream.script = end()
        await caller.download(b"x").rest()
        return Observation(facts={"agent": upstream.calls[0].user_agent})

    direct, relayed = await both(act, caller=(("grpc.primary_user_agent", "agent/1"),))
    assert direct.facts["agent"].startswith("agent/1 grpc-python-asyncio/")
    assert relayed.facts["agent"].startswith("grpc-python-asyncio/")


async def opened(caller, upstream):
    """Open a call at a callee of frames; return its header block."""
    call = caller.stream()
    await upstream.came("headers")
    upstream.trailers_only(0)
    await call.rest()
    return Observation(facts={"block": upstream.blocks[0]})


async def test_difference_authority(both):
    """The callee is told the address it is configured by, not the caller's word."""
    options = (("grpc.default_authority", "shop.example"),)
    direct, relayed = await both(opened, caller=options, raw=True)
    assert b"shop.example" in direct.facts["block"]
    assert b"shop.example" not in relayed.facts["block"]
    assert b"127.0.0.1" in relayed.facts["block"]


async def test_difference_content_subtype(both):
    """A caller that says how its messages are made is not quoted on that."""

    async def act(caller, upstream):
        asking = asyncio.ensure_future(
            answer_bytes(caller.address, PATH, subtype="+proto")
        )
        await upstream.came("half-close")
        upstream.trailers_only(0)
        await asking
        return Observation(facts={"block": upstream.blocks[0]})

    direct, relayed = await both(act, raw=True)
    assert b"application/grpc+proto" in direct.facts["block"]
    assert b"application/grpc" in relayed.facts["block"]
    assert b"application/grpc+proto" not in relayed.facts["block"]


async def test_difference_peer(both):
    """Two callers are two peers to a callee, and one if they come by the sidecar."""

    async def act(caller, upstream):
        upstream.script = end()
        second = Caller(caller.address)
        for one in (caller, second, caller, second):
            await one.download(b"x").rest()
        await second.close()
        return Observation(facts={call.peer: 1 for call in upstream.calls})

    direct, relayed = await both(act)
    assert (len(direct.facts), len(relayed.facts)) == (2, 1)


async def test_difference_compression(both):
    """A caller's compressed message is sent on as it was before that."""

    async def act(caller, upstream):
        call = caller.stream()
        await call.write(b"all work and no play " * 50)
        await upstream.came("data")
        upstream.trailers_only(0)
        await call.rest()
        (frames,) = await upstream.observed()
        return Observation(facts={"flag": frames[1][1][0]})

    gzip = grpc.Compression.Gzip
    direct, relayed = await both(act, caller_compression=gzip, raw=True)
    assert (direct.facts, relayed.facts) == ({"flag": 1}, {"flag": 0})


async def test_difference_wait_for_ready(wire):
    """Without an upstream a direct caller waits; by the sidecar it is told."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{unused.getsockname()[1]}"

        async def code(address):
            caller = Caller(address)
            call = caller.unary(b"x", wait_for_ready=True, timeout=1)
            await call.response()
            await caller.close()
            return call.events[-1][1]

        async with wire(nowhere) as address:
            assert await code(address) == "UNAVAILABLE"
        assert await code(nowhere) == "DEADLINE_EXCEEDED"


async def test_difference_metadata_beyond_64_kib(both):
    """Peers that take a megabyte of metadata do not get it through the sidecar."""
    more = (
        ("grpc.max_metadata_size", 1 << 20),
        ("grpc.absolute_max_metadata_size", 1 << 20),
    )

    async def act(caller, upstream):
        upstream.script = end()
        sent = (("x-large", "v" * 200_000),)
        return [await caller.download(b"x", metadata=sent).rest()]

    direct, relayed = await both(act, caller=more, upstream=more)
    assert direct.caller[0][-1][1] == "OK"
    assert relayed.caller[0][-1][1] == "RESOURCE_EXHAUSTED"
    assert relayed.upstream == []


async def test_difference_empty_headers_and_a_failure_at_once(both):
    """They may become Trailers-Only, and nothing else."""

    async def act(caller, upstream):
        upstream.script = end(14, "at once", headers=())
        frames = await answer_frames(caller.address, PATH)
        upstream.calls.clear()
        events = await caller.unary(b"x").response()
        return Observation(facts={"frames": frames, "events": events})

    direct, relayed = await both(act, caller=RETRIES)
    assert direct.facts["frames"] == ["headers", "headers", "end"]
    assert relayed.facts["frames"] in (["headers", "end"], direct.facts["frames"])
    assert relayed.facts["events"] == direct.facts["events"]
    assert len(direct.upstream) == 1
    assert 1 <= len(relayed.upstream) <= 3


async def test_difference_illegal_metadata_of_a_callee(both):
    """Only the value that cannot be sent on is missing, before and after."""
    odd = ("x-odd", "naïve")

    async def act(caller, upstream):
        call = caller.stream()
        await upstream.came("headers")
        upstream.headers(("x-a", "1"), odd)
        upstream.message(b"m")
        upstream.trailers(5, odd, ("x-b", "2"))
        return [await call.rest()]

    direct, relayed = await both(act, raw=True)
    message = ("message", b"m")
    headers, trailers = ("x-a", "1"), ("x-b", "2")
    assert direct.caller == [
        [message, ("status", "NOT_FOUND", "", (headers, odd), (odd, trailers))]
    ]
    assert relayed.caller == [
        [message, ("status", "NOT_FOUND", "", (headers,), (trailers,))]
    ]


async def test_difference_illegal_metadata_of_a_caller(both):
    """The callee gets no call at all, and the caller hears whose word that is."""

    async def act(caller, upstream):
        upstream.script = end()
        answer = await answer_bytes(caller.address, PATH, ("x-odd", "naïve"))
        return Observation(facts={"refused": b"outrigger-refused-by" in answer})

    direct, relayed = await both(act)
    assert (len(direct.upstream), direct.facts["refused"]) == (1, False)
    assert (len(relayed.upstream), relayed.facts["refused"]) == (0, True)


async def test_difference_status_numbers(both):
    """A number that no gRPC has is told as UNKNOWN; its message stays."""

    async def act(caller, upstream):
        asking = asyncio.ensure_future(answer_bytes(caller.address, PATH))
        await upstream.came("half-close")
        upstream.trailers_only(99, ("grpc-message", "odd"))
        return Observation(facts={"answer": await asking})

    direct, relayed = await both(act, raw=True)
    assert b"99" in direct.facts["answer"]
    assert b"99" not in relayed.facts["answer"]
    assert b"odd" in relayed.facts["answer"]


async def test_difference_pushback_that_is_no_number(both):
    """It stays one that forbids a retry."""

    async def act(caller, upstream):
        asking = asyncio.ensure_future(answer_bytes(caller.address, PATH))
        await upstream.came("half-close")
        upstream.trailers_only(14, ("grpc-retry-pushback-ms", "abc"))
        return Observation(facts={"answer": await asking})

    direct, relayed = await both(act, raw=True)
    assert b"abc" in direct.facts["answer"]
    assert b"-9223372036854775808" in relayed.facts["answer"]


async def test_difference_cancelled_upload_on_a_busy_machine(both):
    """A half-close may come before the reset, and in most calls it does not."""

    async def act(caller, upstream):
        for _ in range(15):
            await cancelled(caller, upstream, "two")
        return []

    direct, relayed = await both(act, raw=True)
    expected = direct.upstream[0]
    assert set(direct.upstream) == {expected}
    completed = (*expected[:-1], ("half-close",), expected[-1])
    assert set(relayed.upstream) <= {expected, completed}
    assert relayed.upstream.count(expected) > 7


async def test_difference_callee_of_a_message_too_large(both):
    """The caller sees the same; the callee was cancelled, or was done before."""
    assert cases_size  # adds its cases when it is imported
    script = CASES["response_at_the_callers_limit[1]"]
    direct, relayed = await both(script.act, caller=())
    assert relayed.caller == direct.caller
    (events,) = (call["events"] for call in relayed.upstream)
    assert events[:2] == direct.upstream[0]["events"][:2]
    assert events[2:] in ([], [("cancelled",)])


async def test_unlimited_peers_are_what_the_relay_is():
    """The suite's own peers are no wider than it says, or cases would prove nothing."""
    upstream = Upstream()
    upstream.script = end()
    async with upstream.serving():
        caller = Caller(upstream.target, UNLIMITED)
        sent = (("x-large", "v" * 200_000),)
        events = await caller.download(b"x", metadata=sent).rest()
        await caller.close()
    assert events[-1][1] == "RESOURCE_EXHAUSTED"
