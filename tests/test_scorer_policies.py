"""What makes each policy that policy, and that its reasons are true."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from scorer.candidates import Candidate, Stranger, by_column
from scorer.pick import Pick, pick
from scorer.policies import POLICIES, AskedPrompt, Policy, PolicyName, Settings, Weights, policy_of, session_number
from tests.fakes.candidates import TOKEN_S, TOKENS, a_candidate


class Fleet:
    """Pods before one policy; what it picks is acted on."""

    def __init__(self, policy: PolicyName, **settings: object) -> None:
        self.policy: Policy = policy_of(Settings(policy, **settings))  # type: ignore[arg-type]
        self.turn = 0

    def ask(
        self, candidates: list[Candidate], asked: AskedPrompt | None = None, pods: list[Stranger] | None = None
    ) -> Pick:
        """One pick. `pods`: what is known of them."""
        columns = by_column(candidates)
        if pods is not None:
            columns.pods = pods
        picked = pick(columns, self.policy, self.turn, asked=asked)
        self.policy.sent(picked.candidates, picked.best.number, asked)
        self.turn += 1
        return picked


def prompt(seed: int, blocks: int = 100, common: int = 0, session: int = 0) -> AskedPrompt:
    """Blocks of 64 tokens, of which the first `common` are everybody's."""
    keys = np.arange(1000 * seed, 1000 * seed + blocks, dtype=np.uint64)
    keys[:common] = np.arange(10**9, 10**9 + common, dtype=np.uint64)
    return AskedPrompt(keys, 64, session)


def idle(count: int = 4) -> list[Candidate]:
    return [a_candidate(number) for number in range(count)]


# --- those that know nothing of caches


def test_round_robin_is_even_and_blind() -> None:
    """In order, whatever the pods hold or have to do."""
    fleet = Fleet("round-robin")
    candidates = [a_candidate(0, 7000), a_candidate(1, backlog_s=60.0, requests=50), a_candidate(2)]
    picks = [fleet.ask(candidates) for _ in range(6)]
    assert [picked.best.number for picked in picks] == [0, 1, 2, 0, 1, 2]
    assert {picked.reason for picked in picks} == {"turn"}


def test_least_load_is_blind_to_caches() -> None:
    """The idle pod, though another holds everything; a price is requests, and the seconds of their prefill."""
    picked = Fleet("least-load").ask([a_candidate(0, 7900, requests=3, prefill_tokens=900), a_candidate(1)])
    assert picked.best.number == 1 and picked.reason == "least loaded"
    candidates = [a_candidate(0, requests=3, prefill_tokens=500, token_s=0.01), a_candidate(1, requests=2)]
    assert Fleet("least-load").ask(candidates).prices == pytest.approx([8.0, 2.0])


def test_random_is_even_without_an_order() -> None:
    """Each pod gets its part; who comes next does not follow from who came before; the same again under the same
    requests."""
    candidates = [a_candidate(0, 7000), a_candidate(1, requests=50), a_candidate(2), a_candidate(3)]
    one, other = Fleet("random"), Fleet("random")
    picked, again = ([fleet.ask(candidates).best.number for _ in range(4000)] for fleet in (one, other))
    assert picked == again
    assert all(900 < count < 1100 for count in Counter(picked).values())
    pairs = Counter(itertools.pairwise(picked))
    assert len(pairs) == 16 and all(190 < count < 310 for count in pairs.values())


def test_what_is_drawn_is_splitmix64() -> None:
    """Its published numbers for a seed, which is the prompt's length: so they look like chance in any order."""
    published = (6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431)
    candidates = [a_candidate(number)._replace(tokens=1_234_567) for number in range(97)]
    fleet = Fleet("random")
    fleet.ask(candidates)
    assert [fleet.ask(candidates).best.number for _ in published] == [drawn % 97 for drawn in published]


def test_power_of_two_takes_the_less_loaded_of_two() -> None:
    """The busiest of all gets nothing, the idlest what it is drawn for: half of the picks among four, not all."""
    fleet = Fleet("power-of-two")
    candidates = [a_candidate(number, 7000 if number == 3 else 0, requests=10 * number) for number in range(4)]
    picks = [fleet.ask(candidates) for _ in range(6000)]
    shares = Counter(picked.best.number for picked in picks)
    assert shares[3] == 0
    assert [shares[number] / 6000 for number in range(3)] == pytest.approx([1 / 2, 1 / 3, 1 / 6], abs=0.03)
    assert {picked.reason for picked in picks} == {"the less loaded of two that were drawn"}
    assert fleet.ask([a_candidate(0)]).best.number == 0
    assert Counter(fleet.ask(idle(2)).best.number for _ in range(100)).total() == 100


# --- sessions


def test_a_session_has_one_pod() -> None:
    """Whatever is to do there; sessions are spread; the load decides where there is no session."""
    fleet = Fleet("session")
    homes = {session: fleet.ask(idle(), prompt(1, session=session)).best.number for session in range(1, 400)}
    assert all(count > 60 for count in Counter(homes.values()).values())
    for session, home in homes.items():
        busy = [a_candidate(number, requests=90 if number == home else 0) for number in range(4)]
        picked = fleet.ask(busy, prompt(2, session=session))
        assert picked.best.number == home and picked.reason == "its session's pod"
    busy = [a_candidate(0, requests=3), a_candidate(1, requests=1), a_candidate(2, requests=2)]
    for asked in (None, prompt(3)):
        picked = fleet.ask(busy, asked)
        assert picked.best.number == 1 and picked.reason == "least loaded: its session is not known"


def test_a_session_is_known_by_what_its_client_calls_it() -> None:
    """The same name is the same number for ever, in all gateways; others have others, and 0 is none."""
    numbers = [session_number(f"chat-{number}") for number in range(100)]
    assert len(set(numbers)) == 100 and 0 not in numbers
    assert session_number("chat-0") == 8894913391220430159


def test_sessions_of_a_pod_that_left_move_alone() -> None:
    """To all others; those who had another pod stay. Pods are known by their names, in any order."""
    fleet, names = Fleet("session"), ["a", "b", "c", "d"]
    pods = [Stranger(name) for name in names]
    for session in range(1, 200):
        asked = prompt(1, session=session)
        home = names[fleet.ask(idle(), asked, pods).best.number]
        left = [name for name in reversed(names) if name != "b"]
        new = left[fleet.ask(idle(3), asked, [Stranger(name) for name in left]).best.number]
        assert new == home or home == "b"


# --- by what pods hold


def test_overlap_follows_the_prefix_alone() -> None:
    """However busy its holder is; where nobody holds it, or several do, the fewest requests decide."""
    fleet = Fleet("overlap")
    picked = fleet.ask([a_candidate(0, 16, backlog_s=900.0, requests=99), a_candidate(1)])
    assert picked.best.number == 0 and picked.reason == "holds the longest prefix"
    picked = fleet.ask([a_candidate(0, requests=2), a_candidate(1, requests=1)])
    assert picked.best.number == 1 and picked.reason == "nobody holds a prefix"
    assert fleet.ask([a_candidate(0, 64, requests=2), a_candidate(1, 64, requests=1)]).best.number == 1


def test_affinity_ends_with_saturation() -> None:
    """The longest prefix wins up to there, and counts nothing from there on."""
    fleet = Fleet("affinity-until-saturated", saturated_s=2.0)
    cases = [
        ([a_candidate(0, 64, backlog_s=1.9), a_candidate(1)], 0, "holds the longest prefix"),
        ([a_candidate(0, 7000, backlog_s=2.0), a_candidate(1)], 1, "not saturated, as all are that hold a prefix"),
        (
            [a_candidate(0, 7000, backlog_s=2.0), a_candidate(1, 64, backlog_s=1.0), a_candidate(2)],
            1,
            "holds the longest prefix of those that are not saturated",
        ),
        ([a_candidate(0, 7000, backlog_s=3.0), a_candidate(1, backlog_s=2.5)], 1, "least loaded: all are saturated"),
        ([a_candidate(0, backlog_s=2.0), a_candidate(1)], 1, "not saturated, and nobody holds a prefix"),
    ]
    for candidates, number, reason in cases:
        picked = fleet.ask(candidates)
        assert (picked.best.number, picked.reason) == (number, reason)


def test_the_reason_is_what_made_the_difference() -> None:
    """Where the holder of the longest prefix was left: its backlog, its speed, or what it would have to give up."""
    slow, slow_too = {"requests": 5, "token_s": 9 * TOKEN_S}, {"token_s": 3 * TOKEN_S, "factor": 3.0}
    cases = [
        (a_candidate(0, 4000, backlog_s=20.0), "less loaded than"),
        (a_candidate(0, 4000, requests=9999), "less loaded than"),
        (a_candidate(0, 4000, **slow), "computes it sooner than"),
        (a_candidate(0, 4000, evicted=4000, again=0.9), "gives up less than"),
        (a_candidate(0, 4000, evicted=600, again=0.9, **slow_too), "gives up less than"),
    ]
    for holder, reason in cases:
        picked = Fleet("predicted-ttft").ask([holder, a_candidate(1)])
        assert (picked.best.number, picked.reason) == (1, f"{reason} the holder of the longest prefix")
    assert Fleet("predicted-ttft").ask(idle()).reason == "least loaded: nobody holds a prefix"


# --- by what pods were sent


def test_weighted_follows_what_was_sent() -> None:
    """Not what is held: a prompt goes where it went before, as long as the queue there is not worth more."""
    fleet = Fleet("weighted")
    first = fleet.ask(idle(), prompt(1))
    assert first.reason == "least loaded: nobody was sent a prefix of it"
    home = first.best.number
    others = [a_candidate(number, 0 if number == home else TOKENS) for number in range(4)]
    picked = fleet.ask(others, prompt(1))
    assert picked.best.number == home and picked.reason == "was sent the longest prefix"
    busy = [a_candidate(number, requests=9 if number == home else 0) for number in range(4)]
    assert fleet.ask(busy, prompt(1)).best.number == home, "3 for the prefix, 2 for the queue"
    picked = fleet.ask(busy, prompt(2, common=0))
    assert picked.best.number != home
    partial = np.concatenate((prompt(1).keys[:50], prompt(7, 50).keys))
    picked = fleet.ask(busy, AskedPrompt(partial, 64, 0))
    assert picked.best.number != home and picked.reason == "less loaded than the receiver of the longest prefix"


def test_what_a_blend_costs() -> None:
    """What is missing of the weights: shares of the prefix, of the queue between the longest and the shortest, of the
    memory in use."""
    fleet = Fleet("weighted", weights=Weights(3.0, 2.0, 4.0))
    pods = [Stranger(0, None, 0.5), Stranger(1, None, 0.25), Stranger(2)]
    candidates = [a_candidate(0, requests=4), a_candidate(1, requests=2), a_candidate(2)]
    assert fleet.ask(candidates, prompt(1), pods).prices == pytest.approx([2 + 3 + 2, 1 + 3 + 1, 3])
    half = AskedPrompt(np.concatenate((prompt(1).keys[:50], prompt(7, 50).keys)), 64, 0)
    assert fleet.ask(candidates, half, pods).prices == pytest.approx([2 + 3 + 2, 1 + 3 + 1, 1.5])
    assert fleet.ask([a_candidate(0), a_candidate(1)], None).prices == pytest.approx([3.0, 3.0])
    busy = [a_candidate(0, requests=5), a_candidate(1, requests=4), a_candidate(2, requests=1)]
    assert fleet.ask(busy, None).prices == pytest.approx([3 + 2, 3 + 1.5, 3])
    assert fleet.ask(busy[:1], None).prices == pytest.approx([3.0]), "as few as any other has"


def test_any_hit_may_have_a_bonus() -> None:
    """However short: it can outweigh the queue."""
    partial = AskedPrompt(np.concatenate((prompt(1).keys[:1], prompt(7, 99).keys)), 64, 0)
    for bonus, stays in ((0.0, False), (2.0, True)):
        fleet = Fleet("weighted", cache_hit_bonus=bonus)
        home = fleet.ask(idle(), prompt(1)).best.number
        busy = [a_candidate(number, requests=9 if number == home else 0) for number in range(4)]
        assert (fleet.ask(busy, partial).best.number == home) == stays


def test_the_parameters_bound_what_is_looked_at_and_remembered() -> None:
    """So many blocks of a prompt, of so many tokens; so many of a pod."""
    fleet = Fleet("weighted", max_prefix_blocks_to_match=10)
    home = fleet.ask(idle(), prompt(1, common=10)).best.number
    assert fleet.ask(idle(), prompt(2, common=10)).prices[home] == pytest.approx(0.0), "the rest is not looked at"
    fleet = Fleet("weighted", hash_block_size=640)
    home = fleet.ask(idle(), prompt(1)).best.number
    shared = AskedPrompt(np.concatenate((prompt(1).keys[:19], prompt(7, 81).keys)), 64, 0)
    assert fleet.ask(idle(), shared).prices[home] == pytest.approx(3 * 0.9), "one of ten blocks is whole"
    fleet = Fleet("weighted", lru_capacity_per_server=100)
    fleet.ask(idle(1), prompt(1))
    fleet.ask(idle(1), prompt(2))
    assert fleet.ask(idle(1), prompt(1)).reason == "least loaded: nobody was sent a prefix of it"
    fleet.policy.forget(0)
    assert fleet.ask(idle(1), prompt(1)).reason == "least loaded: nobody was sent a prefix of it"


def test_approximate_goes_by_its_own_picks() -> None:
    """Whatever events told; priced as what is held is: a backlog can outweigh it. Nothing of it stays in what others
    see."""
    fleet = Fleet("approximate")
    home = fleet.ask(idle(), prompt(1)).best.number
    told = [a_candidate(number, 0 if number == home else TOKENS) for number in range(4)]
    picked = fleet.ask(told, prompt(1))
    assert picked.best.number == home and picked.reason == "was sent the longest prefix"
    assert picked.best.matched == 6400
    busy = [a_candidate(number, backlog_s=9.0 if number == home else 0.0) for number in range(4)]
    picked = fleet.ask(busy, prompt(1))
    assert picked.best.number != home
    assert picked.reason == "less loaded than the receiver of the longest prefix"
    columns = by_column(told)
    pick(columns, fleet.policy, 0, asked=prompt(1))
    assert columns.matched == [each.matched for each in told]
    assert fleet.ask(idle(), None).reason == "least loaded: nobody was sent a prefix"


def test_approximate_counts_in_blocks_as_large_as_the_pods() -> None:
    """Where these are larger than what is hashed, too: half a block is never there."""
    for size, shared, matched in ((16, 7, 64), (64, 7, 448), (128, 7, 896)):
        fleet, keys = Fleet("approximate"), prompt(1).keys[:20]
        fleet.ask(idle(1), AskedPrompt(keys, size, 0))
        other = AskedPrompt(np.concatenate((keys[:shared], prompt(7).keys)), size, 0)
        assert fleet.ask(idle(1), other).best.matched == matched


def test_approximate_remembers_what_the_pod_has_room_for() -> None:
    """By the capacity that it tells; where that is not known, by the usual number of blocks."""
    for capacity, matched in ((6400, 0), (12800, 6400), (None, 6400)):
        fleet, pods = Fleet("approximate"), [Stranger("a", capacity)]
        fleet.ask(idle(1), prompt(1), pods)
        fleet.ask(idle(1), prompt(2), pods)
        assert fleet.ask(idle(1), prompt(1), pods).best.matched == matched
    fleet = Fleet("approximate", lru_capacity_per_server=100)
    fleet.ask(idle(1), prompt(1))
    fleet.ask(idle(1), prompt(2))
    assert fleet.ask(idle(1), prompt(1)).best.matched == 0
    fleet.ask(idle(1), prompt(2))
    fleet.policy.forget(0)
    assert fleet.ask(idle(1), prompt(2)).best.matched == 0


@pytest.mark.parametrize("name", POLICIES)
def test_one_request_is_nothing_to_the_next_gateway(name: PolicyName) -> None:
    """A policy that is made is new, whatever another one was asked."""
    first = Fleet(name)
    told = [first.ask(idle(), prompt(seed % 3, session=seed)).best.number for seed in range(40)]
    second = Fleet(name)
    assert [second.ask(idle(), prompt(seed % 3, session=seed)).best.number for seed in range(40)] == told
