import asyncio
import os

import grpc
import grpc.aio
import pytest

from outrigger.core.access import Principal, Role, Tokens
from outrigger.core.blocks import BLOCK_BYTES, digest, split, state_digest
from outrigger.core.clock import SystemClock
from outrigger.core.errors import Bug
from outrigger.core.names import CHUNK_BYTES
from outrigger.core.rpc.chain import Chain, Policy
from outrigger.core.rpc.errors import from_rpc_error
from outrigger.core.rpc.server import SERVER_OPTIONS, bind, channel
from outrigger.v1 import checkpoint_service_pb2 as pb
from outrigger.v1 import checkpoint_service_pb2_grpc as pb_grpc
from sidecar.checkpoints import transfer
from sidecar.checkpoints.limits import Limits
from sidecar.checkpoints.store import CheckpointStore
from sidecar.checkpoints.transfer import ACCESS, MAX_QUERY, CheckpointServicer
from tests.support.checkpoints import files, flip, pack_path, save_state

OPERATOR = (("outrigger-token", "op"),)
AGENT_1 = (("outrigger-token", "one"),)
AGENT_2 = (("outrigger-token", "two"),)
SIDECAR = (("outrigger-token", "join"),)
STATE = os.urandom(5 * BLOCK_BYTES + 777)


class Api:
    """A store behind the chain on a Unix socket, and a stub."""

    def __init__(self, store, stub, saved, root, policy, servicer):
        self.store = store
        self.stub = stub
        self.saved = saved
        self.root = root
        self.policy = policy
        self.servicer = servicer

    async def save(self, messages, metadata=AGENT_1):
        call = self.stub.SaveCheckpoint(iter(messages), metadata=metadata)
        return (await call).checkpoint

    async def restore(self, metadata=AGENT_1, **request):
        call = self.stub.RestoreCheckpoint(
            pb.RestoreCheckpointRequest(**request), metadata=metadata
        )
        first, *rest = [message async for message in call]
        assert first.WhichOneof("message") == "checkpoint"
        assert all(len(message.chunk) <= CHUNK_BYTES for message in rest)
        return first.checkpoint, b"".join(message.chunk for message in rest)


@pytest.fixture
async def api(tmp_path):
    root = tmp_path / "checkpoints"
    store = CheckpointStore(
        root, clock=SystemClock(), limits=Limits(quota_bytes=8 << 20)
    )
    saved = []
    policy = Policy(
        table=ACCESS,
        tokens=Tokens(
            {
                "op": Principal(Role.OPERATOR),
                "one": Principal(Role.AGENT, "agent-1"),
                "two": Principal(Role.AGENT, "agent-2"),
                "join": Principal(Role.SIDECAR),
            }
        ),
        clock=SystemClock(),
        report=lambda seen: None,
    )
    server = grpc.aio.server(interceptors=[Chain(policy)], options=SERVER_OPTIONS)
    servicer = CheckpointServicer(
        store,
        agent_id="agent-1",
        on_saved=lambda made, epoch: saved.append((made.generation, epoch)),
        idle_s=3,
    )
    pb_grpc.add_CheckpointServiceServicer_to_server(servicer, server)
    address = bind(server, f"unix:{tmp_path}/api.sock", "--api")
    await server.start()
    async with channel(address) as connection:
        stub = pb_grpc.CheckpointServiceStub(connection)
        yield Api(store, stub, saved, root, policy, servicer)
    await server.stop(0)
    await store.close()


def begin(**fields):
    return pb.SaveCheckpointRequest(begin=pb.SaveBegin(**fields))


def chunk(data):
    return pb.SaveCheckpointRequest(chunk=data)


def block(name):
    return pb.SaveCheckpointRequest(block=pb.BlockReference(digest=name))


def commit(data=STATE, **fields):
    whole = {"raw_size_bytes": len(data), "state_digest": state_digest(data)}
    return pb.SaveCheckpointRequest(commit=pb.SaveCommit(**(whole | fields)))


def upload(data=STATE, **fields):
    """Return the messages of a whole save."""
    pieces = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
    return [begin(**fields), *map(chunk, pieces), commit(data)]


async def failure(work):
    """Return what a call failed with, as our error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await work
    return from_rpc_error(caught.value)


async def send_for_ever(call):
    while True:
        await call.write(chunk(b"x"))
        await asyncio.sleep(0.01)


def test_every_method_has_a_row():
    """A method without one could be called by nobody."""
    service = pb.DESCRIPTOR.services_by_name["CheckpointService"]

    assert set(ACCESS) == {
        f"/{service.full_name}/{method.name}" for method in service.methods
    }


class TestSaveAndRestore:
    async def test_a_state_comes_back(self, api):
        """Byte for byte, in messages of at most 1 MiB, described both times."""
        saved = await api.save(upload(schema="v1", expected_size_bytes=len(STATE)))
        restored, data = await api.restore()

        assert data == STATE
        assert saved.name == "agents/agent-1/checkpoints/1"
        assert (saved.agent_id, saved.generation, saved.schema) == ("agent-1", 1, "v1")
        assert saved.raw_size_bytes == len(STATE) == restored.raw_size_bytes
        assert saved.state_digest == state_digest(STATE) == restored.state_digest
        assert (saved.block_count, saved.reused_block_count) == (6, 0)
        assert saved.stored_size_bytes == pack_path(api.root, 1).stat().st_size
        assert saved.verify_time.seconds >= saved.create_time.seconds > 0
        assert api.saved == [(1, 0)]

    async def test_an_empty_state_is_a_state(self, api):
        """No chunk at all."""
        await api.save([begin(), commit(b"")])

        restored, data = await api.restore()

        assert (restored.generation, restored.block_count, data) == (1, 0, b"")

    async def test_an_append_sends_what_was_appended(self, api):
        """QueryBlocks, references, then the rest."""
        await api.save(upload())
        grown = STATE + os.urandom(BLOCK_BYTES)
        names = [digest(each) for each in split(grown)]
        answer = await api.stub.QueryBlocks(
            pb.QueryBlocksRequest(digests=names), metadata=AGENT_1
        )
        have = set(answer.present_digests)

        made = await api.save(
            [
                begin(),
                *(
                    block(name) if name in have else chunk(raw)
                    for name, raw in zip(names, split(grown), strict=True)
                ),
                commit(grown),
            ]
        )

        assert len(have) == made.reused_block_count == 5
        assert (await api.restore())[1] == grown

    async def test_an_older_generation_can_be_named(self, api):
        """0 means the newest."""
        for text in (b"a", b"b"):
            await api.save(upload(text))

        assert (await api.restore(generation=1))[1] == b"a"
        assert (await api.restore())[1] == b"b"

    async def test_a_bad_newest_gives_way(self, api):
        """And where it is named it is refused."""
        for text in (b"a", b"b"):
            await api.save(upload(text))
        flip(pack_path(api.root, 2))

        restored, data = await api.restore()
        refused = [
            await failure(api.restore(generation=2)),
            await failure(
                api.stub.VerifyCheckpoint(
                    pb.VerifyCheckpointRequest(), metadata=AGENT_1
                )
            ),
        ]

        assert (restored.generation, data) == (1, b"a")
        assert [error.status for error in refused] == ["DATA_LOSS"] * 2

    async def test_nothing_to_restore_is_said(self, api):
        """An agent that never saved begins afresh."""
        assert (await failure(api.restore())).reason == "NO_CHECKPOINT"
        error = await failure(api.restore(generation=3))
        assert (error.reason, error.status) == ("NO_SUCH_GENERATION", "NOT_FOUND")


class TestBrokenStreams:
    @pytest.mark.parametrize(
        ("messages", "reason"),
        [
            ([], "NO_BEGIN"),
            ([chunk(b"x"), begin(), commit(b"x")], "NO_BEGIN"),
            ([commit(b"")], "NO_BEGIN"),
            ([pb.SaveCheckpointRequest()], "NO_BEGIN"),
            ([begin(), begin(), commit(b"")], "SECOND_BEGIN"),
            ([begin(), chunk(b"x"), begin()], "SECOND_BEGIN"),
            ([begin()], "NO_COMMIT"),
            (upload()[:-1], "NO_COMMIT"),
            ([begin(), pb.SaveCheckpointRequest()], "EMPTY_MESSAGE"),
            ([begin(), chunk(b"x" * (CHUNK_BYTES + 1))], "CHUNK_TOO_LARGE"),
            ([begin(), block(digest(b"?"))], "UNKNOWN_BLOCK"),
            ([begin(), block(b"?")], "BAD_DIGEST"),
            ([begin(), chunk(b"x"), block(digest(b"?"))], "MID_BLOCK"),
            ([begin(), chunk(b"x"), commit(b"x", raw_size_bytes=2)], "WRONG_SIZE"),
            ([begin(), chunk(b"y"), commit(b"x")], "WRONG_DIGEST"),
            ([begin(), commit(b"", state_digest=b"")], "BAD_DIGEST"),
            ([begin(expected_size_bytes=5), commit(b"")], "WRONG_SIZE"),
            ([begin(expected_size_bytes=-5)], "NEGATIVE_SIZE"),
            ([begin(epoch=-5)], "BAD_EPOCH"),
            ([begin(schema="x" * 129)], "BAD_SCHEMA"),
            ([begin(agent_id="agent-2")], "NOT_YOURS"),
            (upload(os.urandom(9 << 20)), "QUOTA"),
        ],
    )
    async def test_is_refused_by_name_and_leaves_nothing(self, api, messages, reason):
        """One sentence, no file, and the next save works."""
        error = await failure(api.save(messages))

        assert error.reason == reason
        assert error.message.count(" ") > 4
        assert files(api.root) == {}
        assert api.saved == []
        assert (await api.save(upload(b"next"))).generation == 1

    async def test_a_client_that_goes_away_leaves_nothing(self, api):
        """Cancelled after some chunks; the next save works at once."""
        call = api.stub.SaveCheckpoint(metadata=AGENT_1)
        for message in upload()[:2]:
            await call.write(message)
        while not files(api.root):
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        while api.policy.places.taken:
            await asyncio.sleep(0.005)

        assert files(api.root) == {}
        assert (await api.save(upload())).generation == 1

    async def test_a_begin_that_was_accepted_is_said_at_once(self, api):
        """A client may wait for the headers before it sends its state."""
        call = api.stub.SaveCheckpoint(metadata=AGENT_1)
        await call.write(begin())

        await call.initial_metadata()
        await call.write(commit(b""))
        await call.done_writing()

        assert (await call).checkpoint.generation == 1

    async def test_a_client_that_sends_for_ever_is_cut_off(self, api, monkeypatch):
        """A refusal is answered after a while even if more keeps coming."""
        monkeypatch.setattr(transfer, "_DRAIN_MAX_S", 0.1)
        call = api.stub.SaveCheckpoint(metadata=AGENT_1)
        await call.write(begin(schema="x" * 129))
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await send_for_ever(call)

        assert call.done()

    async def test_a_client_that_stalls_is_let_go(self, api):
        """So that a hanging agent does not block its later saves."""
        api.servicer._idle_s = 0.1
        call = api.stub.SaveCheckpoint(metadata=AGENT_1)
        await call.write(begin())

        error = await failure(call)

        assert (error.reason, error.status) == ("SAVE_STALLED", "DEADLINE_EXCEEDED")
        api.servicer._idle_s = 3
        assert (await api.save(upload())).generation == 1

    async def test_two_saves_at_once_do_not_mix(self, api):
        """The second is told to wait, the first goes on."""
        call = api.stub.SaveCheckpoint(metadata=AGENT_1)
        await call.write(begin())
        while not (api.root / "agent-1" / "packs").exists():
            await asyncio.sleep(0.005)

        error = await failure(api.save(upload()))
        await call.write(chunk(b"first"))
        await call.write(commit(b"first"))
        await call.done_writing()

        assert (error.reason, error.status) == ("SAVE_IN_PROGRESS", "ABORTED")
        assert (await call).checkpoint.raw_size_bytes == 5

    async def test_a_stale_epoch_is_refused(self, api):
        """As the sidecar has fenced it."""
        await api.store.fence("agent-1", 3)

        error = await failure(api.save(upload(epoch=2)))
        await api.save(upload(epoch=3))

        assert (error.reason, error.status) == ("STALE_EPOCH", "ABORTED")
        assert error.metadata["epoch"] == "3"
        assert api.saved == [(1, 3)]

    async def test_an_epoch_that_was_never_issued_is_refused(self, api):
        """An agent cannot save past the fences that are to come."""
        await api.store.fence("agent-1", 3)

        error = await failure(api.save(upload(epoch=4)))

        assert (error.reason, error.status) == ("FUTURE_EPOCH", "ABORTED")
        assert api.saved == []


def asks(api, agent_id):
    """Return one call of every unary method that names an agent."""
    return [
        (api.stub.QueryBlocks, pb.QueryBlocksRequest(agent_id=agent_id)),
        (api.stub.GetCheckpoint, pb.GetCheckpointRequest(agent_id=agent_id)),
        (api.stub.ListCheckpoints, pb.ListCheckpointsRequest(agent_id=agent_id)),
        (api.stub.VerifyCheckpoint, pb.VerifyCheckpointRequest(agent_id=agent_id)),
    ]


class TestAccess:
    async def test_an_agent_reaches_only_its_own(self, api):
        """Another's is not theirs, whatever they call; nor does it exist for them."""
        await save_state(api.store, b"secret", agent="agent-1")
        errors = [
            await failure(method(request, metadata=AGENT_2))
            for method, request in asks(api, "agent-1")
        ]
        errors.append(await failure(api.restore(AGENT_2, agent_id="agent-1")))
        errors.append(await failure(api.save(upload(agent_id="agent-1"), AGENT_2)))

        assert {error.reason for error in errors} == {"NOT_YOURS"}
        assert (await failure(api.restore(AGENT_2))).reason == "NO_CHECKPOINT"

    async def test_an_agent_may_name_itself(self, api):
        """Empty means the same."""
        await api.save(upload(b"mine", agent_id="agent-1"))

        for method, request in asks(api, "agent-1"):
            await method(request, metadata=AGENT_1)
        assert (await api.restore(agent_id="agent-1"))[1] == b"mine"

    async def test_an_operator_reaches_any(self, api):
        """Naming none means the sidecar's own agent."""
        await save_state(api.store, b"one", agent="agent-1")
        await save_state(api.store, b"two", agent="agent-2")

        assert (await api.restore(OPERATOR, agent_id="agent-2"))[1] == b"two"
        assert (await api.restore(OPERATOR))[1] == b"one"
        saved = await api.save(upload(b"three"), OPERATOR)
        assert saved.name == "agents/agent-1/checkpoints/2"
        assert api.saved == [(2, 0)]

    async def test_nothing_is_saved_for_another_agent(self, api):
        """Whoever asks: this sidecar's agent would be taken to have saved it."""
        by_operator = await failure(api.save(upload(agent_id="agent-2"), OPERATOR))
        by_the_other = await failure(api.save(upload(), AGENT_2))

        for error in (by_operator, by_the_other):
            assert (error.reason, error.status) == (
                "NOT_THIS_AGENT",
                "INVALID_ARGUMENT",
            )
        assert api.saved == []
        assert files(api.root) == {}

    @pytest.mark.parametrize(
        ("metadata", "reason"),
        [
            ((), "NO_TOKEN"),
            (SIDECAR, "FORBIDDEN"),
            ((("outrigger-token", "?"),), "BAD_TOKEN"),
        ],
    )
    async def test_others_reach_none(self, api, metadata, reason):
        """No token, a wrong one, or that of a sidecar."""
        for method, request in asks(api, ""):
            assert (await failure(method(request, metadata=metadata))).reason == reason
        assert (await failure(api.restore(metadata))).reason == reason
        # Nothing is sent before the answer: a grpc.aio client that sends into a
        # refusal reports an INTERNAL of its own.
        call = api.stub.SaveCheckpoint(metadata=metadata)
        assert (await failure(call)).reason == reason

    async def test_only_operators_prune(self, api):
        """An agent that could would lose what it needs."""
        error = await failure(
            api.stub.PruneCheckpoints(
                pb.PruneCheckpointsRequest(keep=2), metadata=AGENT_1
            )
        )

        assert error.reason == "FORBIDDEN"

    async def test_bad_ids_are_refused(self, api):
        """Before they reach a path."""
        for method, request in asks(api, "../../etc"):
            error = await failure(method(request, metadata=OPERATOR))
            assert error.reason == "BAD_AGENT_ID"


class TestLooking:
    async def test_pages_are_newest_first_and_whole(self, api):
        """Every checkpoint once, the token empty at the end."""
        for number in range(5):
            await save_state(api.store, str(number).encode())
        seen, token = [], ""
        while True:
            page = await api.stub.ListCheckpoints(
                pb.ListCheckpointsRequest(page_size=2, page_token=token),
                metadata=AGENT_1,
            )
            seen.append([each.generation for each in page.checkpoints])
            token = page.next_page_token
            if not token:
                break

        assert seen == [[5, 4], [3, 2], [1]]

    @pytest.mark.parametrize(
        ("request_", "reason"),
        [
            ({"page_size": -1}, "BAD_PAGE_SIZE"),
            ({"page_token": "?"}, "BAD_PAGE_TOKEN"),
            ({"page_token": "eHg="}, "BAD_PAGE_TOKEN"),
        ],
    )
    async def test_bad_pages_are_refused(self, api, request_, reason):
        """By name."""
        error = await failure(
            api.stub.ListCheckpoints(
                pb.ListCheckpointsRequest(**request_), metadata=AGENT_1
            )
        )

        assert error.reason == reason

    async def test_get_and_verify_tell_when_it_was_verified(self, api):
        """Verifying reads every byte and says when."""
        await api.save(upload())
        got = await api.stub.GetCheckpoint(
            pb.GetCheckpointRequest(generation=1), metadata=AGENT_1
        )
        verified = await api.stub.VerifyCheckpoint(
            pb.VerifyCheckpointRequest(generation=1), metadata=AGENT_1
        )

        before, after = got.checkpoint.verify_time, verified.checkpoint.verify_time
        assert after.ToNanoseconds() >= before.ToNanoseconds() > 0

    async def test_an_unverified_one_has_no_verify_time(self, api, tmp_path):
        """After a restart nothing is taken on trust."""
        other = CheckpointStore(api.root, clock=SystemClock())
        await save_state(other, b"x")
        await other.close()

        got = await api.stub.GetCheckpoint(pb.GetCheckpointRequest(), metadata=AGENT_1)

        assert not got.checkpoint.HasField("verify_time")

    async def test_too_many_digests_are_refused(self, api):
        """A question is bounded."""
        error = await failure(
            api.stub.QueryBlocks(
                pb.QueryBlocksRequest(digests=[digest(b"x")] * (MAX_QUERY + 1)),
                metadata=AGENT_1,
            )
        )

        assert error.reason == "TOO_MANY_DIGESTS"

    async def test_prune_removes_and_says_what(self, api):
        """First as a dry run."""
        for _ in range(4):
            await save_state(api.store, os.urandom(1000))

        async def prune(**fields):
            return await api.stub.PruneCheckpoints(
                pb.PruneCheckpointsRequest(keep=2, **fields), metadata=OPERATOR
            )

        would = await prune(validate_only=True)
        did = await prune()

        assert list(did.removed_generations) == [1, 2]
        assert would == did
        assert did.freed_bytes > 2000
        error = await failure(
            api.stub.PruneCheckpoints(
                pb.PruneCheckpointsRequest(keep=1), metadata=OPERATOR
            )
        )
        assert error.reason == "KEEP_TOO_FEW"


async def test_without_the_chain_nobody_is_known(tmp_path):
    """A servicer mounted without it refuses instead of trusting."""
    store = CheckpointStore(tmp_path, clock=SystemClock())
    servicer = CheckpointServicer(store, agent_id="agent-1", on_saved=print)

    with pytest.raises(Bug, match="interceptor chain"):
        await servicer.GetCheckpoint(pb.GetCheckpointRequest(), object())
    await store.close()
