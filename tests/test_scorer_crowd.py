"""Candidates by arrays: whatever is asked of a large fleet, the answer is that of the same candidates one by one."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from scorer.candidates import Candidates, Stranger
from scorer.cost import FleetRate, PrefillRate
from scorer.crowd import MANY, Alike, Crowd, Regulars
from scorer.load import PodLoad, Ticket
from scorer.pick import pick
from scorer.policies import POLICIES, PolicyName, Settings, policy_of
from tests.fakes.cores import MODEL, NOBODY, SERVED, asked, core_of, route

INFINITE = float("inf")
LOOKED_MAX = 32  # ranks at one look


class Drawn:
    """A fleet that is drawn: columns, and what is in flight."""

    def __init__(self, seed: int, count: int = 40) -> None:
        self.rnd = rnd = random.Random(seed)
        fleet = FleetRate(8000)
        self.loads = [PodLoad(PrefillRate(8000, fleet)) for _ in range(count)]
        self.pods = [Stranger(f"pod-{number}", 1000) for number in range(count)]
        even = seed % 3 == 0  # pods that are alike, but for what they do
        self.speeds = [(1e-4 if even else rnd.uniform(1e-5, 1e-3), rnd.choice((0.0, 1e-9))) for _ in range(count)]
        self.factors = [1.0 if even else rnd.uniform(0.2, 5.0) for _ in range(count)]
        self.rooms = [INFINITE if seed % 4 == 0 else rnd.choice((0.0, -16.0, 1000.0, 1e6)) for _ in range(count)]
        self.again = [rnd.choice((0.0, 0.5, rnd.random())) for _ in range(count)]
        self.fills = [1.0 if seed % 5 == 0 else rnd.choice((0.1, 0.12, rnd.random())) for _ in range(count)]
        places = {load: number for number, load in enumerate(self.loads)}
        self.regulars = Regulars(self.pods, places, self.speeds, self.factors, self.rooms, self.again, self.fills)
        self.tickets: list[Ticket] = []

        self.moved: set[PodLoad] = set()
        for load in self.loads:
            load.moved = self.moved

    def move(self, now: float) -> None:
        """Somebody comes, begins, or goes."""
        for _ in range(self.rnd.randrange(4)):
            load = self.rnd.choice(self.loads)
            self.tickets.append(load.admit(self.rnd.randrange(1, 9000), now, tells=self.rnd.random() < 0.5))
        for ticket in self.rnd.sample(self.tickets, len(self.tickets) // 4):
            if self.rnd.random() < 0.5:
                ticket.load.first_byte(ticket, now, True)
            else:
                ticket.load.release(ticket, now)
                self.tickets.remove(ticket)
        if self.rnd.random() < 0.3:
            self.rnd.choice(self.loads).stated(self.rnd.randrange(3), now)

    def both(self, now: float) -> tuple[Crowd, Candidates]:
        """The candidates of one request, either way."""
        for load in self.moved:
            self.regulars.heed(load)
        self.moved.clear()
        rnd, tokens, turns = self.rnd, self.rnd.randrange(1, 20_000), self.rnd.choice((0.5, 3.0, 9.0))
        crowd = Crowd(self.regulars, tokens, turns, now)
        matched, middles = [0] * len(self.loads), [tokens / 2] * len(self.loads)
        worths = [0.0] * len(self.loads)
        left = list(range(len(self.loads)))
        for _ in range(rnd.randrange(4)):
            numbers = rnd.sample(left, rnd.choice((1, 1, len(left) // 3)))
            left = [number for number in left if number not in numbers]
            found, middle = rnd.choice((tokens - 1, rnd.randrange(tokens))), rnd.uniform(0, tokens)
            worth = rnd.choice((float(found), rnd.uniform(0, tokens)))
            crowd.hold(Alike(numbers, found, worth, middle))
            for number in numbers:
                matched[number], worths[number], middles[number] = found, worth, middle
        tokens_s = [own + more * middle for (own, more), middle in zip(self.speeds, middles, strict=True)]
        listed = Candidates(
            tokens, matched, worths, [load.requests for load in self.loads],
            [load.prefill_tokens for load in self.loads], [load.backlog_s(now) for load in self.loads], tokens_s,
            self.factors, self.rooms, self.again, self.fills, self.pods, turns,
        )  # fmt: skip
        return crowd, listed


@pytest.mark.parametrize("seed", range(20))
def test_the_columns_are_the_same(seed: int) -> None:
    """With all that moved since the request before, and nothing of what moves after it."""
    drawn = Drawn(seed)
    for turn in range(12):
        drawn.move(float(turn))
        crowd, listed = drawn.both(turn + 0.5)
        drawn.move(turn + 0.6)
        assert crowd.listed() == listed and list(crowd) == list(listed) and len(crowd) == len(listed)
        assert [crowd[number] for number in range(len(crowd))] == list(listed)
        assert (crowd.longest, crowd.holder) == (listed.longest, listed.holder)


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("beta", [1.0, 0.7])
def test_the_pick_is_the_same(seed: int, beta: float) -> None:
    """And so is each price, to the last bit, and the reason; also where some start slowly."""
    drawn, policy = Drawn(seed), policy_of(Settings(beta=beta))
    for turn in range(12):
        drawn.move(float(turn))
        crowd, listed = drawn.both(turn + 0.5)
        slowness = [drawn.rnd.choice((1.0, 1.5)) for _ in drawn.loads] if turn % 3 == 0 else None
        if turn % 4 == 1:
            later_s = [drawn.rnd.choice((0.0, 0.3)) for _ in drawn.loads]
            for seen in (crowd, listed):
                seen.delay(later_s)
        ours, theirs = pick(crowd, policy, turn, slowness), pick(listed, policy, turn, slowness)
        assert (ours.best, ours.reason, ours.prices) == (theirs.best, theirs.reason, theirs.prices)
        assert ours.candidates == listed


@pytest.mark.parametrize("seed", range(20))
def test_where_one_is_far_better_the_others_are_not_priced(seed: int) -> None:
    """The pod of a conversation, beside many that have its beginning; who asks for the prices gets them. Of two such
    pods one has to be found."""
    drawn, policy = Drawn(3 * seed), policy_of(Settings())
    beginning = Alike(range(10, 30), 2000, 2000.0, 9000.0)
    for groups in ([[35]], [[35, 36]], [[35], [36]]):
        crowd = Crowd(drawn.regulars, 16_000, 4.0, 0.0)
        for group in (beginning, *(Alike(numbers, 15_900, 15_900.0, 15_950.0) for numbers in groups)):
            crowd.hold(group)
        ours, theirs = pick(crowd, policy, seed), pick(crowd.listed(), policy, seed)
        assert ours.best.number in (35, 36) and (ours.priced is None) is (groups == [[35]])
        assert (ours.best, ours.reason, ours.prices) == (theirs.best, theirs.reason, theirs.prices)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "predicted-ttft"])
def test_other_policies_get_lists(policy: PolicyName) -> None:
    """They price what they know."""
    drawn = Drawn(1)
    crowd, listed = drawn.both(0.0)
    ours, theirs = (pick(seen, policy_of(Settings(policy)), 3) for seen in (crowd, listed))
    assert (ours.best, ours.reason, ours.prices) == (theirs.best, theirs.reason, theirs.prices)


def test_what_is_filled_counts_for_who_comes_next() -> None:
    """Who was compared before keeps what it saw."""
    drawn = Drawn(1)
    before, _ = drawn.both(0.0)
    drawn.regulars.fill(7, 0.9)
    after, _ = drawn.both(0.0)
    assert before.listed().fills == drawn.fills and after.fills[7] == 0.9
    assert drawn.regulars.emptiest == min(after.fills) and drawn.regulars.fullest == max(after.fills)


@pytest.mark.parametrize("pods", [MANY - 1, MANY, 40])
def test_a_large_fleet_is_picked_from_as_a_small_one(pods: int) -> None:
    """Each decision is that of its candidates one by one, with what is in flight and in use then, whatever has come and
    gone, and whatever model it was for: some pods serve several."""
    core, rnd, open_ones = core_of(pods, index={"blocks_max": 100_000}), random.Random(pods), []
    for number, pod in enumerate(core.fleet.pods.values()):
        others = [{"id": f"m-{each}"} for each in range(6) if number >= each]
        core.fleet.learned_models(pod, [{"id": MODEL}, *others])
    for number in range(150):
        now = number / 20
        for pod in core.fleet.pods.values() if number == 50 else ():
            pod.blocks = 40
        model = rnd.choice((MODEL, MODEL, *(f"m-{each}" for each in range(rnd.choice((1, 6))))))
        ranks = core.fleet.serving(model)
        loads = [rank.load for rank in ranks]
        in_flight = [(load.requests, load.prefill_tokens, load.backlog_s(now)) for load in loads]
        turn = core.turn
        demand = replace(asked(core, rnd.randrange(12), 320), model=model, tells_prefill=True)
        placement = route(core, demand, NOBODY, now)
        decision = placement.decision
        seen = decision.pick.candidates
        again = pick(seen, policy_of(core.scoring), turn)
        assert (again.best, again.reason, again.prices) == (decision.pick.best, decision.reason, decision.pick.prices)
        assert list(zip(seen.requests, seen.prefill_tokens, seen.backlogs_s, strict=True)) == in_flight
        picked = decision.pick.best.number
        if pods < LOOKED_MAX:  # else some were looked at, and others not yet
            assert all(seen.fills[place] == rank.fill for place, rank in enumerate(ranks) if place != picked)
            assert placement.rank.pod.blocks is None or placement.rank.fill >= seen.fills[picked]
        assert decision.hits[decision.pick.best.number] == placement.hit
        open_ones.append(placement)
        core.first_byte(rnd.choice(open_ones), True, now + 0.01)
        if len(open_ones) > 8:
            core.finish(open_ones.pop(rnd.randrange(8)), SERVED, now + 0.02)


@pytest.mark.parametrize(
    ("per_position", "factor", "again", "fill"),
    [(0.0, 1.0, 0.0, 0.1), (1e-6, 1.0, 0.0, 0.1), (0.0, 0.5, 0.0, 0.1), (0.0, 1.0, 0.01, 0.9)],
)
def test_where_others_come_near_they_are_priced(per_position: float, factor: float, again: float, fill: float) -> None:
    """To the token: who has most of a prompt and no room for it is left as soon as another one is as good. Nobody is
    taken to be slower than the quickest one is, and all that the first one costs counts."""
    fleet, count = FleetRate(8000), 20
    loads = {PodLoad(PrefillRate(8000, fleet)): number for number in range(count)}
    pods = [Stranger(f"pod-{number}", 1000) for number in range(count)]
    speeds = [(1e-4, per_position if number > 9 else 0.0) for number in range(count)]
    columns = ((factor, 1.0), (0.0, INFINITE), (fill, 0.1))
    factors, rooms, fills = ([first, *[other] * (count - 1)] for first, other in columns)
    regulars = Regulars(pods, loads, speeds, factors, rooms, [again] * count, fills)
    policy, went = policy_of(Settings()), []
    for matched in range(60, 460, 2):
        crowd = Crowd(regulars, 1000, 4.0, 0.0)
        crowd.hold(Alike([0], matched, float(matched), (1000 + matched) / 2))
        went.append(pick(crowd, policy, 0).best.number)
        assert went[-1] == pick(crowd.listed(), policy, 0).best.number
    assert went[0] != 0 and went[-1] == 0


def test_who_is_emptiest_and_who_is_fullest() -> None:
    """Whatever is filled and emptied, in any order."""
    drawn = Drawn(2)
    regulars, rnd = drawn.regulars, drawn.rnd
    for _ in range(500):
        regulars.fill(rnd.randrange(4), rnd.choice((0.0, 0.05, rnd.random(), 0.99, 1.5)))
        assert (regulars.emptiest, regulars.fullest) == (regulars.fills.min(), regulars.fills.max())
