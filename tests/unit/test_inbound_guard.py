import pytest

from outrigger.core.errors import Bug, Refused
from outrigger.core.rpc.errors import DETAILS_KEY, details_metadata, error_info
from sidecar.agent.inbound import APP, InboundGuard
from sidecar.call.descriptor import (
    Answer,
    Call,
    GivenUp,
    Go,
    LetterTaken,
    Origin,
    Outcome,
    Refuse,
    Resumed,
    Wait,
)

OK = Outcome(0, "", Origin.UPSTREAM, committed=True)
FAILED = Outcome(14, "down", Origin.TRANSPORT, committed=False)


class Agent:
    """An agent that is awake or not, and the wire beside it."""

    def __init__(self, *, awake=True, **settings):
        self.is_awake = awake
        self.wakes, self.resolved, self.begun = [], [], 0
        self.on_wake = self.on_begin = lambda: None
        self.guard = InboundGuard(
            awake=lambda: self.is_awake,
            wake=self._wake,
            on_call=self._begin,
            resolve=lambda token, result: self.resolved.append((token, result)),
            details=details_metadata,
            **settings,
        )

    def _wake(self, reason):
        self.wakes.append(reason)
        self.on_wake()

    def _begin(self):
        self.begun += 1
        self.on_begin()

    def call(self, now=10.0, *, deadline=None, metadata=()):
        call = Call("id", "/test.Agent/Do", metadata, deadline)
        return self.guard.begin(call, now)

    def finish(self, token, now=20.0):
        """Resolve a call as the wire would, by what the guard said."""
        result = dict(self.resolved)[token]
        return self.guard.resolved(token, result, now)


def reason_of(answer):
    return error_info(dict(answer.trailers)[DETAILS_KEY]).reason


def balanced(counts):
    over = counts.ok + counts.failed + counts.cancelled + sum(counts.refused.values())
    return counts.begun == over + counts.in_flight


def test_awake_agent_gets_the_call_at_once():
    """A call goes on unchanged but for what is ours, with what is left of its time."""
    agent = Agent()
    sent = (("x-a", "1"), ("outrigger-upstream", "up"), ("x-a", "2"))
    go = agent.call(10.0, deadline=12.5, metadata=sent)
    assert isinstance(go, Go)
    assert (go.permit.upstream, go.attempt, go.timeout_s) == (APP, 0, 2.5)
    assert go.metadata == (("x-a", "1"), ("x-a", "2"))
    assert agent.wakes == []
    assert agent.begun == 1
    assert agent.guard.last_activity == 10.0


def test_time_already_over_is_no_negative_limit():
    """A call whose deadline is just passed gets no time, not less than none."""
    assert Agent().call(10.0, deadline=9.0).timeout_s == 0.0
    assert Agent().call(10.0).timeout_s is None


@pytest.mark.parametrize("outcome", [OK, FAILED])
def test_outcome_is_passed_on_and_never_retried(outcome):
    """Whatever the agent answers is the answer, and counted once."""
    agent = Agent()
    go = agent.call()
    assert agent.guard.counts.in_flight == 1
    finish = agent.guard.ended(go.permit, 0, outcome, 11.0, 0.5)
    assert (finish.answer, finish.trailers) == (None, ())
    counts = agent.guard.counts
    assert (counts.ok, counts.failed) == ((1, 0) if outcome is OK else (0, 1))
    assert counts.in_flight == 0
    assert agent.guard.last_activity == 11.0
    assert balanced(counts)


def test_call_that_ends_a_sleep_goes_straight_on():
    """A call that begins while the agent falls asleep cancels the sleep first."""
    agent = Agent(awake=False)

    def give_sleep_up():
        agent.is_awake = True

    agent.on_begin = give_sleep_up
    assert isinstance(agent.call(), Go)
    assert agent.wakes == []


def test_calls_are_held_and_one_wake_is_asked_for():
    """Several calls for a sleeping agent ask for one wake, and go on in their order."""
    agent = Agent(awake=False)
    waits = [agent.call() for _ in range(3)]
    assert [type(wait) for wait in waits] == [Wait] * 3
    assert agent.wakes == ["a call of /test.Agent/Do"]
    assert (agent.guard.counts.held, agent.guard.counts.in_flight) == (3, 3)
    agent.is_awake = True
    agent.guard.agent_is_awake()
    agent.guard.agent_is_awake()
    assert agent.resolved == [(wait.token, Resumed()) for wait in waits]
    for wait in waits:
        go = agent.finish(wait.token)
        assert go.permit is wait.permit
        agent.guard.ended(go.permit, 0, OK, 21.0, 0.5)
    assert (agent.guard.counts.held, agent.guard.counts.in_flight) == (0, 0)
    assert balanced(agent.guard.counts)


def test_next_sleep_asks_for_a_wake_again():
    """Each sleep gets its own wake, however the one before it came about."""
    agent = Agent(awake=False)

    def wake_at_once():
        agent.is_awake = True
        agent.guard.agent_is_awake()

    agent.on_wake = wake_at_once
    assert isinstance(agent.call(), Go)
    agent.is_awake = False
    assert isinstance(agent.call(), Go)
    assert len(agent.wakes) == 2


def test_refused_wake_refuses_the_call():
    """A wake that cannot be asked for is told to the caller, as ours."""
    agent = Agent(awake=False)

    def refuse():
        raise Refused("STOPPING", "the sidecar is ending")

    agent.on_wake = refuse
    refusal = agent.call()
    assert isinstance(refusal, Refuse)
    assert reason_of(refusal.answer) == "STOPPING"
    assert ("outrigger-refused-by", "wake") in refusal.answer.trailers
    assert agent.guard.counts.in_flight == 0
    assert balanced(agent.guard.counts)


def test_wake_that_fails_at_once_refuses_the_call():
    """A wake that fails before the call is held does not leave it waiting."""
    agent = Agent(awake=False)
    agent.on_wake = lambda: agent.guard.agent_failed("no command")
    refusal = agent.call()
    assert (refusal.answer.code, reason_of(refusal.answer)) == (14, "AGENT_FAILED")
    assert "no command" in refusal.answer.message
    agent.on_wake = lambda: None
    assert isinstance(agent.call(), Wait)
    assert len(agent.wakes) == 2


def test_failed_wake_gives_every_call_up():
    """When the agent fails, held calls get UNAVAILABLE of ours; the next asks anew."""
    agent = Agent(awake=False)
    waits = [agent.call() for _ in range(2)]
    agent.guard.agent_failed("it crashed")
    refusals = [agent.finish(wait.token) for wait in waits]
    assert {r.answer.code for r in refusals} == {14}
    assert {reason_of(r.answer) for r in refusals} == {"AGENT_FAILED"}
    assert ("grpc-retry-pushback-ms", "1000") in refusals[0].answer.trailers
    assert agent.guard.counts.refused == {"wake": 2}
    assert isinstance(agent.call(), Wait)
    assert len(agent.wakes) == 2
    assert balanced(agent.guard.counts)


def test_only_so_many_calls_are_held():
    """Beyond the limit a call is refused with RESOURCE_EXHAUSTED, marked as ours."""
    agent = Agent(awake=False, max_held=2)
    assert isinstance(agent.call(), Wait)
    wait = agent.call()
    refusal = agent.call()
    assert (refusal.answer.code, reason_of(refusal.answer)) == (8, "TOO_MANY_HELD")
    assert ("grpc-retry-pushback-ms", "1000") in refusal.answer.trailers
    agent.guard.cancelled(wait.permit, 11.0)
    assert isinstance(agent.call(), Wait)
    assert balanced(agent.guard.counts)


def test_call_without_a_deadline_is_held_only_so_long():
    """After hold_max_s it is given up; one with a deadline waits for that."""
    agent = Agent(awake=False, hold_max_s=30.0)
    endless = agent.call(10.0)
    patient = agent.call(10.0, deadline=100.0)
    agent.guard.tick(39.9)
    assert agent.resolved == []
    agent.guard.tick(40.0)
    agent.guard.tick(41.0)
    assert [token for token, _ in agent.resolved] == [endless.token]
    refusal = agent.finish(endless.token)
    assert (refusal.answer.code, reason_of(refusal.answer)) == (14, "NOT_WOKEN")
    agent.guard.agent_is_awake()
    assert isinstance(agent.finish(patient.token), Go)


def test_call_given_up_is_not_resumed_as_well():
    """A call that was told one end of its wait is not told another."""
    agent = Agent(awake=False, hold_max_s=1.0)
    wait = agent.call(10.0)
    agent.guard.tick(11.0)
    agent.guard.agent_is_awake()
    agent.guard.agent_failed("late")
    assert [token for token, _ in agent.resolved] == [wait.token]
    assert isinstance(agent.finish(wait.token), Refuse)


def test_caller_that_goes_is_counted_out_once():
    """A held call whose caller goes frees its place; so does one handed on."""
    agent = Agent(awake=False)
    held = agent.call()
    agent.guard.cancelled(held.permit, 12.0)
    assert (agent.guard.counts.held, agent.guard.counts.in_flight) == (0, 0)
    agent.guard.agent_is_awake()
    assert agent.resolved == []
    agent.is_awake = True
    go = agent.call()
    agent.guard.cancelled(go.permit, 13.0)
    counts = agent.guard.counts
    assert (counts.cancelled, counts.in_flight) == (2, 0)
    assert agent.guard.last_activity == 13.0
    assert balanced(counts)


def test_caller_that_goes_between_resume_and_hand_on():
    """A caller that goes after it was told to go on leaves nothing behind."""
    agent = Agent(awake=False)
    wait = agent.call()
    agent.is_awake = True
    agent.guard.agent_is_awake()
    agent.guard.cancelled(wait.permit, 12.0)
    assert agent.guard.counts.in_flight == 0
    with pytest.raises(Bug, match="held under token"):
        agent.guard.resolved(wait.token, Resumed(), 12.0)
    assert balanced(agent.guard.counts)


def test_last_held_call_that_leaves_forgets_the_wake():
    """A wake nobody waits for any more is asked for again by the next call."""
    agent = Agent(awake=False)
    wait = agent.call()
    agent.guard.cancelled(wait.permit, 12.0)
    agent.call()
    assert len(agent.wakes) == 2


def test_wire_may_give_a_call_up():
    """The wire's own answer, when it stops, is the call's answer."""
    agent = Agent(awake=False)
    wait = agent.call()
    answer = Answer(14, "stopping")
    assert agent.guard.resolved(wait.token, GivenUp(answer), 12.0).answer is answer
    assert agent.guard.counts.refused == {"wake": 1}
    assert balanced(agent.guard.counts)


def test_defects_are_told_as_such():
    """What no wire may ask raises, or is answered INTERNAL."""
    agent = Agent(awake=False)
    wait = agent.call()
    refusal = agent.guard.resolved(wait.token, LetterTaken("x"), 12.0)
    assert refusal.answer.code == 13
    with pytest.raises(Bug):
        agent.guard.attempt(wait.permit, 12.0)
    assert agent.guard.due(wait.permit, 12.0) is None
