"""The decision: what is taken and given back, who is fit, what is believed of a routed prompt. Time is a number."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import pytest

from indexer.mappings import Ending
from router.config.settings import Config
from router.core.decision import Core
from router.core.demand import BreakerChange, Demand, End
from router.core.fleet import RankId
from router.errors import Busy, Full, NoFitPod, UnknownModel
from scorer.board import Board, row_of
from scorer.hold import overdue
from scorer.pick import scored
from tests.fakes.cores import (
    MODEL,
    NOBODY,
    SERVED,
    SIZE,
    VOID,
    asked,
    core_of,
    decide,
    held,
    joined_late,
    one_agent,
    route,
    store,
    tokens_of,
)


def test_the_holder_is_picked() -> None:
    """What a pod holds decides, less the last token, which is always computed."""
    core = core_of()
    store(core, "pod-1", 1)
    for _ in range(3):
        decision = decide(core, asked(core, 1), NOBODY, 0.0)
        assert (decision.rank.id.pod, decision.matched_tokens) == ("pod-1", 144)
    assert decide(core, asked(core, 1, 161), NOBODY, 0.0).matched_tokens == 160


def test_mappings_are_kept_by_the_pods_that_were_asked_for() -> None:
    """Two lists of pods, two mappings; of more than are allowed, the one used least recently goes."""
    core = core_of(3)
    keys = asked(core, 1).keys[SIZE]
    ending = Ending(keys, 160)
    most = Config().prefix_store_config.max_pod_sets_per_block

    def kept(*pods: str) -> bool:
        demand = Demand(MODEL, 160, keys={SIZE: keys}, endings={SIZE: ending}, pods=frozenset(pods) or None)
        return core.look_up(demand, None, 0.0).kept

    assert not kept("pod-0") and not kept("pod-0", "pod-1") and not kept()
    assert kept("pod-1", "pod-0") and kept("pod-0") and len(ending.mappings) == 3
    for number in range(most):
        assert not kept(f"pod-{number + 10}")
    assert len(ending.mappings) == most and not kept("pod-0")


def test_deciding_takes_nothing() -> None:
    """`decide` leaves load, index, turns and the list of decisions as they were."""
    core = core_of()
    for _ in range(5):
        decide(core, asked(core, 1), NOBODY, 0.0)
    assert [rank.load.requests for rank in core.fleet.ranks] == [0, 0]
    assert (core.turn, len(core.decisions), held(core, "pod-0", 1), held(core, "pod-1", 1)) == (0, 0, 0, 0)


def test_a_routed_prompt_counts_as_held() -> None:
    """From the decision on, before any event: a second one like it follows the first."""
    core = core_of()
    first = route(core, asked(core, 1), NOBODY, 0.0)
    second = route(core, asked(core, 1), NOBODY, 0.0)
    assert second.decision.rank is first.decision.rank
    assert second.decision.matched_tokens == 144
    assert second.decision.rank.load.requests == 2


def test_given_back_once() -> None:
    """However often it is released, load falls by what was taken."""
    core = core_of(1)
    placed = [route(core, asked(core, seed), NOBODY, 0.0) for seed in (1, 2)]
    load = placed[0].ticket.load
    assert (load.requests, load.prefill_tokens) == (2, 320)
    for _ in range(3):
        core.finish(placed[0], SERVED, 1.0)
    assert (load.requests, load.prefill_tokens) == (1, 160)
    core.first_byte(placed[1], True, 1.0)
    assert (load.requests, load.prefill_tokens) == (1, 0)
    core.finish(placed[1], SERVED, 2.0)
    assert (load.requests, load.prefill_tokens, load.backlog_s(2.0)) == (0, 0, 0.0)


def test_predictions_end() -> None:
    """Served: believed for the grace that events need. Not served: not at all. No end heard: until the TTL."""
    core = core_of(1, index={"predicted_grace": 2, "predicted_ttl": 50, "blocks_max": 10_000})
    served, failed, _ = (route(core, asked(core, seed), NOBODY, 0.0) for seed in (1, 2, 3))
    core.finish(served, SERVED, 10.0)
    core.finish(failed, VOID, 10.0)
    for now, expected in ((10.0, [10, 0, 10]), (11.9, [10, 0, 10]), (12.0, [0, 0, 10]), (50.0, [0, 0, 0])):
        core.index.expire(now)
        assert [held(core, "pod-0", seed) for seed in (1, 2, 3)] == expected, now


def test_confirmed_predictions_stay() -> None:
    """What an event confirmed does not expire."""
    core = core_of(1)
    placed = route(core, asked(core, 1), NOBODY, 0.0)
    store(core, "pod-0", 1)
    core.finish(placed, SERVED, 1.0)
    core.index.expire(1e6)
    assert held(core, "pod-0", 1) == 10


def test_blind_pods_are_believed_longer() -> None:
    """Without a feed nothing confirms: what was served is believed for the blind TTL."""
    core = core_of(1, feeds=False)
    core.finish(route(core, asked(core, 1), NOBODY, 0.0), SERVED, 1.0)
    core.index.expire(299.0)
    assert held(core, "pod-0", 1) == 10
    core.index.expire(300.0)
    assert held(core, "pod-0", 1) == 0


def test_who_is_fit() -> None:
    """Neither the drained, nor the unhealthy, nor the excluded; a suspect only where there is nobody else."""
    core = core_of(3)
    pods = core.fleet.pods
    pods["pod-0"].drain(True)
    pods["pod-1"].believe(False)
    assert decide(core, asked(core, 1), NOBODY, 0.0).rank.id.pod == "pod-2"
    with pytest.raises(NoFitPod):
        decide(core, asked(core, 1), frozenset(("pod-2",)), 0.0)
    pods["pod-1"].believe(True)
    pods["pod-1"].suspect(later := 2.0)
    assert {route(core, asked(core, seed), NOBODY, 0.1).decision.rank.id.pod for seed in range(4)} == {"pod-2"}
    assert decide(core, asked(core, 1), frozenset(("pod-2",)), 0.1).rank.id.pod == "pod-1"
    picked = {route(core, asked(core, seed), NOBODY, later).decision.rank.id.pod for seed in range(10, 16)}
    assert picked == {"pod-1", "pod-2"}


def test_only_these_pods() -> None:
    """`pods` narrows the choice; of none that is known, nobody is left."""
    core = core_of(3)
    decision = decide(core, asked(core, 1, pods=frozenset(("pod-1",))), NOBODY, 0.0)
    assert [rank.id.pod for rank in decision.ranks] == ["pod-1"]
    with pytest.raises(NoFitPod):
        decide(core, asked(core, 1, pods=frozenset(("pod-9",))), NOBODY, 0.0)


def test_unknown_model() -> None:
    """The message names those that are known, and not more than a few."""
    core = core_of(1)
    with pytest.raises(UnknownModel, match="Known models: m\\."):
        decide(core, Demand("n"), NOBODY, 0.0)
    core.fleet.learned_models(core.fleet.pods["pod-0"], [{"id": f"m{number:02}"} for number in range(30)])
    with pytest.raises(UnknownModel, match="m09 and 20 more"):
        decide(core, Demand("n"), NOBODY, 0.0)


def test_adapters() -> None:
    """An adapter is served under its own name, with its base model's tokenizer."""
    core = core_of(1)
    cards = [{"id": MODEL}, {"id": "lora", "parent": MODEL}, {"id": "other", "parent": "/a/path"}]
    core.fleet.learned_models(core.fleet.pods["pod-0"], cards)
    served = [core.fleet.served(name) for name in (MODEL, "lora", "other", "unheard")]
    assert [tuple(each) if each else None for each in served] == [
        (MODEL, None),
        (MODEL, "lora"),
        (MODEL, "other"),
        None,
    ]


def test_tiers_have_their_worth() -> None:
    """The same prefix in GPU memory is worth more than on a host's, and that more than on disk."""
    core = core_of(4)
    for pod, tier in (("pod-1", "disk"), ("pod-2", "gpu"), ("pod-3", "cpu")):
        store(core, pod, 1, tier=tier)
    decision = decide(core, asked(core, 1), NOBODY, 0.0)
    order = sorted(scored(decision.pick), key=lambda one: one.price)
    assert [decision.ranks[one.candidate.number].id.pod for one in order] == ["pod-2", "pod-3", "pod-1", "pod-0"]
    assert [one.candidate.matched for one in order] == [
        144,
        160,
        160,
        0,
    ]  # only the own cache leaves out the last token


def test_ranks_are_candidates() -> None:
    """Each rank of a pod has its own blocks and load; a tried pod excludes all its ranks."""
    core = core_of(2, ranks=2)
    picked = [route(core, asked(core, seed), NOBODY, 0.0).decision.rank.id for seed in range(4)]
    assert sorted(picked) == [RankId(f"pod-{pod}", rank) for pod in (0, 1) for rank in (0, 1)]
    ranks = decide(core, asked(core, 9), frozenset(("pod-0",)), 0.0).ranks
    assert [rank.id for rank in ranks] == [RankId("pod-1", 0), RankId("pod-1", 1)]


def test_a_pod_that_left() -> None:
    """Its blocks and its name are gone, and what was on its way can still be given back."""
    core = core_of(2)
    store(core, "pod-0", 1)
    placed = route(core, asked(core, 1), NOBODY, 0.0)
    assert placed.decision.rank.id.pod == "pod-0"
    core.leave(core.fleet.pods["pod-0"])
    core.finish(placed, SERVED, 1.0)
    assert held(core, "pod-0", 1) == 0
    assert [rank.id.pod for rank in decide(core, asked(core, 1), NOBODY, 1.0).ranks] == ["pod-1"]


def test_without_tokens() -> None:
    """A prompt that could not be tokenized is routed by load, and the reason says why."""
    core = core_of(2)
    first = route(core, Demand(MODEL, tokens=500, reason="not tokenized: deadline"), NOBODY, 0.0)
    second = route(core, Demand(MODEL, tokens=500, reason="not tokenized: deadline"), NOBODY, 0.0)
    assert first.decision.rank is not second.decision.rank
    assert (first.expected.prediction, first.decision.reason) == (None, "not tokenized: deadline")


def test_decisions_are_bounded() -> None:
    """The list of the last picks keeps as many as it is told."""
    core = core_of(1, decisions={"kept": 3})
    for seed in range(10):
        core.finish(route(core, asked(core, seed), NOBODY, float(seed)), SERVED, float(seed))
    assert [decision.at for decision in core.decisions] == [7.0, 8.0, 9.0]


# --- beside other workers ---


def cores_on_one_board(count: int = 2, **sections: Any) -> list[Core]:
    """Workers of one host, that look at each other at every decision."""
    row = row_of(8, 64)
    memory = memoryview(bytearray(count * row.itemsize))
    boards = [Board(memory, count, number, row, look_s=0.0) for number in range(count)]
    return [core_of(board=board, **sections) for board in boards]


def test_what_others_have_sent_decides() -> None:
    """A pod that another worker keeps busy is not picked, and is told with its load."""
    here, there = cores_on_one_board()
    first = route(here, asked(here, 1), NOBODY, 0.0)
    decision = decide(there, asked(there, 2), NOBODY, 0.0)
    assert decision.rank.id != first.decision.rank.id
    assert sorted(candidate.requests for candidate in decision.pick.candidates) == [0, 1]
    here.finish(first, VOID, 0.1)
    assert [c.requests for c in decide(there, asked(there, 2), NOBODY, 0.1).pick.candidates] == [0, 0]


def test_a_prompt_that_another_worker_has_sent() -> None:
    """It is followed before an event tells, also where the match was made before; and believed for a moment only."""
    here, there = cores_on_one_board()
    early = asked(there, 1)
    ending = Ending(early.keys[SIZE], early.tokens)
    early = Demand(MODEL, early.tokens, keys=early.keys, endings={SIZE: ending})
    assert not decide(there, early, NOBODY, 0.0).matched_tokens and ending.mappings
    placed = route(here, asked(here, 1), NOBODY, 0.0)
    decision = decide(there, early, NOBODY, 0.0)
    assert (decision.rank.id, decision.matched_tokens) == (placed.decision.rank.id, 144)
    assert held(there, decision.rank.id.pod, 1) == 10
    there.index.expire(0.16 * 2 + 1.01)  # twice its prefill, and the grace for events
    assert held(there, decision.rank.id.pod, 1) == 0
    assert held(here, decision.rank.id.pod, 1) == 10


def test_a_text_that_another_worker_has_sent() -> None:
    """Prompts without tokens follow their text through all workers, as long as they would through one."""
    here, there = cores_on_one_board()
    text = here.space.chain(tokens_of(1), SIZE)
    placed = route(here, Demand(MODEL, 160, text=text), NOBODY, 0.0)
    decision = decide(there, Demand(MODEL, 160, text=text), NOBODY, 200.0)
    assert decision.rank.id == placed.decision.rank.id
    assert decision.hits[decision.pick.best.number].blocks == 10


def test_bounds_of_all_workers() -> None:
    """Requests in flight are bounded over all of them; a pod's, too."""
    here, there = cores_on_one_board(gateway={"requests_max": 2})
    placed = [route(core, asked(core, 1), NOBODY, 0.0) for core in (here, there)]
    for core in (here, there):
        with pytest.raises(Full):
            route(core, asked(core, 2), NOBODY, 0.0)
    here.finish(placed[0], VOID, 0.1)
    route(there, asked(there, 2), NOBODY, 0.1)
    here, there = cores_on_one_board(admission={"pod_requests_max": 1})
    picked = {route(core, asked(core, seed), NOBODY, 0.0).decision.rank.id for seed, core in ((1, here), (2, there))}
    assert len(picked) == 2
    with pytest.raises(Full):
        route(there, asked(there, 3), NOBODY, 0.0)


def test_a_pod_that_leaves_is_told_no_more() -> None:
    """Its load is gone for the others; a pod of the same name begins with what they have there."""
    here, there = cores_on_one_board()
    placed = route(here, asked(here, 1), NOBODY, 0.0)
    pod = placed.decision.rank.pod
    here.leave(pod)
    decision = decide(there, asked(there, 2), NOBODY, 0.0)
    assert [candidate.requests for candidate in decision.pick.candidates] == [0, 0]
    assert there.board is not None and there.board.in_flight == 0


def test_who_can_take_it() -> None:
    """Pods whose context is too short for a prompt and its answer are no candidates; of none, the longest is."""
    core = core_of(3)
    for pod, length in zip(core.fleet.pods.values(), (1000, 2000, 1000), strict=True):
        core.fleet.learned_models(pod, [{"id": MODEL, "max_model_len": length}, {"id": "ad", "parent": MODEL}])
    store(core, "pod-0", 1, 992)

    def picked(tokens: int, answer: int | None, exclude: frozenset[str] = NOBODY) -> set[str]:
        prompt = asked(core, 1, tokens, answer=answer)
        return {core.fleet.pods[rank.id.pod].name for rank in decide(core, prompt, exclude, 0.0).ranks}

    everyone = {"pod-0", "pod-1", "pod-2"}
    assert picked(992, 8) == picked(992, None) == picked(5000, None) == everyone
    assert picked(992, 9) == picked(2000, 1) == picked(9000, 1) == {"pod-1"}
    with pytest.raises(NoFitPod):
        picked(992, 9, frozenset(["pod-1"]))
    core.fleet.learned_models(core.fleet.pods["pod-2"], [{"id": MODEL}])  # it says nothing of lengths
    assert picked(9000, 1) == {"pod-2"}


def test_ranks_that_do_not_begin_with_0() -> None:
    """What a rank is called by its pod: as its batches say, else as given, else as another rank's batches say."""
    blind = core_of(1, ranks=2, feeds=False).fleet.pods["pod-0"]
    assert [blind.global_rank(number) for number in range(2)] == [0, 1]
    pod = core_of(1, ranks=3).fleet.pods["pod-0"]

    def called() -> list[int | None]:
        return [pod.global_rank(number) for number in range(3)]

    assert called() == [None] * 3
    feed = pod.ranks[1].feed
    assert feed is not None
    feed.frame(0, msgspec.msgpack.encode([1.0, [{"type": "AllBlocksCleared"}], 7]), 0.0)
    assert called() == [6, 7, 8]
    feed.frame(1, msgspec.msgpack.encode([2.0, [{"type": "AllBlocksCleared"}], 0]), 0.0)
    assert called() == [0, 0, 2], "nobody stands before the first"
    feed.frame(2, msgspec.msgpack.encode([3.0, [{"type": "AllBlocksCleared"}], 7]), 0.0)
    pod.first_rank = 9
    assert called() == [9, 7, 11]


def test_names_come_and_go() -> None:
    """Who serves a name is right after every change, pod by pod; nobody's name is not known."""
    core = core_of(3)
    first, second, third = core.fleet.pods.values()
    adapters = [{"id": name, "parent": MODEL} for name in ("a", "b")]
    core.fleet.learned_models(first, [{"id": MODEL}, *adapters])
    core.fleet.learned_models(third, [{"id": MODEL}, adapters[0], {"id": "a", "parent": MODEL}])

    def serving(name: str) -> list[str]:
        return [rank.id.pod for rank in core.fleet.serving(name)]

    assert (serving(MODEL), serving("a"), serving("b")) == (["pod-0", "pod-1", "pod-2"], ["pod-0", "pod-2"], ["pod-0"])
    assert core.fleet.served("a") == (MODEL, "a")
    core.fleet.learned_models(first, [{"id": MODEL}])
    assert serving("a") == ["pod-2"] and not core.fleet.is_known("b")
    core.fleet.leave(third.name)
    assert not core.fleet.is_known("a") and serving(MODEL) == ["pod-0", "pod-1"]
    core.fleet.learned_models(second, [{"id": "other"}])
    assert serving(MODEL) == ["pod-0"] and serving("other") == ["pod-1"]
    assert [model["id"] for model in core.fleet.union_of_models()] == core.fleet.base_models() == [MODEL, "other"]


def test_a_full_pod_gives_something_up() -> None:
    """Room is what a pod's blocks are, less what it holds: of equals the empty one is picked, every time."""
    core = core_of(2)
    for pod in core.fleet.pods.values():
        pod.blocks = 20
    for seed in (1, 2):
        store(core, "pod-0", seed)
    for _ in range(4):
        placed = route(core, asked(core, 3), NOBODY, 0.0)
        assert placed.pod.name == "pod-1"
        assert [candidate.evicted for candidate in placed.decision.pick.candidates] == [160, 0]
        core.finish(placed, VOID, 0.0)
        core.index.expire(0.1)


def test_what_is_used_again_lives_on() -> None:
    """A pod without events: what was sent there is believed for a time, and anew when half of it has passed."""
    ttl_s = Config().index.blind_ttl
    for again, gone in ((0.4, 1.01), (0.6, 1.61)):
        core = core_of(1, feeds=False)
        route(core, asked(core, 1), NOBODY, 0.0)
        route(core, asked(core, 1), NOBODY, again * ttl_s)
        core.index.expire((gone - 0.02) * ttl_s)
        assert held(core, "pod-0", 1) == 10
        core.index.expire(gone * ttl_s)
        assert held(core, "pod-0", 1) == 0


def test_far_more_pods_are_looked_at_now_and_then() -> None:
    """The figures of a decision among many: what is in flight as it is, rooms and speeds as they were a moment ago."""
    core = core_of(40)
    for pod in core.fleet.pods.values():
        pod.blocks = 20
    for seed in (1, 2):
        store(core, "pod-7", seed)
    placed = [route(core, asked(core, seed), NOBODY, 0.0) for seed in range(3, 42)]
    assert {each.pod.name for each in placed} == {f"pod-{n}" for n in range(40)} - {"pod-7"}
    store(core, "pod-9", 1)
    last = decide(core, asked(core, 50), NOBODY, 0.05).pick.candidates
    assert [candidate.requests for candidate in last] == [int(n != 7) for n in range(40)]
    assert sum(candidate.backlog_s > 0 for candidate in last) == 39
    assert {candidate.evicted for candidate in decide(core, asked(core, 50), NOBODY, 0.2).pick.candidates} == {0, 160}


def test_only_what_is_known_of_a_prompt_teaches() -> None:
    """A pod's speed is learned where its tokens are known, and what it holds of them."""
    core = core_of(1)
    rate = core.fleet.pods["pod-0"].ranks[0].load.rate
    for unsure in (Demand(MODEL, 1600, tells_prefill=True), asked(core, 1, 1600, further=100, tells_prefill=True)):
        placed = route(core, unsure, NOBODY, 0.0)
        core.first_byte(placed, True, 9.0)
        core.finish(placed, SERVED, 9.0)
    assert rate.samples == 0
    core.first_byte(route(core, asked(core, 3, 1600, tells_prefill=True), NOBODY, 20.0), True, 21.0)
    assert rate.samples == 1


def test_requests_in_flight_are_counted_once() -> None:
    """What a pod refused may end again, where that answer goes to the client after all."""
    core = core_of(1)
    first, second = (route(core, asked(core, number), NOBODY, 0.0) for number in (1, 2))
    assert core.in_flight == 2
    core.finish(first, End("refused", 503), 1.0)
    core.finish(first, End("served", 503), 1.0)
    assert core.in_flight == 1
    core.finish(second, SERVED, 1.0)
    assert core.in_flight == 0


def test_a_pod_is_left_alone_as_long_as_it_asks_within_bounds() -> None:
    """It can't keep itself out for good."""
    longest = Config().upstream.retry_after_max
    for asked_s, kept_s in ((2.0, 2.0), (longest * 100, longest)):
        core = core_of(1)
        placement = route(core, asked(core, 1), NOBODY, 0.0)
        core.finish(placement, End("refused", 503, asked_s), 10.0)
        breaker = placement.pod.breaker
        assert breaker.avoided(10.0 + kept_s - 0.1) and not breaker.avoided(10.0 + kept_s + 0.1)


@pytest.mark.parametrize("later", [False, True])
def test_who_was_suspected_wrongly_is_as_before(later: bool) -> None:
    """The client was at fault; what was found of the pod since stays."""
    core = core_of(1)
    one, other = (route(core, asked(core, number), NOBODY, 0.0) for number in (1, 2))
    core.finish(one, End("disputed", 404), 10.0)
    assert one.pod.suspect_until > 10.0
    if later:
        core.finish(other, End("failed"), 11.0)
    core.acquit(one)
    assert (one.pod.suspect_until > 10.0) is later


def test_a_pod_that_leaves_is_forgotten() -> None:
    """With its blocks, and with the texts that were sent to it."""
    core = core_of(2)
    store(core, "pod-0", 1)
    text = Demand(MODEL, 160, text=core.space.chain(tokens_of(7), SIZE))
    placement = route(core, text, NOBODY, 0.0)
    core.finish(placement, SERVED, 1.0)
    assert placement.decision.rank.id in core.texts.pods
    for pod in list(core.fleet.pods.values()):
        core.leave(pod)
    assert not core.fleet.pods and not list(core.texts.pods) and not list(core.index.pods)


def test_a_request_waits_for_its_pod() -> None:
    """Bound no earlier than the pod can soon begin: elsewhere it would be computed anew. A retry never waits."""
    core = core_of(2, admission={"look_ahead": 0.5})
    for pod in core.fleet.pods.values():
        for _ in range(8):
            pod.ranks[0].load.rate.learn(1000, 1.0)
    store(core, "pod-0", 1, 3200)
    first = route(core, asked(core, 1, 4800, tells_prefill=True), NOBODY, 0.0)
    assert first.pod.name == "pod-0"
    follows = asked(core, 1, 3360, tells_prefill=True)
    with pytest.raises(Busy):
        route(core, follows, NOBODY, 0.1)
    assert core.in_flight == 1
    assert route(core, follows, frozenset(("pod-0",)), 0.1).pod.name == "pod-1"
    core.first_byte(first, True, 1.6)
    assert route(core, follows, NOBODY, 1.7).pod.name == "pod-0"


def test_comparing_policies_bind_at_once() -> None:
    """Their prices are no seconds: nobody waits for a pod that it is the turn of."""
    core = core_of(1, admission={"look_ahead": 0.5}, scoring={"policy": "round-robin"})
    load = core.fleet.pods["pod-0"].ranks[0].load
    for _ in range(8):
        load.rate.learn(1000, 1.0)
    for seed in range(3):
        route(core, asked(core, seed, 4800, tells_prefill=True), NOBODY, 0.0)
    assert load.requests == 3 and load.backlog_s(0.0) > 10.0


def test_what_was_given_up_is_not_counted_as_live() -> None:
    """A request whose own context its pod has given up needs room for it once, not twice."""
    core, pod = one_agent()
    core.index.clear(pod.ranks[0].id)
    again = asked(core, 1, 25_600 + 32 * 60, tells_prefill=True)
    assert route(core, again, NOBODY, 70.0).decision.pick.best.matched == 0


def test_who_has_waited_for_room_needs_it_still() -> None:
    """What a request's own context had, and lost, long ago makes no room for it among what lives."""
    core, pod = one_agent()
    core.index.expire(150.0)
    other = route(core, asked(core, 2, 20_000, tells_prefill=True), NOBODY, 200.0)
    core.first_byte(other, False, 201.0)
    core.finish(other, SERVED, 202.0)
    store(core, "pod-0", 2, 20_000)
    store(core, "pod-0", 1, 8_000)
    again = asked(core, 1, 25_600 + 32 * 60, tells_prefill=True)
    with pytest.raises(Busy):
        route(core, again, NOBODY, 230.0)
    assert route(core, again, NOBODY, 400.0).pod is pod


def test_who_comes_does_not_stand_behind_what_is_planned() -> None:
    """A short one goes to its own pod, though a long one waits for that: it goes before it."""
    core = core_of(2, admission={"look_ahead": 0.5})
    loads = list(core.loads)
    for load in loads:
        for _ in range(8):
            load.rate.learn(1000, 1.0)
    store(core, "pod-0", 1, 3200)
    core.hold.planned[loads[0]] = 20.0
    follows = asked(core, 1, 3360, tells_prefill=True)
    assert decide(core, follows, NOBODY, 0.1).rank.id.pod == "pod-0"
    with pytest.raises(Busy) as busy:
        route(core, follows, NOBODY, 0.1)
    assert 0.1 < busy.value.cost_s < 0.3


def test_what_is_cold_waits_while_what_lives_fills_the_cache() -> None:
    """Where most requests continue others: else they drive each other out."""
    core, pod = one_agent()
    assert core.chains.continuing > 0.6
    new = asked(core, 2, 20_000, tells_prefill=True)
    with pytest.raises(Busy):
        route(core, new, NOBODY, 61.0)
    core.finish(route(core, asked(core, 1, 28_000, tells_prefill=True), NOBODY, 61.0), SERVED, 62.0)
    core.index.expire(400.0)
    assert route(core, new, NOBODY, 400.0).pod is pod


def test_a_decision_keeps_the_states_that_it_saw() -> None:
    """What becomes of a feed afterwards changes nothing of the decisions before."""
    core = core_of(2)
    feed = core.fleet.pods["pod-1"].ranks[0].feed
    assert feed is not None
    joined_late(feed)
    before = decide(core, asked(core, 1), NOBODY, 1.0)
    assert before.states == [core.fleet.pods["pod-0"].ranks[0].state, "degraded"]
    feed.frame(4, msgspec.msgpack.encode([9.0, [["AllBlocksCleared"]], 0]), 9.0)
    after = decide(core, asked(core, 1), NOBODY, 9.0)
    assert feed.state != "degraded" and after.states[1] == feed.state
    assert before.states[1] == "degraded"


@pytest.mark.parametrize("bound", ["pod_requests_max", "pod_prefill_tokens_max"])
def test_a_full_pod_is_waited_for_while_that_is_worth_it(bound: str) -> None:
    """Who has much of its prompt there waits, until it could have computed it elsewhere meanwhile; others go there."""
    core = core_of(2, admission={bound: 1})
    store(core, "pod-1", 1, 3200)
    first = route(core, asked(core, 1, 3200), NOBODY, 0.0)
    demand, guest = asked(core, 1, 3200), core.hold.put("who", None, 0, 0.1, 0.0)
    assert first.pod.name == "pod-1"
    with pytest.raises(Busy):
        route(core, demand, NOBODY, 0.0)

    def again(now: float, waits: Any) -> str:
        return core.route(demand, core.look_up(demand, None, now), NOBODY, now, None, waits).pod.name

    with pytest.raises(Busy):
        again(2.0, guest)
    assert again(30.0, guest) == "pod-0"
    with pytest.raises(Full) as full:
        route(core, asked(core, 2), NOBODY, 30.0)
    assert not isinstance(full.value, Busy)
    core.finish(first, SERVED, 30.0)
    assert again(30.0, guest) == "pod-1"
    for waits, section in ((overdue(), {}), (None, {"look_ahead": 0})):
        core = core_of(2, admission={bound: 1, **section})
        store(core, "pod-1", 1, 3200)
        assert [again(0.0, None), again(0.0, waits)] == ["pod-1", "pod-0"]
    core = core_of(2, admission={bound: 1})
    store(core, "pod-1", 1)
    assert [route(core, asked(core, seed), NOBODY, 0.0).pod.name for seed in (1, 9)] == ["pod-1", "pod-0"]


def test_bounds_on_prompts_that_wait() -> None:
    """As many tokens may wait as are said, over all pods and on each: with so many there is no room, with one less
    there is."""
    for bound, most in (("prefill_tokens_max", 320), ("pod_prefill_tokens_max", 160)):
        for tokens, full in ((most, True), (most + 1, False)):
            core = core_of(2, admission={bound: tokens})
            for seed in range(2):
                route(core, asked(core, seed), NOBODY, 0.0)
            assert sorted(rank.load.prefill_tokens for rank in core.fleet.ranks) == [160, 160]
            with pytest.raises(Full) if full else contextlib.nullcontext():
                route(core, asked(core, 7), NOBODY, 0.0)
            retried = route(core, asked(core, 8), frozenset({"pod-0"}), 0.0)
            assert retried.pod.name == "pod-1"


def test_whose_breaker_opens_is_told() -> None:
    """By the attempt that has opened it, and by none before; 429 is no failure, 503 without a time is one."""
    core = core_of(3, feeds=False, breaker={"failures_in_row": 3, "requests_min": 1000})
    others = frozenset({"pod-1", "pod-2"})
    for end in (End("refused", 429), End("refused", 429), End("refused", 503, retry_after_s=1.0)):
        assert core.finish(route(core, asked(core, 1), others, 0.0), end, 0.0) is None
        core.fleet.pods["pod-0"].breaker.avoid(0.0)
    ends = (End("refused", 503), End("void"), End("cut"), End("failed"))
    changes = [
        core.finish(route(core, asked(core, 1), others, 50.0 + at), end, 50.0 + at) for at, end in enumerate(ends)
    ]
    assert changes[:3] == [None] * 3 and changes[3] == BreakerChange("pod-0", True, "3 requests failed in a row")


@pytest.mark.parametrize("policy", ["approximate", "weighted"])
def test_policies_that_go_by_what_pods_were_sent_are_told_of_it(policy: str) -> None:
    """A prompt follows the one before it, though no pod tells what it holds."""
    core = core_of(4, feeds=False, scoring={"policy": policy})
    for seed in range(8):
        core.finish(first := route(core, asked(core, seed, 640), NOBODY, float(seed)), SERVED, seed + 0.5)
        again = decide(core, asked(core, seed, 640), NOBODY, seed + 0.6)
        assert (again.rank, again.reason) == (first.rank, "was sent the longest prefix")


def test_a_session_that_is_named_has_one_pod() -> None:
    """By the client's own name, beside the body or in it, whatever its prompts are; short ones, too."""
    core = core_of(4, scoring={"policy": "session"})
    homes = set()
    for number in range(12):
        demand = Demand(MODEL, 8, session=f"user-{number}") if number % 2 else asked(core, number)
        named = None if number % 2 else f"user-{number}"
        went = {
            core.route(each, core.look_up(each, None, 0.0), NOBODY, 0.0, session=named).pod.name
            for each in (demand, demand, demand)
        }
        assert len(went) == 1 and core.decisions[-1].reason == "its session's pod"
        homes |= went
    assert len(homes) > 1
