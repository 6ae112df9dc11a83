"""A fleet in virtual time: the shipped core decides, and what comes out depends on nothing but the seed."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import get_args

import pytest

from indexer.feed import UNPROVEN
from router.config.settings import Config
from router.plan.figures import Figures
from router.plan.gateway import VirtualGateway
from router.plan.profiles import POD_PROFILES, PodPlan
from router.plan.publisher import EventPath
from router.plan.traces import Arrivals, Sessions, read_trace
from router.plan.world import World
from router.service import core_settings
from scorer.board import Board, row_of
from scorer.policies import PolicyName

SIZE = 64
PODS = PodPlan(4, POD_PROFILES["8b"], 60_000)


def chats(count: int = 600) -> Arrivals:
    """Conversations of some turns, which begin alike."""
    rng, lines, at, histories = random.Random(3), [], 0.0, Counter[int]()
    for _ in range(count):
        at += rng.expovariate(12.0)
        session = rng.randrange(40)
        histories[session] += 8
        blocks = [*range(1, 9), *range(1000 * session + 1000, 1000 * session + 1000 + histories[session])]
        if histories[session] > 160:
            histories[session] = 0
        entry = {"timestamp": int(at * 1e3), "input_length": SIZE * len(blocks) - 9, "output_length": 30}
        lines.append(json.dumps({**entry, "hash_ids": blocks, "session": session}))
    found = read_trace(lines, 1)
    assert isinstance(found, Arrivals)
    return found


def agents() -> Arrivals:
    """Short turns of known contexts; now and then one of 51,200 tokens begins."""
    rng, lines, at, histories = random.Random(5), [], 0.0, dict[int, int]()
    for number in range(800):
        at += rng.expovariate(4.0)
        session = rng.randrange(8)
        if number % 40 == 39:
            session = 100 + number
            histories[session] = 800
        histories[session] = histories.get(session, 80) + 4
        blocks = list(range(2000 * session, 2000 * session + histories[session]))
        entry = {"timestamp": int(at * 1e3), "input_length": SIZE * len(blocks), "output_length": 30}
        lines.append(json.dumps({**entry, "hash_ids": blocks, "session": session}))
    found = read_trace(lines, 1)
    assert isinstance(found, Arrivals)
    return found


def gateways(policy: str, workers: int = 1) -> list[VirtualGateway]:
    config = Config.model_validate({"scoring": {"policy": policy}, "index": {"blocks_max": 50_000}})
    row = row_of(64, 1024)
    memory = memoryview(bytearray(workers * row.itemsize))
    boards = [Board(memory, workers, own, row) if workers > 1 else None for own in range(workers)]
    return [VirtualGateway(core_settings(config), PODS, SIZE, 8000.0, board) for board in boards]


def played(policy: str, workers: int = 1, seed: int = 1, path: EventPath | None = None) -> Figures:
    fronts = gateways(policy, workers) if policy != "bound" else []
    world = World(PODS, SIZE, fronts, seed)
    if path is not None:
        for number, front in enumerate(fronts):
            front.listen(path, world.at, random.Random(number))
    return world.play(chats())


@pytest.mark.parametrize("policy", get_args(PolicyName))
def test_every_policy_is_played(policy: PolicyName) -> None:
    """All answered, in the shipped core; whoever knows what was sent or is held is above chance."""
    found, by_chance = played(policy), played("random")
    assert found.requests == by_chance.requests and found.mean > 0
    if policy == "overlap":  # all begin alike: it follows the first one
        assert found.imbalance == PODS.pods
    elif policy not in ("random", "round-robin", "least-load", "power-of-two"):
        assert found.hit > by_chance.hit + 0.1


def test_nobody_is_refused() -> None:
    """Where more come than a gateway would let in, the question is how long they wait."""
    config = Config.model_validate(
        {"gateway": {"requests_max": 1}, "admission": {"pod_requests_max": 1, "pod_prefill_tokens_max": 1}}
    )
    fronts = [VirtualGateway(core_settings(config), PODS, SIZE, 8000.0)]
    assert World(PODS, SIZE, fronts, 1).play(chats()).requests == played("predicted-ttft").requests


def test_one_seed_one_result() -> None:
    """To the last digit."""
    assert played("predicted-ttft") == played("predicted-ttft")


def test_policies_stand_in_their_order() -> None:
    """One cache for all answers soonest; knowing who holds what is above taking turns, and finds at least as much as
    one cache does, but for little: what is given up there may be kept in a part of it."""
    bound, ours, turns = (played(policy) for policy in ("bound", "predicted-ttft", "round-robin"))
    assert ours.hit > bound.hit - 0.005 and ours.hit > turns.hit + 0.1
    assert bound.mean < ours.mean < turns.mean
    assert bound.requests == ours.requests == turns.requests


@pytest.mark.parametrize("path", [EventPath(0.0, 0.0), EventPath(0.05, 0.05)])
def test_events_as_frames(path: EventPath) -> None:
    """They come late, and some only when they are asked for again: no gap stays in the end."""
    fronts = gateways("predicted-ttft")
    world = World(PODS, SIZE, fronts, 1)
    fronts[0].listen(path, world.at, random.Random(2))
    found = world.play(chats())
    assert found.hit > played("round-robin").hit + 0.1
    feeds = [rank.feed for rank in fronts[0].core.fleet.ranks]
    assert {reason for feed in feeds if feed is not None for reason in feed.reasons} <= {UNPROVEN}
    missed = sum(feed.counts.missed for feed in feeds if feed is not None)
    assert (missed > 0) == (path.loss > 0)


def test_workers_know_of_each_other() -> None:
    """Several of them place nearly as one does."""
    one, four = played("predicted-ttft"), played("predicted-ttft", workers=4)
    assert four.hit > one.hit - 0.05 and four.mean < 1.5 * one.mean


def test_slow_pods_get_less() -> None:
    """A fleet of which half is slow is slower, and the bound too."""
    slow = World(PODS._replace(slow_half=4.0), SIZE, [], 1).play(chats())
    assert slow.mean > played("bound").mean


def test_users_wait_for_their_answers() -> None:
    """More users, more requests; nobody asks before an answer is there."""
    lines = [
        json.dumps({"models": ["m"], "bs": 16, "tool": 64, "sys": 64, "reqs": [
            [0, 640 * turn, 50, 5.0, 0, "n", [1, 40 * turn]] for turn in range(1, 9)
        ]}) for _ in range(5)
    ]  # fmt: skip
    found = read_trace(lines, 1)
    assert isinstance(found, Sessions)
    counts = []
    for users in (2, 8):
        world = World(PODS, found.size, gateways("predicted-ttft"), 1)
        figures = world.serve(found, users, 200.0)
        assert figures.hit > 0.3 and figures.requests < users * 160 / 5
        counts.append(figures.requests)
    assert 3 * counts[0] < counts[1] < 5 * counts[0]


def test_short_turns_go_between_the_pieces_of_long_prompts() -> None:
    """Agents' turns are answered sooner where new contexts go in pieces, as much is cached, and nothing is lost."""

    def run(piece_tokens: int) -> Figures:
        pieces = {"enabled": piece_tokens > 0, "tokens": piece_tokens or 512}
        config = Config.model_validate({"scoring": {"pieces": pieces}, "index": {"blocks_max": 50_000}})
        front = VirtualGateway(core_settings(config), pods, SIZE, 8000.0)
        found = World(pods, SIZE, [front], 1).play(agents())
        assert (front.core.in_flight, front.core.hold.waiting, front.core.hold.rests) == (0, 0, {})
        return found

    pods = PodPlan(1, POD_PROFILES["8b"], 2_000_000)
    whole, pieced = run(0), run(4096)
    assert pieced.requests == whole.requests
    assert pieced.p90 < whole.p90 / 2
    assert pieced.hit == pytest.approx(whole.hit, abs=0.01)
    assert run(4096) == pieced


@pytest.mark.parametrize(("factors", "most"), [((1.0, 5.0), 0.2), ((1.0, 1.0, 10.0), 0.05)])
def test_a_slow_pod_gets_what_it_can_do(factors: tuple[float, ...], most: float) -> None:
    """Of prompts that nobody sends again, far from all that quick pods could do: room in its cache is no reason."""
    rng, lines, at = random.Random(5), [], 0.0
    for number in range(400):
        at += rng.expovariate(5.0 * (len(factors) - 1))
        blocks = list(range(24 * number, 24 * number + 24))
        entry = {"timestamp": int(at * 1e3), "input_length": 1500, "output_length": 16}
        lines.append(json.dumps({**entry, "hash_ids": blocks}))
    found = read_trace(lines, 1)
    assert isinstance(found, Arrivals)
    pods = PodPlan(len(factors), POD_PROFILES["32b"]._replace(token_s=1 / 12_000), 130_000, factors=factors)
    front = VirtualGateway(core_settings(Config()), pods, SIZE, 8000.0)
    World(pods, SIZE, [front], 1).play(found)
    tickets = [load.tickets for load in front.core.loads]
    assert 0 < tickets[-1] < most * sum(tickets)
