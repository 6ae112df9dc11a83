"""What workers lose by not knowing of each other: the time to the first token, simulated, beside one worker's.

    python -m benchmarks.workers_simulation [--workers 4] [--pods 8] [--requests 6000] [--seeds 3]

The decisions are those of the gateway (`Core` and `Board`, one for each worker); pods are made of arithmetic: prefill
one after the other at a fixed speed, a cache of blocks that forgets the least recently used, events after a moment.
Time is simulated. Every request goes to a worker by chance, as connections do. `chats`: conversations that grow, think
time between turns. `bursts`: many questions about one new document, all within a moment. Shared is the load in flight
alone, or (`both`) where prompts were sent that no pod held, too; as old as is said. `hosts`: each worker is on a host
of its own, and tells the others by the gateway's own datagrams, of which some are lost.
"""

from __future__ import annotations

import argparse
import heapq
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np

from indexer.blocks import Keys, KeySpace, Tokens
from indexer.events import BlockRemoved, BlockStored
from indexer.feed import Feed
from router.config.settings import Config
from router.core.decision import Core
from router.core.demand import Demand, End
from router.core.fleet import Pod, Rank, RankId
from router.service import core_settings
from router.state.datagrams import Teller, heard
from scorer.board import Board, row_of
from scorer.cost import FleetRate, PrefillRate
from scorer.guests import Guests, OwnRow

BLOCK = 16
SPEED = 8_000.0  # tokens of prefill a second
CACHE_BLOCKS = 12_000
EVENT_DELAY_S = 0.02
DECODE_S = 2.0
MODEL = "m"
ROW = row_of(64, 16_384)
SYSTEM, FIRST, TURN, TURNS, THINK_S = 512, 2_000, 600, 6, 8.0  # tokens, and seconds
DOCUMENT, QUESTION, QUESTIONS, WITHIN_S = 8_000, 200, 16, 0.2
NOBODY: frozenset[str] = frozenset()
KEY = b"of all hosts"
TRAVEL_S, LOST = 0.001, 0.02  # of a datagram between hosts; share of them

Work = Callable[["World", int, float], None]


class Way(NamedTuple):
    """How routers know of each other. `look_s`: between two looks at the board; None: there is none."""

    name: str
    workers: int
    look_s: float | None = None
    sendings: bool = True
    hosts: bool = False  # each worker is on a host of its own: told by datagrams every `look_s`


class Reserved(Board):
    """A board on which only load is told."""

    def tell(self, rank: Hashable, keys: Keys, start: int, expires: float) -> None:
        """Nothing."""


class Engine:
    """One pod: until when it is busy, and what it holds."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def serve(self, keys: list[int], tokens: int, now: float) -> tuple[float, int, int, list[int]]:
        """(time of the first token, blocks that were held, tokens computed, blocks given up)."""
        held = 0
        while held < len(keys) and keys[held] in self.blocks:
            held += 1
        held = min(held, (tokens - 1) // BLOCK)
        computed = tokens - held * BLOCK
        self.free_at = max(now, self.free_at) + computed / SPEED
        for key in reversed(keys):  # the end of a chain goes first
            self.blocks[key] = None
            self.blocks.move_to_end(key)
        gone = []
        while len(self.blocks) > CACHE_BLOCKS:
            gone.append(self.blocks.popitem(last=False)[0])
        return self.free_at, held, computed, gone


class World:
    """Routers, pods and a clock."""

    def __init__(self, way: Way, pods: int, seed: int) -> None:
        self.way = way
        self.rng = random.Random(seed)
        self.now = 0.0
        self.space = KeySpace(1)
        self.engines = [Engine() for _ in range(pods)]
        if way.hosts:
            memories = [memoryview(bytearray(way.workers * ROW.itemsize)) for _ in range(way.workers)]
            self.cores = [self._core(0, memory, pods) for memory in memories]
            self._tellers = [Teller(KEY, number, 0, 1) for number in range(way.workers)]
            self._rows = [OwnRow(memory, 0, ROW) for memory in memories]
            self._guests = [Guests(memory, 1, ROW) for memory in memories]
        else:
            memory = memoryview(bytearray(way.workers * ROW.itemsize))
            self.cores = [self._core(number, memory, pods) for number in range(way.workers)]
        self.ttft_s: list[float] = []
        self.computed = self._count = 0
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []

    def _core(self, number: int, memory: memoryview, pods: int) -> Core:
        given = {"index": {"blocks_max": 1_000_000}, "scoring": {"slow_start": 0}, "admission": {"look_ahead": 0}}
        config = Config.model_validate(given)  # nobody waits here: each request is placed as it comes
        look_s = self.way.look_s
        kind = Board if self.way.sendings else Reserved
        board = None
        if look_s is not None and self.way.hosts:
            board = Board(memory, 1, 0, ROW, guests=self.way.workers - 1)
        elif look_s is not None:
            board = kind(memory, self.way.workers, number, ROW, look_s)
        core, fleet = Core(core_settings(config), self.space, board=board), FleetRate(SPEED)
        for place in range(pods):
            pod = Pod(f"pod-{place}", "", healthy=True, block_size=BLOCK, blocks=CACHE_BLOCKS)
            name = RankId(pod.name, 0)
            feed = Feed(core.index, name, 1_000)
            feed.replay_ended(True, 0.0)
            pod.ranks.append(Rank(name, pod, core.load_of(name, PrefillRate(SPEED, fleet)), feed))
            core.fleet.join(pod)
            core.fleet.learned_models(pod, [{"id": MODEL}])
        return core

    def at(self, time_s: float, call: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._agenda, (time_s, self._count, call))

    def run(self) -> None:
        if self.way.hosts:
            self.at(0.0, self._exchange)
        while self._agenda:
            self.now, _, call = heapq.heappop(self._agenda)
            call()

    def _exchange(self) -> None:
        """All tell all others, by datagrams that take `TRAVEL_S` and of which some are lost."""
        assert self.way.look_s is not None, "they tell each other"
        for number, (teller, row) in enumerate(zip(self._tellers, self._rows, strict=True)):
            for data in teller.datagrams(row, self.now):
                for other, guests in enumerate(self._guests):
                    if other != number and self.rng.random() >= LOST:
                        self.at(self.now + TRAVEL_S, lambda guests=guests, data=data: self._hear(guests, data))  # type: ignore[misc]
        if self._agenda:
            self.at(self.now + self.way.look_s, self._exchange)

    def _hear(self, guests: Guests, data: bytes) -> None:
        said = heard(KEY, data)
        assert said is not None, "its seal is right"
        guests.hear(said.gateway, said.news, self.now)

    def request(self, tokens: Tokens, then: Callable[[], None] | None = None) -> None:
        """One request, now."""
        keys: Keys = self.space.chain(tokens, BLOCK)
        core = self.rng.choice(self.cores)
        core.index.expire(self.now)
        demand = Demand(MODEL, len(tokens), keys={BLOCK: keys})
        placed = core.route(demand, core.look_up(demand, None, self.now), NOBODY, self.now)
        rank, number = placed.decision.rank.id, int(placed.decision.rank.id.pod[4:])
        names = keys.tolist()
        first_s, held, computed, gone = self.engines[number].serve(names, len(tokens), self.now)
        self.ttft_s.append(first_s - self.now)
        self.computed += computed
        self.at(first_s, lambda: core.first_byte(placed, True, self.now))
        self.at(first_s + EVENT_DELAY_S, lambda: self._tell(rank, names, tokens, held, gone))
        self.at(first_s + DECODE_S, lambda: core.finish(placed, End("served", 200), self.now))
        if then is not None:
            self.at(first_s + DECODE_S, then)

    def _tell(self, rank: RankId, names: list[int], tokens: Tokens, held: int, gone: list[int]) -> None:
        parent, new = names[held - 1] if held else None, names[held:]
        for core in self.cores:
            if new:
                text = tokens[held * BLOCK : len(names) * BLOCK]
                core.index.apply(rank, BlockStored(new, parent, text, BLOCK))
            if gone:
                core.index.apply(rank, BlockRemoved(gone, "gpu"))


def text(rng: np.random.Generator, count: int) -> Tokens:
    return rng.integers(0, 100_000, count, dtype=np.uint32)


def chats(world: World, requests: int, load: float) -> None:
    """Conversations that begin by chance, so many that the pods have `load` of what they can do if all turns hit."""
    rng = np.random.default_rng(5)
    system = text(rng, SYSTEM)
    work = FIRST + (TURNS - 1) * TURN  # tokens to compute of one conversation
    gap_s = work / (load * SPEED * len(world.engines))
    at = 0.0

    def turn(tokens: Tokens, left: int) -> None:
        def later() -> None:
            think_s = world.rng.expovariate(1 / THINK_S)
            grown = np.concatenate([tokens, text(rng, TURN)])
            world.at(world.now + think_s, lambda: turn(grown, left - 1))

        world.request(tokens, later if left > 1 else None)

    for _ in range(requests // TURNS):
        at += world.rng.expovariate(1 / gap_s)
        begun = np.concatenate([system, text(rng, FIRST)])
        world.at(at, lambda begun=begun: turn(begun, TURNS))  # type: ignore[misc]
    world.run()


def bursts(world: World, requests: int, load: float) -> None:
    """Documents that come by chance, each with all its questions within a moment."""
    rng = np.random.default_rng(6)
    gap_s = (DOCUMENT + QUESTIONS * QUESTION) / (load * SPEED * len(world.engines))
    at = 0.0
    for _ in range(requests // QUESTIONS):
        at += world.rng.expovariate(1 / gap_s)
        document = text(rng, DOCUMENT)
        for _ in range(QUESTIONS):
            asked = np.concatenate([document, text(rng, QUESTION)])
            world.at(at + world.rng.uniform(0, WITHIN_S), lambda asked=asked: world.request(asked))  # type: ignore[misc]
    world.run()


class Figures(NamedTuple):
    """Of one run."""

    p90_s: float
    mean_s: float
    computed: int


def figures(way: Way, work: Work, options: argparse.Namespace, load: float, seed: int) -> Figures:
    """One run."""
    world = World(way, options.pods, seed)
    work(world, options.requests, load)
    return Figures(statistics.quantiles(world.ttft_s, n=10)[-1], statistics.fmean(world.ttft_s), world.computed)


def ways(workers: int) -> list[Way]:
    return [
        Way("one worker", 1),
        Way("nothing shared", workers),
        Way("load only, 5 ms", workers, 0.005, sendings=False),
        *(Way(f"both, {ms} ms", workers, ms / 1e3) for ms in (5, 10, 100)),
        *(Way(f"hosts, {ms} ms", workers, ms / 1e3, hosts=True) for ms in (10, 20, 50)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--pods", type=int, default=8)
    parser.add_argument("--requests", type=int, default=6_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--load", type=float, action="append", help="share of what the pods can do")
    options = parser.parse_args()
    for name, work, loads in (("chats", chats, (0.5, 0.75)), ("bursts", bursts, (0.3, 0.5))):
        for load in options.load or loads:
            print(f"\n{name}, {options.workers} workers, load {load:g}: p90 TTFT, and as a ratio to one worker: "
                  "p90 TTFT, mean TTFT, tokens computed", flush=True)  # fmt: skip
            one: list[Figures] = []
            for way in ways(options.workers):
                found = [figures(way, work, options, load, seed) for seed in range(options.seeds)]
                one = one or found
                ratios = [statistics.fmean(a[at] / b[at] for a, b in zip(found, one, strict=True)) for at in range(3)]
                p90_s = statistics.fmean(each.p90_s for each in found)
                print(f"  {way.name:16} {p90_s:7.3f} s " + " ".join(f"{ratio:6.2f}x" for ratio in ratios), flush=True)


if __name__ == "__main__":
    main()
