"""The whole of /score's work for one chat, by what the caches know: nothing, the tokens, or the mapping as well.

    python -m benchmarks.score [--tokenizer FOLDER] [--pods 16]

Each figure is CPU time (all threads, on one core) beside the same work without any cache in the same run: render,
tokenize the whole text, hash all blocks, walk the index, score. A miss must cost hardly more than that, a hit hardly
anything. No two prompts begin alike.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson

from benchmarks.proxy_pods import MODEL
from benchmarks.steady import Steady, Work
from indexer.events import BlockStored
from router.config.reading import load, parse_model
from router.core.demand import Demand
from router.core.fleet import Pod, Rank, RankId
from router.prompts.prompt import parse
from router.prompts.rendering import Renderer
from router.service import Service
from router.tokens.tokenizer import Tokenizer
from scorer.cost import PrefillRate
from scorer.load import PodLoad

BLOCK = 16
PATH = "/v1/chat/completions"
SIZES = {2_000: 60, 8_000: 40, 32_000: 20, 128_000: 7}  # tokens -> rounds
TINY = Path(__file__).parent.parent / "simulator" / "tiny"
WORDS = "the of and to in is that for it as was with be by on not he this are or his from at which but have".split()


def service_of(folder: Path, pods: int) -> Service:
    """A gateway's inside with healthy pods that nobody will ask."""
    service = Service(load(None, {}, {"models": [parse_model(f"name={MODEL},tokenizer={folder}")]}))
    for number in range(pods):
        pod = Pod(f"pod-{number}", f"http://pod-{number}", block_size=BLOCK, healthy=True)
        pod.ranks.append(Rank(RankId(pod.name, 0), pod, PodLoad(PrefillRate(8000.0)), None))
        service.core.fleet.join(pod)
        service.core.fleet.learned_models(pod, [{"id": MODEL}])
    return service


def chat(rng: random.Random, tokens: int) -> bytes:
    """The body of a conversation of about so many tokens."""
    turns = max(2, tokens // 400)
    texts = [" ".join(rng.choice(WORDS) for _ in range(tokens // turns)) for _ in range(turns)]
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return orjson.dumps({"model": MODEL, "messages": messages})


class Bench:
    """Scores one prompt in every way."""

    def __init__(self, service: Service, folder: Path) -> None:
        self.service = service
        self.core = service.core
        self.renderer, self.tokenizer = Renderer(folder), Tokenizer(folder)

    def without(self, body: bytes) -> Demand:
        """No cache at all."""
        rendering = self.renderer.render(parse(PATH, body))
        tokens = self.tokenizer.encode(rendering.text, rendering.add_special_tokens)
        keys = self.core.space.chain(tokens, BLOCK)
        demand = Demand(MODEL, len(tokens), keys={BLOCK: keys})
        self.decide(demand)
        return demand

    async def within(self, body: bytes) -> Demand:
        """As the gateway does it."""
        encoder = self.service.encoder
        known = encoder.recalled(PATH, body) or await encoder.understood(PATH, body, parse(PATH, body))
        self.decide(known.demand)
        return known.demand

    def decide(self, demand: Demand) -> bool:
        """Whether its mapping still held."""
        holders = self.core.look_up(demand, None, 0.0)
        self.core.decide(demand, holders, frozenset(), 0.0)
        return holders.kept

    def hold(self, demand: Demand, body: bytes) -> None:
        """A third of the pods hold all of it, another third its first half."""
        rendering = self.renderer.render(parse(PATH, body))
        tokens = self.tokenizer.encode(rendering.text, rendering.add_special_tokens)
        hashes = demand.keys[BLOCK].tolist()
        for number, rank in enumerate(self.core.fleet.ranks):
            count = len(hashes) // (number % 3 + 1) if number % 3 < 2 else 0
            if count:
                self.core.index.apply(rank.id, BlockStored(hashes[:count], None, tokens[: count * BLOCK], BLOCK))

    def touch(self) -> None:
        """An event that no mapping survives."""
        self.core.index.clear(next(iter(self.core.fleet.ranks)).id)


class Prompts:
    """New prompts of one size, as each kind of work wants them."""

    def __init__(self, bench: Bench, size: int) -> None:
        self.bench = bench
        self.size = size
        self.rng = random.Random(size)
        self.tokens = 0
        self.kinds: dict[str, Callable[[], Awaitable[Work]]] = {
            "without": self.without, "miss": self.miss, "partial": self.partial, "hit": self.hit,
        }  # fmt: skip

    async def without(self) -> Work:
        body = chat(self.rng, self.size)
        return lambda: self.bench.without(body)

    async def miss(self) -> Work:
        body = chat(self.rng, self.size)
        return lambda: self.bench.within(body)

    async def partial(self) -> Work:
        """The tokens are known; the mapping has been touched by an event."""
        body = chat(self.rng, self.size)
        demand = await self.bench.within(body)
        self.tokens = demand.tokens
        self.bench.hold(demand, body)
        self.bench.touch()
        return lambda: self.bench.within(body)

    async def hit(self) -> Work:
        body = chat(self.rng, self.size)
        demand = await self.bench.within(body)
        self.bench.hold(demand, body)
        await self.bench.within(body)
        assert self.bench.decide(await self.bench.within(body))
        return lambda: self.bench.within(body)


async def measure(bench: Bench, steady: Steady, size: int, rounds: int) -> None:
    """One line of the table."""
    prompts = Prompts(bench, size)
    rows: dict[str, list[float]] = {name: [] for name in prompts.kinds}
    for _ in range(rounds):
        for name, prepare in prompts.kinds.items():
            rows[name].append(await steady.cpu_us(prepare))
    base = statistics.median(rows["without"])
    cells = [
        f"{name} {statistics.median(row):9.0f} us = {statistics.median(row) / base:6.3f}x" for name, row in rows.items()
    ]
    print(f"{prompts.tokens:7d} tokens: {'; '.join(cells)}", flush=True)


async def run(bench: Bench) -> None:
    steady = Steady()
    for size, rounds in SIZES.items():
        await measure(bench, steady, size, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, default=TINY, help="folder with tokenizer.json and a chat template")
    parser.add_argument("--pods", type=int, default=16)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    bench = Bench(service_of(options.tokenizer, options.pods), options.tokenizer)
    gc.collect()
    gc.freeze()
    asyncio.run(run(bench))


if __name__ == "__main__":
    main()
