"""LetterService behind the chain: what it refuses, by name, and what it carries."""

import hashlib

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from outrigger.core import names
from outrigger.core.access import Principal, Role, Tokens
from outrigger.core.clock import SystemClock
from outrigger.core.errors import NotFound
from outrigger.core.rng import SystemRng
from outrigger.core.rpc.chain import Chain, Policy
from outrigger.core.rpc.errors import DETAILS_KEY, error_info
from outrigger.core.rpc.server import SERVER_OPTIONS, bind, channel
from outrigger.v1 import letter_pb2
from outrigger.v1 import letter_service_pb2 as pb
from outrigger.v1.letter_service_pb2_grpc import (
    LetterServiceStub,
    add_LetterServiceServicer_to_server,
)
from sidecar.call.routes import MethodRule, Routes, Upstream
from sidecar.letters.journal import LetterFilter
from sidecar.letters.table import Route
from sidecar.policy.letter import LetterLimits, LetterState
from sidecar.policy.verdict import LetterInput, SendResult, Verdict
from sidecar.rpc.letters import ACCESS, LetterServicer
from tests.support.letters import an_office

METHOD = "/p.S/M"
CARDS = "/shop.Cards/Charge"
OPERATOR = (("outrigger-token", "op"),)
ENTRY = letter_pb2.MetadataEntry
LIMIT = LetterLimits().max_request_bytes


class Api:
    """A journal behind its service, and a stub."""

    def __init__(self, office, stub):
        self.office = office
        self.stub = stub

    async def deliver(self, **given):
        """Hand a call over; return its letter."""
        request = pb.DeliverCallRequest(**({"method": METHOD} | given))
        return (await self.stub.DeliverCall(request, metadata=OPERATOR)).letter

    async def bring(self, *letters):
        """Import letters; return how many were new."""
        requests = [pb.ImportLettersRequest(letter=letter) for letter in letters]
        answer = await self.stub.ImportLetters(iter(requests), metadata=OPERATOR)
        return answer.imported_count

    async def show(self, letter_id):
        request = pb.GetLetterRequest(letter_id=letter_id)
        return (await self.stub.GetLetter(request, metadata=OPERATOR)).letter

    async def export(self):
        call = self.stub.ExportLetters(pb.ExportLettersRequest(), metadata=OPERATOR)
        return [answer.letter async for answer in call]


@pytest.fixture
async def api(tmp_path):
    """Upstreams `tool` and `shop`, whose card charges must not be made twice."""
    routes = Routes(
        [Upstream("tool"), Upstream("shop")],
        [MethodRule(match=CARDS, unsafe=True)],
        prefixes={"p": "tool", "shop": "shop"},
    )
    policy = Policy(
        table=ACCESS,
        tokens=Tokens({"op": Principal(Role.OPERATOR)}),
        clock=SystemClock(),
        report=lambda seen: None,
    )
    async with an_office(tmp_path) as office:
        servicer = LetterServicer(
            office.journal,
            route=lambda method, named: routes.route(method, named or None).upstream,
            redact=tuple,
            clock=SystemClock(),
            rng=SystemRng(),
            unsafe=lambda upstream, method: routes.route(method, upstream).rule.unsafe,
        )
        server = grpc.aio.server(interceptors=[Chain(policy)], options=SERVER_OPTIONS)
        add_LetterServiceServicer_to_server(servicer, server)
        address = bind(server, f"unix:{tmp_path}/api.sock", "--api")
        await server.start()
        async with channel(address) as connection:
            yield Api(office, LetterServiceStub(connection))
        await server.stop(0)


async def refused(work):
    """Return status, ErrorInfo and sentence of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    trailers = dict(caught.value.trailing_metadata())
    info = error_info(trailers[DETAILS_KEY])
    assert info.domain == names.ERROR_DOMAIN
    return caught.value.code().name, info, caught.value.details()


def a_letter(**given):
    """A letter as an export brings it."""
    usual = {
        "letter_id": "00000000-0000-7000-8000-000000000001",
        "state": letter_pb2.Letter.STATE_PENDING,
        "upstream": "shop",
        "method": CARDS,
        "idempotency_key": "k",
        "request": b"1",
        "request_digest": hashlib.sha256(b"1").digest(),
        "accept_time": Timestamp(seconds=1_700_000_000),
    }
    return letter_pb2.Letter(**(usual | given))


# What is wrong with a call that is handed over.


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ({"method": ""}, "INVALID_ARGUMENT", "BAD_METHOD"),
        ({"method": "p.S/M"}, "INVALID_ARGUMENT", "BAD_METHOD"),
        ({"method": "/q.S/M"}, "INVALID_ARGUMENT", "NO_UPSTREAM"),
        ({"upstream": "other"}, "NOT_FOUND", "UNKNOWN_UPSTREAM"),
        ({"method": CARDS}, "FAILED_PRECONDITION", "UNSAFE_METHOD"),
        ({"metadata": [ENTRY(key="A b", value=b"x")]}, None, "BAD_METADATA"),
        ({"metadata": [ENTRY(key="", value=b"x")]}, None, "BAD_METADATA"),
        ({"metadata": [ENTRY(key="x", value=b"\xff")]}, None, "BAD_METADATA"),
        ({"metadata": [ENTRY(key="x", value=b"\n")]}, None, "BAD_METADATA"),
        ({"metadata": [ENTRY(key="x", value=b"a" * 131072)]}, None, "BAD_METADATA"),
        ({"earliest_time": Timestamp(seconds=-1)}, None, "BAD_TIME"),
        ({"earliest_time": Timestamp(nanos=-1)}, None, "BAD_TIME"),
        ({"earliest_time": Timestamp(seconds=253_402_300_800)}, None, "BAD_TIME"),
        ({"ttl": Duration()}, None, "BAD_TTL"),
        ({"ttl": Duration(seconds=-1)}, None, "BAD_TTL"),
        ({"idempotency_key": "k" * 513}, None, "BAD_IDEMPOTENCY_KEY"),
        ({"idempotency_key": "schlüssel"}, None, "BAD_IDEMPOTENCY_KEY"),
        ({"idempotency_key": "a\nb"}, None, "BAD_IDEMPOTENCY_KEY"),
        ({"request": bytes(LIMIT + 1)}, None, "LETTER_TOO_LARGE"),
    ],
)
async def test_what_is_wrong_is_named(api, given, status, reason):
    """ErrorInfo says it to programs, a sentence to people; nothing is kept."""
    code, info, sentence = await refused(api.deliver(**given))

    assert (code, info.reason) == (status or "INVALID_ARGUMENT", reason)
    assert len(sentence.split()) > 5
    assert (await api.office.journal.ledger()).accepted == 0


async def test_a_key_of_another_call_is_named(api):
    """The first call keeps it."""
    await api.deliver(idempotency_key="k", request=b"1")
    code, info, _ = await refused(api.deliver(idempotency_key="k", request=b"2"))

    assert (code, info.reason) == ("ABORTED", "IDEMPOTENCY_KEY_REUSED")


# Methods that must not be sent twice.


@pytest.mark.parametrize("state", ["PENDING", "HELD", "IN_FLIGHT", "PARKED", "EXPIRED"])
async def test_no_unsafe_letter_is_imported(api, state):
    """It could be sent, at once or when it is redriven; those before it stay."""
    fine = a_letter(letter_id="a", method="/shop.Cards/Show", idempotency_key="a")
    unsafe = a_letter(state=letter_pb2.Letter.State.Value(f"STATE_{state}"))
    code, info, sentence = await refused(api.bring(fine, unsafe))

    assert (code, info.reason) == ("FAILED_PRECONDITION", "UNSAFE_METHOD")
    assert info.metadata["letter"] == unsafe.letter_id
    assert f"{CARDS} of 'shop' is declared unsafe" in sentence
    assert [letter.letter_id for letter in await api.export()] == ["a"]


@pytest.mark.parametrize("state", ["DELIVERED", "DISCARDED"])
async def test_a_record_of_an_unsafe_call_is_imported(api, state):
    """Nothing will ever be done with it."""
    letter = a_letter(state=letter_pb2.Letter.State.Value(f"STATE_{state}"))

    assert await api.bring(letter) == 1


async def test_a_letter_of_an_upstream_that_is_not_here_is_imported(api):
    """Its rule is asked for when it is to be delivered."""
    assert await api.bring(a_letter(upstream="elsewhere")) == 1


def test_the_rule_of_an_upstream_that_is_not_here_is_not_known():
    """What the service is prepared for."""
    with pytest.raises(NotFound):
        Routes([Upstream("tool")]).route(METHOD, "elsewhere")


# Sizes.


async def test_the_largest_letter_goes_out_and_in_again(api):
    """Whole, with the most metadata and the longest attempts there can be."""
    metadata = [ENTRY(key=f"k{n}", value=b"v" * 16_000) for n in range(8)]
    letter = await api.deliver(request=b"x" * LIMIT, metadata=metadata)
    failed = SendResult(code=2, message="\U0001f6b2" * 1000)
    again = Verdict(what=LetterInput.RETRY, reason="UNKNOWN", counts=True)
    for _ in range(api.office.limits.attempts_kept):
        (claimed,) = await api.office.due()
        await api.office.journal.end(claimed, failed, again)

    (exported,) = await api.export()
    assert exported.request == b"x" * LIMIT
    assert len(exported.attempts) == 30
    assert await api.show(letter.letter_id) == exported
    assert exported.ByteSize() < 4 * 1024 * 1024 - 1000
    assert await api.bring(exported) == 0


async def test_an_answer_may_be_larger_than_a_request(api):
    """An older journal may keep letters of 4 MiB."""
    size = 4 * 1024 * 1024
    api.office.journal._limits = LetterLimits(max_request_bytes=size)
    letter_id = await api.office.take(request=bytes(size))

    assert (await api.show(letter_id)).request_size_bytes == size
    assert [letter.letter_id for letter in await api.export()] == [letter_id]


async def test_a_held_letter_has_no_next_attempt(api):
    """It remembers when it was due, and will not be tried then."""
    letter = await api.deliver()
    await api.office.journal.hold(Route("tool", METHOD, 0.0), "NO_UPSTREAM")
    (held,) = (await api.office.journal.list(LetterFilter())).letters

    assert letter.HasField("next_attempt_time")
    assert (held.state, held.next_attempt_wall_s is None) == (LetterState.HELD, False)
    assert not (await api.show(letter.letter_id)).HasField("next_attempt_time")
