"""Cores whose pods are there, prompts for them, and what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from indexer.blocks import Keys, KeySpace
from indexer.events import BlockStored
from indexer.feed import Feed
from indexer.match import Hit
from router.config.settings import Config
from router.core.decision import Core
from router.core.demand import Decision, Demand, End, Placement
from router.core.fleet import Pod, Rank, RankId
from router.service import core_settings
from scorer.board import Board
from scorer.cost import PrefillRate

MODEL = "m"
SIZE = 16
NOBODY: frozenset[str] = frozenset()
SERVED, VOID = End("served", 200), End("void")


def core_of(pods: int = 2, ranks: int = 1, feeds: bool = True, board: Board | None = None, **sections: Any) -> Core:
    """A core whose pods are there, healthy, and empty."""
    settings = core_settings(Config.model_validate({"index": {"blocks_max": 10_000}, **sections}))
    core = Core(settings, KeySpace(3), board)
    for number in range(pods):
        pod = Pod(f"pod-{number}", f"http://pod-{number}", healthy=True, block_size=SIZE)
        for rank in range(ranks):
            name = RankId(pod.name, rank)
            feed = Feed(core.index, name, 100) if feeds else None
            pod.ranks.append(Rank(name, pod, core.load_of(name, PrefillRate(1000)), feed))
            if feed is not None:
                feed.replay_ended(True, 0.0)  # it is listened to, and nothing was published
        core.fleet.join(pod)
        core.fleet.learned_models(pod, [{"id": MODEL}])
    return core


def nothing(clock: float) -> bytes:
    """A batch without events."""
    return msgspec.msgpack.encode([clock, [], 0])


def joined_late(feed: Feed) -> None:
    """What the pod still has of its feed begins in the middle: some of what it holds is not known."""
    feed.connected(0.0)
    feed.replayed(3, nothing(1.0), 0.0)
    feed.replay_ended(True, 0.0)
    assert feed.truncated


def tokens_of(seed: int, count: int = 160) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """A prompt of its own."""
    return np.arange(seed * 1000, seed * 1000 + count, dtype=np.uint32)


def asked(core: Core, seed: int, count: int = 160, **more: Any) -> Demand:
    """A tokenized prompt."""
    keys: Keys = core.space.chain(tokens_of(seed, count), SIZE)
    return Demand(MODEL, count, keys={SIZE: keys}, **more)


def route(
    core: Core, demand: Demand, exclude: frozenset[str], now: float, others: Mapping[RankId, Hit] | None = None
) -> Placement:
    """Look up and route, in one go as it has to be."""
    return core.route(demand, core.look_up(demand, others, now), exclude, now)


def decide(
    core: Core, demand: Demand, exclude: frozenset[str], now: float, others: Mapping[RankId, Hit] | None = None
) -> Decision:
    """Look up and decide, taking nothing."""
    return core.decide(demand, core.look_up(demand, others, now), exclude, now)


def counted(prompt_tokens: int, cached_tokens: int | None) -> End:
    """A whole answer, with the pod's own figures of its prompt."""
    return End("served", 200, usage=(prompt_tokens, cached_tokens))


def store(core: Core, pod: str, seed: int, count: int = 160, tier: Any = "gpu") -> None:
    """The pod says that it holds this prompt."""
    hashes = [seed * 100 + block for block in range(count // SIZE)]
    event = BlockStored(hashes, None, tokens_of(seed, count), SIZE, tier)
    core.index.apply(RankId(pod, 0), event)


def held(core: Core, pod: str, seed: int, count: int = 160) -> int:
    """Leading blocks that the pod is believed to hold."""
    hit = core.index.match(core.space.chain(tokens_of(seed, count), SIZE)).hits.get(RankId(pod, 0))
    return hit.blocks if hit else 0


def one_agent() -> tuple[Core, Pod]:
    """A pod most of whose cache is one agent's context, which has grown for 60 turns."""
    core = core_of(1, admission={"look_ahead": 0.5})
    pod = core.fleet.pods["pod-0"]
    pod.blocks = 40_000 // SIZE
    for turn in range(60):
        placed = route(core, asked(core, 1, 25_600 + 32 * turn, tells_prefill=True), NOBODY, float(turn))
        core.first_byte(placed, False, turn + 0.5)
        core.finish(placed, SERVED, turn + 0.6)
    return core, pod
