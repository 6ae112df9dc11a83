"""Requests that have a pod tell again of the blocks that it reuses: told twice is not held twice."""

from __future__ import annotations

import random

import numpy as np
import orjson
import pytest

from indexer import wire
from indexer.blocks import KeySpace
from indexer.events import BlockRemoved, BlockStored
from indexer.feed import Feed
from indexer.index import PrefixIndex
from indexer.match import MISS
from router.core.decision import Core
from router.core.demand import Demand
from router.core.fleet import RankId
from router.prompts.prompt import parse
from simulator.blocks import BlockPool
from simulator.events import NEWEST, Dialect, Origin
from simulator.hashes import root_digest
from simulator.scheduler import Request, Scheduler
from tests.fakes.cores import MODEL, NOBODY, SERVED, SIZE, core_of, route
from tests.fakes.recordings import frames, lines

POD = RankId("pod-0", 0)
BLOCKS_MAX = 48  # of the pod: a few prompts
GRACE_S = 1.0  # as configured by default
STEP_S = 3.0  # between two requests: longer than the grace
FULL = b'"vllm_xargs":{"kv_cache_report_mode":"full"}'


class Pod:
    """vLLM's scheduler and block pool, as the simulator has them, and a core that routes to it and hears of it."""

    def __init__(self, seed: int, told: bool) -> None:
        """`told`: the core knows which requests ask for a full report; else as if they did not pass the gateway."""
        self.rng = random.Random(seed)
        self.core: Core = core_of(1)
        self.now = 100.0
        self._told = told
        self._number = 0
        self._clock = 0.0  # of the newest batch
        pool = BlockPool(BLOCKS_MAX, SIZE)
        self._scheduler = Scheduler(pool, root_digest(str(seed)), sequences_max=4, batched_tokens_max=512)
        self._dialect = Dialect.of(NEWEST)
        self._prompts = [[self.rng.randrange(5000) for _ in range(self.rng.randrange(2, 9) * SIZE)] for _ in range(9)]

    @property
    def feed(self) -> Feed:
        feed = self.core.fleet.pods["pod-0"].ranks[0].feed
        assert feed is not None
        return feed

    def serve(self, full: bool, held_back: bool = False) -> None:
        """One request through the core to the pod and back. `held_back`: its events come after a gap, by a replay."""
        prompt = [*self.rng.choice(self._prompts), *(self.rng.randrange(5000) for _ in range(self.rng.randrange(40)))]
        keys = {SIZE: self.core.space.chain(np.array(prompt, np.uint32), SIZE)}
        demand = Demand(MODEL, len(prompt), keys=keys, asks_full_report=full and self._told)
        placed = route(self.core, demand, NOBODY, self.now)
        self._scheduler.add(Request(prompt, [1], Origin(), full_report=full))
        batches = []
        while self._scheduler.busy:
            self._scheduler.finish(self._scheduler.schedule())
            if events := self._scheduler.pool.take_events():
                batches.append(self._dialect.encode(self.now, events, SIZE, 0))
                self._clock = self.now
        if held_back:
            self.core.finish(placed, SERVED, self.now)
            self.now += 60
        self._hear(batches, held_back)
        if not held_back:
            self.core.finish(placed, SERVED, self.now)
        self.now += STEP_S
        self.core.index.expire(self.now)

    def stale(self) -> int:
        """Blocks that are believed and gone, over all prompts."""
        return sum(max(0, self._held(prompt) - self._cached(prompt)) for prompt in self._prompts)

    def unknown(self) -> int:
        """Blocks that are there and not known."""
        return sum(max(0, self._cached(prompt) - self._held(prompt)) for prompt in self._prompts)

    def _hear(self, batches: list[bytes], held_back: bool) -> None:
        for batch in batches:
            if held_back:
                self.feed.replayed(self._number, batch, self.now)
            else:
                assert self.feed.frame(self._number, batch, self.now) is None
            self._number += 1
        if held_back:
            assert self.feed.replay_ended(True, self.now) is None

    def reconnect(self) -> None:
        """What comes from now on is a replay, which proves itself by the last batch that was heard."""
        self.feed.connected(self.now)
        self.feed.replayed(self._number - 1, self._dialect.encode(self._clock, [], SIZE, 0), self.now)

    def _held(self, prompt: list[int]) -> int:
        keys = self.core.space.chain(np.array(prompt, np.uint32), SIZE)
        hit = self.core.index.match(keys).hits.get(POD, MISS)
        return hit.usable((len(prompt) - 1) // SIZE) if hit.blocks else 0

    def _cached(self, prompt: list[int]) -> int:
        return self._scheduler.cached_tokens(prompt, Origin()) // SIZE


@pytest.mark.parametrize("seed", range(8))
def test_what_is_told_again_is_no_copy(seed: int) -> None:
    """With every third request a full report, no block is believed that was evicted, and hardly one is not known."""
    pod = Pod(seed, told=True)
    unknown = 0
    for _ in range(300):
        pod.serve(full=pod.rng.random() < 0.3)
        assert not pod.stale()
        unknown += pod.unknown()
    assert pod.feed.counts.removed > 300
    assert unknown == 0, "here no request stores a copy more, so nothing is undercounted"


def test_unheard_of_they_leave_stale_blocks() -> None:
    """The same requests past the gateway: why it must know of them."""
    pod = Pod(0, told=False)
    worst = 0
    for _ in range(300):
        pod.serve(full=pod.rng.random() < 0.3)
        worst = max(worst, pod.stale())
    assert worst > 0


@pytest.mark.parametrize("seed", range(4))
def test_events_that_come_long_after(seed: int) -> None:
    """What was told again during a cut comes by a replay, long after the grace: it is no copy then either."""
    pod = Pod(50 + seed, told=True)
    for _ in range(200):
        full = pod.rng.random() < 0.3
        held_back = full and pod.rng.random() < 0.5 and pod.feed.last_number >= 0
        if held_back:
            pod.reconnect()
        pod.serve(full, held_back)
        assert not pod.stale()


@pytest.mark.parametrize("version", ["vllm-0.32.0", "vllm-0.28.0"])
def test_recorded(version: str) -> None:
    """vLLM's own frames: told of the request, the index is as if it had not been told again, eviction by eviction."""
    (request,) = [line for line in lines(version, "requests.jsonl") if "report_mode" in (line["note"] or "")]
    assert parse(request["path"], orjson.dumps(request["body"])).asks_full_report
    ours, unaware, truth = (_fed(version, request, way) for way in ("told", "untold", "left out"))
    assert ours == truth and len(ours) > 100
    assert unaware != truth


def _fed(version: str, request: dict[str, object], way: str) -> list[int]:
    """Blocks held after each batch with a removal that follows the request."""
    index = PrefixIndex(KeySpace(1), 4096)
    feed, held = Feed(index, "pod", 100), []
    first, last = int(str(request["seq_before"])), int(str(request["seq_after"]))
    for frame in frames(version):
        within = first < frame.number <= last
        if within and way == "told":
            feed.full_report_began()
        batch = wire.decode(frame.payload)
        if not (within and way == "left out"):
            for event in batch.events if way == "left out" else ():
                index.apply("pod", event)
            if way != "left out":
                feed.frame(frame.number, frame.payload, 10.0 * frame.number)
        if within and way == "told":
            feed.full_report_ended(10.0 * frame.number + GRACE_S)
        if frame.number > last and any(isinstance(event, BlockRemoved) for event in batch.events):
            held.append(index.holding("pod").gpu)
    return held


def test_the_grace_ends() -> None:
    """A copy that is stored after the grace is one; within it, it is not counted; an earlier copy stays counted."""
    index = PrefixIndex(KeySpace(1), 4096)
    feed = Feed(index, "pod", 100)
    dialect = Dialect.of(NEWEST)
    pool = BlockPool(8, 2)
    pool.announce([b"a" * 32], [1, 2], range(1), Origin())
    stored = pool.take_events()

    def held(removals: int) -> bool:
        for _ in range(removals):
            index.apply("pod", BlockRemoved([int.from_bytes(b"a" * 8, "big")]))
        return index.holding("pod").gpu == 1

    for number, (now, began) in enumerate([(0.0, False), (1.0, False), (2.0, True), (3.5, False), (9.0, False)]):
        if began:
            feed.full_report_began()
        feed.frame(number, dialect.encode(100.0 + number, stored, 2, 0), now)
        if began:
            feed.full_report_ended(4.0)
    assert held(2) and not held(1)  # of five stores those at 0, 1 and 9 are copies


def test_sliding_windows() -> None:
    """A window's group is told again as well: no copies of its blocks either."""
    index = PrefixIndex(KeySpace(1), 4096)
    tokens = np.arange(4, dtype=np.uint32)
    for again in (False, True):
        index.apply("pod", BlockStored([1, 2], None, tokens, 2, group=0, kind="full_attention", again=again))
        index.apply("pod", BlockStored([1, 2], None, tokens, 2, group=1, kind="sliding_window", window=3, again=again))
    keys = KeySpace(1).chain(tokens, 2)
    assert index.match(keys).hits["pod"].usable(2) == 2
    index.apply("pod", BlockRemoved([1, 2], group=1))
    assert "pod" not in index.match(keys).hits or index.match(keys).hits["pod"].usable(2) == 0


@pytest.mark.parametrize(
    ("path", "body", "asks"),
    [
        ("/v1/completions", b'{"prompt":"a",%b}' % FULL, True),
        ("/v1/chat/completions", b'{"messages":[{"role":"user","content":"a"}],%b}' % FULL, True),
        ("/v1/responses", b'{"input":"a",%b}' % FULL, True),
        ("/v1/messages", b'{"messages":[],%b}' % FULL, True),
        ("/inference/v1/generate", b'{"token_ids":[1],"sampling_params":{%b}}' % FULL, True),
        (
            "/inference/v1/generate",
            b'{"token_ids":[1],"sampling_params":{"extra_args":{"kv_cache_report_mode":"full"}}}',
            True,
        ),
        ("/v1/completions", b'{"prompt":"a","vllm_xargs":{"kv_cache_report_mode":"incremental"}}', False),
        ("/v1/completions", b'{"prompt":"a","vllm_xargs":["full"],"sampling_params":3}', False),
        ("/v1/completions", b'{"prompt":"a"}', False),
        ("/v1/audio/transcriptions", b"--form", False),
    ],
)
def test_who_asks_for_it(path: str, body: bytes, asks: bool) -> None:
    """The field stands in the body, or among the sampling parameters of a request of tokens."""
    assert parse(path, body).asks_full_report is asks
