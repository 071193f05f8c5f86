"""The fair queue against plain lists that are searched from end to end."""

from hypothesis import given
from hypothesis import strategies as st

from sidecar.policy.fair_queue import FairQueue

AGENTS = ("a", "b", "c", "d")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["offer", "offer", "offer", "pop", "expired", "remove"]),
        st.sampled_from(AGENTS),
        st.integers(0, 6),
        st.sampled_from([0.0, 0.0, 1.0]),
    ),
    max_size=120,
)


class Model:
    """The same promises, kept by looking at everything each time."""

    def __init__(self, most):
        self.most = most
        self.turns = []
        self.lines = {agent: [] for agent in AGENTS}
        self.late = []

    def held(self):
        waiting = [one for line in self.lines.values() for one in line]
        return waiting + self.late

    def join(self, agent, item, expires):
        self.lines[agent].append((item, expires))
        if agent not in self.turns:
            self.turns.append(agent)

    def leave(self, item):
        self.late = [one for one in self.late if one[0] is not item]
        for agent, line in self.lines.items():
            line[:] = [one for one in line if one[0] is not item]
            if not line and agent in self.turns:
                self.turns.remove(agent)

    def pop(self, now):
        while self.turns:
            agent = self.turns[0]
            item, expires = self.lines[agent][0]
            self.leave(item)
            if now < expires:
                if agent in self.turns:
                    self.turns.append(self.turns.pop(0))
                return item
            self.late.append((item, expires))
        return None


def check_offer(model, offer, agent, item, expires):
    """Compare what became of an offer with what the rule says, then follow it."""
    own = len(model.lines[agent])
    longest = max(len(line) for line in model.lines.values())
    fits = len(model.held()) < model.most
    assert offer.accepted is (fits or longest >= own + 2)
    if offer.accepted and not fits:
        newest = [line[-1][0] for line in model.lines.values() if len(line) == longest]
        assert any(offer.evicted is one for one in newest)
        model.leave(offer.evicted)
    else:
        assert offer.evicted is None
    if offer.accepted:
        model.join(agent, item, expires)


@given(most=st.integers(0, 12), steps=STEPS)
def test_the_queue_does_what_the_lists_do(most, steps):
    """Same order, same refusals, same victims but for ties, whatever the steps."""
    queue, model, now = FairQueue(most), Model(most), 0.0
    for what, agent, number, gap_s in steps:
        now += gap_s
        if what == "offer":
            item, expires = [agent], now + number
            check_offer(model, queue.offer(agent, item, expires), agent, item, expires)
        elif what == "pop":
            assert queue.pop(now) is model.pop(now)
        elif what == "expired":
            due = [item for item, expires in model.held() if now >= expires]
            assert sorted(map(id, queue.expired(now))) == sorted(map(id, due))
            for item in due:
                model.leave(item)
        elif held := model.held():
            item = held[number % len(held)][0]
            assert queue.remove(item)
            model.leave(item)
        assert len(queue) == len(model.held()) <= most
        for name in AGENTS:
            assert queue.waiting(name) == len(model.lines[name])


@given(
    most=st.integers(4, 40),
    flood=st.integers(0, 200),
    asks=st.lists(st.sampled_from(AGENTS[1:]), min_size=200, max_size=200),
)
def test_a_flood_leaves_everybody_who_asks_a_fair_part(most, flood, asks):
    """Whoever keeps asking ends with no less than the flood, but for one."""
    queue = FairQueue(most)
    for _ in range(flood):
        queue.offer("a", [], expires=1.0)
    for agent in asks:
        queue.offer(agent, [], expires=1.0)

    for agent in set(asks):
        if asks.count(agent) >= most:
            assert queue.waiting(agent) >= queue.waiting("a") - 1
