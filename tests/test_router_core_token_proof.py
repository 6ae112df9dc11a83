"""Tokens against events, over what real vLLM servers published: the right ones are never doubted, others soon are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from indexer.blocks import KeySpace, Tokens
from indexer.feed import Feed
from router.config.settings import Config
from router.core.decision import Core
from router.core.demand import Demand, Placement
from router.core.fleet import Pod, Rank, RankId
from router.core.token_proof import WITNESS_BYTES_MAX, Doubt
from router.core.token_states import Origin, TokenizerState, Witness
from router.prompts.prompt import parse
from router.service import core_settings
from router.tokens.understanding import shape_of
from scorer.cost import PrefillRate
from scorer.load import PodLoad
from tests.fakes.cores import counted, route
from tests.fakes.recordings import VERSIONS, Ask, Recording, recording, small_recording

MODEL = "m"
STEP_S = 0.5  # between two requests: what a request stores is told before the one after the next
REQUESTS = 32
PLAIN = parse("/v1/chat/completions", b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}')


class Replay:
    """A core before one recorded server, whose requests pass through it in virtual time."""

    def __init__(self, recorded: Recording, twist: Callable[[Tokens], Tokens]) -> None:
        """`twist`: what we make of a prompt, of the tokens that it had."""
        self.recorded = recorded
        self.state = TokenizerState()
        self.doubts: list[Doubt] = []
        self._twist = twist
        self.core = Core(core_settings(Config.model_validate({"index": {"blocks_max": 10_000}})), KeySpace(3))
        pod = Pod("pod-0", "http://pod-0", healthy=True, block_size=recorded.block_size)
        self.feed = Feed(self.core.index, RankId("pod-0", 0), 10_000)
        pod.ranks.append(Rank(RankId("pod-0", 0), pod, PodLoad(PrefillRate(1000)), self.feed))
        self.feed.replay_ended(True, 0.0)
        self.core.fleet.join(pod)
        self.core.fleet.learned_models(pod, [{"id": MODEL}])
        self._done = 0
        self.now = 100.0

    def run(self) -> None:
        """All requests, and what was published meanwhile."""
        for ask in self.recorded.asks:
            self._publish(ask.before)
            placed = self._route(ask)
            self.now += STEP_S
            self.core.first_byte(placed, False, self.now)
            self.core.finish(placed, counted(len(ask.tokens), ask.cached), self.now)
        self._publish(len(self.recorded.frames))
        self.now += 10.0
        self._judge()

    def _publish(self, count: int) -> None:
        for frame in self.recorded.frames[self._done : count]:
            self.feed.frame(frame.number, frame.payload, self.now)
        self._done = max(self._done, count)
        self._judge()

    def _judge(self) -> None:
        self.doubts += self.core.proof.judge(self.now)
        self.core.index.expire(self.now)

    def _route(self, ask: Ask) -> Placement:
        tokens, grain = self._twist(ask.tokens), self.feed.grain or self.recorded.block_size
        keys = self.core.space.chain(tokens, grain, lora=ask.lora, salt=ask.salt)
        origin = Origin(self.state, shape_of(PLAIN), MODEL, ask.lora, ask.salt)
        asked = Demand(MODEL, len(tokens), keys={grain: keys}, origin=origin, is_alone=ask.n == 1)
        return route(self.core, asked, frozenset(), self.now)


def as_it_was(tokens: Tokens) -> Tokens:
    return tokens


def one_id(tokens: Tokens) -> Tokens:
    """Another id in the first quarter."""
    return np.where(np.arange(len(tokens)) == len(tokens) // 4, tokens + 1, tokens).astype(np.uint32)


def one_more(tokens: Tokens) -> Tokens:
    """BOS, say."""
    return np.concatenate([np.array([1], np.uint32), tokens])


@pytest.mark.parametrize("version", VERSIONS)
def test_right_tokens_are_not_doubted(version: str) -> None:
    """Through evictions, resets, preemptions, aborts, siblings, adapters and salts."""
    replayed = Replay(recording(version), as_it_was)
    replayed.run()
    assert not replayed.doubts and replayed.state.state == "exact"
    assert replayed.state.confirmed > len(replayed.recorded.asks) // 2


def test_hybrid_models() -> None:
    """The group that prefixes hang on tells of all blocks; the others' events say nothing against our tokens."""
    replayed = Replay(small_recording("vllm-0.32.0-hybrid"), as_it_was)
    replayed.run()
    assert not replayed.doubts and replayed.state.confirmed > 10
    wrong = Replay(small_recording("vllm-0.32.0-hybrid"), one_id)
    wrong.run()
    assert any(doubt.proof for doubt in wrong.doubts)


@pytest.mark.parametrize("twist", [one_id, one_more])
@pytest.mark.parametrize("version", VERSIONS)
def test_wrong_tokens_are_doubted(version: str, twist: Callable[[Tokens], Tokens]) -> None:
    """Within so many requests it is proven, by the place where they part, or by their number."""
    whole = recording(version)
    replayed = Replay(replace(whole, asks=whole.asks[:REQUESTS]), twist)
    replayed.run()
    first = next(doubt for doubt in replayed.doubts if doubt.proof)
    assert (first.counts is None) == (twist is one_id)
    assert first.counts is not None or (first.block is not None and first.theirs)


def test_kept_bodies_are_bounded() -> None:
    """Over 16 MiB a request is judged without its body; what is judged lets go of its own, and makes room."""
    replayed = Replay(small_recording("vllm-0.32.0-hybrid"), as_it_was)
    core, bodies = replayed.core, WITNESS_BYTES_MAX // 3

    def answered() -> Placement:
        tokens = np.arange(64, dtype=np.uint32)
        origin = Origin(replayed.state, shape_of(PLAIN), MODEL, None, None)
        grain = replayed.recorded.block_size
        demand = Demand(MODEL, 64, keys={grain: core.space.chain(tokens, grain)}, origin=origin)
        holders = core.look_up(demand, None, replayed.now)
        placed = core.route(demand, holders, frozenset(), replayed.now, Witness("/v1/completions", bytes(bodies)))
        core.first_byte(placed, False, replayed.now)
        core.finish(placed, counted(64, 0), replayed.now)
        return placed

    kept = [answered().witness is not None for _ in range(5)]
    assert kept == [True, True, True, False, False]
    assert (core.proof.witness_bytes, core.proof.waiting) == (3 * bodies, 5)
    replayed.now += 60.0
    core.proof.judge(replayed.now)
    assert (core.proof.witness_bytes, core.proof.waiting) == (0, 0)
    assert answered().witness is not None
