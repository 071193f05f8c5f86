"""The client's saves and restores, through grpcio-testing's fake channel."""

import threading

import grpc
import pytest

from outrigger.core import errors
from outrigger.core.blocks import BLOCK_BYTES, digest
from outrigger.core.names import CHUNK_BYTES
from outrigger.v1 import attach_service_pb2
from tests.support.fake_sidecar import FakeSidecar, digest_of, ours

_UNKNOWN_BLOCK = ours(grpc.StatusCode.INVALID_ARGUMENT, "UNKNOWN_BLOCK")
_NOT_FOUND = ours(grpc.StatusCode.NOT_FOUND, "NO_SUCH_CHECKPOINT", "none there")


@pytest.fixture
def sidecar():
    with FakeSidecar() as fake:
        yield fake


def test_state_is_sent_in_bounded_chunks(sidecar):
    """A save sends every byte in order, none twice, at most 1 MiB at a time."""
    state = bytes(range(256)) * (9 * BLOCK_BYTES // 512)
    agent, _ = sidecar.serve(save=lambda: state)
    saving = sidecar.elsewhere(agent.save_checkpoint)
    asked = sidecar.no_blocks()
    messages = sidecar.take_save(generation=4)
    assert saving.result(10).generation == 4
    chunks = [message.chunk for message in messages[1:-1]]
    assert b"".join(chunks) == state
    assert max(map(len, chunks)) <= CHUNK_BYTES
    assert set(asked.digests) == {
        digest(state[:BLOCK_BYTES]),
        digest(state[-BLOCK_BYTES // 2 :]),
    }
    assert messages[0].begin.epoch == 0
    assert messages[0].begin.expected_size_bytes == len(state)
    commit = messages[-1].commit
    assert (commit.raw_size_bytes, commit.state_digest) == (
        len(state),
        digest_of(state),
    )


def test_empty_state_is_a_state(sidecar):
    """An empty state is begun and committed without a chunk."""
    agent, _ = sidecar.serve(save=lambda: b"")
    saving = sidecar.elsewhere(agent.save_checkpoint)
    messages = sidecar.take_save()
    saving.result(10)
    assert [message.WhichOneof("message") for message in messages] == [
        "begin",
        "commit",
    ]
    assert messages[-1].commit.state_digest == digest_of(b"")


def test_append_sends_what_was_appended(sidecar):
    """Blocks that are stored go by name, between the bytes of the others."""
    blocks = [bytes([number]) * BLOCK_BYTES for number in range(4)]
    state = b"".join(blocks) + b"tail"
    agent, _ = sidecar.serve(save=lambda: state)
    saving = sidecar.elsewhere(agent.save_checkpoint)
    sidecar.no_blocks([digest(blocks[0]), digest(blocks[2])])
    messages = sidecar.take_save()
    saving.result(10)
    sent = [message.chunk or message.block.digest for message in messages[1:-1]]
    assert sent == [
        digest(blocks[0]),
        blocks[1],
        digest(blocks[2]),
        blocks[3] + b"tail",
    ]


def test_blocks_that_vanish_are_sent(sidecar):
    """A reference refused by the sidecar is followed by a save of every byte."""
    agent, _ = sidecar.serve(save=lambda: b"state")
    saving = sidecar.elsewhere(agent.save_checkpoint)
    sidecar.no_blocks([digest(b"state")])
    assert sidecar.take_save(status=_UNKNOWN_BLOCK)[1].HasField("block")
    assert sidecar.take_save(generation=2)[1].chunk == b"state"
    assert saving.result(10).generation == 2


def test_whole_blocks_are_sent_once_more_only(sidecar):
    """A save of every byte that is refused as well is not made a third time."""
    agent, _ = sidecar.serve(save=lambda: b"state")
    saving = sidecar.elsewhere(agent.save_checkpoint)
    sidecar.no_blocks([digest(b"state")])
    sidecar.take_save(status=_UNKNOWN_BLOCK)
    sidecar.take_save(status=_UNKNOWN_BLOCK)
    with pytest.raises(errors.Invalid) as caught:
        saving.result(10)
    assert caught.value.reason == "UNKNOWN_BLOCK"


@pytest.mark.parametrize("present", [(), (digest(b"state"),)])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.ABORTED, "STALE_EPOCH"),
        (grpc.StatusCode.ABORTED, "SAVE_IN_PROGRESS"),
        (grpc.StatusCode.INVALID_ARGUMENT, "WRONG_SIZE"),
        (grpc.StatusCode.FAILED_PRECONDITION, "ANYTHING"),
    ],
)
def test_other_refusals_are_not_repeated(sidecar, present, code, reason):
    """A save that was refused for anything but a missing block is not made again."""
    agent, _ = sidecar.serve(save=lambda: b"state")
    saving = sidecar.elsewhere(agent.save_checkpoint)
    sidecar.no_blocks(present)
    sidecar.take_save(status=ours(code, reason))
    with pytest.raises(errors.OutriggerError) as caught:
        saving.result(10)
    assert caught.value.reason == reason


def test_saves_of_one_agent_wait_for_each_other(sidecar):
    """A later save reads the state only when the one before is on disk."""
    reads: list[str] = []

    def save() -> bytes:
        reads.append("read")
        return b"state"

    agent, stream = sidecar.serve(save=save)
    first = sidecar.elsewhere(agent.save_checkpoint)
    sidecar.no_blocks()
    stream.say(save=attach_service_pb2.SaveState(epoch=5))
    while agent._gate._open:
        pass
    # The sleep's thread is about to save: give it the chance to read too early.
    threading.Event().wait(0.05)
    assert reads == ["read"]
    sidecar.take_save(generation=1)
    assert first.result(10).generation == 1
    sidecar.no_blocks()
    sidecar.take_save(generation=2)
    assert stream.next().saved.generation == 2
    assert reads == ["read", "read"]


def test_save_inside_work_is_refused(sidecar):
    """A save cannot wait for the block that it was called in."""
    agent, _ = sidecar.serve()
    with agent.working(), pytest.raises(errors.Refused) as caught:
        agent.save_checkpoint()
    assert caught.value.reason == "SAVE_INSIDE_WORK"


def test_save_inside_work_waits_for_nobody(sidecar):
    """It is refused while another save waits for the very same block to end."""
    agent, _ = sidecar.serve()
    with agent.working():
        other = sidecar.elsewhere(agent.save_checkpoint)
        while not agent._gate._saving:
            pass
        with pytest.raises(errors.Refused, match="inside"):
            agent.save_checkpoint()
    sidecar.no_blocks()
    sidecar.take_save()
    other.result(10)


def test_save_sees_no_half_done_work(sidecar):
    """A save waits for the work of other threads and reads what it left."""
    state = [b"before"]
    agent, _ = sidecar.serve(save=lambda: state[0])
    with agent.working():
        saving = sidecar.elsewhere(agent.save_checkpoint)
        while not agent._gate._saving:
            pass
        state[0] = b"after"
    assert list(sidecar.no_blocks().digests) == [digest(b"after")]
    sidecar.take_save()
    saving.result(10)


def test_no_work_begins_during_a_save(sidecar):
    """While the state is read no work is let in, and afterwards it is."""
    entered = threading.Event()

    def save() -> bytes:
        works.append(sidecar.elsewhere(_work, agent, entered))
        return b"early" if entered.wait(0.05) else b"late"

    works: list = []
    agent, _ = sidecar.serve(save=save)
    saving = sidecar.elsewhere(agent.save_checkpoint)
    assert list(sidecar.no_blocks().digests) == [digest(b"late")]
    sidecar.take_save()
    saving.result(10)
    works[0].result(10)


def _work(agent, entered: threading.Event) -> None:
    with agent.working():
        entered.set()


def test_save_is_let_go_at_the_end(sidecar):
    """A save that waits for work does not outlive the agent."""
    agent, _ = sidecar.serve()
    with agent.working():
        saving = sidecar.elsewhere(agent.save_checkpoint)
        while not agent._gate._saving:
            pass
        agent.close()
        with pytest.raises(errors.Refused, match="stopped"):
            saving.result(10)


def test_checkpoint_is_restored_by_hand(sidecar):
    """restore_checkpoint returns the bytes and leaves the agent as it is."""
    seen = []
    agent, _ = sidecar.serve(restore=seen.append)
    restoring = sidecar.elsewhere(agent.restore_checkpoint, 3)
    assert sidecar.send_checkpoint(b"old", 3).generation == 3
    assert restoring.result(10) == b"old"
    assert not seen


def test_wrong_checkpoint_is_corrupt(sidecar):
    """Bytes that do not match their digest are an error, not a state."""
    agent, _ = sidecar.serve()
    restoring = sidecar.elsewhere(agent.restore_checkpoint)
    sidecar.send_checkpoint(b"right", 3, [b"wrong"])
    with pytest.raises(errors.Corrupt):
        restoring.result(10)


def test_unknown_checkpoint_is_not_found(sidecar):
    """A generation that is not there is the sidecar's own NotFound."""
    agent, _ = sidecar.serve()
    restoring = sidecar.elsewhere(agent.restore_checkpoint, 9)
    sidecar.refuse_restore(_NOT_FOUND)
    with pytest.raises(errors.NotFound) as caught:
        restoring.result(10)
    assert caught.value.reason == "NO_SUCH_CHECKPOINT"
    assert caught.value.metadata == {"k": "v"}
