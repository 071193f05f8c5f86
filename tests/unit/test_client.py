"""The agent's client, driven through grpcio-testing's fake channel and clock."""

from types import SimpleNamespace

import grpc
import pytest

from outrigger.client import NotNow
from outrigger.client.link import Link
from outrigger.core import errors
from outrigger.core.blocks import BLOCK_BYTES
from outrigger.v1 import (
    attach_service_pb2,
)
from outrigger.v1.attach_service_pb2 import AttachRequest
from outrigger.v1.attach_service_pb2_grpc import AttachServiceStub
from tests.support.fake_sidecar import FakeSidecar, Stream, digest_of, ours

_NOT_FOUND = ours(grpc.StatusCode.NOT_FOUND, "NO_SUCH_CHECKPOINT", "none there")


@pytest.fixture
def sidecar():
    with FakeSidecar() as fake:
        yield fake


def _prepare(stream: Stream, epoch: int, timeout_s: float = 10.0) -> None:
    request = attach_service_pb2.PrepareSleep(epoch=epoch)
    request.timeout.FromMilliseconds(int(timeout_s * 1000))
    stream.say(prepare_sleep=request)


def _work(agent, done: list) -> None:
    with agent.working():
        done.append("worked")


def test_first_message_is_hello(sidecar):
    """An agent says first who it is, with its token, and that it holds no state."""
    sidecar.attach(app_address="127.0.0.1:9")
    stream, first = sidecar.stream()
    assert dict(stream.metadata)["outrigger-token"] == "s3cret"
    assert first.hello.pid > 1
    assert first.hello.client == "outrigger.client"
    assert first.hello.app_address == "127.0.0.1:9"
    assert not first.hello.resumed


def test_agent_starts_afresh(sidecar):
    """Without a checkpoint nothing is restored and the agent serves at once."""
    seen = []
    sidecar.serve(restore=seen.append)
    assert not seen


def test_agent_restores_before_it_serves(sidecar):
    """The named checkpoint is restored and its digest reported before serving."""
    state, seen = b"x" * (BLOCK_BYTES + 5), []
    agent = sidecar.attach(restore=seen.append)
    serving = sidecar.elsewhere(agent.serving, timeout_s=10)
    stream, _ = sidecar.stream()
    stream.welcome(restore_generation=7, restore_digest=digest_of(state))
    request = sidecar.send_checkpoint(state, 7, [state[:9], state[9:]])
    restored = stream.next().restored
    serving.result(10)
    assert request.generation == 7
    assert seen == [state]
    assert (restored.generation, restored.state_digest) == (7, digest_of(state))
    assert stream.next().HasField("serving")


def test_wrong_bytes_are_never_restored(sidecar):
    """Bytes that are not those of the welcome are refused, and nobody serves."""
    seen = []
    agent = sidecar.attach(restore=seen.append)
    stream, _ = sidecar.stream()
    stream.welcome(restore_generation=7, restore_digest=digest_of(b"wanted"))
    sidecar.send_checkpoint(b"other", 7)
    failed = stream.next().failed
    assert failed.epoch == 0
    assert "generation 7" in failed.reason
    assert not seen
    with pytest.raises(errors.TimedOut) as caught:
        agent.serving(timeout_s=0.01)
    assert "RESTORE_FAILED" in repr(caught.value.__cause__)


def test_failing_restore_hook_is_reported(sidecar):
    """A restore hook that raises is told to the sidecar, which can fall back."""

    def broken(_: bytes) -> None:
        raise KeyError("shelf")

    sidecar.attach(restore=broken)
    stream, _ = sidecar.stream()
    stream.welcome(restore_generation=2, restore_digest=digest_of(b"s"))
    sidecar.send_checkpoint(b"s", 2)
    assert "KeyError: 'shelf'" in stream.next().failed.reason


def test_refused_restore_is_reported(sidecar):
    """A restore that the sidecar itself refuses is answered with failed."""
    sidecar.attach()
    stream, _ = sidecar.stream()
    stream.welcome(restore_generation=2, restore_digest=digest_of(b"s"))
    sidecar.refuse_restore(_NOT_FOUND)
    assert "none there" in stream.next().failed.reason


@pytest.mark.parametrize(("held", "ends_as"), [(b"s", "restored"), (b"t", "failed")])
def test_agent_proves_by_saving(sidecar, held, ends_as):
    """With proves_by_saving a state that saves differently is not served."""
    sidecar.attach(save=lambda: held, proves_by_saving=True)
    stream, _ = sidecar.stream()
    stream.welcome(restore_generation=2, restore_digest=digest_of(b"s"))
    sidecar.send_checkpoint(b"s", 2)
    assert stream.next().WhichOneof("message") == ends_as


def test_agent_quiesces_then_saves(sidecar):
    """A sleep calls the hook, saves under its epoch and names the generation."""
    calls = []
    _, stream = sidecar.serve(quiesce=lambda: calls.append("quiesce"), schema="v1")
    _prepare(stream, 5)
    assert stream.next().quiesced.epoch == 5
    assert calls == ["quiesce"]
    stream.say(save=attach_service_pb2.SaveState(epoch=5))
    sidecar.no_blocks()
    messages = sidecar.take_save(generation=3)
    assert messages[0].begin.epoch == 5
    assert messages[0].begin.schema == "v1"
    saved = stream.next().saved
    assert (saved.epoch, saved.generation) == (5, 3)


def test_no_work_begins_before_resume(sidecar):
    """From the wish to sleep until resume the gate lets no new work in."""
    agent, stream = sidecar.serve()
    _prepare(stream, 5)
    assert stream.next().HasField("quiesced")
    done: list[str] = []
    work = sidecar.elsewhere(_work, agent, done)
    stream.say(save=attach_service_pb2.SaveState(epoch=5))
    sidecar.no_blocks()
    sidecar.take_save()
    assert stream.next().HasField("saved")
    assert not done
    stream.say(resume=attach_service_pb2.Resume(epoch=6))
    work.result(10)
    assert done == ["worked"]


def test_work_under_way_vetoes(sidecar):
    """Work that outlasts the sidecar's patience puts the sleep off."""
    agent, stream = sidecar.serve()
    with agent.working():
        _prepare(stream, 5, timeout_s=0.01)
        veto = stream.next().veto
        assert veto.epoch == 5
        assert "under way" in veto.reason
    sidecar.elsewhere(_work, agent, []).result(10)


def test_nested_work_is_not_locked_out(sidecar):
    """A thread in the middle of its work may enter again while a sleep waits."""
    agent, stream = sidecar.serve()
    with agent.working():
        _prepare(stream, 5)
        while agent._gate._open:
            pass
        with agent.working():
            pass
    assert stream.next().HasField("quiesced")


def _not_now() -> None:
    raise NotNow("a guest is in")


def _broken() -> None:
    raise ValueError("hook")


@pytest.mark.parametrize(
    ("hook", "reason"), [(_not_now, "a guest is in"), (_broken, "ValueError: hook")]
)
def test_hook_vetoes(sidecar, hook, reason):
    """A hook that says no, or fails, puts the sleep off and work goes on."""
    agent, stream = sidecar.serve(quiesce=hook)
    _prepare(stream, 5)
    veto = stream.next().veto
    assert (veto.epoch, veto.reason) == (5, reason)
    sidecar.elsewhere(_work, agent, []).result(10)


def test_resume_beats_a_sleep_that_waits(sidecar):
    """A sleep given up while work is under way waits no longer and is not answered."""
    agent, stream = sidecar.serve()
    with agent.working():
        _prepare(stream, 5, timeout_s=3600)
        stream.say(resume=attach_service_pb2.Resume(epoch=5))
        sidecar.elsewhere(_work, agent, []).result(10)
        _prepare(stream, 6, timeout_s=0.01)
        assert stream.next().veto.epoch == 6


def test_late_veto_leaves_the_next_sleep_alone(sidecar):
    """A veto of a sleep that is over is not sent."""
    answers = []

    def slow() -> None:
        if not answers:
            stream.say(resume=attach_service_pb2.Resume(epoch=5))
            _prepare(stream, 6)
            answers.append("slow")
            while agent._gate._turn < turn + 3:
                pass
            raise NotNow("too late")

    agent, stream = sidecar.serve(quiesce=slow)
    turn = agent._gate._turn
    _prepare(stream, 5)
    assert stream.next().quiesced.epoch == 6


def test_failed_save_is_reported(sidecar):
    """A save that the sidecar refuses ends in failed with the epoch."""
    _, stream = sidecar.serve()
    stream.say(save=attach_service_pb2.SaveState(epoch=5))
    sidecar.refuse(
        "checkpoints",
        "QueryBlocks",
        ours(grpc.StatusCode.DATA_LOSS, "DISK", "bad disk"),
    )
    failed = stream.next().failed
    assert failed.epoch == 5
    assert "bad disk" in failed.reason


def test_stop_turns_work_away(sidecar):
    """After stop nothing begins, and waiters are told."""
    agent, stream = sidecar.serve()
    assert not agent.wait_until_stopped(timeout_s=0)
    stream.say(stop=attach_service_pb2.Stop(epoch=5))
    assert agent.wait_until_stopped(timeout_s=10)
    with pytest.raises(errors.Refused, match="stopped"), agent.working():
        pass


def test_waiting_ends_with_the_agent(sidecar):
    """A thread that waits to serve is let go when the agent is closed."""
    agent = sidecar.attach()
    waiting = sidecar.elsewhere(agent.wait_until_serving)
    agent.close()
    with pytest.raises(errors.Refused) as caught:
        waiting.result(10)
    assert caught.value.reason == "AGENT_STOPPED"


def test_broken_stream_is_opened_again(sidecar):
    """After a break the agent waits, attaches as resumed and serves again."""
    seen = []
    agent, stream = sidecar.serve(restore=seen.append)
    stream.end(grpc.StatusCode.UNAVAILABLE)
    sidecar.timers.wait_for_one()
    waiting = sidecar.elsewhere(agent.wait_until_serving, timeout_s=10)
    sidecar.timers.time.sleep_for(0.1)
    stream, first = sidecar.stream()
    assert first.hello.resumed
    stream.welcome(epoch=2)
    assert stream.next().HasField("serving")
    waiting.result(10)
    assert not seen


def _restored(sidecar, state=b"s", **hooks):
    """Attach an agent that restores generation 7; nobody says that it serves."""
    agent = sidecar.attach(**hooks)
    stream, _ = sidecar.stream()
    stream.welcome(restore_generation=7, restore_digest=digest_of(state))
    sidecar.send_checkpoint(state, 7)
    proof = stream.next().restored
    assert proof.generation == 7
    agent.wait_until_restored(timeout_s=10)
    return agent, stream, proof


def _again(sidecar, stream) -> Stream:
    """Break the stream; take the one that follows."""
    stream.end(grpc.StatusCode.UNAVAILABLE)
    sidecar.timers.pass_next(0.1)
    stream, first = sidecar.stream()
    assert first.hello.resumed
    return stream


def test_proof_is_repeated(sidecar):
    """A checkpoint named again was not proven yet: the proof precedes serving."""
    seen = []
    agent, stream, proof = _restored(sidecar, restore=seen.append)
    agent.serving(timeout_s=10)
    assert stream.next().HasField("serving")
    for _ in range(2):
        stream = _again(sidecar, stream)
        stream.welcome(restore_generation=7, restore_digest=digest_of(b"s"))
        assert stream.next().restored == proof
        assert stream.next().HasField("serving")
    assert seen == [b"s"]


def test_agent_serves_only_after_the_welcome(sidecar):
    """On a new stream nothing is said before what is to be proven is known."""
    agent, stream, proof = _restored(sidecar)
    stream = _again(sidecar, stream)
    agent.serving(timeout_s=10)
    stream.welcome(restore_generation=7, restore_digest=digest_of(b"s"))
    assert stream.next().restored == proof
    assert stream.next().HasField("serving")


@pytest.mark.parametrize(
    ("generation", "state"), [(6, b"s"), (7, b"other")], ids=["generation", "digest"]
)
def test_another_state_is_not_claimed(sidecar, generation, state):
    """A process that holds one state never says that it serves another."""
    agent, stream, _ = _restored(sidecar)
    agent.serving(timeout_s=10)
    assert stream.next().HasField("serving")
    stream = _again(sidecar, stream)
    stream.welcome(restore_generation=generation, restore_digest=digest_of(state))
    failed = stream.next().failed
    assert failed.epoch == 0
    assert "holds generation 7" in failed.reason
    with pytest.raises(errors.TimedOut):
        agent.wait_until_serving(timeout_s=0.01)


def test_state_begun_afresh_is_not_claimed_to_be_restored(sidecar):
    """An agent that began with nothing does not pass for one that restored."""
    _, stream = sidecar.serve()
    stream = _again(sidecar, stream)
    stream.welcome(restore_generation=3, restore_digest=digest_of(b"s"))
    assert "begun afresh" in stream.next().failed.reason


def test_replaced_agent_stays_away(sidecar):
    """A stream that another one took over is not opened again, and it is said."""
    agent, stream = sidecar.serve()
    _prepare(stream, 5)
    assert stream.next().HasField("quiesced")
    work = sidecar.elsewhere(_work, agent, [])
    waiting = sidecar.elsewhere(_broken_off, agent)
    stream.rpc.terminate(*ours(grpc.StatusCode.ABORTED, "REPLACED", "another"))
    assert waiting.result(10).reason == "REPLACED"
    work.result(10)
    agent._life._link._thread.join(10)
    assert not agent._life._link._thread.is_alive()
    assert sidecar.timers.delays == []
    with pytest.raises(errors.Conflict, match="another"):
        agent.serving(timeout_s=10)


def _broken_off(agent) -> errors.OutriggerError:
    while agent._life._is_serving:
        pass
    with pytest.raises(errors.Conflict) as caught:
        agent.wait_until_serving(timeout_s=10)
    return caught.value


def test_other_conflicts_do_not_keep_away(sidecar):
    """Only REPLACED is final."""
    _, stream = sidecar.serve()
    stream.rpc.terminate(*ours(grpc.StatusCode.ABORTED, "STALE_EPOCH"))
    sidecar.timers.pass_next(0.1)
    _, first = sidecar.stream()
    assert first.hello.resumed


def test_pauses_grow_until_heard(sidecar):
    """Silent streams make the pause double up to its cap; a word resets it."""
    sidecar.attach()
    for _ in range(7):
        stream, _ = sidecar.stream()
        stream.end()
        sidecar.timers.pass_next(2.0)
    stream = sidecar.fresh()
    stream.end()
    sidecar.timers.wait_for_one()
    assert sidecar.timers.delays == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 2.0, 0.1]


def test_break_mid_sleep_gives_it_up(sidecar):
    """A sleep whose stream broke is over: the next welcome lets work in again."""
    agent, stream = sidecar.serve()
    _prepare(stream, 5)
    assert stream.next().HasField("quiesced")
    work = sidecar.elsewhere(_work, agent, [])
    stream.end(grpc.StatusCode.UNAVAILABLE)
    sidecar.timers.wait_for_one()
    assert not work.done()
    sidecar.timers.time.sleep_for(0.1)
    sidecar.fresh()
    work.result(10)


def test_defect_does_not_end_the_link(sidecar):
    """A message that cannot be handled breaks one stream, not the agent."""
    _, stream = sidecar.serve()
    stream.rpc.send_response("nonsense")
    sidecar.timers.pass_next(0.1)
    _, first = sidecar.stream()
    assert first.hello.resumed


def test_unknown_message_is_passed_over(sidecar, caplog):
    """What a newer sidecar says is logged and changes nothing."""
    _, stream = sidecar.serve()
    stream.say()
    _prepare(stream, 5)
    assert stream.next().HasField("quiesced")
    assert "new to us" in caplog.text


def test_new_address_is_announced(sidecar):
    """An address given to serving reaches the sidecar in a new hello."""
    agent = sidecar.attach()
    before = sidecar.fresh()
    agent.serving("127.0.0.1:9", timeout_s=10)
    before.finish()
    stream, first = sidecar.stream()
    assert first.hello.app_address == "127.0.0.1:9"
    stream.welcome(epoch=1)
    assert stream.next().HasField("serving")
    agent.wait_until_serving(timeout_s=10)


def test_new_address_does_not_overtake_the_proof(sidecar):
    """The stream is not torn: what was restored is heard, then the new one begins."""
    agent = sidecar.attach()
    before, _ = sidecar.stream()
    before.welcome(restore_generation=7, restore_digest=digest_of(b"s"))
    sidecar.send_checkpoint(b"s", 7)
    agent.serving("127.0.0.1:9", timeout_s=10)
    assert before.next().HasField("restored")
    before.finish()
    stream, first = sidecar.stream()
    assert first.hello.app_address == "127.0.0.1:9"
    assert first.hello.resumed
    stream.welcome(epoch=1)
    assert stream.next().HasField("serving")


def test_known_address_keeps_the_stream(sidecar):
    """An address that the hello named already is not said by another stream."""
    agent = sidecar.attach(app_address="127.0.0.1:9")
    stream = sidecar.fresh()
    agent.serving("127.0.0.1:9", timeout_s=10)
    assert stream.next().HasField("serving")
    agent.serving(timeout_s=10)
    assert stream.next().HasField("serving")


def test_address_said_without_a_stream_waits_for_it(sidecar):
    """Between two streams a new address goes into the next hello, and that is all."""
    agent, stream = sidecar.serve()
    stream.end(grpc.StatusCode.UNAVAILABLE)
    sidecar.timers.wait_for_one()
    agent.serving("127.0.0.1:9", timeout_s=10)
    stream, first = sidecar.stream()
    assert first.hello.app_address == "127.0.0.1:9"
    stream.welcome(epoch=1)
    assert stream.next().HasField("serving")


def test_renewal_while_connecting_is_not_lost(sidecar):
    """A renewal between hello and the call it was made for ends that call's stream."""
    real = AttachServiceStub(sidecar.api)
    hellos = iter(("first", "second"))

    def attach_late(requests, metadata):
        if len(calls) == 0:
            link.renew()
        calls.append(metadata)
        return real.Attach(requests, metadata=metadata)

    def hello() -> AttachRequest:
        return AttachRequest(hello=attach_service_pb2.Hello(client=next(hellos)))

    calls: list = []
    ends: list = []
    link = Link(
        SimpleNamespace(Attach=attach_late),
        (("k", "v"),),
        sidecar.timers.call_in,
        hello=hello,
        take=lambda _: None,
        broke=ends.append,
    )
    link.start()
    stream, _ = sidecar.stream()
    stream.finish()
    _, second = sidecar.stream()
    link.close()
    assert second.hello.client == "second"
    assert [end.reason for end in ends] == ["ATTACH_ENDED", "PEER_CANCELLED"]


def test_close_while_connecting_is_not_lost(sidecar):
    """A close between hello and the call it was made for cancels that call."""
    real = AttachServiceStub(sidecar.api)
    closing: list = []

    def attach_late(requests, metadata):
        closing.append(sidecar.elsewhere(link.close))
        while not link._closed:
            pass
        return real.Attach(requests, metadata=metadata)

    ends: list = []
    link = Link(
        SimpleNamespace(Attach=attach_late),
        (("k", "v"),),
        sidecar.timers.call_in,
        hello=AttachRequest,
        take=lambda _: None,
        broke=ends.append,
    )
    link.start()
    link._thread.join(10)
    closing[0].result(10)
    assert [end.reason for end in ends] == ["PEER_CANCELLED"]


def test_bad_token_ends_the_waiting(sidecar):
    """A token the sidecar does not know is said at once, not waited out."""
    agent = sidecar.attach()
    stream, _ = sidecar.stream()
    stream.rpc.terminate(*ours(grpc.StatusCode.UNAUTHENTICATED, "BAD_TOKEN", "who?"))
    with pytest.raises(errors.Unauthenticated) as caught:
        agent.wait_until_serving()
    assert caught.value.reason == "BAD_TOKEN"
