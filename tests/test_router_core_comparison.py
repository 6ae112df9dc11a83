"""What pods are beside each other: what they hold of a prompt, as known here and elsewhere, and what room they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from indexer.events import BlockRemoved
from indexer.match import MISS, Hit
from router.core.decision import Core
from router.core.demand import Decision, Demand
from router.core.fleet import Fleet, Pod, Rank, RankId
from scorer.cost import PrefillRate
from scorer.load import PodLoad
from tests.fakes.cores import MODEL, NOBODY, SERVED, SIZE, asked, core_of, decide, route, store, tokens_of

ONE, OTHER = RankId("pod-0", 0), RankId("pod-1", 0)


def columns(decision: Decision) -> tuple[list[int], list[float]]:
    """Tokens that are reused on each pod, and what they are worth."""
    return decision.pick.candidates.matched, decision.pick.candidates.worths


def room(core: Core, now: float) -> tuple[float, float]:
    """Of the first pod: tokens that fit in, and the share of its cache that is in use."""
    candidates = decide(core, asked(core, 9), NOBODY, now).pick.candidates
    return candidates.rooms[0], candidates.fills[0]


def test_room_is_looked_at_now_and_then() -> None:
    """What a pod holds more counts at the next look, a tenth of a second later; none is fuller than full."""
    core = core_of(1)
    core.fleet.pods["pod-0"].blocks = 100
    store(core, "pod-0", 1)
    assert room(core, 10.0) == (90 * SIZE, 0.1)
    store(core, "pod-0", 2)
    assert room(core, 10.09) == (90 * SIZE, 0.1)
    assert room(core, 10.1) == (80 * SIZE, 0.2)
    core.fleet.pods["pod-0"].blocks = 10
    assert room(core, 10.3)[1] == 1.0


def _blocked(pod: Pod, until: float) -> None:
    pod.breaker.avoid(until)


@pytest.mark.parametrize(
    ("turn", "back"),
    [
        (lambda _, pod: pod.believe(False), lambda _, pod: pod.believe(True)),
        (lambda _, pod: pod.stands(False, False), lambda _, pod: pod.stands(True, False)),
        (lambda _, pod: pod.stands(True, True), lambda _, pod: pod.stands(True, False)),
        (lambda _, pod: pod.drain(True), lambda _, pod: pod.drain(False)),
        (lambda fleet, pod: fleet.rests(pod, "asleep"), lambda fleet, pod: fleet.rests(pod, None)),
        (lambda fleet, pod: fleet.rests(pod, "paused"), lambda fleet, pod: fleet.restarted(pod)),
        (lambda _, pod: pod.suspect(99.0), lambda _, pod: pod.suspect(0.0)),
    ],
    ids=["unhealthy", "not ready", "leaving", "drained", "asleep", "restarted", "suspect"],
)
def test_who_is_fit_is_known_at_once(
    turn: Callable[[Fleet, Pod], object], back: Callable[[Fleet, Pod], object]
) -> None:
    """Though pods are not asked for every request: what changes one counts for the next decision, and so does what
    changes it back; those of another model are not mixed up with them."""
    core = core_of(3)
    pod = core.fleet.pods["pod-1"]
    other = Pod("pod-9", "http://pod-9", healthy=True, block_size=SIZE)
    other.ranks.append(Rank(RankId("pod-9", 0), other, PodLoad(PrefillRate(1000)), None))
    core.fleet.join(other)
    core.fleet.learned_models(other, [{"id": "another"}])

    def fit() -> list[str]:
        assert [rank.id.pod for rank in decide(core, Demand("another"), NOBODY, 10.0).ranks] == ["pod-9"]
        return [rank.id.pod for rank in decide(core, asked(core, 1), NOBODY, 10.0).ranks]

    assert fit() == ["pod-0", "pod-1", "pod-2"]
    turn(core.fleet, pod)
    assert fit() == ["pod-0", "pod-2"] and not pod.fit(10.0)
    back(core.fleet, pod)
    assert fit() == ["pod-0", "pod-1", "pod-2"] and pod.fit(10.0)


@pytest.mark.parametrize("how", [Pod.suspect, _blocked], ids=["suspect", "left alone"])
def test_who_is_fit_again_when_its_time_has_come(how: Callable[[Pod, float], None]) -> None:
    """Not before, and at once then; of several, each at its own time."""
    core = core_of(3)
    for name, until in (("pod-0", 12.0), ("pod-2", 10.5)):
        how(core.fleet.pods[name], until)
    for now, count in ((10.0, 1), (10.4, 1), (10.5, 2), (11.9, 2), (12.0, 3), (10.0, 1)):
        ranks = decide(core, asked(core, 1), NOBODY, now).ranks
        assert len(ranks) == count and all(rank.pod.fit(now) for rank in ranks)


@pytest.mark.parametrize("of_others", [False, True], ids=["alone", "between others"])
@pytest.mark.parametrize("apart_s", [0.0, 0.05, 0.5])
def test_contexts_that_have_begun_will_grow(apart_s: float, of_others: bool) -> None:
    """Sessions that share a long beginning have no room in one cache once they have grown: they begin on both.

    `of_others`: between any two of them there is a decision over other pods.
    """
    core = core_of(2)
    for pod in core.fleet.pods.values():
        pod.blocks = 1500
    shared, homes = np.arange(2048, dtype=np.uint32), []
    for session in range(24):
        tokens = np.concatenate([shared, tokens_of(10 + session, 512)])
        demand, now = Demand(MODEL, len(tokens), keys={SIZE: core.space.chain(tokens, SIZE)}), 10.0 + apart_s * session
        placement = route(core, demand, NOBODY, now)
        core.finish(placement, SERVED, now)
        homes.append(placement.rank.id)
        if of_others:
            decide(core, asked(core, 9), frozenset(("pod-1",)), now)
    assert 10 <= homes.count(ONE) <= 14


def test_a_large_fleet_is_looked_at_in_turns() -> None:
    """No decision pays for all of it; all are known after some decisions, or where somebody looks in between."""
    core = core_of(100)
    for pod in core.fleet.pods.values():
        pod.blocks = 100

    def known() -> int:
        return sum(fill == 0.0 for fill in decide(core, asked(core, 9), NOBODY, 10.0).pick.candidates.fills)

    seen = [known() for _ in range(4)]
    assert 0 < seen[0] <= seen[2] < 50 and seen[3] == 100
    for pod in core.fleet.pods.values():
        store(core, pod.name, 1, 16)
    assert known() == 100
    for turn in range(4):
        core.look(11.0 + turn / 1000)
    assert known() == 0


def test_who_gives_up_has_no_room() -> None:
    """For half a minute after a pod has given up something, what seems free is in use."""
    core = core_of(1)
    core.fleet.pods["pod-0"].blocks = 100
    store(core, "pod-0", 1)
    assert room(core, 10.0) == (90 * SIZE, 0.1)
    core.index.apply(ONE, BlockRemoved([109]))
    assert room(core, 11.0) == (0.0, 1.0)
    assert room(core, 40.9) == (0.0, 1.0)
    assert room(core, 41.0) == (91 * SIZE, 0.09)


def test_what_others_know_counts_where_it_is_more() -> None:
    """Of what is known here and elsewhere the longer; who holds nothing anywhere is told of as such."""
    core = core_of(3)
    store(core, "pod-0", 1)
    store(core, "pod-1", 1, 64)
    prompt = asked(core, 1)
    known = decide(core, prompt, NOBODY, 0.0).hits[0]
    assert known.blocks == 10
    for blocks, expected in ((3, [10, 4, 0]), (4, [10, 4, 0]), (7, [10, 7, 0]), (12, [12, 12, 0])):
        there = Hit(blocks, gpu=blocks)
        decision = decide(core, prompt, NOBODY, 0.0, {ONE: there, OTHER: there})
        assert [hit.blocks for hit in decision.hits] == expected
        assert columns(decision)[0] == [min(SIZE * each, 9 * SIZE) for each in expected]
        assert decision.hits[2] is MISS


def test_versions_have_prompts_of_their_own() -> None:
    """A pod whose version writes the prompt differently holds what it holds of that; what it writes shorter it need not
    compute."""
    core = core_of(2)
    core.fleet.learned_version(core.fleet.pods["pod-1"], "0.9.0")
    store(core, "pod-0", 1)
    store(core, "pod-1", 2, 96)
    prompt = replace(asked(core, 1), by_version={"0.9.0": asked(core, 2, 128)})
    decision = decide(core, prompt, NOBODY, 0.0)
    assert [hit.blocks for hit in decision.hits] == [10, 6]
    assert columns(decision) == ([144, 96], [144.0, 96.0 + 32])
    alike = Hit(12, gpu=12)
    others = {ONE: alike, OTHER: alike}
    decision = decide(core, replace(prompt, by_version={"0.9.0": asked(core, 3, 100)}), NOBODY, 0.0, others)
    assert columns(decision) == ([144, 96], [144.0, 96.0 + 60])


def test_one_hit_is_of_unlike_worth() -> None:
    """The same blocks of pods whose blocks are of unlike sizes, or whose prompt is, are told apart."""
    core = core_of(2, feeds=False)
    core.fleet.pods["pod-1"].block_size = 2 * SIZE
    there = Hit(3, gpu=3)
    prompt = replace(asked(core, 1), keys={**asked(core, 1).keys, 2 * SIZE: core.space.chain(tokens_of(1), 2 * SIZE)})
    decision = decide(core, prompt, NOBODY, 0.0, {ONE: there, OTHER: there})
    assert columns(decision)[0] == [3 * SIZE, 6 * SIZE]


def test_rules_are_each_pods_own() -> None:
    """One whose rule of reuse is not known is believed to reuse nothing, whatever it holds."""
    core = core_of(2)
    core.fleet.pods["pod-1"].ranks[0].trust.rule = None
    there = Hit(3, gpu=3)
    decision = decide(core, asked(core, 1), NOBODY, 0.0, {ONE: there, OTHER: there})
    assert columns(decision) == ([3 * SIZE, 0], [3.0 * SIZE, 0.0])
    assert [hit.blocks for hit in decision.hits] == [3, 3]


def test_a_token_costs_by_where_it_stands() -> None:
    """In the middle of what is left to compute: of all of the prompt, or of what is behind what a pod holds of it."""
    core = core_of(2)
    for rank in core.fleet.ranks:
        for step in range(200):
            tokens, start = 500 + 37 * (step % 40), 1000 * (step % 7)
            rank.load.rate.learn(tokens, tokens * (1e-4 + 1e-8 * (start + tokens / 2)), start)
    store(core, "pod-1", 1)
    candidates = decide(core, asked(core, 1), NOBODY, 10.0).pick.candidates
    for number, (rank, middle) in enumerate(zip(core.fleet.ranks, (80, (144 + 160) / 2), strict=True)):
        rate = rank.load.rate
        assert rate.per_position > 1e-9
        assert candidates.tokens_s[number] == pytest.approx(rate.per_token + rate.per_position * middle, rel=1e-9)


def test_contexts_grow_by_no_more_than_there_is_room_for() -> None:
    """All together: so who has few of them is less full than who has many, though all of them may grow much."""
    core = core_of(2)
    for number in range(24):
        name = "pod-1" if number % 4 == 0 else "pod-0"
        placed = route(core, asked(core, 10 + number, 256, pods=frozenset((name,))), NOBODY, 10.0)
        core.first_byte(placed, False, 10.0)
    now, fills = 11.0, list[float]()
    held = [core.index.held(rank.id) * SIZE for rank in core.fleet.ranks]
    assert held == [18 * 256, 6 * 256]
    for room_each in (core.chains.ahead / 2, core.chains.ahead / 4):
        assert room_each > 100
        for pod in core.fleet.pods.values():
            pod.blocks = round((sum(held) + 24 * room_each) / 2 / SIZE)
        for _ in range(2):  # the first finds out what room there is
            now += 1.0
            fills = decide(core, asked(core, 9), NOBODY, now).pick.candidates.fills
        tokens = (core.fleet.pods["pod-1"].blocks or 0) * SIZE
        assert fills[0] == pytest.approx(1.0)
        assert fills[1] == pytest.approx((held[1] + 6 * room_each) / tokens, rel=0.02)
