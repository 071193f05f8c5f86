"""The guard in one walk of everything: hedges, queues, letters, sleep, lost callers."""

from collections import Counter
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.call.descriptor import (
    Answer,
    Await,
    Finish,
    GivenUp,
    Go,
    Kind,
    Letter,
    LetterRefused,
    LetterTaken,
    Origin,
    Refuse,
    Retry,
    Wait,
)
from sidecar.call.guard import GuardSettings
from sidecar.policy.budget import BudgetSettings
from sidecar.policy.circuit import CircuitSettings
from tests.support.guard_rig import GuardRig

PLAIN, PAY = "/acme.Orders/Read", "/acme.Orders/Pay"
SAFE, KEPT = "/acme.Orders/Put", "/acme.Orders/Keep"
RULES = (
    {"match": SAFE, "idempotent": True, "max_attempts": 4, "hedge_s": 0.1},
    {"match": PAY, "unsafe": True},
    {"match": KEPT, "idempotent": True, "letter": "on", "hedge_s": 0.3},
)
MOST = {SAFE: 4, PAY: 1}
BUDGET = BudgetSettings(minimum=4, ratio=0.5)
CIRCUIT = CircuitSettings(probes_at_once=2, min_calls=20)
TICK_S = 0.25
QUEUE_MAX_S = 1.0
INDEX = st.integers(0, 63)
CODES = st.sampled_from([0] * 8 + [4, 5, 8, 13, 14, 14, 14, 14])
ORIGINS = st.sampled_from([Origin.UPSTREAM, Origin.TRANSPORT])
SELDOM = st.sampled_from([True] + [False] * 5)
TRAILERS = st.sampled_from(
    [(), (), (("grpc-retry-pushback-ms", "200"),), (("grpc-retry-pushback-ms", "-1"),)]
)
METADATA = st.sampled_from(
    [
        (),
        (),
        (("outrigger-upstream", "bank"),),
        (("outrigger-letter", "on"),),
        (("grpc-previous-rpc-attempts", "1"),),
    ]
)
COME = st.tuples(
    st.just("come"),
    st.sampled_from([PLAIN, SAFE, SAFE, PAY, KEPT]),
    METADATA,
    st.sampled_from([None, 0.02, 0.5, 0.5, 3.0, 60.0]),
    st.sampled_from([Kind.CALL] * 5 + [Kind.DELIVERY]),
    st.sampled_from("abc"),
    st.integers(1, 3),
)
END = st.tuples(
    st.just("end"),
    INDEX,
    st.lists(CODES, min_size=1, max_size=4),
    st.sampled_from([Origin.UPSTREAM] * 3 + [*Origin]),
    st.booleans(),
    TRAILERS,
    st.floats(0, 1, exclude_max=True),
)
REPEAT = st.tuples(st.just("repeat"), INDEX, st.integers(1, 4))
ODD = st.one_of(
    st.tuples(st.just("answer"), INDEX),
    st.tuples(st.just("give_up_waiting"), INDEX),
    st.tuples(st.just("settle_letter"), INDEX, st.booleans()),
    st.tuples(st.just("late_word"), INDEX, CODES),
    st.tuples(st.just("late_leave"), INDEX),
    st.tuples(st.just("outage"), st.sampled_from([PLAIN, SAFE, KEPT]), ORIGINS),
    st.tuples(st.just("stop"), st.sampled_from([3.0, 30.0, 3600.0])),
    st.tuples(st.just("kill"), SELDOM),
    st.tuples(st.just("ready"), st.sampled_from(["shop", "bank"])),
    st.tuples(st.just("order"), st.sampled_from(["shop", "shop" + SAFE]), SELDOM),
)
STEP = st.one_of(
    *(COME, COME, COME, END, END, REPEAT, REPEAT, REPEAT, ODD),
    st.tuples(st.just("hear"), st.integers(1, 5)),
    st.tuples(st.just("leave"), INDEX),
    st.tuples(st.just("insist"), INDEX),
    st.tuples(st.just("pass_time"), st.sampled_from([0.05, 0.5, 0.5, 2.5, 12.0])),
)


@dataclass(eq=False)
class Under:
    """A call under way, as a wire knows it."""

    call: object
    permit: object = None
    live: dict = field(default_factory=dict)
    answered: bool = False
    retry_at: float | None = None
    letter: int | None = None
    queued: int | None = None
    wait_ends: float = 0.0


class ClumsyWire:
    """A wire that does all it may, in any order, and checks what it is told."""

    def __init__(self, places, queue):
        self.told = []
        self.rig = GuardRig(
            *RULES,
            settings=GuardSettings(
                concurrency=places,
                queue=queue,
                queue_max_s=QUEUE_MAX_S,
                parked_max=2,
                budget=BUDGET,
                circuit=CIRCUIT,
            ),
            resolve=self.tell,
        )
        self.guard = self.rig.guard
        self.under, self.ghosts, self.gone, self.tokens = [], [], [], {}
        self.sent, self.good = Counter(), Counter()
        self.account = []
        """(second, tenths earned, tenths spent) of the default upstream's budget."""
        self.over = 0
        self.is_killed = self.is_beginning = False

    @property
    def now(self):
        return self.rig.now

    # What the wire does.

    def come(self, method, metadata, timeout_s, kind, agent, count):
        """Callers come, one or some at once."""
        for _ in range(count):
            self.begin(method, metadata, timeout_s, kind, agent)

    def begin(self, method, metadata, timeout_s, kind, agent):
        call = self.rig.call(method, metadata=metadata, timeout_s=timeout_s, kind=kind)
        call.agent = agent
        under = Under(call)
        self.under.append(under)
        self.is_beginning = True
        result = self.guard.begin(call, self.now)
        self.is_beginning = False
        self.take(result, under)

    def end(self, index, codes, origin, is_cut, trailers, draw):
        """Attempts end, one or some after one another."""
        for code in codes:
            under = self.one(index, lambda each: each.live)
            if under is None:
                return
            number = sorted(under.live)[index % len(under.live)]
            self.end_one(
                under,
                under.live.pop(number),
                code=code,
                origin=origin,
                trailers=trailers,
                draw=draw,
                is_cut=is_cut and code == 4,
            )

    def end_one(self, under, go, *, code, **how):
        if go.attempt == 0 and not self.is_free(under):
            self.book(under, earned=10 * BUDGET.ratio)
        result = self.rig.end(go, code, committed=under.answered, **how)
        self.good[under.call.call_id] += code == 0
        if isinstance(result, Retry):
            self.book(under, spent=5 if code == 8 else 10)
        self.take(result, under)

    def answer(self, index):
        """Headers came: this attempt has won."""
        under = self.one(index, lambda each: each.live and not each.answered)
        if under is None:
            return
        number = sorted(under.live)[index % len(under.live)]
        winner = under.live.pop(number)
        self.drop_attempts(under)
        under.live, under.answered = {number: winner}, True
        self.guard.answered(under.permit, number, self.now)
        assert self.guard.due(under.permit, self.now) is None

    def repeat(self, index, count):
        """Go on with whatever retry or hedge is due next, some times."""
        for _ in range(count):
            under = self.one(index, self.repeat_at)
            if under is None:
                return
            self.repeat_one(under)

    def insist(self, index):
        """One call fails each time it is sent, until it is over."""
        under = self.one(index, lambda each: each.live and not each.answered)
        while under is not None and (under.live or under.retry_at is not None):
            if under.live:
                number = min(under.live)
                go = under.live.pop(number)
                self.end_one(under, go, code=14, origin=Origin.UPSTREAM)
            else:
                self.repeat_one(under)

    def repeat_one(self, under):
        self.pass_time(self.repeat_at(under) - self.now)
        is_hedge, under.retry_at = under.retry_at is None, None
        result = self.guard.attempt(under.permit, self.now)
        if is_hedge and isinstance(result, Go):
            assert not self.is_killed
            self.book(under, spent=10)
        self.take(result, under)

    def hear(self, count):
        """Be told, late, that calls may go on."""
        heard, self.told = self.told[:count], self.told[count:]
        for token, result in heard:
            self.resolve(token, result)

    def give_up_waiting(self, index):
        """The wire stops, or waited itself for too long."""
        under = self.one(index, lambda each: each.queued is not None)
        if under is not None:
            self.resolve(under.queued, GivenUp(Answer(14, "the wire stops")))

    def settle_letter(self, index, is_taken):
        under = self.one(index, lambda each: each.letter is not None)
        if under is not None:
            word = LetterTaken("L") if is_taken else LetterRefused("FULL")
            self.take(self.guard.resolved(under.letter, word, self.now), under)

    def leave(self, index):
        """A caller goes away, whatever its call is doing."""
        under = self.one(index, lambda _: True)
        if under is not None:
            self.guard.cancelled(under.permit, self.now)
            self.ghosts += under.live.values()
            under.live = {}
            self.is_over(under)

    def late_word(self, index, code):
        """An attempt that lost, or whose caller left, ends all the same."""
        if self.ghosts:
            go = self.ghosts[index % len(self.ghosts)]
            counted = repr((self.guard.counts, self.guard.deliveries))
            assert self.rig.end(go, code) == Finish(None)
            self.guard.answered(go.permit, go.attempt, self.now)
            assert repr((self.guard.counts, self.guard.deliveries)) == counted

    def late_leave(self, index):
        """The caller of a call that is over goes away."""
        if self.gone:
            counted = repr((self.guard.counts, self.guard.deliveries))
            self.guard.cancelled(self.gone[index % len(self.gone)], self.now)
            assert repr((self.guard.counts, self.guard.deliveries)) == counted

    def outage(self, method, origin):
        """So many calls fail in a row that a circuit may be probed soon."""
        for _ in range(CIRCUIT.consecutive_failures):
            self.begin(method, (), None, Kind.CALL, "a")
            if self.under and 0 in self.under[-1].live:
                under = self.under[-1]
                self.end_one(under, under.live.pop(0), code=13, origin=origin)
        self.pass_time(CIRCUIT.open_s)

    # What happens around it.

    def pass_time(self, seconds):
        """Let time pass while this process runs."""
        end = self.now + seconds
        while self.now < end:
            self.rig.now = min(end, self.now + TICK_S)
            self.guard.tick(self.now, 0.5)

    def stop(self, seconds):
        """Let time pass while it is stopped."""
        self.rig.now += seconds

    def kill(self, on):
        self.is_killed = on
        self.guard.kill_calls(on, "drill")

    def ready(self, which):
        self.guard.connection_ready(which, self.now)

    def order(self, which, on):
        if on:
            self.guard.isolate(which, "drill", self.now)
        else:
            self.guard.restore(which, self.now)

    # How the wire keeps its books.

    def tell(self, token, result):
        """Be told that a call has a place, or that there is no more hope for it."""
        under = self.tokens[token]
        makes_room = self.is_beginning
        assert under.permit.has_place or makes_room or self.now >= under.wait_ends
        self.told.append((token, result))

    def one(self, index, condition):
        """Choose a call; None if there is none of that kind."""
        found = [each for each in self.under if condition(each)]
        return found[index % len(found)] if found else None

    def repeat_at(self, under):
        """When its next retry or hedge is due; None if none is."""
        if under.retry_at is not None or not under.live:
            return under.retry_at
        return self.guard.due(under.permit, self.now)

    def is_free(self, under):
        """Say whether its first attempt earns no retries."""
        repeats = dict(under.call.metadata).get("grpc-previous-rpc-attempts")
        return bool(repeats) or under.call.kind is Kind.DELIVERY

    def resolve(self, token, result):
        under = self.tokens.get(token)
        if under is None or under.queued != token:
            assert self.guard.resolved(token, result, self.now) == Finish(None)
            return
        under.queued = None
        self.take(self.guard.resolved(token, result, self.now), under)

    def take(self, result, under):
        """Follow an instruction."""
        under.permit = getattr(result, "permit", under.permit)
        if isinstance(result, Go):
            self.send(result, under)
        elif isinstance(result, Retry):
            assert not self.is_killed
            assert not under.live
            under.retry_at = self.now + result.after_s
        elif isinstance(result, Wait):
            under.queued = result.token
            under.wait_ends = min(self.now + QUEUE_MAX_S, under.permit.expires)
            self.tokens[result.token] = under
        elif isinstance(result, Letter):
            assert under.call.kind is Kind.CALL
            assert under.call.method != PAY
            self.drop_attempts(under)
            under.letter = result.token
        elif isinstance(result, Await):
            assert under.live
        else:
            assert isinstance(result, Finish | Refuse)
            self.is_over(under)

    def send(self, go, under):
        """Check an attempt that goes out now."""
        call, number = under.call, self.sent[under.call.call_id]
        self.sent[call.call_id] += 1
        under.live[go.attempt] = go
        if number == 0 and dict(call.metadata).get("grpc-previous-rpc-attempts"):
            self.book(under, spent=10, is_granted=False)
        assert not under.answered
        assert go.attempt == number
        assert number < (1 if call.kind is Kind.DELIVERY else MOST.get(call.method, 3))
        if call.deadline is not None:
            assert self.now < call.deadline
            assert 0 < go.timeout_s <= call.deadline - self.now

    def is_over(self, under):
        self.drop_attempts(under)
        under.queued = None
        self.under.remove(under)
        if under.permit is not None:
            self.gone.append(under.permit)
        self.over += 1

    def drop_attempts(self, under):
        """Note that its attempts lost; a first one earns, however it ended."""
        if 0 in under.live and not self.is_free(under):
            self.book(under, earned=10 * BUDGET.ratio)
        self.ghosts += under.live.values()
        under.live = {}
        under.retry_at = None

    def book(self, under, earned=0.0, spent=0, *, is_granted=True):
        """Keep the budget's account, and check it whenever something is granted."""
        if under.permit.upstream != "shop":
            return
        second = self.guard._time.at(self.now) // 1.0
        self.account.append((second, earned, spent))
        if spent and is_granted:
            recent = [each for each in self.account if each[0] > second - 10]
            most = 10 * BUDGET.minimum + sum(each[1] for each in recent)
            assert sum(each[2] for each in recent) <= most

    # What always holds.

    def every_call_is_counted_once(self):
        over = in_flight = good = 0
        for counts in (self.guard.counts, self.guard.deliveries):
            ended = counts.ok + counts.failed + counts.cancelled
            ended += sum(counts.refused.values())
            assert counts.begun == ended + counts.in_flight
            over, in_flight = over + ended, in_flight + counts.in_flight
            good += counts.ok
        assert (over, in_flight) == (self.over, len(self.under))
        assert good == sum(self.good.values())
        assert max(self.good.values(), default=0) <= 1

    def places_are_held_by_calls(self):
        flights = [each.permit for each in self.under]
        for upstream in self.guard._standings.upstreams():
            mine = [one for one in flights if one.upstream == upstream.name]
            assert upstream.limit.in_flight == sum(one.has_place for one in mine)
            assert upstream.limit.in_flight <= upstream.limit.most
        for each in self.under:
            if each.live or each.retry_at is not None:
                assert each.permit.has_place
            assert each.letter is None or not each.permit.has_place
        assert self.guard.counts.held == sum(
            each.queued is not None for each in self.under
        )

    def nobody_waits_beside_a_free_place(self):
        for upstream in self.guard._standings.upstreams():
            is_free = upstream.limit.in_flight < upstream.limit.most
            assert not (is_free and upstream.queue)

    def attempts_are_held_by_calls(self):
        live = {
            (each.permit, number) for each in self.under for number in sorted(each.live)
        }
        for standing in self.guard._standings.methods():
            for tried, flight in standing.flying.items():
                assert (flight, tried.number) in live
        for circuit in self.guard._standings.circuits():
            assert circuit.leases <= min(CIRCUIT.probes_at_once, len(live))

    def check(self):
        self.every_call_is_counted_once()
        self.places_are_held_by_calls()
        self.nobody_waits_beside_a_free_place()
        self.attempts_are_held_by_calls()

    def finish(self):
        """Let all callers go; then nothing may be held."""
        while self.under:
            self.leave(len(self.told))
            self.hear(1)
        self.hear(len(self.told))
        self.every_call_is_counted_once()
        for standing in self.guard._standings.methods():
            assert not standing.flying
        for circuit in self.guard._standings.circuits():
            assert circuit.leases == 0
        for upstream in self.guard._standings.upstreams():
            assert upstream.limit.in_flight == 0
            assert not upstream.queue
        assert not self.guard._endings._parked
        assert not self.guard._places.held


@given(
    places=st.integers(1, 8),
    queue=st.sampled_from([0, 2, 5]),
    walk=st.lists(STEP, min_size=60, max_size=150),
)
@settings(max_examples=250, deadline=None)
def test_no_walk_of_everything_breaks_a_promise(places, queue, walk):
    """Counted once, given back once, sent within deadline, rule and budget."""
    wire = ClumsyWire(places, queue)
    for name, *args in walk:
        getattr(wire, name)(*args)
        wire.check()
    wire.finish()
