"""Who is picked under each policy, how the others score, and why."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from scorer.candidates import Candidate, by_column
from scorer.pick import Pick, pick, scored
from scorer.policies import POLICIES, PolicyName, Settings, policy_of
from tests.fakes.candidates import TOKEN_S, TOKENS, a_candidate


def _picked(candidates: list[Candidate], settings: Settings | None = None, turn: int = 0) -> Pick:
    return pick(by_column(candidates), policy_of(settings or Settings()), turn)


def _best(candidates: list[Candidate], policy: PolicyName = "predicted-ttft", turn: int = 0) -> int:
    return _picked(candidates, Settings(policy), turn).best.number


def test_the_holder_is_preferred() -> None:
    """Of pods that are alike otherwise, the one that computes least."""
    candidates = [a_candidate(0), a_candidate(1, 7000), a_candidate(2, 3000)]
    for turn in range(6):
        chosen = _picked(candidates, Settings(), turn)
        assert chosen.best.number == 1 and chosen.reason == "holds the longest prefix"


def test_room_is_worth_something() -> None:
    """Of pods that are alike otherwise, the one that gives up least; a longer match can outweigh it."""
    full, empty = a_candidate(0, evicted=4000), a_candidate(1)
    assert _best([full, empty]) == 1
    assert _best([a_candidate(0, 7000, evicted=1000), empty]) == 0


def test_what_is_asked_for_again_is_dear_to_give_up() -> None:
    """A holder that gives up what comes again is left for an empty pod; not where that never comes."""
    empty = a_candidate(1)
    assert _best([a_candidate(0, 3000, evicted=5000, again=0.0), empty]) == 0
    chosen = _picked([a_candidate(0, 3000, evicted=5000, again=0.9), empty], Settings(), 0)
    assert chosen.best.number == 1 and chosen.reason == "gives up less than the holder of the longest prefix"


def test_of_prices_that_are_alike_who_gives_up_nothing() -> None:
    """However long the other's match is: it is worth next to nothing."""
    assert _best([a_candidate(0, 300, evicted=20, again=0.0), a_candidate(1)]) == 1
    assert _best([a_candidate(0, 300), a_candidate(1)]) == 0


def test_a_new_prompt_goes_where_there_is_room_to_grow() -> None:
    """Who holds no more than a short beginning of it is left for a pod that is emptier, long before it is full; who
    holds nearly all of it is not."""
    empty = a_candidate(1, fill=0.1)
    assert _best([a_candidate(0, 500, fill=0.3), empty]) == 1
    assert _best([a_candidate(0, 500, fill=0.11), empty]) == 0
    assert _best([a_candidate(0, 7800, fill=0.9), empty]) == 0
    assert _best([a_candidate(0, 500, fill=0.9, again=0.0), empty]) == 0, "nothing of what is there comes again"


def test_a_prompt_that_nothing_follows_needs_no_room_to_grow() -> None:
    """Where prompts stand for themselves, the quicker pod is no worse for being fuller."""
    candidates = by_column([a_candidate(0, fill=0.9), a_candidate(1, fill=0.1, token_s=0.0003)])
    assert pick(candidates, policy_of(Settings()), 0).best.number == 1
    candidates.turns = 0.0
    assert pick(candidates, policy_of(Settings()), 0).best.number == 0


def test_few_turns_are_taken_to_follow() -> None:
    """However many are expected: a price is of what is near."""
    candidates = by_column([a_candidate(0, fill=0.9), a_candidate(1, fill=0.1)])
    prices = []
    for candidates.turns in (3.0, 4.0, 4.5, 9.0):
        prices.append(pick(candidates, policy_of(Settings()), 0).prices[0])
    assert prices[0] < prices[1] == prices[2] == prices[3]


def test_the_work_is_the_fleets_and_the_wait_is_the_pods() -> None:
    """A pod is never paid twice for being slower than the fleet."""
    slow, far = a_candidate(0, 4000, token_s=2 * TOKEN_S, factor=2.0), a_candidate(1)
    settings = Settings(beta=1.0)
    slow_s, far_s = _picked([slow, far], settings, 0).prices
    assert slow_s == pytest.approx(4000 * TOKEN_S * (2 + 1)) and far_s == pytest.approx(8000 * TOKEN_S * 2)


def test_unless_its_backlog_outweighs_what_it_saves() -> None:
    """A holder that is busy for longer than its blocks are worth to the fleet is left alone."""
    settings = Settings()
    saved_s = 7000 * TOKEN_S * (1 + settings.beta)
    for backlog_s, expected in ((0.9 * saved_s, 1), (1.3 * saved_s, 0)):
        assert _best([a_candidate(0), a_candidate(1, 7000, backlog_s=backlog_s)]) == expected
    chosen = _picked([a_candidate(0), a_candidate(1, 7000, backlog_s=2 * saved_s)], settings, 0)
    assert chosen.reason == "less loaded than the holder of the longest prefix"


def test_beta_weighs_the_work_of_the_fleet() -> None:
    """The more it counts, the longer the holder's backlog may be."""
    candidates = [a_candidate(0), a_candidate(1, 7000, backlog_s=2.0)]
    assert _picked(candidates, Settings(beta=0.0), 0).best.number == 0
    assert _picked(candidates, Settings(beta=4.0), 0).best.number == 1


def test_a_slow_pod_is_dear() -> None:
    """Speeds are each pod's own: half of the prefix on a pod ten times slower is not worth it."""
    assert _best([a_candidate(0), a_candidate(1, 4000, token_s=10 * TOKEN_S)]) == 0


def test_a_far_tier_is_worth_less() -> None:
    """Equal blocks, but one pod has them on disk only."""
    assert _best([a_candidate(0, 4000, worth=2000.0), a_candidate(1, 4000)]) == 1


def test_requests_in_flight_decide_between_equals() -> None:
    """Their decode steps delay a first token."""
    assert _best([a_candidate(0, requests=8), a_candidate(1, requests=2)]) == 1
    assert _best([a_candidate(0, 4000, requests=8), a_candidate(1, 4000, requests=2)]) == 1


@pytest.mark.parametrize("policy", ["predicted-ttft", "weighted", "overlap", "least-load", "approximate"])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 8])
def test_ties_rotate(policy: PolicyName, step: int) -> None:
    """Pods that are alike get equal shares, without chance, and if only every other request is free to go anywhere."""
    candidates = [a_candidate(number) for number in range(4)]
    picked = Counter(_best(candidates, policy, turn * step) for turn in range(400))
    assert all(94 <= picked[number] <= 106 for number in range(4)), picked


def test_nobody_waits_long_for_a_turn() -> None:
    """Of pods that are alike, each is picked at least once in two rounds, however many there are."""
    policy = policy_of(Settings())
    for count in range(2, 41):
        candidates, waited = by_column(map(a_candidate, range(count))), [0] * count
        for turn in range(8 * count):
            best = pick(candidates, policy, turn).best.number
            waited = [0 if number == best else turns + 1 for number, turns in enumerate(waited)]
            assert max(waited) < 2 * count


def test_speeds_are_not_known_to_the_percent() -> None:
    """Of two pods whose speeds were measured 5% apart neither gets all; a prefix of one of them is followed."""
    candidates = [a_candidate(0), a_candidate(1, token_s=1.05 * TOKEN_S)]
    assert Counter(_best(candidates, turn=turn) for turn in range(10)) == {0: 5, 1: 5}
    holder = [a_candidate(0), a_candidate(1, 400, token_s=1.05 * TOKEN_S)]
    assert {_best(holder, turn=turn) for turn in range(10)} == {1}


def test_ties_rotate_among_the_best_only() -> None:
    """A pod that is worse has no turn."""
    candidates = [a_candidate(0, backlog_s=1.0), a_candidate(1), a_candidate(2)]
    assert {_best(candidates, turn=turn) for turn in range(10)} == {1, 2}


@pytest.mark.parametrize("policy", POLICIES)
def test_scores_are_shares_of_the_best(policy: PolicyName) -> None:
    """In [0, 1], 1 for the pick, in the order of the prices; one for each candidate, in their order."""
    rng = random.Random(policy)
    for turn in range(300):
        candidates = [
            a_candidate(
                number,
                (matched := rng.choice((0, 16, 4000, 7999))),
                matched * rng.choice((1.0, 0.5)),
                requests=rng.randrange(40),
                prefill_tokens=rng.randrange(100_000),
                backlog_s=rng.choice((0.0, 1e-6, 0.3, 1000.0)),
                token_s=rng.choice((1e-9, TOKEN_S, 1.0)),
            )
            for number in range(rng.randint(1, 9))
        ]
        chosen = _picked(candidates, Settings(policy), turn)
        compared = scored(chosen)
        seen = [one.candidate for one in compared]
        assert [each.requests for each in seen] == [each.requests for each in candidates]
        assert seen == candidates or policy == "approximate", "which sees what it has sent"
        scores = [one.score for one in compared]
        assert all(0.0 <= score <= 1.0 for score in scores) and scores[chosen.best.number] == 1.0
        by_price = sorted(compared, key=lambda one: one.price)
        assert sorted(scores, reverse=True) == [one.score for one in by_price]
        assert compared[chosen.best.number].price <= by_price[0].price * 1.1 + 1e-3 and chosen.reason


def test_one_candidate_is_picked() -> None:
    """However loaded: somebody must."""
    for policy in POLICIES:
        assert _best([a_candidate(0, backlog_s=900.0, requests=999)], policy, turn=7) == 0


def _prices(candidates: list[Candidate], policy: PolicyName, beta: float = 1.0) -> list[float]:
    return list(_picked(candidates, Settings(policy, beta), 0).prices)


def test_a_price_is_the_wait_and_the_work() -> None:
    """Seconds: the backlog; the steps of requests in flight; what is computed, for the request itself and, by beta, for
    the fleet; and what others lose who must give up their blocks, four times as far as it is asked for again."""
    candidates = [
        a_candidate(0, 3000, worth=2000.0, requests=5, backlog_s=0.25, token_s=0.001),
        a_candidate(1, 3000, worth=2000.0, requests=5, backlog_s=0.25, token_s=0.001, evicted=400),
        a_candidate(2, 3000, worth=2000.0, token_s=0.001, evicted=5000),
    ]
    computed_s = (TOKENS - 2000) * 0.001
    assert _prices(candidates, "predicted-ttft", beta=3.0) == pytest.approx(
        [0.25 + 5 * 0.002 + 4 * computed_s, 0.25 + 5 * 0.002 + 4 * computed_s + 2 * 0.4, 4 * computed_s + 2 * 5.0]
    )


@pytest.mark.parametrize(
    ("room", "lost_tokens"), [(9000.0, 0), (8000.0, 0), (7999.0, 0), (5000.0, 0), (4999.0, 1), (0.0, 5000)]
)
def test_only_what_has_no_room_pushes_others_out(room: float, lost_tokens: int) -> None:
    """The matched blocks are there already."""
    columns = by_column([a_candidate(0, 3000, token_s=0.001)])
    columns.rooms[0] = room
    picked = pick(columns, policy_of(Settings(beta=0.0)), 0)
    assert picked.prices == pytest.approx([5000 * 0.001 + 4 * 0.5 * lost_tokens * 0.001])
    assert picked.best.evicted == lost_tokens


def test_a_pod_that_starts_is_dearer() -> None:
    """By its factor, whatever it holds."""
    candidates = [a_candidate(0, 4000), a_candidate(1, 4000)]
    plain = _prices(candidates, "predicted-ttft")
    picked = pick(by_column(candidates), policy_of(Settings()), 0, slowness=[5.0, 1.0])
    assert picked.best.number == 1 and picked.prices == pytest.approx([5 * plain[0], plain[1]])
    assert picked.reason == "others start slowly"


def test_that_others_start_is_said() -> None:
    """Where it is why they were not picked."""
    candidates = by_column([a_candidate(0, 4000), a_candidate(1)])
    picked = pick(candidates, policy_of(Settings()), 0, slowness=[5.0, 1.0])
    assert picked.best.number == 1 and picked.reason == "others start slowly"


def test_prices_next_to_nothing_are_alike() -> None:
    """A millisecond decides nothing; anything more does."""
    for backlog_s, numbers in ((0.001, {0, 1}), (0.0011, {0})):
        candidates = [a_candidate(0, TOKENS), a_candidate(1, TOKENS, backlog_s=backlog_s)]
        assert {_best(candidates, turn=turn) for turn in range(4)} == numbers


def test_of_pods_that_are_alike_the_longest_match_and_the_fewest_requests_count() -> None:
    """In this order, whoever stands first and whoever's turn it is; and only of those that are alike."""
    settings = Settings(request_s=0.0)
    for ordered in itertools.permutations(((7995, 0), (7995, 1), (7996, 1), (7996, 2))):
        candidates = [a_candidate(number, held, requests=busy) for number, (held, busy) in enumerate(ordered)]
        picked = {_picked(candidates, settings, turn).best.number for turn in range(6)}
        assert picked == {ordered.index((7996, 1))}
    candidates = [a_candidate(0, requests=1), a_candidate(1), a_candidate(2)]
    assert {_best(candidates, turn=turn) for turn in range(4)} == {1, 2}


def test_a_score_is_the_share_of_the_best_price() -> None:
    """Half for twice the price, as far as a millisecond does not matter."""
    candidates = [a_candidate(0, backlog_s=1.0), a_candidate(1, backlog_s=4.0)]
    scores = [one.score for one in scored(_picked(candidates, Settings(beta=0.0), 0))]
    assert scores == pytest.approx([1.0, 2.001 / 5.001])


def test_the_pick_scores_most() -> None:
    """Also where another one's price is a bit lower: prices within a tenth are alike."""
    picked = _picked([a_candidate(0, requests=1), a_candidate(1, backlog_s=0.01)])
    assert picked.best.number == 1 and picked.prices[1] > picked.prices[0]
    assert [one.score for one in scored(picked)] == [1.0, 1.0]


def test_of_those_that_give_something_up_who_gives_up_least() -> None:
    """To the token, and whoever's turn it is; of a longer match as much less is missing."""
    lot, some, also = (a_candidate(number, evicted=tokens, again=0.0) for number, tokens in enumerate((50, 20, 20)))
    held, less = a_candidate(0, 300, evicted=20, again=0.0), a_candidate(1, evicted=30, again=0.0)
    for turn in range(6):
        assert _best([lot, some, also], turn=turn) in (1, 2)
        assert _best([a_candidate(0, evicted=1, again=0.0), a_candidate(1)], turn=turn) == 1
        assert _best([held, less], turn=turn) == 0


def test_why_others_are_spared() -> None:
    """Where the best of all is left since it starts slowly, that is the reason; else it is the policy's own."""
    holder, other = a_candidate(0, 4000), a_candidate(1)
    given, policy = by_column([holder, other]), policy_of(Settings())
    own = pick(given, policy, 0)
    spared, alike, busy = (pick(given, policy, 0, slowness) for slowness in ([4.0, 1.0], [2.0, 2.0], [1.0, 4.0]))
    assert (spared.best.number, spared.reason) == (1, "others start slowly")
    assert [(each.best.number, each.reason) for each in (alike, busy)] == [(0, own.reason)] * 2
    assert spared.prices == [own.prices[0] * 4.0, own.prices[1]]
